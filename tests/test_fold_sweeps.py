"""Sweeps with folds: members of a configuration are scored, stopped and chosen together."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.records import make_manifest, make_settings
from lightning.pytorch import Trainer
from sklearn.model_selection import StratifiedGroupKFold
from test_module import QUIET as QUIET_TRAINER
from test_sweep import CONFIGS, QUIET, contents, manifests, run_in_child

from loraens.api.proofs import prove
from loraens.api.sweep import Sweep
from loraens.data import modules as data
from loraens.ensemble.read import read_runs
from loraens.ensemble.recommend import resolved
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.members import Grid, Member, configurations
from loraens.records import EpochRecord
from loraens.seeding import derive_seed
from loraens.store import (
    Logits,
    MemberStore,
    find_members,
    in_16_bits,
    logits_to_bytes,
    npz,
    write_examples,
)
from loraens.tasks import QUORA, SST, STS
from loraens.train.bar import SweepBar
from loraens.train.module import Population
from loraens.train.options import SweepOptions
from loraens.train.plan import count_in_words
from loraens.train.worker import Worker

GRID = ["--grid.rank", "[1,4,9]", "--grid.folds", "3"]


@pytest.fixture(scope="module")
def command_in(tiny_bert, corpus):
    """The arguments of a sweep of three configurations of three folds in a store."""

    def make(root, *args, name="run", epochs=2, grid=GRID, size=6, task="sst"):
        files = ["--config", CONFIGS / f"{task}.yaml", "--data.root", corpus]
        model = ["--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2]
        store = ["--trainer.max_epochs", epochs, "--store.root", root, "--store.run", name]
        options = [*files, *model, *store, "--sweep.pack_size", size, *QUIET, *grid, *args]
        return ["sweep", *map(str, options)]

    return make


@pytest.fixture
def command(command_in, tmp_path):
    return partial(command_in, tmp_path)


@pytest.fixture
def sweep(command, run_command, tmp_path):
    """Runs a sweep; returns its directory."""

    def run(*args, name="run", expect=0, **options):
        assert run_command(*command(*args, name=name, **options)) == expect
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def finished(command_in, run_command, tmp_path_factory):
    """A sweep that has ended, with dev in its parts for STS, and which no test may change."""

    def run(task):
        root = tmp_path_factory.mktemp("folds")
        pool_dev = str(task == "sts").lower()
        options = ("--data.pool_dev", pool_dev, "--data.test_logits", "true")
        arguments = command_in(root, *options, task=task)
        assert run_command(*arguments) == 0
        return root / "run"

    return {task: run(task) for task in ("sst", "sts")}


def by_configuration(found):
    units = {}
    for manifest in found.values():
        units.setdefault(manifest.member.configuration, []).append(manifest)
    return units


def files_of_lines(corpus, directory, parts):
    """A task in files: the lines of the made-up corpus's train that each split is made of."""
    lines = (corpus / "ids-sst-train.csv").read_text().splitlines()
    paths = {}
    for name, indices in parts.items():
        paths[name] = str(directory / f"{name}.csv")
        text = "\n".join([lines[0], *(lines[index + 1] for index in indices)])
        Path(paths[name]).write_text(text + "\n")
    labels = {"class_names": list(SST.class_names), "label_column": SST.label_column}
    return {"name": "sst", "text_columns": ["sentence"], **labels, **paths}


@pytest.mark.slow
def test_scores_are_those_of_a_plain_loop_over_folds(tiny_bert, corpus, tmp_path):
    """Each fold's member trained alone, in double precision; and the one of the largest part on
    files that do not have its part at all.
    """
    options = {"backbone": str(tiny_bert), "epochs": 4, "lr": 1e-2, "pooling": "mean"}
    grid = Grid(rank=[2, 5], folds=5)
    texts = data.SST(root=str(corpus))
    swept = Sweep(
        texts,
        grid,
        tmp_path / "sweep",
        **options,
        options=SweepOptions(pack_size=10),
        trainer={"precision": "64-true", "enable_progress_bar": False},
    ).fit()
    split = texts.splits["sst", "train"].split
    numbers = {text: number for number, text in enumerate(dict.fromkeys(split.texts))}
    groups = [numbers[text] for text in split.texts]
    seed = derive_seed(0, "parts", 5) % 2**32
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    folds = list(splitter.split(groups, split.labels.astype(int), groups))
    assert len({len(inside) for _, inside in folds}) > 1

    def alone(module, texts):
        trainer = Trainer(
            precision="64-true", max_epochs=4, num_sanity_val_steps=0, **QUIET_TRAINER
        )
        trainer.fit(module, texts)
        return module.evaluation

    build = partial(Population, tasks=[SST], backbone=str(tiny_bert), pooling="mean")
    largest = max(range(5), key=lambda fold: len(folds[fold][1]))
    for unit in configurations(swept.members):
        predicted = np.full(len(split), -1)
        for member, (outside, inside) in zip(unit, folds, strict=True):
            evaluation = alone(build([member]), texts)
            assert evaluation.indices["sst", "oof"][0].tolist() == inside.tolist()
            logits = evaluation.logits["sst", "oof"][0]
            predicted[inside] = logits.argmax(axis=1)
            stored = MemberStore(swept.directory / member.name).logits("sst", "oof", "last")
            assert stored.example_id.tolist() == [split.ids[index] for index in inside]
            np.testing.assert_allclose(stored.logits, logits, rtol=0, atol=1e-6)
            if member.fold == largest:
                parts = {"train": outside, "dev": inside}
                files = files_of_lines(corpus, tmp_path, parts)
                plain = data.TextFiles(**files, backbone=str(tiny_bert), batch_size=8)
                without = alone(build([replace(member, fold=None)]), plain)
                expected = without.logits["sst", "dev"][0]
                np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
        for member in unit:
            scores = swept.manifests[member.name].dev["last"]["sst"]
            assert scores["accuracy"] == pytest.approx((predicted == split.labels).mean())
            assert scores["nll"] > 0


@pytest.mark.slow
def test_a_member_of_a_fold_ends_alone_as_in_any_pack(tiny_bert, corpus):
    """In double precision after 20 steps, beside other folds and other configurations."""
    texts = data.SST(root=str(corpus), backbone=str(tiny_bert), batch_size=8)
    texts.cut(5)
    build = partial(Population, tasks=[SST], backbone=str(tiny_bert), pooling="mean")

    def fitted(members):
        module = build(members)
        trainer = Trainer(precision="64-true", max_epochs=4, max_steps=20, **QUIET_TRAINER)
        trainer.fit(module, texts)
        assert trainer.global_step == 20
        return module.model

    base = Member(3, 3.0, lr=1e-2)
    other = Member(6, 1.0, seed=1, lr=1e-2)
    mixed = [replace(other, fold=4), *(replace(base, fold=fold) for fold in (2, 0, 1))]
    together = fitted(mixed)
    for index in (1, 3):
        member = mixed[index]
        model = fitted([member])
        for name, layer in model.adapters.items():
            ours = together.adapters[name]
            assert layer.lora_B.abs().max() > 1e-3
            torch.testing.assert_close(ours.lora_A[index, :3], layer.lora_A[0], rtol=0, atol=1e-10)
            torch.testing.assert_close(
                ours.lora_B[index, :, :3], layer.lora_B[0], rtol=0, atol=1e-10
            )
        torch.testing.assert_close(
            together.heads["sst"].weight[index],
            model.heads["sst"].weight[0],
            rtol=0,
            atol=1e-10,
        )


@pytest.mark.slow
def test_what_a_sweep_with_folds_leaves(finished, capsys):
    for task, run in finished.items():
        metric = {"sst": SST, "sts": STS}[task].metric
        found = manifests(run)
        assert len(found) == 9
        assert Worker.from_directory(run).data.splits[task, "oof"].folds.count == 3
        units = by_configuration(found)
        assert all(len(unit) == 3 for unit in units.values())
        for unit in units.values():
            for other in unit[1:]:  # one score, one best epoch
                assert other.dev == unit[0].dev
                assert other.epochs == unit[0].epochs
            assert unit[0].settings.folds == 3
            assert f"{task}-oof" in unit[0].settings.data
            assert ("sts-dev" in unit[0].settings.data) is False
            assert set(unit[0].truncated) <= {f"{task}-{name}" for name in ("train", "dev", "test")}
            stored = [MemberStore(run / manifest.name).logits(task, "oof") for manifest in unit]
            positions = np.concatenate([logits.indices for logits in stored])
            size = 48 if task == "sst" else 72
            assert sorted(positions.tolist()) == list(range(size))  # every text once
            groups = [set(logits.groups.tolist()) for logits in stored]
            assert not groups[0] & groups[1]
            assert f"{task}-oof.npz" in unit[0].examples
        pool = read_runs([run], report=pytest.fail)[task].dev
        assert {epochs.shape for epochs in pool.epochs} == {(2, *pool.logits.shape[1:])}
        for index, name in enumerate(pool.names):
            best = pool.epoch_names[index].index(units[name][0].epochs["best"])
            assert (pool.epochs[index][best] == pool.logits[index]).all()
            assert not groups[0] & groups[2]
            assert not groups[1] & groups[2]
            for manifest in unit:
                for epoch in {*manifest.epochs.values()}:
                    names = {path.stem for path in (run / manifest.name / epoch).glob("*.npz")}
                    dev = {"sst-dev"} if task == "sst" else set()
                    assert names == {f"{task}-oof", f"{task}-test", *dev}
        pool = read_runs([run])[task]
        assert pool.dev.logits.shape[:2] == (3, size)
        ids = pool.dev.names
        assert list(ids) == sorted(units)
        scores = {name: unit[0].score(pool.dev.task) for name, unit in units.items()}
        for index, name in enumerate(pool.dev.names):
            outcome = pool.dev.outcome(index)
            value = pool.dev.task.main_metric(outcome, pool.dev.labels)
            assert value == pytest.approx(scores[name], abs=1e-6)
        assert len(pool.dev.groups) == size
        assert len(pool.test) == 9
        assert (pool.apart is not None) == (task == "sst")
        assert metric in unit[0].dev["best"][task]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst", "sts"])
def test_ensembles_of_configurations_from_choice_to_prediction(
    finished, run_command, fails, corpus, tmp_path, capsys, task
):
    run = Path(shutil.copytree(finished[task], tmp_path / "run"))
    methods = ["--method", "omni", "topk", "--size", "2", "--logger", "false"]
    assert run_command("ensemble", "--runs", run, *methods) == 0
    printed = capsys.readouterr().out
    assert "3 configurations of 3 folds to choose" in printed
    assert "out of fold" in printed
    rule = {"sst": "probs", "sts": "logits"}[task]
    folder = run / "ensembles" / f"{task}-topk-{rule}"
    record = EnsembleRecord.read(folder)
    assert (record.folds, record.pool_size, len(record.members)) == (3, 3, 6)
    assert [member.weight for member in record.members] == pytest.approx([1 / 6] * 6)
    assert (record.apart is not None) == (task == "sst")
    if task == "sst":  # all six predict dev, which was kept apart
        stores = [record.member_store(folder, member)[0] for member in record.members]
        logits = [MemberStore(store).logits("sst", "dev") for store in stores]
        shares = np.mean([SST.outcome(one.logits).probabilities for one in logits], axis=0)
        expected = (shares.argmax(axis=1) == logits[0].labels).mean()
        assert record.apart == pytest.approx(expected)
    stem = {"sst": "ids-sst", "sts": "sts"}[task]
    out = tmp_path / "out.csv"
    texts = corpus / f"{stem}-test-student.csv"
    assert run_command("predict", "--model", folder, "--input", texts, "--output", out) == 0
    recommended = run / "ensembles" / "recommended"
    predicted = []
    for model in (recommended, resolved(recommended)):
        given = ("--input", texts, "--output", tmp_path / "again.csv")
        assert run_command("predict", "--model", model, *given) == 0
        predicted.append((tmp_path / "again.csv").read_text())
    assert predicted[0] == predicted[1]
    assert len(out.read_text().splitlines()) == 11
    predictor = Predictor.load(folder)
    assert predictor.combination.folds == 3
    assert [member.name[-2:] for member in record.members] == ["f0", "f1", "f2"] * 2
    (row,) = predictor.predict({"sst": ["a"], "sts": [("a", "b")]}[task], coverage=0.9)
    assert list(row)[-1] == {"sst": "set", "sts": "high"}[task]
    parts = [Predictor.load(path).conformal(predictor.task()) for path in find_members(run)[:3]]
    assert sum(part.examples for part in parts) == record.conformal.examples
    assert run_command("report", "--runs", run, "--logger", "false") == 0
    page = (run / "report" / "index.html").read_text()
    assert "Hardest examples" not in page  # the texts were there
    assert run_command("compare", run) == 0
    assert "topk" in capsys.readouterr().out
    message = fails("ensemble", "--runs", run, "--method", "soup", "--logger", "false")
    assert "has seen every example" in message
    message = fails("ensemble", "--runs", run, *methods, "--max_members", 2)
    assert "--max_members 2: at least 3 is expected, which the best configuration runs" in message
    message = fails("ensemble", "--runs", run, *methods, "--max_members", 5)
    assert "--size 2: at most 1 is expected" in message
    proofs = prove(run, methods=["omni"])
    assert proofs["omni"].members.folds == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["--sweep.patience", 1, "--sweep.halving_factor", 2]], ids=["plain", "stopping"]
)
def test_killed_anywhere_it_ends_with_the_same_contents(command, tmp_path, options):
    epochs = 3 if options else 2
    whole = tmp_path / "whole"
    changes = run_in_child(command(*options, name="whole", epochs=epochs), whole)
    expected = contents(whole)
    assert len({name.partition("/")[0] for name in expected}) == 9
    rng = random.Random(0)
    kills = 0
    runs = 0
    while kills < 5:
        runs += 1
        run = tmp_path / f"run-{runs}"
        arguments = command(*options, name=run.name, epochs=epochs)
        while run_in_child(arguments, run, rng.randint(1, changes)) is None:
            kills += 1
        assert contents(run) == expected
        assert not (run / "packs").exists()


@pytest.mark.slow
def test_patience_and_halving_stop_whole_configurations(sweep):
    options = ["--trainer.precision", "64-true", "--grid.seed", "[0,1]"]
    whole = by_configuration(manifests(sweep(*options, name="whole", epochs=4)))
    patient = by_configuration(manifests(sweep(*options, "--sweep.patience", 1, epochs=4)))
    for name, unit in patient.items():
        full = [entry.score for entry in whole[name][0].history]
        scores = [entry.score for entry in unit[0].history]
        assert scores == pytest.approx(full[: len(scores)], abs=1e-9)
        stops = [epoch for epoch in range(1, 4) if full[epoch] <= max(full[:epoch])]
        expected = min([epoch + 1 for epoch in stops], default=4)
        assert {len(manifest.history) for manifest in unit} == {expected}
        if expected < 4:
            reasons = {manifest.ended for manifest in unit}
            assert reasons == {f"epoch {expected}: no better out-of-fold score for 1 epochs"}
    halving = ["--sweep.halving_factor", 2, "--sweep.halving_epochs", 1]
    halved = by_configuration(manifests(sweep(*options, *halving, name="halved", epochs=3)))
    left = set(whole)
    for epoch, kept in ((1, 3), (2, 2)):
        ranked = sorted(left, key=lambda name: -whole[name][0].history[epoch - 1].score)
        cut = whole[ranked[kept - 1]][0].history[epoch - 1].score
        stopped = {name for name in left if len(halved[name][0].history) == epoch}
        assert len(stopped) == len(left) - kept
        assert all(whole[name][0].history[epoch - 1].score <= cut for name in stopped)
        for name in stopped:
            assert {len(manifest.history) for manifest in halved[name]} == {epoch}
            (reason,) = {manifest.ended for manifest in halved[name]}
            assert reason.endswith(f"of {len(left)} by out-of-fold score")
        left -= stopped


@pytest.mark.slow
def test_out_of_memory_splits_between_configurations(sweep, monkeypatch, capsys):
    expected = manifests(sweep(name="whole", size=3))
    step = Population.training_step
    seen = set()

    def hungry(self, batch, batch_idx):
        if len(self.members) > 3 and self.global_step >= 5:  # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.add(tuple(member.name for member in self.members))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Population, "training_step", hungry)
    run = sweep(name="tight", size=8)
    # half of 6 for two packs; then twice that may be tried again
    assert json.loads((run / "sweep.json").read_text())["fits"] == 6
    assert {len(names) for names in seen} == {3, 6}
    for names in seen:
        assert len({name.rpartition("-f")[0] for name in names}) == len(names) // 3
    found = manifests(run)
    assert {manifest.status for manifest in found.values()} == {"finished"}
    for name, manifest in found.items():
        scores = [[entry.score for entry in m.history] for m in (manifest, expected[name])]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)

    def full(self, batch, batch_idx):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Population, "training_step", full)
    sweep(name="none", expect=2)
    error = " ".join(capsys.readouterr().err.split())
    assert "configuration r1-c3-s0-lr0.01 does not fit in memory with its 3 folds" in error
    assert "or give fewer folds" in error


@pytest.fixture
def fail_fold(monkeypatch):
    """Makes the logits of one member NaN from a step on."""

    def fail(name, at):
        logits = Population._logits

        def broken(self, batch):
            given = logits(self, batch)
            names = [member.name for member in self.members]
            if name in names and self.global_step >= at:
                factor = torch.ones(len(names), 1, 1)
                factor[names.index(name)] = torch.nan
                given = given * factor
            return given

        monkeypatch.setattr(Population, "_logits", broken)

    return fail


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--sweep.halving_factor", 2]], ids=["plain", "halving"])
def test_a_failed_fold_is_the_end_of_its_configuration(sweep, fail_fold, options, capsys):
    fail_fold("r4-c3-s0-lr0.01-f1", 0)
    run = sweep(*options, epochs=3)
    printed = capsys.readouterr().out
    assert "r4-c3-s0-lr0.01 " in printed
    assert "failed (fold 1" in " ".join(printed.split())
    units = by_configuration(manifests(run))
    failed = units.pop("r4-c3-s0-lr0.01")
    assert [manifest.status == "failed" for manifest in failed] == [False, True, False]
    for manifest in (failed[0], failed[2]):
        assert all(np.isnan(entry.score) for entry in manifest.history)
        if options:
            assert len(manifest.history) == 1
            assert manifest.ended == "epoch 1: another fold of the configuration failed"
    for unit in units.values():
        assert not any(np.isnan(entry.score) for manifest in unit for entry in manifest.history)
    skipped = []
    pool = read_runs([run], report=skipped.append)["sst"]
    assert list(pool.dev.names) == sorted(units)
    (sentence,) = skipped
    assert "r4-c3-s0-lr0.01 is skipped: its member r4-c3-s0-lr0.01-f1 failed" in sentence


@pytest.mark.slow
def test_a_pack_without_any_score_ends(sweep, fail_fold):
    fail_fold("r4-c3-s0-lr0.01-f0", 0)
    found = manifests(sweep(epochs=3, grid=["--grid.rank", "[4]", "--grid.folds", "2"]))
    statuses = {name[-2:]: (m.status, len(m.history)) for name, m in found.items()}
    assert statuses == {"f0": ("failed", 0), "f1": ("stopped", 1)}


@pytest.mark.slow
def test_a_damaged_member_has_its_configuration_trained_again(sweep, capsys):
    run = sweep(size=3)
    before = contents(run)
    victim = next((run / "r4-c3-s0-lr0.01-f2").glob("epoch-*/sst-oof.npz"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    sweep(size=3)
    assert f"{victim} was altered" in capsys.readouterr().out
    assert contents(run) == before
    # as after a kill between two members' last manifests, with no checkpoint of their pack
    shutil.rmtree(run / "r1-c3-s0-lr0.01-f0")
    sweep(size=3)
    assert contents(run) == before


def test_dry_run_counts_members(sweep, capsys):
    run = sweep("--dry-run", size=2)
    printed = capsys.readouterr().out
    assert "3 configurations x 3 folds = 9 members, of which 0 have ended" in printed
    assert "3 packs of at most 3 members" in printed
    assert "8 steps a member (2 epochs of 4), 72 member-steps" in printed
    assert not run.exists()


def test_the_progress_bar_counts_members(capsys):
    bar = SweepBar(True, 4, count_in_words(20, 5))
    bar.open(packs=[], done=0, to_do=20)
    bar.close()
    assert "4 configurations x 5 folds = 20 members: " in capsys.readouterr().err


@pytest.mark.slow
def test_several_tasks_have_parts_of_their_own(sweep):
    run = sweep(task="multitask", grid=["--grid.rank", "[2,3]", "--grid.folds", "2"])
    pools = read_runs([run])
    assert set(pools) == {"sst", "quora", "sts"}
    for pool in pools.values():
        assert pool.dev.logits.shape[:2] == (2, 48)
        assert len(pool.apart) == 4


@pytest.mark.slow
def test_other_folds_are_another_sweep(finished, command_in, fails):
    run = finished["sst"]
    for folds, message in (("2", "folds 3, now it is 2"), (None, "folds 3, now it is None")):
        grid = ["--grid.rank", "[1,4,9]", *(["--grid.folds", folds] if folds else [])]
        assert f"started with {message}" in fails(*command_in(run.parent, grid=grid))


@pytest.mark.parametrize(
    ("args", "grid", "message"),
    [
        (["--grid.folds", 1], [], "--grid: folds 1 is too small: at least 2 is expected"),
        (["--grid.folds", 99], [], "--grid.folds 99 is too many for task sst"),
        (["--data.pool_dev", "true"], [], "--data.pool_dev is of folds, and there are none"),
        (["--data.group_column", "user"], [], "has no column 'user' (group_column)"),
        (["--model.fold", 0], [], "model.fold"),
        ([], ["--grid.members", "[{rank: 2, fold: 0}]"], "a fold is not a setting of one member"),
    ],
)
def test_bad_input_ends_in_one_sentence(fails, command, tmp_path, args, grid, message):
    assert message in fails(*command(*args, grid=grid))
    assert not (tmp_path / "run").exists()


# Pools of members that were not trained


def plant(directory, task=SST, ranks=(1, 2), folds=3, size=30, skip=(), **changes):
    """A run of configurations whose members see the truth on their part and on test."""
    rng = np.random.default_rng(0)
    classes = len(task.class_names)
    labels = rng.integers(0, classes, size) if classes else rng.uniform(0, 5, size)
    part = rng.integers(0, folds, size)
    part[:folds] = range(folds)
    ids = np.array([f"text-{number}" for number in range(size)])
    names = {f"{task.name}-{split}": "same" for split in ("train", "oof", "test")}
    settings = make_settings(tasks=(task,), folds=folds, data=names)
    file = f"{task.name}-oof.npz"
    examples = write_examples(directory, file, ids, labels.astype(float), np.arange(size) // 2)
    epochs = ("epoch-000", "epoch-001")
    history = tuple(EpochRecord(e, number, 1, 0.5, {}, 0.5) for number, e in enumerate(epochs))
    for rank in ranks:
        for fold in range(folds):
            member = Member(rank, 1.0, fold=fold)
            own = np.flatnonzero(part == fold)
            own = own[~np.isin(own, [p for name, p in skip if name == member.name])]
            logits = rng.normal(size=(size, task.num_outputs)).astype(np.float32)
            test = logits_to_bytes(Logits(logits[:7], ids[:7], None))
            files = {
                "epoch-001": {
                    file: npz(logits=logits[own], indices=own),
                    f"{task.name}-test.npz": test,
                },
                "logits/epoch-000": {file: npz(logits=in_16_bits(-logits[own]), indices=own)},
            }
            dev = {epoch: {task.name: {task.metric: 0.5}} for epoch in ("best", "last")}
            manifest = make_manifest(
                **{"name": member.name, "member": member, "settings": settings, "dev": dev}
                | {"history": history, "examples": {file: examples}}
                | changes.get(member.name, {})
            )
            MemberStore(directory / member.name).write(files, manifest)
    return directory


@pytest.mark.parametrize("task", [SST, QUORA, STS], ids=lambda task: task.name)
def test_a_pool_has_every_example_once_in_order(tmp_path, task):
    pool = read_runs([plant(tmp_path / "run", task)])[task.name]
    assert pool.dev.names == ("r1-c1-s0-lr0.0001", "r2-c1-s0-lr0.0001")
    assert pool.dev.ranks.tolist() == [1, 2]
    assert [len(unit) for unit in pool.units] == [3, 3]
    assert pool.dev.groups.tolist() == [number // 2 for number in range(30)]
    for index, unit in enumerate(pool.units):
        for path, _ in unit:
            with np.load(path / "epoch-001" / f"{task.name}-oof.npz") as file:
                assert sorted(file.files) == ["indices", "logits"]
            stored = MemberStore(path).logits(task.name, "oof")
            own = stored.indices
            assert stored.groups.tolist() == (own // 2).tolist()
            assert (pool.dev.logits[index, own] == stored.logits).all()
            assert (pool.dev.labels[own] == stored.labels).all()
            assert (pool.dev.epochs[index][1, own] == stored.logits).all()
            np.testing.assert_allclose(
                pool.dev.epochs[index][0, own], -stored.logits, rtol=2.0**-11, atol=2.0**-25
            )
    assert pool.dev.epoch_names == (("epoch-000", "epoch-001"),) * 2
    part = pool.dev.at(np.array([3, 4])).of([1])
    assert part.groups.tolist() == [1, 2]
    assert (part.epochs[0] == pool.dev.epochs[1][:, 3:5]).all()
    assert part.epoch_names == pool.dev.epoch_names[1:]
    test = pool.combined(pool.test, np.array([0.25, 0.75]), "logits")
    mean = np.tensordot([0.25 / 3] * 3 + [0.75 / 3] * 3, pool.test.logits, 1)
    expected = task.outcome(mean).predictions
    np.testing.assert_allclose(test.predictions, expected, rtol=1e-6)


def test_a_member_that_lacks_an_example_is_named(tmp_path):
    run = plant(tmp_path / "run", skip=[("r1-c1-s0-lr0.0001-f1", 1)])
    with pytest.raises(InputError, match=r"r1-c1-s0-lr0\.0001-f1 lacks out-of-fold logits of 1 of"):
        read_runs([run])
    everywhere = [(f"r{rank}-c1-s0-lr0.0001-f1", 1) for rank in (1, 2)]
    run = plant(tmp_path / "other", skip=everywhere)
    with pytest.raises(InputError, match="has not every labelled example once"):
        read_runs([run])


def test_configurations_with_a_missing_or_failed_fold_are_skipped(tmp_path):
    failed = {"status": "failed", "ended": "step 7: the loss is nan"}
    run = plant(tmp_path / "run", ranks=(1, 2, 3), **{"r3-c1-s0-lr0.0001-f0": failed})
    shutil.rmtree(run / "r2-c1-s0-lr0.0001-f2")
    skipped = []
    pool = read_runs([run], report=skipped.append)["sst"]
    assert pool.dev.names == ("r1-c1-s0-lr0.0001",)
    assert [sentence.partition(" is skipped: ")[2] for sentence in skipped] == [
        "it has no member of fold 2 of 3",
        "its member r3-c1-s0-lr0.0001-f0 failed (step 7: the loss is nan)",
    ]


def test_pools_of_members_with_and_without_folds_are_refused(tmp_path, plant_members):
    folds = plant(tmp_path / "folds")
    plain = plant_members(tmp_path / "plain", SST)
    with pytest.raises(InputError, match="differ in their number of folds"):
        read_runs([folds, plain])


@pytest.fixture
def plant_members():
    from helpers.planted import plant as plant_without_folds

    return plant_without_folds


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [plant(tmp_path / name) for name in ("a", "b")]
    pool = read_runs(runs)["sst"]
    assert pool.dev.names[:2] == ("a/r1-c1-s0-lr0.0001", "a/r2-c1-s0-lr0.0001")
    assert len(find_members(runs[0])) == 6
