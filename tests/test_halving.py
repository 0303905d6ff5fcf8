"""Halvings by an ensemble: planted members of which two are near copies, and a plain loop."""

import json

import numpy as np
import pytest
import torch
from helpers.pools import make_pool
from test_sweep import CONFIGS, QUIET, contents, manifests

from loraens.ensemble.pool import Pool
from loraens.ensemble.select import forward_order
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.tasks import QUORA, SST, STS
from loraens.train import coordinator
from loraens.train.evaluation import combined_score
from loraens.train.module import Population
from loraens.train.options import SweepOptions
from loraens.train.packs import PackFiles

KEPT = {"score": {1, 2}, "ensemble": {1, 3}}  # ranks


def means_score(pools, members):
    """The score of the mean of some members over tasks, by itself."""
    scores = {}
    for pool in pools:
        outcomes = [pool.task.outcome(pool.logits[member]) for member in members]
        values = [o.predictions if pool.task is STS else o.probabilities for o in outcomes]
        mean = np.mean(values, axis=0)
        if pool.task is STS:
            scores[pool.task.name] = np.corrcoef(mean, pool.labels)[0, 1]
        else:
            scores[pool.task.name] = (mean.argmax(axis=1) == pool.labels).mean()
    paper = (scores.get("sst", 0) + scores.get("quora", 0) + (1 + scores.get("sts", 0)) / 2) / 3
    return paper if len(scores) == 3 else np.mean([*scores.values()])


@pytest.mark.parametrize("tasks", [[SST], [QUORA], [STS], [SST, STS], [SST, QUORA, STS]])
def test_a_forward_selection_is_that_of_a_plain_loop(tasks):
    pools = [make_pool(task, 7, 80, 1.5, seed=3) for task in tasks]

    def combined(utilities):
        named = {task.name: value for task, value in zip(tasks, utilities, strict=True)}
        return combined_score(tasks, named)

    expected = []
    while len(expected) < 7:
        remaining = [member for member in range(7) if member not in expected]
        expected.append(
            max(
                remaining,
                key=lambda member: (
                    round(means_score(pools, [*expected, member]), 9),
                    round(means_score(pools, [member]), 9),
                    -member,  # names are in this order
                ),
            )
        )
    assert forward_order(pools, combined) == expected
    shuffled = np.random.default_rng(0).permutation(7)
    order = forward_order([pool.of(shuffled) for pool in pools], combined)
    assert [shuffled[index] for index in order] == expected


def test_of_equal_gains_the_better_single_member_and_then_the_name_decides():
    labels = np.arange(4) % 2
    right = np.where(labels == 1, 1.0, -1.0)
    copies = [right, right, right, np.where(np.arange(4) == 0, -0.5 * right, right)]
    names = ("b", "c", "a", "0")
    pool = Pool(QUORA, names, np.ones(4), np.stack(copies)[..., None], labels)
    # each one added to "a" is right everywhere
    assert [names[index] for index in forward_order([pool], sum)] == ["a", "b", "c", "0"]


@pytest.fixture
def sweep(tiny_bert, corpus, run_command, tmp_path, monkeypatch):
    """Runs a sweep of four members, or configurations, of planted logits; returns its directory.

    The first is right but for a third of the examples, the second its near copy, the third right
    by a large margin there and, by a small one, wrong elsewhere; the fourth is wrong everywhere.
    """
    logits = Population._logits

    def planted(self, batch):
        if batch.split not in ("dev", "oof"):
            return logits(self, batch)
        labels = self._labels(self._task(batch.task), batch.split)[batch.indices.cpu()]  # (M, B)
        if batch.task != "sst":
            labels = labels if batch.task == "sts" else 2 * labels - 1
            return torch.tensor(labels)[..., None].float()
        third = batch.indices.cpu().numpy() % 3 == 0
        first = batch.indices.cpu().numpy() == 1
        given = np.zeros((*labels.shape, 5))
        for index, member in enumerate(self.members):
            correct = {1: ~third, 2: ~third & ~first, 3: third, 4: third & ~third}[member.rank]
            margin = {1: 2.0, 2: 2.0, 3: np.where(third, 6.0, 1.0), 4: 9.0}[member.rank]
            right = labels[index].astype(int)
            predicted = np.where(correct[index], right, (right + 1) % 5)
            given[index] = (
                np.eye(5)[predicted] * np.broadcast_to(margin, labels.shape)[index, :, None]
            )
        return torch.tensor(given).float()

    monkeypatch.setattr(Population, "_logits", planted)

    def arguments(by, *args, name, task="sst", grid=("--grid.rank", "[1,2,3,4]")):
        files = ["--config", CONFIGS / f"{task}.yaml", "--data.root", corpus]
        model = ["--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2]
        store = ["--trainer.max_epochs", 2, "--store.root", tmp_path, "--store.run", name]
        halving = ["--sweep.halving_factor", 2, "--sweep.halving_by", by]
        options = ["--sweep.pack_size", 3, *QUIET, *grid, *halving, *args]
        return list(map(str, ["sweep", *files, *model, *store, *options]))

    def run(by, *args, name="run", expect=0, **options):
        assert run_command(*arguments(by, *args, name=name, **options)) == expect
        return tmp_path / name

    run.arguments = arguments
    return run


def finished(run):
    found = manifests(run).values()
    return {manifest.member.rank for manifest in found if manifest.status == "finished"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "folds"), [("sst", None), ("sst", 2), ("multitask", None)], ids=str
)
def test_an_ensemble_keeps_the_complementary_one_where_scores_keep_near_copies(sweep, task, folds):
    options = ["--grid.folds", folds] if folds else []
    for by, kept in KEPT.items():
        run = sweep(by, *options, name=by, task=task)
        assert finished(run) == kept
        settings = json.loads((run / "sweep.json").read_text())["settings"]
        assert settings["halving_by"] == by
        found = manifests(run)
        assert len(found) == 4 * (folds or 1)
        for manifest in found.values():
            if manifest.member.rank not in kept:
                assert (manifest.status, len(manifest.history)) == ("stopped", 1)
        last = next(m for m in found.values() if m.member.rank == 4)
        criterion = {
            ("score", None): "dev score",
            ("score", 2): "out-of-fold score",
            ("ensemble", None): "forward selection on dev",
            ("ensemble", 2): "forward selection out of fold",
        }[by, folds]
        assert last.ended == f"epoch 1: number 4 of 4 by {criterion}"


@pytest.mark.slow
@pytest.mark.parametrize("folds", [None, 2])
def test_interrupted_at_the_halving_it_keeps_the_same_members(sweep, monkeypatch, folds):
    options = ["--grid.folds", folds] if folds else []
    expected = contents(sweep("ensemble", *options, name="whole"))
    end = coordinator.Coordinator._end
    remove = PackFiles.remove_others
    ended = []

    def stop_at_the_second(self, name, **fields):
        if ended:
            raise KeyboardInterrupt
        ended.append(name)
        return end(self, name, **fields)

    def stop(*args):
        raise KeyboardInterrupt

    def stop_in_the_next_rung(self, rung):
        return stop() if rung else remove(self, rung)

    points = [
        (coordinator.Coordinator, "_end", stop_at_the_second),
        (coordinator, "regrouped", stop),
        (PackFiles, "remove_others", stop_in_the_next_rung),
    ]
    for owner, name, replacement in points:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            sweep("ensemble", *options, name=name, expect=130)
        run = sweep("ensemble", *options, name=name)
        assert contents(run) == expected
        assert finished(run) == KEPT["ensemble"]


@pytest.mark.slow
def test_failed_members_are_not_in_the_ensemble(sweep):
    """Of three that are left two are kept; without any there is nothing to choose from."""
    members = "[{rank: 1, lr: 1.0e+30}, {rank: 2}, {rank: 3}, {rank: 4}]"
    run = sweep("ensemble", grid=["--grid.members", members])
    statuses = {m.member.rank: m.status for m in manifests(run).values()}
    assert statuses == {1: "failed", 2: "finished", 3: "finished", 4: "stopped"}
    everyone = sweep("ensemble", "--model.lr", 1e30, name="failed")
    assert {manifest.status for manifest in manifests(everyone).values()} == {"failed"}


@pytest.mark.slow
def test_another_criterion_is_another_sweep(sweep, fails):
    run = sweep("score")
    assert "started with halving_by 'score', now it is 'ensemble'" in fails(
        *sweep.arguments("ensemble", name="run")
    )
    state = json.loads((run / "sweep.json").read_text())
    del state["settings"]["halving_by"], state["sha256"]  # as older versions left it
    write_atomically(run / "sweep.json", json.dumps(state).encode())
    before = contents(run)
    assert "started with halving_by 'score', now it is 'ensemble'" in fails(
        *sweep.arguments("ensemble", name="run")
    )
    sweep("score")
    assert contents(run) == before


def test_a_criterion_without_halvings_is_refused():
    with pytest.raises(InputError, match="halving_by ensemble is of successive halving, and there"):
        SweepOptions(halving_by="ensemble")
    assert SweepOptions(halving_by="ensemble", halving_factor=2).rungs(4) == [1, 2, 4]
