"""The engine ray: the bits of one process, with workers and coordinators that are killed, and
without a directory or texts that workers see.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from helpers.sweeps import contents

from loraens.cluster import Cluster, check_workers, cores
from loraens.data.modules import STS, TextData
from loraens.data.sources import course_source
from loraens.errors import InputError
from loraens.members import Grid, Member
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.config import SweepConfig
from loraens.train.coordinator import Coordinator
from loraens.train.options import SweepOptions
from loraens.train.state import wait_for_workers

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
ROOT = Path(__file__).parent.parent
TASK = "ray::train"  # how Ray names a process that trains
TWO = ("--sweep.engine", "ray", "--sweep.workers", 2, "--sweep.cpus", 1)


@pytest.fixture
def arguments(tmp_path, corpus, tiny_bert):
    """The arguments of a sweep of six members in a directory."""

    def make(name, *args, epochs=2):
        files = ("--config", ROOT / "configs" / "sts.yaml", "--data.root", corpus)
        model = ("--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2)
        grid = ("--grid.rank", "[1,8,29]", "--grid.scale", "[1,3]", "--sweep.pack_size", 2)
        quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
        store = ("--store.root", tmp_path, "--store.run", name, "--trainer.max_epochs", epochs)
        return [str(arg) for arg in ("sweep", *files, *model, *grid, *quiet, *store, *args)]

    return make


def start(arguments):
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "loraens", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # as where SIGINT is ignored, in the background of a script, commands ignore it too
    given = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes}
    return subprocess.Popen(call, env=environment, **given)


def end(process):
    """Kill a command, and close its pipes."""
    process.kill()
    if not process.stdout.closed:
        process.communicate()


def started(process):
    """The processes that a command has started, its own not among them."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(true, process, seconds=240):
    """Until a function gives something that is true, which is returned."""
    for _ in range(100 * seconds):
        if value := true():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail(f"{true} has not come")


def epochs_done(packs):
    """Whole epochs of the packs that are under way, by the name of their file."""
    return {path.name: PackCheckpoint.load(path).epochs_done for path in packs.glob("*.ckpt")}


def training(process):
    """The processes that train packs."""
    return [child for child in started(process) if child.name().startswith(TASK)]


@pytest.mark.slow
def test_killed_workers_and_coordinators_change_no_bit(arguments, run_command, tmp_path):
    epochs = 60
    assert run_command(*arguments("here", epochs=epochs)) == 0
    there = arguments("there", *TWO, epochs=epochs)
    packs = tmp_path / "there" / "packs"
    process = start(there)
    try:
        wait_until(lambda: len(epochs_done(packs)) == 2, process)
        victim = training(process)[0]
        victim.kill()
        before = epochs_done(packs)
        replaced = lambda: {p.pid for p in training(process)} - {victim.pid}  # noqa: E731
        wait_until(lambda: len(replaced()) == 2, process)
        # each goes on from its last whole epoch
        wait_until(
            lambda: (now := epochs_done(packs)) and all(now.get(n, 99) > before[n] for n in before),
            process,
        )
        assert epochs_done(packs)
    finally:
        end(process)
    done = start(there)  # at once, while workers may still train
    out, err = done.communicate(timeout=400)
    assert done.returncode == 0, err
    assert "ray" not in (out + err).lower()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert not packs.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_in_its_code_and_leaves_no_process(arguments, tmp_path, number, code):
    process = start(arguments("run", *TWO, epochs=500))
    try:
        wait_until(lambda: epochs_done(tmp_path / "run" / "packs"), process)
        family = started(process)
        assert [child for child in family if "raylet" in child.name()]
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"loraens: {'terminated' if code == 143 else 'interrupted'}"
    assert "to resume: loraens sweep --config" in out
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
