"""Cross-validated estimates: nothing is scored on what it was chosen on."""

import numpy as np
import pytest

from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine
from loraens.ensemble.cross_validation import FOLDS, Candidate, cross_validate, folds
from loraens.ensemble.methods import REPEATS
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.metrics import CALIBRATION_ERROR, Outcome
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
        for number, (repeat, chosen_on, scored_on) in enumerate(folds(pool)):
            weights = candidate.weights(pool.at(chosen_on), number)
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
    assert omni.held_out == pytest.approx(omni.dev, nan_ok=True)  # nothing was chosen
    assert (omni.p_best < 0.05) if task.kind == "classes" else np.isnan(omni.p_best)
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
