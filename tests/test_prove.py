"""Cross-validated estimates: nothing is scored on what it was chosen on."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_info, threadpool_limits

from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine
from loraens.ensemble.cross_validation import (
    FOLDS,
    Candidate,
    bags,
    cross_validate,
    folds,
    nll_of_bags,
    score_bags,
)
from loraens.ensemble.methods import BAGS, REPEATS
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.ensemble.select import _sized
from loraens.metrics import CALIBRATION_ERROR, MSE, PEARSON, Outcome
from loraens.tasks import QUORA, SST, STS

TASKS = {"sst": SST, "quora": QUORA, "sts": STS}


def candidates(task, methods, **options):
    rules = task.label_kind.rules
    return [Candidate(method, rule, Options(**options)) for method in methods for rule in rules]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_example_is_scored_once_a_repetition_by_who_did_not_see_it(task, make_pool):
    pool = make_pool(task, 3, 103)
    seen = np.zeros((REPEATS, 103), int)
    for repeat, chosen_on, scored_on in folds(pool):
        assert not set(chosen_on) & set(scored_on)
        assert len(chosen_on) + len(scored_on) == 103
        seen[repeat, scored_on] += 1
        if task.kind == "classes":
            share = [
                np.mean(pool.labels[scored_on] == number) for number in range(len(task.class_names))
            ]
            whole = [np.mean(pool.labels == number) for number in range(len(task.class_names))]
            assert share == pytest.approx(whole, abs=0.06)
    assert (seen == 1).all()
    assert sum(1 for _ in folds(pool)) == FOLDS * REPEATS


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_held_out_outcomes_against_a_plain_loop(task, make_pool):
    pool = make_pool(task, 4, 60)
    found = cross_validate(pool, candidates(task, ["weighted", "dicor"], size=2))
    for candidate, held in zip(candidates(task, ["weighted", "dicor"], size=2), found, strict=True):
        for repeat, chosen_on, scored_on in folds(pool):
            weights = candidate.weights(pool.at(chosen_on))
            outcome = combine(
                pool.at(scored_on), weights, candidate.rule, pool.at(chosen_on).standings
            )
            np.testing.assert_array_equal(held.predictions[repeat, scored_on], outcome.predictions)
            if outcome.probabilities is not None:
                t = fit_temperature(
                    combine(
                        pool.at(chosen_on), weights, candidate.rule, pool.at(chosen_on).standings
                    ),
                    pool.labels[chosen_on],
                )
                np.testing.assert_allclose(
                    held.calibrated[repeat, scored_on], scaled(outcome, t).probabilities
                )


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_out_of_bag_against_a_plain_loop(task, make_pool):
    pool = make_pool(task, 4, 60)
    wanted = candidates(task, ["weighted", "dicor", "best"], size=2)
    held_out = cross_validate(pool, wanted)
    found = score_bags(pool, wanted, held_out)
    drawn = bags(pool, BAGS)
    for number in (0, 7, BAGS - 1):
        inside, outside = drawn[number]
        assert len(inside) == 60
        assert set(inside) | set(outside) == set(range(60))
        assert not set(inside) & set(outside)
        for candidate, held, bagged in zip(wanted, held_out, found.scores, strict=True):
            weights = candidate.weights(pool.at(inside))
            outcome = combine(pool.at(outside), weights, candidate.rule, pool.at(inside).standings)
            assert len(bagged) == BAGS
            assert bagged.chosen[number] == task.score(outcome, pool.labels[outside])
            fixed = [
                task.score(Outcome(row[outside]), pool.labels[outside]) for row in held.predictions
            ]
            assert_allclose(bagged.fixed[:, number], fixed, rtol=1e-13)


@pytest.mark.slow
def test_threads_of_folds_and_bags_have_a_thread_of_blas_each(make_pool):
    """Threads that all call a BLAS of several wait for each other; afterwards it has them again."""
    pool = make_pool(SST, 4, 60)
    wanted = candidates(SST, ["best"])
    seen = []

    def threads():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    def look():
        seen.extend(threads())

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        score_bags(pool, wanted, cross_validate(pool, wanted, look), look)
        assert threads() == before == [2] * len(before) != []
    assert seen == [1] * (FOLDS * REPEATS + BAGS) * len(before)


def test_correlations_are_of_predictions_of_one_ensemble(make_pool):
    """Held-out predictions of folds on scales of their own do not make a correlation worse."""
    pool = make_pool(STS, 1, 100)
    (held,) = cross_validate(pool, candidates(STS, ["best"]))
    for number in np.unique(held.folds):
        held.predictions[held.folds == number] *= 1 + number
    by_fold = [
        PEARSON(Outcome(row[fold_of == number]), pool.labels[fold_of == number])
        for row, fold_of in zip(held.predictions, held.folds, strict=True)
        for number in np.unique(fold_of)
    ]
    assert len(by_fold) == FOLDS * REPEATS
    assert held.score(PEARSON, pool.labels) == pytest.approx(np.mean(by_fold))
    pooled = PEARSON(held.outcome(0), pool.labels)
    assert held.score(PEARSON, pool.labels) > pooled + 0.01
    squared = [MSE(held.outcome(repeat), pool.labels) for repeat in range(REPEATS)]
    assert held.score(MSE, pool.labels) == pytest.approx(np.mean(squared))


@pytest.mark.parametrize("task", [SST, QUORA], ids=lambda task: task.name)
def test_nll_out_of_bag_against_a_plain_loop(task, make_pool):
    pool = make_pool(task, 4, 60)
    wanted = [c for c in candidates(task, ["weighted", "topk"], size=2) if c.rule != "vote"]
    bagged = score_bags(pool, wanted, cross_validate(pool, wanted))
    chosen = [of_candidate[:20] for of_candidate in bagged.weights]
    chosen[-1] = chosen[-1][:10]  # one has fewer bags
    found = nll_of_bags(pool, [c.rule for c in wanted], chosen, bagged.drawn[:20])
    assert found.shape == (20, len(wanted))
    assert np.isnan(found[10:, -1]).all()
    for number in (0, 7):
        inside, outside = (pool.at(indices) for indices in bags(pool, 20)[number])
        for column, candidate in enumerate(wanted):
            weights = bagged.weights[column][number]
            of_bag = combine(inside, weights, candidate.rule, inside.standings)
            outcome = combine(outside, weights, candidate.rule, inside.standings)
            assert task.score(outcome, outside.labels) == bagged.scores[column].chosen[number]
            temperature = fit_temperature(of_bag, inside.labels)
            log_p = np.log(outcome.probabilities) / temperature
            log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
            expected = -np.mean([log_p[i, int(label)] for i, label in enumerate(outside.labels)])
            assert found[number, column] == pytest.approx(expected)


def test_groups_are_never_divided(make_pool):
    """Neither by folds, nor by bags, nor by the inner folds that choose a size."""
    pool = replace(make_pool(SST, 12, 120), groups=np.repeat(np.arange(40), 3))
    parts = [(chosen_on, scored_on) for _, chosen_on, scored_on in folds(pool)]
    for chosen_on, scored_on in [*parts, *bags(pool, 20)]:
        assert not set(pool.groups[chosen_on]) & set(pool.groups[scored_on])
        assert len(chosen_on)
        assert len(scored_on)
    seen = []

    @_sized
    def spy(part, options, rng):
        seen.append(part.groups)
        return np.array([0])

    bag = bags(pool, 1)[0][0]
    spy(pool.at(bag), Options(), np.random.default_rng(0))
    for groups in seen[:-1]:  # the last one is on all
        copies = np.isin(pool.groups[bag], groups).sum()
        assert copies == len(groups) < len(bag)


def test_the_epoch_is_chosen_where_the_members_are(make_pool):
    """An epoch that is good on some examples alone is not taken for others."""
    pool = make_pool(STS, 2, 100)
    half = np.arange(100) < 50
    good = pool.labels[None, :, None]
    noise = np.random.default_rng(0).normal(size=(1, 100, 1))
    first = np.where(half[None, :, None], good, noise)
    second = np.where(half[None, :, None], noise, good)
    epochs = (np.stack([first[0], second[0]]), np.stack([second[0], first[0], second[0]]))
    pool = replace(pool, epochs=epochs, epoch_names=(("a", "b"), ("a", "b", "c")))
    inside, outside = pool.split(np.flatnonzero(half), np.flatnonzero(~half))
    assert inside.epochs is None
    assert outside.epochs is None
    np.testing.assert_array_equal(inside.predictions, np.tile(pool.labels[half], (2, 1)))
    np.testing.assert_array_equal(outside.logits[:, :, 0], np.tile(noise[0, ~half, 0], (2, 1)))


@pytest.mark.slow
def test_noise_gains_on_dev_and_not_held_out():
    """Members that know nothing: what is chosen on dev looks better there, and is worth nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(float)
    task = type(SST)("t", ("a",), "b", "classes", "cross_entropy", "accuracy", ("x", "y"))
    pool = Pool(
        task,
        tuple(f"m{i:02}" for i in range(40)),
        np.ones(40),
        rng.normal(0, 1, (40, 200, 2)),
        labels,
    )
    every = prove(pool, candidates(task, ["best", "omni", "greedy", "dicor"]))
    proofs = {p.candidate.method: p for p in every if p.candidate.rule == "probs"}
    for method in ("best", "greedy"):
        assert proofs[method].dev["accuracy"] > 0.56
        assert abs(proofs[method].held_out["accuracy"] - 0.5) < 0.05
        assert proofs[method].interval.low < 0.5 < proofs[method].interval.high
    proof = next(p for p in every if p.candidate.method == "greedy")
    assert proof.to_best.low < 0 < proof.to_best.high


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.slow
def test_a_real_gain_is_seen(task, make_pool):
    """Independent errors: all members together beat the best one, and the interval excludes
    zero.
    """
    pool = make_pool(task, 10, 500, 1.2)
    proofs = {
        (p.candidate.method, p.candidate.rule): p
        for p in prove(pool, candidates(task, ["best", "omni", "weighted"]))
    }
    omni = proofs["omni", task.label_kind.rules[0]]
    assert omni.to_best.low > 0
    assert omni.to_omni.value == omni.to_omni.low == omni.to_omni.high == 0
    assert omni.interval.low < omni.interval.value < omni.interval.high
    # nothing was chosen; a correlation is the mean of those in the folds
    assert omni.held_out == pytest.approx(omni.dev, nan_ok=True, abs=0.005)
    assert omni.p_best < 0.05
    assert omni.members == 10
    best = proofs["best", task.label_kind.rules[0]]
    assert best.to_best.value == 0
    assert best.dev[task.metric] == pytest.approx(
        task.score(pool.outcome(int(pool.order[0])), pool.labels)
    )


def test_temperature(make_pool):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in shares]).astype(float)
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    outcome = Outcome(sharp.argmax(1), sharp)
    found = fit_temperature(outcome, labels)
    assert found == pytest.approx(3, rel=0.1)
    cooled = scaled(outcome, found)
    assert (cooled.probabilities.argmax(1) == outcome.predictions).all()
    assert CALIBRATION_ERROR(cooled, labels) < CALIBRATION_ERROR(outcome, labels)
    proofs = prove(make_pool(SST, 5, 300, 0.7), candidates(SST, ["best", "omni"]))
    for proof in proofs:
        assert (proof.temperature is None) == (proof.candidate.rule == "vote")
        if proof.calibrated:
            assert proof.calibrated["nll"] <= proof.held_out["nll"] + 0.02


@pytest.mark.slow
def test_it_repeats(make_pool):
    pool = make_pool(QUORA, 5, 120)
    first, second = (
        prove(pool, candidates(QUORA, ["best", "omni", "random", "pseudo_bma"], size=2))
        for _ in "ab"
    )
    assert [p.interval for p in first] == [p.interval for p in second]
    assert [p.to_best for p in first] == [p.to_best for p in second]
