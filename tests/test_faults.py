"""Signals, full disks, damaged, foreign and hostile files: nothing is lost, and nobody gets in."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
QUIET = (
    *("--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
)


@pytest.fixture
def training(tiny_bert, corpus, tmp_path):
    """The arguments of a training of the tiny backbone in the directory `run`."""

    def arguments(command, *args, epochs=2, grid=("--grid.rank", "[1,2]", "--sweep.pack_size", 1)):
        files = ("--config", CONFIGS / "sts.yaml", "--data.root", corpus, "--data.max_length", 40)
        store = ("--model.backbone", tiny_bert, "--store.root", tmp_path, "--store.run", "run")
        sizes = ("--trainer.max_epochs", epochs, *(grid if command == "sweep" else ()))
        return [str(arg) for arg in (command, *files, *store, *sizes, *QUIET, *args)]

    return arguments


def start(arguments, **options):
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "loraens", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, env=environment, **{**pipes, **options})


def wait_for(path, process):
    """Until a file is there."""
    for _ in range(6000):
        if path.is_file():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail(f"{path} has not come")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "times", "code", "checkpoint"),
    [
        pytest.param("fit", signal.SIGTERM, 1, 143, "last.ckpt", id="fit-term"),
        pytest.param("fit", signal.SIGINT, 2, 130, "last.ckpt", id="fit-int-twice"),
        pytest.param("sweep", signal.SIGTERM, 1, 143, "packs/0-r1-c3-s0-lr0.001.ckpt", id="sweep"),
        pytest.param(
            "sweep", signal.SIGINT, 2, 130, "packs/0-r1-c3-s0-lr0.001.ckpt", id="sweep-int-twice"
        ),
    ],
)
def test_a_signal_ends_in_its_code_and_the_way_to_go_on(
    training, tmp_path, command, number, times, code, checkpoint
):
    arguments = training(command, "--model.lr", 1e-3, epochs=500)
    process = start(arguments)
    try:
        wait_for(tmp_path / "run" / checkpoint, process)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.02)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"loraens: {'terminated' if code == 143 else 'interrupted'}"
    assert "to resume: loraens" in out + err
    assert (tmp_path / "run" / checkpoint).is_file()


def test_a_signal_anywhere_else_ends_in_its_code():
    """Of a command that trains nothing; the second signal comes while the first one is unwound."""
    code = (
        "import os, signal, sys, time\n"
        "from loraens import cli, commands\n"
        "def main(args):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(9)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules['loraens.commands.report'] = type('Module', (), {'main': main})\n"
        "cli.main()\n"
    )
    call = [sys.executable, "-c", code, "report"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (143, "loraens: terminated\n")


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        pytest.param("> /dev/full", "standard output: No space left on device", id="full"),
        pytest.param("| true", "standard output: Broken pipe", id="closed"),
    ],
)
def test_standard_output_that_cannot_be_written_is_named(shell, message):
    code = (
        "import sys, time\n"
        "from loraens import cli\n"
        "def main(args):\n"
        "    time.sleep(0.2)\n"
        "    print('some words')\n"
        "sys.modules['loraens.commands.report'] = type('Module', (), {'main': main})\n"
        "cli.main()\n"
    )
    call = f'set -o pipefail; "{sys.executable}" -c "$0" report {shell}'
    done = subprocess.run(["bash", "-c", call, code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, f"loraens: {message}\n")
