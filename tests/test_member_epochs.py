"""Members of one sweep that are trained for different numbers of epochs."""

import random
from dataclasses import replace

import pytest
from helpers.records import make_manifest
from lightning.pytorch import Trainer
from test_sweep import CONFIGS, QUIET, contents, manifests, run_in_child

from loraens.api.proofs import prove
from loraens.data import modules as data
from loraens.errors import InputError
from loraens.members import Grid, Member, packs
from loraens.records import EpochRecord, Manifest
from loraens.store import MANIFEST
from loraens.train.bar import SweepBar
from loraens.train.module import Population

GRID = ["--grid.rank", "[2,5]", "--grid.epochs", "[1,3]"]
NAMES = {f"r{rank}-c3-s0-lr0.01-e{epochs}" for rank in (2, 5) for epochs in (1, 3)}
BASE = Member(8, 3.0)


@pytest.fixture
def command(tiny_bert, corpus, tmp_path):
    """The arguments of a command that trains on the tiny backbone in a new store."""

    def make(*args, name="run", epochs=2, kind="sweep"):
        files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus]
        model = ["--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2]
        store = ["--trainer.max_epochs", epochs, "--store.root", tmp_path, "--store.run", name]
        return [kind, *map(str, [*files, *model, *store, *QUIET, *args])]

    return make


@pytest.fixture
def sweep(command, run_command, tmp_path):
    """Runs a sweep; returns its directory."""

    def run(*args, name="run", size=4, **options):
        assert run_command(*command("--sweep.pack_size", size, *args, name=name, **options)) == 0
        return tmp_path / name

    return run


def test_epochs_are_in_the_name_and_in_json_where_they_are_given():
    long = replace(BASE, epochs=12, weight_decay=0.1)
    assert long.name == long.configuration == "r8-c3-s0-lr0.0001-wd0.1-e12"
    assert replace(long, fold=2).name == f"{long.configuration}-f2"
    assert Member(**long.to_json()) == long
    assert list(BASE.to_json()) == ["rank", "scale", "seed", "lr", "weight_decay", "head_dropout"]
    with pytest.raises(ValueError, match="epochs 0 is too small"):
        replace(BASE, epochs=0)


def test_epochs_are_an_axis_and_a_setting():
    axes = Grid(rank=[1, 2], epochs=[3, 12]).expand(BASE)
    assert [(member.rank, member.epochs) for member in axes] == [(1, 3), (1, 12), (2, 3), (2, 12)]
    listed = Grid(members=[{"rank": 4}, {"rank": 4, "epochs": 12.0}]).expand(BASE)
    assert [member.name for member in listed] == ["r4-c3-s0-lr0.0001", "r4-c3-s0-lr0.0001-e12"]
    folded = Grid(epochs=[3, 12], folds=2).expand(BASE)
    assert [(member.epochs, member.fold) for member in folded] == [(3, 0), (3, 1), (12, 0), (12, 1)]
    for grid in (Grid(epochs=[2.5]), Grid(members=[{"epochs": 2.5}])):
        with pytest.raises(ValueError, match=r"epochs 2\.5 is not a whole number"):
            grid.expand(BASE)


@pytest.mark.parametrize("folds", [None, 2])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_packs_never_mix_epochs(folds, size):
    own = [{"rank": rank, "epochs": epochs} for rank in (5, 1, 3) for epochs in (2, 9)]
    of_run = [{"rank": rank} for rank in (4, 2)]
    members = Grid(members=own + of_run, folds=folds).expand(BASE)
    made = packs(members, size)
    assert sorted(m.name for pack in made for m in pack) == sorted(m.name for m in members)
    assert all(len({member.epochs for member in pack}) == 1 for pack in made)
    assert all(len(pack) <= max(size, folds or 1) for pack in made)
    if size == 100:
        assert len(made) == 3
        assert all([m.rank for m in pack] == sorted(m.rank for m in pack) for pack in made)


def test_the_plan_counts_the_steps_of_each_member(sweep, capsys):
    run = sweep("--dry-run", *GRID)
    printed = capsys.readouterr().out
    assert "4 members, of which 0 have ended" in printed
    assert "2 packs of at most 2 members" in printed
    assert "6 or 18 steps a member (1 or 3 epochs of 6), 48 member-steps" in printed
    assert not run.exists()


@pytest.mark.slow
def test_each_member_ends_as_in_a_run_of_its_number_of_epochs(sweep, run_command, command):
    """Bit for bit: beside others in the same pack, and alone in a pack as `fit` leaves it."""
    schedule = ["--model.schedule", "linear", "--model.warmup", 0.2]
    mixed = sweep(*schedule, *GRID, name="mixed")
    single = sweep(*schedule, *GRID, name="single", size=1)
    assert set(manifests(mixed)) == NAMES

    def results(run, suffix=""):
        """Files and scores by member, under the names without epochs, and without what differs."""
        found = contents(run)
        for path, content in found.items():
            if path.endswith(MANIFEST):
                member = {k: v for k, v in content["member"].items() if k != "epochs"}
                found[path] = {**content, "name": member, "member": member}
        return {p.replace(suffix, "", 1): found[p] for p in found if f"{suffix}/" in p}

    for epochs in (1, 3):
        run = sweep(*schedule, *GRID[:2], name=f"of-{epochs}", epochs=epochs)
        assert results(mixed, f"-e{epochs}") == results(run)
        found = manifests(mixed)[f"r5-c3-s0-lr0.01-e{epochs}"]
        assert (found.max_epochs, found.trained_epochs) == (epochs, epochs)
        assert found.settings.scheduled_steps == 6 * epochs
        fit = [*schedule, "--model.rank", 5, "--trainer.enable_model_summary", "false"]
        given = command(*fit, kind="fit", name=f"fit-{epochs}", epochs=epochs)
        assert run_command(*given) == 0
        alone = results(single.parent / f"fit-{epochs}")
        of_sweep = {
            path: one for path, one in results(single, f"-e{epochs}").items() if path in alone
        }
        assert of_sweep == alone


@pytest.mark.slow
@pytest.mark.parametrize("patience", [[], ["--sweep.patience", 1]], ids=["plain", "stopping"])
def test_killed_anywhere_it_ends_with_the_same_contents(command, tmp_path, patience):
    options = [*GRID, "--sweep.pack_size", 4, *patience]
    whole = tmp_path / "whole"
    changes = run_in_child(command(*options, name="whole"), whole)
    expected = contents(whole)
    assert {name.partition("/")[0] for name in expected} == NAMES
    trained = {manifest.trained_epochs for manifest in manifests(whole).values()}
    assert trained == {1, 3} or patience
    rng = random.Random(1)
    kills = 0
    runs = 0
    while kills < 3:
        runs += 1
        run = tmp_path / f"run-{runs}"
        arguments = command(*options, name=run.name)
        while run_in_child(arguments, run, rng.randint(1, changes)) is None:
            kills += 1
        assert contents(run) == expected
        assert not (run / "packs").exists()


@pytest.mark.slow
def test_the_bar_counts_the_steps_of_each_member(sweep, monkeypatch):
    totals = []
    open_, close = SweepBar.open, SweepBar.close

    def noted_open(self, **counts):
        open_(self, **counts)
        totals.append((self._bar.total, self._bar.initial))

    def noted_close(self):
        if self._bar.total:
            totals.append(self._bar.n)
        close(self)

    monkeypatch.setattr(SweepBar, "open", noted_open)
    monkeypatch.setattr(SweepBar, "close", noted_close)
    shown = ["--trainer.enable_progress_bar", "true"]
    sweep(*shown, "--grid.rank", "[2]", "--grid.epochs", "[1]")
    sweep(*shown, "--grid.rank", "[2]", "--grid.epochs", "[1,3]")
    assert totals == [(6, 0), 6, (24, 6), 24]


@pytest.mark.slow
def test_the_folds_of_a_configuration_have_its_number(sweep):
    grid = ["--grid.rank", "[2]", "--grid.epochs", "[1,2]", "--grid.folds", "2"]
    run = sweep(*grid)
    found = manifests(run)
    assert len(found) == 4
    for manifest in found.values():
        assert manifest.trained_epochs == manifest.planned_epochs == manifest.member.epochs
    proofs = prove(run, ["longest"])
    cost = {record.method: record.train_epochs for record in proofs.records(run)}
    assert (cost["omni"], cost["longest"]) == (6, 4)  # of two members each
    assert proofs["longest"].record(run).members[0].name == "r2-c3-s0-lr0.01-e2-f0"


def test_halving_and_epochs_of_members_are_refused_together(fails, command, tmp_path):
    message = fails(*command("--sweep.halving_factor", 2, *GRID))
    assert "--sweep.halving_factor: member r2-c3-s0-lr0.01-e1 is to be trained for 1" in message
    assert "compares members after equal epochs, until max_epochs 2: leave out one" in message
    assert "epochs 0 is too small" in fails(*command("--grid.epochs", "[0]"))
    assert not (tmp_path / "run").exists()


def test_one_fit_has_one_number_of_epochs(tiny_bert, corpus, tmp_path):
    texts = data.SST(root=str(corpus), backbone=str(tiny_bert))
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(**dict.fromkeys(quiet, False), max_epochs=2, default_root_dir=tmp_path)
    members = [Member(2, 1.0, epochs=2), Member(2, 3.0, epochs=5)]
    module = Population(members, texts.tasks, backbone=str(tiny_bert))
    with pytest.raises(
        InputError, match=r"max_epochs 2: member r2-c3-.*-e5 is to be trained for 5"
    ):
        trainer.fit(module, texts)


def test_planned_and_trained_epochs():
    history = tuple(EpochRecord(f"epoch-{n:03d}", n, n, 0.5, {}, 0.5) for n in (1, 2))
    finished = make_manifest(history=history, max_epochs=10)  # such as by max_steps
    assert (finished.trained_epochs, finished.planned_epochs) == (2, 2)
    stopped = make_manifest(history=history, max_epochs=10, status="stopped")
    assert (stopped.trained_epochs, stopped.planned_epochs) == (2, 10)
    older = Manifest.from_json(
        {k: v for k, v in stopped.to_json().items() if k != "max_epochs"}, "it", "fix"
    )
    assert (older.trained_epochs, older.planned_epochs) == (2, None)
    assert make_manifest().trained_epochs is None
