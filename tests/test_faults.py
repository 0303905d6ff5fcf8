"""Signals, full disks, damaged, foreign and hostile files: nothing is lost, and nobody gets in."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.records import make_manifest, make_settings
from lightning.pytorch import Trainer
from rich.table import Table

from loraens import files
from loraens.arrays import npz
from loraens.data.imports import allow, check_imports, resume_options, untrusted_modules
from loraens.ensemble.options import RANGES
from loraens.ensemble.read import read_runs
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError, in_json, say
from loraens.model.backbone import load_encoder
from loraens.model.tokenizer import load_tokenizer
from loraens.report.terminal import show
from loraens.store import MemberStore, find_members, write_examples
from loraens.tasks import QUORA
from loraens.train.checkpoints import (
    read_checkpoint,
    with_whole_checkpoints,
    write_checkpoint,
)
from loraens.train.runs import MINIMA
from loraens.train.state import SweepState, locked
from loraens.train.worker import Worker

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
    """The command in a process of its own, which SIGINT reaches also where the tests run in the
    background of a script.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "loraens", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    given = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes, **options}
    return subprocess.Popen(call, env=environment, **given)


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


@pytest.fixture
def swept(run_command, training, tmp_path):
    """Runs the sweep of `training`; returns its directory."""

    def run(*args, expect=0, **options):
        assert run_command(*training("sweep", *args, **options)) == expect
        return tmp_path / "run"

    return run


def member_files(run):
    """SHA-256 of each file of each member."""
    return {path.name: MemberStore(path).manifest().files for path in find_members(run)}


def flip(path, position):
    """Change one byte of a file, counted from its end where it is negative."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


@pytest.mark.slow
def test_a_fit_that_was_killed_at_its_very_end_is_finished(run_command, training, tmp_path):
    """Its checkpoint has all epochs, so nothing is trained any more."""
    command = training("fit", epochs=1)
    assert run_command(*command) == 0
    (member,) = find_members(tmp_path / "run")
    whole = MemberStore(member).manifest()
    MemberStore(member).update(status="training")
    assert run_command(*command, "--ckpt_path", tmp_path / "run" / "last.ckpt") == 0
    again = MemberStore(member).manifest()
    assert again == replace(whole, seconds=again.seconds)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_pack_is_named_and_begins_again(swept, monkeypatch, capsys, tmp_path, damage):
    expected = member_files(swept("--model.lr", 1e-2))
    (tmp_path / "run").rename(tmp_path / "whole")

    def stop(worker, pack):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_close", stop)
        swept("--model.lr", 1e-2, expect=130)
    (path,) = (tmp_path / "run" / "packs").glob("*.ckpt")
    if damage == "flipped":
        for position in range(path.stat().st_size // 2, path.stat().st_size // 2 + 1024, 16):
            flip(path, position)
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else b"")
    capsys.readouterr()
    assert member_files(swept("--model.lr", 1e-2)) == expected
    assert f"{path} is not a whole checkpoint of loraens: it is removed" in capsys.readouterr().out


def test_every_flipped_byte_of_a_checkpoint_changes_nothing_or_is_refused(tmp_path):
    content = {"loraens": {"n": 3}, "state_dict": {"a": torch.arange(3.0)}}
    content["pytorch-lightning_version"] = "2"
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, content)
    whole = path.read_bytes()
    expected = repr(read_checkpoint(path))
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole)
        flip(path, position)
        try:
            assert repr(read_checkpoint(path)) == expected
        except InputError:
            refused += 1
    assert refused > 20


def test_a_file_is_never_written_over_its_place(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.ckpt"
    calls = []

    def noting(name, function):
        def call(*args):
            calls.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", noting("rename", Path.replace))
    trainer = with_whole_checkpoints(Trainer(logger=False, enable_checkpointing=False))
    trainer.strategy.checkpoint_io.save_checkpoint({"a": 1}, path)
    assert calls == ["fsync", "fsync", "rename", "fsync"]  # new's name, the file, and its name
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_fit_takes_the_lock_of_its_directory(fails, training, tmp_path):
    with locked(tmp_path / "run"):
        for command in ("fit", "sweep"):
            assert "another training runs in" in fails(*training(command))


@pytest.mark.parametrize("command", ["fit", "sweep"])
@pytest.mark.parametrize("name", ["config.yaml", "packs/thesis.ckpt", "examples/notes.txt"])
def test_a_directory_of_something_else_is_left_alone(fails, training, tmp_path, command, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert "that loraens did not write" in fails(*training(command)) or "holds a run" in fails(
        *training(command)
    )
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_a_sweep_removes_its_own_files_alone(swept, tmp_path):
    run = swept()
    member = find_members(run)[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "epoch.json").write_text("mine")
    (run / "packs").mkdir()
    (run / "packs" / "thesis.ckpt").write_text("mine")
    (run / "packs" / "0-r1.ckpt").write_text("a pack of the sweep, damaged")
    (member / "notes.txt").write_text("mine")
    (member / "epoch-009").symlink_to(elsewhere)
    weights = next(member.glob("epoch-*/*.safetensors"))
    flip(weights, -1)  # so the member is trained again
    swept()
    assert (run / "packs" / "thesis.ckpt").read_text() == "mine"
    assert not (run / "packs" / "0-r1.ckpt").exists()
    assert (member / "notes.txt").read_text() == "mine"
    assert (elsewhere / "epoch.json").read_text() == "mine"
    assert MemberStore(member).manifest().status == "finished"
    shutil.rmtree(run / "packs")
    (run / "packs").symlink_to(elsewhere)
    swept(expect=2)
    assert (elsewhere / "epoch.json").read_text() == "mine"


def test_unfinished_members_are_counted_and_left_out(fails, run_command, plant, capsys, tmp_path):
    run = plant(tmp_path / "run", QUORA, members=4)
    command = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false")
    MemberStore(run / "r2").update(status="training")
    assert run_command(*command) == 0
    assert "1 of 4 members are unfinished, and left out: --unfinished" in capsys.readouterr().out
    of_all = EnsembleRecord.read(run / "ensembles" / "quora-omni-probs")
    assert [member.name for member in of_all.members] == ["r1", "r3", "r4"]
    assert run_command(*command, "--unfinished") == 0
    assert "1 of 4 members are unfinished: their epochs so far" in capsys.readouterr().out
    of_all = EnsembleRecord.read(run / "ensembles" / "quora-omni-probs")
    assert len(of_all.members) == 4
    for path in find_members(run):
        MemberStore(path).update(status="training")
    assert "4 of 4 members are unfinished: wait until" in fails(*command)
    assert "4 of 4 members are unfinished: wait until" in fails("report", "--runs", run)


def test_members_that_a_sweep_should_have_are_said_to_be_missing(plant, tmp_path):
    run = plant(tmp_path / "run", QUORA, members=3)
    state = SweepState.new({})
    state.members = ["r1", "r2", "r3"]
    state.write(run)
    read_runs([run], epoch="last", report=pytest.fail)
    (run / "r2" / "manifest.json").unlink()
    said = []
    assert len(read_runs([run], epoch="last", report=said.append)["quora"].dev) == 2
    assert said == [
        f"{run} lacks members of its sweep, r2: they have not begun, or their manifest.json is"
        " missing, so resume the sweep or restore them"
    ]


def test_a_manifest_that_changes_while_it_is_read_is_read_again(plant, tmp_path, monkeypatch):
    store = MemberStore(plant(tmp_path / "run", QUORA, members=1) / "r1")
    before = store.read()
    verify = store._verify_files

    def training(manifest, examples):
        """A training writes its second and third epoch once the manifest is read."""
        monkeypatch.setattr(store, "_verify_files", verify)
        for number in (2, 3):
            name = f"epoch-{number:03d}"
            files = {name: {"quora-dev.npz": b"new"}}
            store.write(files, replace(before, epochs={"best": name, "last": name}))
        verify(manifest, examples)

    monkeypatch.setattr(store, "_verify_files", training)
    assert set(store.manifest().files) == {"epoch-003/quora-dev.npz"}


@pytest.mark.parametrize("file", ["r1/manifest.json", "ensembles/quora-omni-probs/ensemble.json"])
def test_an_altered_record_is_refused(run_command, fails, plant, tmp_path, file):
    run = plant(tmp_path / "run", QUORA, members=2)
    command = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false")
    assert run_command(*command) == 0
    path = run / file
    text = path.read_text()
    assert text.count('"rank": 1') == 1
    path.write_text(text.replace('"rank": 1', '"rank": 2'))
    command = command if "manifest" in file else ("report", "--runs", run, "--texts", "false")
    message = f"loraens: {path} was altered (its checksum is not that of its fields)"
    assert fails(*command).startswith(message)


@pytest.mark.parametrize(
    "directory",
    [
        pytest.param("{run}/r1", id="absolute"),
        pytest.param("../../r1/../r1", id="dots-inside"),
        pytest.param("../../../../elsewhere/r1", id="upward"),
        pytest.param("../../linked", id="link"),
    ],
)
def test_an_ensemble_names_no_member_elsewhere(run_command, fails, plant, tmp_path, directory):
    run = plant(tmp_path / "run", QUORA, members=2)
    command = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false")
    assert run_command(*command) == 0
    (run / "linked").symlink_to(run / "r1")
    path = run / "ensembles" / "quora-omni-probs" / "ensemble.json"
    fields = json.loads(path.read_bytes())
    del fields["sha256"]
    fields["members"][0]["directory"] = directory.format(run=run)
    path.write_text(json.dumps(fields))
    message = fails("predict", "--model", path.parent, "--text", "a", "--text2", "b")
    assert "members.0.directory" in message or "is a link" in message


def of_classes(**changes):
    """The file of logits of a member of a task of two classes."""
    arrays = {
        "logits": np.ones((3, 1), np.float32),
        "example_id": np.array(["a", "b", "c"]),
        "labels": np.array([0.0, 1.0, 1.0]),
    }
    return npz(**{**arrays, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(of_classes(logits=np.ones((3, 2), np.float32)), "of shape (3, 2)", id="wide"),
        pytest.param(of_classes(logits=np.ones((2, 1), np.float32)), "of shape (2, 1)", id="short"),
        pytest.param(of_classes(logits=np.ones((3, 1), int)), "no finite numbers", id="integers"),
        pytest.param(of_classes(logits=np.full((3, 1), np.nan)), "no finite numbers", id="nan"),
        pytest.param(of_classes(logits=None), "has no logits", id="no-logits"),
        pytest.param(of_classes(example_id=np.arange(3)), "no ids", id="ids"),
        pytest.param(of_classes(labels=np.array([0, 1, 2.0])), "none of its task's", id="class"),
        pytest.param(of_classes(labels=np.array([0, 1, 0.5])), "none of its task's", id="half"),
        pytest.param(of_classes(labels=np.array([0.0, 1])), "none of its task's", id="few"),
        pytest.param(of_classes(labels=np.array(["0", "1", "1"])), "none of its", id="text"),
        pytest.param(of_classes(groups=np.zeros(2, int)), "has groups", id="groups"),
        pytest.param(of_classes()[:-40], "no file of arrays", id="cut"),
        pytest.param(b"", "no file of arrays", id="empty"),
        pytest.param(npz(logits=np.ones((2, 1)), indices=np.array([1, 0])), "order", id="indices"),
        pytest.param(npz(logits=np.ones((2, 1)), indices=np.array([1, 5])), "order", id="beyond"),
    ],
)
def test_logits_that_cannot_be_are_refused(tmp_path, content, message):
    store = MemberStore(tmp_path / "run" / "r4")
    examples = write_examples(tmp_path / "run", "quora-dev.npz", ["a", "b"], np.arange(2.0))
    manifest = make_manifest(settings=make_settings((QUORA,)), examples={"quora-dev.npz": examples})
    store.write({"epoch-001": {"quora-dev.npz": content}}, manifest)
    with pytest.raises(InputError, match=re.escape(message)):
        store.logits("quora", "dev")


HOSTILE = {
    "data": {"data": {"class_path": "evil.Texts"}},
    "data-text": {"data": "evil.Texts"},
    "callback": {"trainer": {"callbacks": [{"class_path": "evil.Callback"}]}},
    "text": {"trainer": {"callbacks": "evil.Callback"}},
    "logger": {"trainer": {"logger": ["evil.Logger"]}},
    "function": {
        "trainer": {
            "callbacks": {
                "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "init_args": {"on_fit_start": "os.abort"},
            }
        }
    },
    "torch-function": {
        "trainer": {
            "callbacks": {
                "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "init_args": {
                    "on_fit_start": {
                        "class_path": "torch.hub.load",
                        "init_args": {"repo_or_dir": "evil/evil", "model": "evil"},
                    }
                },
            }
        }
    },
    "nested": {
        "data": {"class_path": "loraens.data.SST", "init_args": {"root": {"class_path": "evil.X"}}}
    },
    "model": {"model": {"adapter": {"class_path": "evil.Adapter"}}},
    "hint": {"trainer": {"plugins": "list[evil.Plugin]"}},
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module on the path that leaves a file where it is imported; the file."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from loraens.data import SST\nclass Texts(SST):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "ran"
    sys.modules.pop("evil", None)
    allow([])


@pytest.mark.parametrize("command", ["fit", "sweep", "validate"])
@pytest.mark.parametrize("name", HOSTILE)
def test_settings_of_a_run_import_no_strangers_code(fails, evil, tmp_path, command, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".loraens").touch()
    (run / "config.yaml").write_text(yaml.safe_dump(HOSTILE[name]))
    message = fails(command, "--config", run / "config.yaml")
    assert f"{run / 'config.yaml'} names " in message
    assert "if you trust it, give --allow" in message
    assert not evil.exists()


def test_what_is_allowed_is_imported_and_said_when_it_is_resumed(fails, evil, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    path = run / "config.yaml"
    (run / "sweep.json").touch()
    path.write_text(yaml.safe_dump({"data": {"class_path": "evil.Texts"}}))
    assert resume_options(path) == f"--config {path} --allow evil"
    assert not evil.exists()
    assert "names evil" not in fails("sweep", *resume_options(path).split())
    assert evil.exists()
    assert "is given no value" in fails("sweep", "--allow", "--config", path)


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"class_path": "loraens.data.SST", "init_args": {"root": "torch.csv"}}},
        {"data": {"class_path": "SST", "init_args": {"root": "data"}}},
        {"trainer": {"callbacks": {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}}},
        {"trainer": {"callbacks": "EarlyStopping", "default_root_dir": "my.runs"}},
        {"model": {"targets": ["token.query", "os.value"]}, "store": {"root": "a.b"}},
    ],
)
def test_ordinary_settings_are_let_through(settings):
    check_imports(settings, "config.yaml")
    assert untrusted_modules(settings) == []


@pytest.mark.slow
def test_a_report_reads_no_texts_by_a_strangers_class(evil, run_command, plant, tmp_path, capsys):
    run = plant(tmp_path / "run", QUORA, members=2)
    (run / "config.yaml").write_text("data: {class_path: evil.Texts, init_args: {}}")
    assert run_command("report", "--runs", run, "--logger", "false") == 0
    assert "names evil.Texts" in (run / "report" / "index.html").read_text()
    assert not evil.exists()


def test_a_backbone_runs_no_code_of_its_own(tiny_bert, tmp_path):
    backbone = Path(shutil.copytree(tiny_bert, tmp_path / "backbone"))
    config = json.loads((backbone / "config.json").read_text())
    del config["architectures"]
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": "evil.T"}
    (backbone / "config.json").write_text(json.dumps(config))
    (backbone / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_tokenizer(str(backbone))  # tokenizer.json says all of it
    with pytest.raises(InputError, match="could not be loaded"):
        load_encoder(str(backbone), pooler=False)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def fill(monkeypatch):
    """Has the disk be full from the write of that number on; returns how many writes there were."""

    @contextmanager
    def full(number=None, code=errno.ENOSPC):
        writes = []
        write = files._Raw.write

        def count(raw, content):
            writes.append(raw.final)
            if number is not None and len(writes) >= number:
                with files.naming(raw.final):
                    raise OSError(code, os.strerror(code))
            return write(raw, content)

        with monkeypatch.context() as patch:
            patch.setattr(files._Raw, "write", count)
            yield writes

    return full


def below(*directories):
    """The content of every file."""
    paths = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(("ensemble", "--method", "omni"), id="ensemble", marks=pytest.mark.slow),
        pytest.param(("report", "--texts", "false"), id="report", marks=pytest.mark.slow),
        pytest.param(("compare", "--out", "table.csv"), id="compare"),
    ],
)
def test_a_full_disk_is_named_and_what_was_whole_stays(
    fails, run_command, plant, tmp_path, monkeypatch, fill, args
):
    run = plant(tmp_path / "run", QUORA, members=2, examples=(30, 10))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    logger = () if args[0] == "compare" else ("--logger", "false")
    command = (*args, "--runs", run, *logger)
    before = below(run)
    with fill() as writes:
        assert run_command(*command) == 0
    expected = below(run, out)
    for path in expected.keys() - before.keys():
        path.unlink()
    for number in range(1, len(writes) + 1):
        code = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)[number % 3]
        with fill(number, code):
            message = fails(*command)
        assert message == f"loraens: {writes[number - 1]}: {os.strerror(code)}"
        left = below(run, out)
        assert all(left[path] == content for path, content in before.items())
        assert not [path for path in left if path.name.endswith(".part")]
    assert run_command(*command) == 0
    assert below(run, out).keys() == expected.keys()
    same = {path for path, content in below(run, out).items() if content == expected[path]}
    assert {path.suffix for path in expected.keys() - same} <= {".png"}


@pytest.mark.slow
def test_a_full_disk_stops_predictions_and_evaluations(
    fails, trained_sweep, corpus, tmp_path, fill
):
    model = trained_sweep("sst") / "ensembles" / "sst-omni-logits"
    texts = corpus / "ids-sst-dev.csv"
    for command, output in (("predict", "out.csv"), ("evaluate", "out.json")):
        path = tmp_path / output
        path.write_text("what was there")
        with fill(1):
            message = fails(command, "--model", model, "--input", texts, "--output", path)
        assert message == f"loraens: {path}: No space left on device"
        assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []
        assert path.read_text() == "what was there"


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_goes_on_with_space(swept, training, fails, tmp_path, fill):
    expected = member_files(swept("--model.lr", 1e-2, epochs=1))  # and the texts are cached
    shutil.rmtree(tmp_path / "run")
    with fill() as writes:
        swept("--model.lr", 1e-2, epochs=1)
    shutil.rmtree(tmp_path / "run")
    for number in sorted({*range(1, len(writes), 9), len(writes)}):
        with fill(number):
            message = fails(*training("sweep", "--model.lr", 1e-2, epochs=1))
        assert message == f"loraens: {writes[number - 1]}: No space left on device"
        assert not list((tmp_path / "run").rglob("*.part"))
        assert member_files(swept("--model.lr", 1e-2, epochs=1)) == expected
        shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
def test_a_fit_on_a_full_disk_goes_on_with_space(run_command, training, fails, tmp_path, fill):
    command = training("fit", "--model.lr", 1e-2, epochs=2)
    assert run_command(*command) == 0  # and the texts are cached
    shutil.rmtree(tmp_path / "run")
    with fill() as writes:
        assert run_command(*command) == 0
    expected = member_files(tmp_path / "run")
    checkpoint = tmp_path / "run" / "last.ckpt"
    first, second = (n for n, path in enumerate(writes, 1) if path == checkpoint)
    for number in (first + 2, second):
        shutil.rmtree(tmp_path / "run")
        with fill(number):
            message = fails(*command)
        assert message == f"loraens: {writes[number - 1]}: No space left on device"
        assert run_command(*command, "--ckpt_path", checkpoint) == 0
        assert member_files(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_limit_of_the_systems_is_named(training, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    process = start(training("sweep"), preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.fullmatch(r"loraens: \S*/run/\S+: File too large", err.splitlines()[-1])
    assert "Traceback" not in err
    assert not list((tmp_path / "run").rglob("*.part"))


BAD_OPTIONS = [
    *(("ensemble", f"--{name}", value) for name in RANGES if name != "max_size" for value in (-1,)),
    *(("ensemble", f"--{name}", 0) for name in ("size", "bags", "steps", "start", "draws")),
    *(("ensemble", f"--{name}", "nan") for name in ("within", "pool")),
    ("ensemble", "--draws", 10**9),
    *(("fit", f"--trainer.{name}", -5) for name in MINIMA if not name.startswith("limit_test")),
    ("fit", "--trainer.accumulate_grad_batches", 0),
    ("fit", "--trainer.check_val_every_n_epoch", 0),
    ("fit", "--trainer.val_check_interval", 1000),
    *(("fit", "--trainer.accelerator", value) for value in ("x",)),
    *(("fit", "--trainer.strategy", value) for value in ("x", "ddp_spawn", "fsdp")),
    *(("fit", "--trainer.devices", value) for value in (0, -3, "x", "[7]")),
    ("fit", "--trainer.num_nodes", 3),
    *(("fit", "--seed_everything", value) for value in (-1, 2**40, "x")),
    *(("fit", "--ckpt_path", value) for value in ("/tmp", "/dev/null", "nowhere")),
    ("fit", "--model.lr", "nan"),
    ("fit", "--model.rank", 10**9),
    *((c, "--store.run", v) for c in ("fit", "sweep") for v in ("a/../../b", "..", "/tmp/a", "")),
    ("sweep", "--trainer.accelerator", "x"),
    ("sweep", "--trainer.devices", 0),
    *(("sweep", "--sweep.halving_factor", value) for value in ("nan", "inf", 1.000001)),
    *(("sweep", "--grid.scale", value) for value in ("[.nan]", "[.inf]")),
]


@pytest.mark.parametrize("args", BAD_OPTIONS, ids=lambda args: "-".join(map(str, args)))
def test_an_option_out_of_its_range_ends_in_one_sentence(fails, training, plant, tmp_path, args):
    command, option, value = args
    if command == "ensemble":
        run = plant(tmp_path / "run", QUORA, members=2, examples=(30, 10))
        message = fails(command, "--runs", run, "--logger", "false", f"{option}={value}")
    else:
        message = fails(*training(command, f"{option}={value}"))
    named = option.lstrip("-").rpartition(".")[2] in message or "Lightning: " in message
    assert named or "grid: " in message or "--model: " in message
    assert message.startswith("loraens: ")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("device", ["x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(fails, corpus, tmp_path, command, device):
    texts = corpus / "ids-sst-dev.csv"
    output = ("--output", tmp_path / "out.json") if command == "evaluate" else ()
    message = fails(command, "--model", "no", "--input", texts, "--device", device, *output)
    assert message.startswith(f"loraens: --device {device} is not here")


def test_names_of_strangers_command_no_terminal(capsys, fails):
    table = Table(title="a\x1b[2J")
    table.add_column("name")
    table.add_row("[red]x[/red] :smile: \x1b]0;title\x07 \u202eabc")
    show(table)
    shown = capsys.readouterr().out
    assert r"[red]x[/red] :smile: \x1b]0;title\x07 \u202eabc" in shown
    assert "\x1b" not in shown
    assert r"\x1b[2J" in fails("report", "--runs", "a\x1b[2J")
    say("the member a\x1b[2J")
    assert capsys.readouterr().out == "the member a\\x1b[2J\n"
    name = "\x9b2J \u202eabc \U000e0001 né"
    shown = in_json(json.dumps(name, ensure_ascii=False))
    assert shown == r'"\u009b2J \u202eabc \udb40\udc01 né"'
    assert json.loads(shown) == name


def test_classes_of_a_file_command_no_terminal(fails, training, tmp_path, capsys):
    rows = [f"{number}\ttext {number}\ta\x1b[2J" for number in range(4)]
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["id\tsentence\tlabel", *rows]))
    for command in (("build", path, "--out", tmp_path / "out"), ("compare", path)):
        message = fails(*command)
        assert "\x1b" not in message + capsys.readouterr().out


def altered(value, rng):
    """A JSON value in place of another one: of another type, sign or size, or another text."""
    values = [None, -1, 0, 1e300, "", "../../x", "/etc", [], {}, [value], True, "\x1b[2J", 10**30]
    return rng.choice([other for other in values if other != value])


def leaves(fields, path=()):
    """The paths of all values in JSON fields."""
    yield path
    if isinstance(fields, dict | list):
        items = fields.items() if isinstance(fields, dict) else enumerate(fields)
        for key, value in items:
            yield from leaves(value, (*path, key))


@pytest.mark.slow
def test_mutated_records_end_in_one_sentence_or_change_no_type(
    run_command, plant, tmp_path, capsys
):
    """Records with and without their checksum, in which one value is another."""
    run = plant(tmp_path / "run", QUORA, members=2, examples=(30, 10))
    command = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false")
    assert run_command(*command) == 0
    state = SweepState.new({})
    state.members = ["r1", "r2"]
    state.write(run)
    rng = random.Random(0)
    folder = run / "ensembles" / "quora-omni-probs"
    trials = {
        run / "r1" / "manifest.json": (*command[:3], "--out", tmp_path / "run" / "others"),
        folder / "ensemble.json": ("compare", run),
        run / "ensembles" / "recommended": ("compare", run),
        run / "sweep.json": ("ensemble", "--runs", run, "--method", "best"),
    }
    for path, args in trials.items():
        whole = path.read_bytes()
        fields = json.loads(whole)
        places = [place for place in leaves(fields) if place]
        for place in rng.sample(places, min(40, len(places))):
            changed = json.loads(whole)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = altered(inner[place[-1]], rng)
            path.write_text(json.dumps(changed))
            logger = () if args[0] == "compare" else ("--logger", "false")
            if place != ("sha256",) or changed["sha256"] is not None:
                assert run_command(*args, *logger) == 2, place
                assert "\x1b" not in capsys.readouterr().err
            changed.pop("sha256", None)
            path.write_text(json.dumps(changed))
            assert run_command(*args, *logger) in (0, 2), place
        path.write_bytes(whole)
