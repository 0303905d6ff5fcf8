"""Whole sweeps on a tiny backbone, through the command line."""

import errno
import gc
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from loraens.cli import main
from loraens.errors import InputError
from loraens.members import Grid, Member, packs
from loraens.model.population import MemberModel
from loraens.store import MANIFEST, MemberStore, find_members
from loraens.train import worker as worker_module
from loraens.train.cost import Cost, choose_pack
from loraens.train.memory import PackLimit, is_out_of_memory
from loraens.train.module import Population

CONFIGS = Path(__file__).parent.parent / "configs"
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
GRID = ["--grid.rank", "[1,8,29]", "--grid.scale", "[1,3]"]


@pytest.fixture(scope="module")
def command_in(tiny_bert, corpus):
    """The arguments of a sweep on the tiny backbone in a store."""

    def make(root, *args, name="run", epochs=2, grid=GRID, size=4):
        files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus]
        model = ["--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2]
        store = ["--trainer.max_epochs", epochs, "--store.root", root, "--store.run", name]
        options = [*files, *model, *store, "--sweep.pack_size", size, *QUIET, *grid, *args]
        return ["sweep", *map(str, options)]

    return make


@pytest.fixture
def command(command_in, tmp_path):
    """The arguments of a sweep on the tiny backbone in a new store."""
    return partial(command_in, tmp_path)


@pytest.fixture(scope="module")
def finished(command_in, run_command, tmp_path_factory):
    """The store of a sweep of one member that has ended, which no test may change."""
    root = tmp_path_factory.mktemp("finished")
    assert run_command(*command_in(root, grid=["--grid.rank", "[2]"])) == 0
    return root


@pytest.fixture
def sweep(command, run_command, tmp_path):
    """Runs a sweep; returns its directory."""

    def run(*args, name="run", expect=0, **options):
        assert run_command(*command(*args, name=name, **options)) == expect
        return tmp_path / name

    return run


def contents(run):
    """Every file of the members; of a manifest all but the seconds that it took."""
    found = {}
    for member in find_members(run):
        for path in sorted(member.rglob("*")):
            if path.is_file():
                name = path.relative_to(run).as_posix()
                found[name] = path.read_bytes()
                if path.name == MANIFEST:
                    found[name] = {**json.loads(found[name]), "seconds": None, "sha256": None}
    return found


def manifests(run):
    return {path.name: MemberStore(path).manifest() for path in find_members(run)}


@pytest.mark.slow
def test_a_sweep_leaves_every_member_as_fit_does(sweep, run_command, command, capsys):
    with_test = ("--data.test_logits", "true")
    run = sweep("--model.schedule", "linear", "--model.warmup", 0.2, *with_test)
    table = capsys.readouterr().out
    found = manifests(run)
    assert len(found) == 6
    assert not (run / "packs").exists()
    order = sorted(found.values(), key=lambda manifest: -manifest.dev["best"]["sts"]["pearson"])
    positions = [table.index(manifest.name) for manifest in order]
    assert positions == sorted(positions)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["grid"]["rank"] == [1, 8, 29]
    for name, manifest in found.items():
        assert (manifest.member.name, manifest.status) == (name, "finished")
        assert [entry.epoch for entry in manifest.history] == [1, 2]
        assert all(np.isfinite(entry.train_loss) for entry in manifest.history)
        for split, size in (("dev", 24), ("test", 10)):
            assert MemberStore(run / name).logits("sts", split, "last").logits.shape == (size, 1)
    for member in (Member(8, 3.0, lr=1e-2), Member(29, 1.0, lr=1e-2)):
        arguments = command(
            *with_test,
            "--model.rank",
            member.rank,
            "--model.scale",
            member.scale,
            name=f"fit-{member.rank}",
            grid=(),
        )
        at = arguments.index("--sweep.pack_size")
        options = [
            "--model.schedule",
            "linear",
            "--model.warmup",
            "0.2",
            "--trainer.enable_model_summary",
            "false",
        ]
        assert run_command("fit", *arguments[1:at], *arguments[at + 2 :], *options) == 0
        alone = run.parent / f"fit-{member.rank}" / member.name
        together = run / member.name
        left, right = (MemberStore(path).manifest() for path in (alone, together))
        assert left.settings == right.settings
        for epoch in ("best", "last"):
            a, b = (MemberStore(path).logits("sts", "dev", epoch) for path in (alone, together))
            np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=1e-3)
        assert left.epochs == right.epochs


CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def changes_files(event, args, directory):
    """Whether an audit event is a change below a directory."""
    if event not in CHANGES or not isinstance(args[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    path = os.fsdecode(args[0])
    return path.startswith(str(directory)) or not os.path.isabs(path)  # relative to a folder's fd


def run_in_child(arguments, directory, kill_at=None):
    """Runs the command in a child process, which is killed before its change number `kill_at`
    below the directory; returns how many changes it made, None if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        changes = 0

        def count(event, args):
            nonlocal changes
            if changes_files(event, args, directory):
                changes += 1
                if changes == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            sys.addaudithook(count)
            main(arguments)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os.write(writer, str(changes).encode())
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        changes = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.waitstatus_to_exitcode(status) == 0
    return int(changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["--sweep.patience", 1, "--sweep.halving_factor", 2]], ids=["plain", "stopping"]
)
def test_killed_anywhere_it_ends_with_the_same_contents(command, tmp_path, options):
    """A kill between two changes of files leaves what a kill before the second one leaves."""
    epochs = 4 if options else 2
    whole = tmp_path / "whole"
    changes = run_in_child(command(*options, name="whole", epochs=epochs), whole)
    assert changes > 50
    expected = contents(whole)
    assert len({name.partition("/")[0] for name in expected}) == 6
    for name, manifest in manifests(whole).items():
        stored = [f"{name}/logits/{entry.name}/sts-dev.npz" for entry in manifest.history]
        assert stored == [path for path in expected if re.match(f"{name}/logits/.*-dev", path)]
    rng = random.Random(0)
    kills = 0
    runs = 0
    while kills < 5:
        runs = runs + 1
        run = tmp_path / f"run-{runs}"
        arguments = command(*options, name=run.name, epochs=epochs)
        while run_in_child(arguments, run, rng.randint(1, changes)) is None:
            kills += 1
        assert contents(run) == expected
        assert not (run / "packs").exists()


@pytest.mark.slow
def test_finished_members_are_skipped_by_their_checksums(sweep, run_command, capsys, monkeypatch):
    run = sweep()
    before = contents(run)
    trained = []
    fit = Trainer.fit

    def noted(self, model, *args, **options):
        trained.extend(member.name for member in model.members)
        return fit(self, model, *args, **options)

    monkeypatch.setattr(Trainer, "fit", noted)
    sweep()
    assert (
        run_command("sweep", "--config", run / "config.yaml") == 0
    )  # what an interrupted sweep tells to do
    assert not trained
    assert contents(run) == before
    name = "r8-c3-s0-lr0.01"
    victim = next((run / name).glob("epoch-*/sts-dev.npz"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    sweep()
    assert f"{victim} was altered" in capsys.readouterr().out
    assert trained == [name]
    after = contents(run)
    assert {path: value for path, value in after.items() if not path.startswith(name)} == {
        path: value for path, value in before.items() if not path.startswith(name)
    }
    scores = [
        [entry["score"] for entry in found[f"{name}/manifest.json"]["history"]]
        for found in (before, after)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.slow
def test_packs_share_examples_which_a_repetition_restores(sweep, monkeypatch):
    run = sweep(grid=["--grid.rank", "[2,3]"], size=1, epochs=1)
    examples = {path.name: path.read_bytes() for path in (run / "examples").iterdir()}
    assert sorted(examples) == ["sts-dev.npz", "sts-test.npz"]
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in examples.items()}
    assert [manifest.examples for manifest in manifests(run).values()] == [sums] * 2
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    (run / "examples" / "sts-dev.npz").write_bytes(b"")
    (run / "examples" / "sts-test.npz").unlink()
    sweep(grid=["--grid.rank", "[2,3]"], size=1, epochs=1)
    assert {path.name: path.read_bytes() for path in (run / "examples").iterdir()} == examples


@pytest.mark.slow
def test_a_grid_may_grow(sweep):
    run = sweep(grid=["--grid.rank", "[2]"])
    before = contents(run)
    sweep(grid=["--grid.rank", "[2,3]"], size=1)
    assert set(manifests(run)) == {"r2-c3-s0-lr0.01", "r3-c3-s0-lr0.01"}
    after = contents(run)
    assert all(after[name] == value for name, value in before.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        pytest.param(["--data.batch_size", 4], {}, "batch_size 8, now it is 4", id="batch-size"),
        pytest.param([], {"epochs": 3}, "max_epochs 2, now it is 3", id="epochs"),
        pytest.param(["--sweep.patience", 2], {}, "patience None, now it is 2", id="patience"),
    ],
)
def test_changed_settings_are_named(finished, command_in, fails, args, options, message):
    before = contents(finished / "run")
    grid = ["--grid.rank", "[2]"]
    assert f"started with {message}" in fails(*command_in(finished, *args, grid=grid, **options))
    assert contents(finished / "run") == before


def test_changed_data_are_named(finished, command_in, fails, corpus, tmp_path):
    before = contents(finished / "run")
    other = Path(shutil.copytree(corpus, tmp_path / "other"))
    text = (corpus / "sts-train.csv").read_text()
    (other / "sts-train.csv").write_text(text.replace("\t5.0", "\t4.8", 1))
    assert (other / "sts-train.csv").read_text() != text
    options = command_in(finished, "--data.root", other, grid=["--grid.rank", "[2]"])
    assert "started with data.sts-train" in fails(*options)
    assert contents(finished / "run") == before


@pytest.mark.slow
def test_stopped_members_change_no_other(sweep):
    """In double precision; members that have stopped are in no later pack."""
    sizes = []

    class Sizes(worker_module.PackWatch):
        def on_train_epoch_end(self, trainer, pl_module):
            sizes.append(len(pl_module.members))
            super().on_train_epoch_end(trainer, pl_module)

    options = ["--trainer.precision", "64-true", "--grid.seed", "[0,1]"]
    whole = manifests(sweep(*options, name="whole", epochs=6, size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "PackWatch", Sizes)
        run = sweep(*options, "--sweep.patience", 2, name="stopped", epochs=6, size=12)
    found = manifests(run)
    assert {manifest.status for manifest in found.values()} == {"finished", "stopped"}
    assert sizes[0] == 12
    assert sizes[-1] == sum(len(manifest.history) == 6 for manifest in found.values()) < 12
    for name, manifest in found.items():
        scores = [entry.score for entry in manifest.history]
        assert scores == pytest.approx(
            [entry.score for entry in whole[name].history[: len(scores)]], abs=1e-6
        )
        best = int(np.argmax(scores))
        assert len(scores) == 6 or len(scores) - 1 - best == 2
        if manifest.status == "stopped":
            assert manifest.ended == f"epoch {len(scores)}: no better dev score for 2 epochs"
    for member in find_members(run):
        manifest = found[member.name]
        if manifest.status == "finished":
            a, b = (
                load_file(path / member.name / "epoch-006" / "adapter_model.safetensors")
                for path in (run, run.parent / "whole")
            )
            assert (
                max((a[key] - b[key]).abs().max() for key in a) < 1e-7
            )  # after 36 steps at a high rate


@pytest.mark.slow
def test_successive_halving(sweep, fails, command):
    options = ["--sweep.halving_factor", 2, "--sweep.halving_epochs", 1]
    whole = manifests(sweep(name="whole", epochs=4))
    found = manifests(sweep(*options, name="halved", epochs=4, size=2))
    left = set(whole)
    lengths = {name: len(manifest.history) for name, manifest in found.items()}
    for epoch, kept in ((1, 3), (2, 2)):
        ranked = sorted(left, key=lambda name: -whole[name].history[epoch - 1].score)
        assert {name for name in left if lengths[name] == epoch} == set(ranked[kept:])
        assert all("by dev score" in found[name].ended for name in ranked[kept:])
        left = set(ranked[:kept])
    assert {name for name, manifest in found.items() if manifest.status == "finished"} == left
    for name in left:
        scores = [
            [entry.score for entry in manifests[name].history] for manifests in (whole, found)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert "halved_members" in fails(
        *command(*options, name="halved", epochs=4, grid=["--grid.rank", "[2,3]"])
    )


@pytest.mark.slow
def test_out_of_memory_halves_the_pack(sweep, monkeypatch, capsys):
    expected = manifests(sweep(name="whole", size=1))
    step = Population.training_step
    seen = []

    def hungry(self, batch, batch_idx):
        seen.append((len(self.members), self.global_step))
        if len(self.members) > 2 and self.global_step >= 7:  # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Population, "training_step", hungry)
    run = sweep(name="tight", size=4)
    found = manifests(run)
    assert {manifest.status for manifest in found.values()} == {"finished"}
    assert json.loads((run / "sweep.json").read_text())["fits"] is None  # after both halves
    assert [entry for entry in seen if entry[1] == 0] == [
        (4, 0),
        (2, 0),
    ]  # the first epoch was not lost
    for name, manifest in found.items():
        scores = [
            [entry.score for entry in found[name].history] for found in (expected, {name: manifest})
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    monkeypatch.setattr(
        Population,
        "training_step",
        lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")),
    )
    sweep(name="none", expect=2)
    assert "alone does not fit in memory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_member_is_marked_and_the_others_are_not_touched(sweep):
    members = "[{rank: 2, scale: 1}, {rank: 2, scale: 2, lr: %s}, {rank: 3, scale: 1}]"
    good, bad = (
        sweep(name=name, grid=["--grid.members", members % lr])
        for name, lr in (("good", "0.01"), ("bad", "1.0e+30"))
    )
    left = contents(good)
    right = contents(bad)
    for name in ("r2-c1-s0-lr0.01", "r3-c1-s0-lr0.01"):
        of_name = {path for path in left if path.startswith(name)}
        assert len(of_name) >= 6
        for path in of_name:
            assert left[path] == right[path], path
    failed = manifests(bad)["r2-c2-s0-lr1e+30"]
    assert (failed.status, failed.epochs) == ("failed", {})
    assert re.fullmatch(r"step 1: .*(loss is|not finite).*", failed.ended)
    alone = manifests(
        sweep(name="alone", grid=["--grid.members", "[{rank: 2, scale: 2, lr: 1.0e+30}]"])
    )
    assert [manifest.status for manifest in alone.values()] == ["failed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options", "packs_"),
    [
        pytest.param(2, [], [2, 2, 2], id="plain"),
        pytest.param(2, ["--trainer.callbacks+=EMAWeightAveraging"], [2, 2, 2], id="averaged"),
        pytest.param(4, [], [4, 2, 2, 2], id="out-of-memory"),
    ],
)
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_a_packs_memory_is_free_before_the_next_begins(sweep, monkeypatch, size, options, packs_):
    """Over three packs, and after a pack for which memory did not do; Python's collector of garbage
    does not run by chance.
    """
    begun = []
    build = Population.build
    step = Population.training_step

    def models():
        return {id(thing) for thing in gc.get_objects() if type(thing) is MemberModel}

    def watched(self, max_length):
        if not hasattr(self, "model"):
            assert models() <= before
            build(self, max_length)
            begun.append(len(self.members))

    def hungry(self, batch, batch_idx):
        if len(self.members) > 2 and self.global_step >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Population, "build", watched)
    monkeypatch.setattr(Population, "training_step", hungry)
    gc.collect()
    gc.disable()
    before = models()
    try:
        sweep(*options, size=size, epochs=1)
        assert models() <= before
    finally:
        gc.enable()
    assert begun == [1, *packs_]  # one to know the settings


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        *(
            (RuntimeError(message), True)
            for message in (
                "CUDA error: out of memory",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
                "could not create a primitive",
                "can't start new thread",
                "unable to mmap 91 bytes from file <x>: Cannot allocate memory (12)",
            )
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
    ids=lambda value: f"{value}"[:40] or type(value).__name__,
)
def test_what_says_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) == expected


def test_an_error_of_the_accelerator_may_say_so():
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this PyTorch has none")
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: misaligned address"))


def test_measuring_ends_where_memory_does(monkeypatch):
    members = [Member(rank, 1.0) for rank in range(1, 9)]
    most = 4

    def measured(build, members, data, trainer):
        if len(members) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return Cost(len(members), 1 / (1 + len(members)), 1, 1)

    monkeypatch.setattr("loraens.train.cost.measure", measured)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert choose_pack(None, members, None, trainer, print).size == 4
    most = 0
    with pytest.raises(InputError, match="one member alone does not fit in memory"):
        choose_pack(None, members, None, trainer, print)


def test_a_dry_run_of_packs_that_do_not_fit(fails, command, monkeypatch, tmp_path):
    def full(self, batch, batch_idx):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr("loraens.train.cost._Trial.step", full)
    message = fails(*command("--dry-run"))
    assert "--sweep.pack_size 4: so many members do not fit in memory" in message
    assert not (tmp_path / "run").exists()


def test_a_smaller_pack_is_not_for_ever():
    limit = PackLimit()
    limit.trained(8)
    assert limit.size is None
    limit.halve(4)
    sizes = []
    for _ in range(2):
        limit.trained(8)
        sizes.append(limit.size)
    assert sizes == [4, None]
    limit.halve(4)
    limit.halve(2)  # of a pack that was planned before, or again
    sizes = []
    for _ in range(16):
        limit.trained(8)
        sizes.append(limit.size)
    assert sizes == [2] * 7 + [4] * 8 + [None]
    assert PackLimit(2).size == 2  # of a sweep that is resumed


def test_dry_run_prints_the_plan_and_writes_nothing(sweep, capsys, tmp_path):
    run = sweep("--dry-run")
    printed = capsys.readouterr().out
    assert "6 members, of which 0 have ended" in printed
    assert "2 packs of at most 4 members" in printed
    assert "12 steps a member (2 epochs of 6), 72 member-steps" in printed
    assert re.search(r"about \d+ min at [\d.]+ member-steps a second", printed)
    assert re.search(r"[\d,]+ MiB for a pack: ", printed)
    assert not run.exists()


@pytest.mark.slow
def test_automatic_packs(sweep, capsys):
    run = sweep("--sweep.pack_size", "auto", epochs=1)
    assert "packs of 1: " in capsys.readouterr().out
    chosen = json.loads((run / "sweep.json").read_text())["measured"]
    assert chosen in (1, 2, 4, 6)
    assert len(manifests(run)) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("options", "stored"), [((), 0), (("--data.test_logits", "true"), 2)])
def test_logits_of_test_without_labels_are_made_where_they_are_asked_for(
    sweep, run_command, options, stored
):
    run = sweep(*options, epochs=1)
    members = [*run.glob("*/epoch-001/sts-dev.npz")]
    assert members
    # in the epoch's directory and in that of all epochs' logits
    assert len([*run.glob("r*/**/sts-test.npz")]) == stored * len(members)
    assert run_command("ensemble", "--runs", run, "--method", "omni", "soup") == 0


def test_packs_that_take_long_to_measure_are_not_measured(monkeypatch):
    members = [Member(rank, 1.0) for rank in range(1, 65)]
    now = 0.0

    def measured(build, members, data, trainer):
        nonlocal now
        now += len(members)  # seconds
        return Cost(len(members), 1 / (1 + len(members)), 1, 1)

    monkeypatch.setattr("loraens.train.cost.measure", measured)
    monkeypatch.setattr("loraens.train.cost.time.monotonic", lambda: now)
    said = []
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    cost = choose_pack(None, members, None, trainer, said.append)
    assert cost.size == 16  # after 31 s, and one of 32 would take 32 s more
    assert said[-1].startswith("packs of 32 are not measured")


def test_the_papers_grids():
    counts = {
        "sst": 80,
        "quora": 4,
        "sts": 186,
        "sst-minilm": 16,
        "quora-minilm": 4,
        "sts-minilm": 16,
        "sst-minilm-longest": 18,
        "quora-minilm-longest": 5,
        "sts-minilm-longest": 18,
    }
    assert {path.stem for path in (CONFIGS / "grids").iterdir()} == set(counts)
    best = {"sst": (12, 3), "quora": (16, 1), "sts": (29, 3)}
    for name, count in counts.items():
        axes = yaml.safe_load((CONFIGS / "grids" / f"{name}.yaml").read_text())
        members = Grid(**axes).expand(Member(1, 1.0))
        assert len(members) == len({member.name for member in members}) == count
        assert best[name.partition("-")[0]] in {(member.rank, member.scale) for member in members}
        long = {member.epochs for member in members} - {None}
        assert len(long) == name.endswith("-longest")


@pytest.mark.slow
def test_a_grid_file_on_the_command_line(sweep, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("rank: [2, 3]\nweight_decay: [0.01, 0.1]\n")
    run = sweep("--grid", grid, grid=(), epochs=1)
    expected = {f"r{rank}-c3-s0-lr0.01{decay}" for rank in (2, 3) for decay in ("", "-wd0.1")}
    assert set(manifests(run)) == expected


def test_packs_keep_like_ranks_together():
    members = Grid(rank=[4, 1, 3, 2], seed=[0, 1]).expand(Member(1, 1.0))
    assert [[member.rank for member in pack] for pack in packs(members, 3)] == [
        [1, 1, 2],
        [2, 3, 3],
        [4, 4],
    ]


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        pytest.param(
            [],
            {"grid": ["--grid.rank", "[2,2]", "--grid.scale", "[1]"]},
            "--grid: member r2-c1-s0-lr0.01 occurs twice",
            id="twice",
        ),
        pytest.param([], {"grid": ["--grid.rank", "[]"]}, "no axis may be empty", id="empty-axis"),
        pytest.param(
            [],
            {"grid": ["--grid.members", "[{rang: 2}]"]},
            "'rang' is not a setting",
            id="unknown-setting",
        ),
        pytest.param(
            ["--grid.members", "[{rank: 2}]"],
            {},
            "the axis rank is not expected",
            id="members-and-axis",
        ),
        pytest.param([], {"grid": ["--grid.scale", "[0]"]}, "scale", id="scale"),
        pytest.param(
            [], {"grid": ["--grid.rank", "[0]"]}, "--grid.rank must be at least 1", id="rank"
        ),
        pytest.param([], {"size": 0}, "--sweep.pack_size 0 is too small", id="pack-size"),
        pytest.param(
            ["--sweep.halving_factor", 1],
            {},
            "--sweep.halving_factor 1 must be above 1",
            id="halving-factor",
        ),
        pytest.param(["--model.mode", "frozen"], {}, "use `loraens fit`", id="frozen"),
        pytest.param(
            ["--trainer.max_steps", 5],
            {},
            "--trainer.max_steps 5: a sweep trains whole epochs",
            id="max-steps",
        ),
        pytest.param([], {"epochs": -1}, "a sweep needs an end", id="no-end"),
        pytest.param(
            ["--trainer.logger", "[{class_path: CSVLogger, init_args: {save_dir: x}}]"],
            {},
            "logs to one of CSVLogger, TensorBoardLogger, WandbLogger",
            id="list-of-loggers",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(fails, command, tmp_path, args, options, message):
    assert message in fails(*command(*args, **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("last.ckpt", "", "something that loraens did not write", id="no-sweep"),
        pytest.param("sweep.json", "{", "sweep.json is not JSON", id="broken"),
    ],
)
def test_directories_that_hold_something_else(fails, command, tmp_path, file, content, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text(content)
    assert message in fails(*command())


def test_a_callback_that_waits_for_what_nothing_logs(fails, command):
    callback = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss"]
    assert "EarlyStopping monitors 'val_loss', which is not there" in fails(*command(*callback))


def test_a_second_sweep_in_one_directory(fails, command, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert "another training runs in" in fails(*command())
