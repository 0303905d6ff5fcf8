"""Selection, joining and measures of ensembles: brute force on small pools, planted cases, and
other libraries.
"""

from itertools import product

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import minimize
from sklearn import metrics as sklearn_metrics

from loraens.ensemble import select
from loraens.ensemble.combine import combine, combine_apart, majority_vote
from loraens.ensemble.cross_validation import bags
from loraens.ensemble.diversity import (
    pair_counts,
    q_statistic,
    similarity,
    summary,
    variance_formula,
    vote_formula,
)
from loraens.ensemble.methods import METHODS, names
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.select import _sized, accurate, dicor, greedy, topk
from loraens.ensemble.significance import OutOfBag, holm
from loraens.ensemble.weighting import bma, pseudo_bma, stacking, weighted
from loraens.metrics import NLL
from loraens.tasks import QUORA, SST, STS

TASKS = {"sst": SST, "quora": QUORA, "sts": STS}


RNG = np.random.default_rng(0)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("name", names(merges=False))
def test_weights_are_legal_and_repeat(task, name, make_pool):
    pool = make_pool(task)
    weights = METHODS[name].select(pool, Options(size=3), np.random.default_rng(1))
    assert weights.shape == (6,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1) or (name == "stacking" and task is STS)
    assert np.array_equal(
        weights, METHODS[name].select(pool, Options(size=3), np.random.default_rng(1))
    )
    expected = {"best": 1, "omni": 6, "topk": 3, "random": 3, "dicor": 3}
    if name in expected:
        assert np.count_nonzero(weights) == expected[name]
        assert len(set(weights[weights > 0].tolist())) == 1


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("name", names(merges=False))
def test_weights_of_a_bag_are_those_of_a_pool_of_its_copies(task, name, make_pool):
    """What is taken from the whole pool, or counted in it, is what is computed of the copies."""
    pool = make_pool(task, noise=2.0)
    bag, _ = bags(pool, 1)[0]
    groups = np.arange(len(pool.labels))
    for whole in (pool, pool.changed(groups=groups)):
        part = whole.at(bag)
        copies = whole.changed(
            logits=whole.logits[:, bag],
            labels=whole.labels[bag],
            groups=None if whole.groups is None else groups[bag],
        )
        weights = [
            METHODS[name].select(some, Options(), np.random.default_rng(1))
            for some in (part, copies)
        ]
        np.testing.assert_allclose(*weights, atol=1e-12)
        np.testing.assert_allclose(part.scores, copies.scores, atol=1e-14)
        np.testing.assert_allclose(part.log_likelihood, copies.log_likelihood, atol=1e-14)


@pytest.mark.parametrize(
    ("most", "members", "tried"),
    [
        (None, 20, [*range(4, 12)]),
        (20, 20, [*range(4, 12)]),
        (6, 20, [4, 5, 6]),
        (4, 20, [4]),
        (3, 20, [3]),
        (1, 20, [1]),
        (3, 2, [2]),
    ],
)
def test_sizes_that_are_tried(make_pool, most, members, tried, monkeypatch):
    sizes = []

    def spy(inside, outside, weights, rule):
        sizes.append(np.count_nonzero(weights))
        return combine_apart(inside, outside, weights, rule)

    @_sized
    def first(pool, options, rng):
        return np.arange(options.size)

    monkeypatch.setattr(select, "combine_apart", spy)
    chosen = first(make_pool(QUORA, members, 40), Options(max_size=most), np.random.default_rng(0))
    assert sorted(set(sizes)) == tried
    assert np.count_nonzero(chosen) in tried


def test_dicor_takes_the_independent_one_and_topk_does_not(make_pool):
    """Three copies of the best member, and a weaker, independent one."""
    for task in TASKS.values():
        good = make_pool(task, 1, 400, 0.6)
        weak = make_pool(task, 1, 400, 1.0, seed=0)
        rng = np.random.default_rng(5)
        other = weak.logits[0] + rng.normal(0, 0.8, weak.logits[0].shape)
        pool = Pool(
            task,
            ("a", "b", "c", "d"),
            np.ones(4),
            np.stack([good.logits[0]] * 3 + [other]),
            good.labels,
        )
        assert pool.scores[3] < pool.scores[0]
        options = Options(size=2, pool=4)
        assert np.flatnonzero(dicor(pool, options, RNG)).tolist() == [0, 3]
        assert np.flatnonzero(topk(pool, options, RNG)).tolist() == [0, 1]


def test_dicor_against_a_plain_loop(make_pool):
    pool = make_pool(STS, 12, 60, 2.0)
    kept = sorted(range(12), key=lambda index: -pool.scores[index])[:8]
    values = pool.logits[..., 0]
    chosen = [kept[0]]
    while len(chosen) < 4:
        means = {
            i: np.mean([scipy.stats.pearsonr(values[i], values[j]).statistic for j in chosen])
            for i in kept
            if i not in chosen
        }
        chosen.append(min(means, key=means.get))
    assert np.flatnonzero(dicor(pool, Options(size=4, pool=8), RNG)).tolist() == sorted(chosen)


def test_the_accurate_ones(make_pool):
    pool = make_pool(STS, 20)
    order = pool.order.tolist()
    assert accurate(pool, Options(pool=5)).tolist() == order[:5]
    assert accurate(pool, Options(pool=0.25)).tolist() == order[:5]
    assert accurate(pool, Options()).tolist() == order[:11]
    within = accurate(pool, Options(within=0.02)).tolist()
    assert within == [member for member in order if pool.scores[member] >= pool.scores.max() - 0.02]


def test_constant_and_always_right_members(make_pool):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 50).astype(float)
    right = 9 * np.eye(5)[labels.astype(int)]
    constant = np.tile(9 * np.eye(5)[0], (50, 1))
    noisy = right + rng.normal(0, 6, (2, 50, 5))
    pool = Pool(
        SST, ("right", "zero", "x", "y"), np.ones(4), np.stack([right, constant, *noisy]), labels
    )
    for name in ("pearson", "cosine", "agreement", "errors"):
        found = similarity(pool, name)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, found.T)
        np.testing.assert_allclose(np.diag(found), 1)
    assert (
        similarity(pool, "pearson")[1, 2]
        == similarity(pool, "errors")[0, 2]
        == similarity(pool, "cosine")[1, 2]
        == 1
    )
    for name in names(merges=False):
        weights = METHODS[name].select(pool, Options(size=2, pool=4), np.random.default_rng(0))
        assert np.isfinite(weights).all(), name
    numbers = make_pool(STS, 3)
    flat = Pool(
        STS,
        numbers.names,
        numbers.ranks,
        np.where(np.arange(3)[:, None, None] == 1, 2.0, numbers.logits),
        numbers.labels,
    )
    assert flat.order[-1] == 1
    assert np.flatnonzero(dicor(flat, Options(size=2, pool=3), RNG)).tolist() == [0, 2]


def test_similarities_against_other_libraries(make_pool):
    pool = make_pool(SST, 4)
    said = pool.predictions.astype(float)
    np.testing.assert_allclose(similarity(pool, "pearson"), np.corrcoef(said), atol=1e-12)
    np.testing.assert_allclose(
        similarity(pool, "cosine"), sklearn_metrics.pairwise.cosine_similarity(said), atol=1e-12
    )
    np.testing.assert_allclose(
        similarity(pool, "errors"), np.corrcoef(said != pool.labels), atol=1e-12
    )
    assert similarity(pool, "agreement")[1, 3] == pytest.approx((said[1] == said[3]).mean())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_weighted_is_the_minimum_on_the_simplex(task, make_pool):
    pool = make_pool(task, 4)
    name = "mse" if task is STS else "nll"

    def loss(weights):
        return task.label_kind.metric(name)(
            combine(pool, weights, "logits", pool.standings), pool.labels
        )

    found = weighted(pool, Options(), RNG)
    bounds = [(1e-9, 1)] * 4
    total = {"type": "eq", "fun": lambda w: w.sum() - 1}
    expected = minimize(
        loss,
        np.full(4, 0.25),
        bounds=bounds,
        constraints=[total],
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    assert loss(found) <= expected.fun + 1e-6
    assert loss(found) < loss(np.full(4, 0.25))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_large_pools_are_computed_in_float32(monkeypatch, task, make_pool):
    """With the same weights but for rounding, of every method that does not count."""
    exact = make_pool(task, examples=200)
    large = exact.changed(logits=exact.logits.astype(np.float32))
    monkeypatch.setattr("loraens.labels.base.LARGE", 1)
    assert large.averaged.dtype == np.float32
    assert exact.averaged.dtype == np.float64
    for method in (weighted, stacking, bma):
        found = [method(pool, Options(), RNG) for pool in (large, exact)]
        np.testing.assert_allclose(*found, atol=2e-4)
    np.testing.assert_array_equal(large.order, exact.order)


def test_stacking_of_large_pools_where_all_members_are_certain_and_wrong(monkeypatch, make_pool):
    """The reciprocal of such a density is infinite in float32."""
    pool = make_pool(SST, 4)
    logits = pool.logits.astype(np.float32)
    logits[:, 0] = 0
    logits[:, 0, int(pool.labels[0])] = [-89, -90, -91, -92]
    exact = pool.changed(logits=logits.astype(np.float64))
    monkeypatch.setattr("loraens.labels.base.LARGE", 1)
    found = stacking(pool.changed(logits=logits), Options(), RNG)
    monkeypatch.undo()
    np.testing.assert_allclose(found, stacking(exact, Options(), RNG), atol=2e-4)


def test_stacking(make_pool):
    pool = make_pool(SST, 4)
    grid = [np.array(w) / 20 for w in product(range(21), repeat=4) if sum(w) == 20]

    def log_score(weights):
        return -NLL(combine(pool, weights, "probs", pool.standings), pool.labels)

    assert log_score(stacking(pool, Options(), RNG)) >= max(map(log_score, grid)) - 1e-6
    numbers = make_pool(STS, 4)
    values = numbers.predictions.T
    found = stacking(numbers, Options(), RNG)
    gradient = values.T @ (
        values @ found - numbers.labels
    )  # the conditions of Karush, Kuhn and Tucker
    assert np.abs(gradient[found > 0]).max() < 1e-6
    assert (gradient[found == 0] > -1e-6).all()


def test_bma_and_pseudo_bma_by_hand():
    labels = np.array([0.0, 1.0, 1.0])
    logits = np.log(
        np.array([[[0.8, 0.2], [0.3, 0.7], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]])
    )
    task = type(SST)("t", ("a",), "b", "classes", "cross_entropy", "accuracy", ("x", "y"))
    pool = Pool(task, ("a", "b"), np.ones(2), logits, labels)
    products = np.array([0.8 * 0.7 * 0.6, 0.125])
    np.testing.assert_allclose(
        METHODS["bma"].select(pool, Options(), RNG), products / products.sum()
    )
    density = np.log([[0.8, 0.7, 0.6], [0.5, 0.5, 0.5]])
    rng = np.random.default_rng(3)
    draws = []
    for drawn in np.random.default_rng(3).standard_exponential((500, 3), dtype=np.float32):
        share = drawn / drawn.sum()
        z = np.exp([3 * sum(share * row) for row in density])
        draws.append(z / z.sum())
    np.testing.assert_allclose(
        pseudo_bma(pool, Options(draws=500), rng), np.mean(draws, axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_greedy_against_a_plain_loop(task, make_pool):
    """One bag: each step adds the member that gives the best mean, and the best mean is kept."""
    pool = make_pool(task, 5, 300)
    order = pool.order.tolist()

    def reached(chosen):
        weights = np.bincount(chosen, minlength=5) / len(chosen)
        return task.score(
            combine(pool, weights, task.label_kind.rules[-1], pool.standings), pool.labels
        )

    chosen = order[:2]
    path = [chosen]
    for _ in range(4):
        chosen = max(([*chosen, member] for member in order), key=reached)
        path.append(chosen)
    expected = max(path, key=lambda members: (reached(members), -len(members)))
    weights = greedy(pool, Options(bags=1, steps=4), np.random.default_rng(0))
    assert weights == pytest.approx(np.bincount(expected, minlength=5) / len(expected))


def test_greedy_finds_the_best_small_ensemble(make_pool):
    """On three members, whose ensembles can all be tried."""
    pool = make_pool(STS, 3, 80)
    counts = [w for w in product(range(5), repeat=3) if 1 <= sum(w) <= 5]
    best = max(
        STS.score(combine(pool, np.array(w) / sum(w), "logits", pool.standings), pool.labels)
        for w in counts
    )
    found = greedy(pool, Options(bags=1, steps=8, start=1), RNG)
    assert STS.score(combine(pool, found, "logits", pool.standings), pool.labels) > best - 2e-3
    assert (
        STS.score(combine(pool, found, "logits", pool.standings), pool.labels) >= pool.scores.max()
    )


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_rules_against_loops(task, make_pool):
    pool = make_pool(task, 5, 40)
    weights = np.array([0.5, 0.0, 0.2, 0.2, 0.1])
    for rule in task.label_kind.rules:
        got = combine(pool, weights, rule, pool.standings)
        for row in range(40):
            if rule == "vote":
                counts = {}
                for member in (0, 2, 3, 4):
                    said = int(pool.predictions[member, row])
                    counts[said] = counts.get(said, 0) + weights[member]
                top = max(counts.values())
                tied = [said for said, count in counts.items() if count > top - 1e-9]
                expected = next(
                    int(pool.predictions[m, row])
                    for m in (4, 3, 2, 0)
                    if int(pool.predictions[m, row]) in tied
                )
                assert got.predictions[row] == expected
            elif rule == "probs":
                np.testing.assert_allclose(
                    got.probabilities[row], weights @ pool.probabilities[:, row], atol=1e-12
                )
            elif task is STS:
                assert got.predictions[row] == pytest.approx(weights @ pool.logits[:, row, 0])
    assert (
        np.isnan(NLL(combine(pool, weights, "vote", pool.standings), pool.labels))
        if task is not STS
        else True
    )


def test_ties_of_a_vote():
    votes = np.array([[0, 1, 2], [1, 1, 0], [1, 0, 1], [0, 0, 2]])
    assert majority_vote(votes, [1, 2, 3, 4]).tolist() == [0, 0, 2]
    assert majority_vote(votes, [4, 3, 2, 1]).tolist() == [0, 1, 2]
    assert majority_vote(votes, [2, 2, 2, 2], standings=np.array([3, 0, 1, 2])).tolist() == [
        1,
        1,
        2,
    ]
    assert majority_vote(votes, [1, 2, 3, 4], np.array([0.1, 0.6, 0.2, 0.1])).tolist() == [1, 1, 0]


def test_standard_error_of_what_is_not_chosen_is_that_of_a_mean():
    """Means out of bag, without a choice: the delete-d jackknife gives the textbook's error."""
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    pool = Pool(STS, ("m",), np.ones(1), values[None, :, None], values)
    drawn = bags(pool, 4000)
    means = np.array([values[outside].mean() for _, outside in drawn])
    out = np.mean([len(outside) for _, outside in drawn]) / 400
    assert out == pytest.approx(1 / np.e, abs=0.01)
    bagged = OutOfBag(means, means[None], out / (1 - out))
    error = bagged.standard_error()
    assert error == pytest.approx(values.std(ddof=1) / 20, rel=0.03)
    found = bagged.interval(float(values.mean()))
    half = scipy.stats.t.ppf(0.975, 3999) * error
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_a_choice_that_varies_counts_in_whole():
    """Examples out of bag vary by 2 / sqrt(n2), and on top the choice adds or takes 1 by chance."""
    rng = np.random.default_rng(0)
    ratio = 0.5
    fixed = rng.normal(0, 0.2, 5000)
    chosen = fixed + rng.choice([-1, 1], 5000)
    error = OutOfBag(chosen, fixed[None], ratio).standard_error()
    assert error == pytest.approx(np.sqrt(ratio * 0.2**2 + 1), rel=0.03)
    # a choice that hides the error of its examples does not make it smaller
    collapsed = OutOfBag(np.zeros(5000), fixed[None], ratio).standard_error()
    assert collapsed == pytest.approx(np.sqrt(ratio) * 0.2, rel=0.03)


def test_intervals_and_p_values_agree():
    scores = np.array([0.1, 0.3, np.nan, 0.2, 0.4])
    error = np.sqrt((1 / 4 + 0.5) * np.var([0.1, 0.3, 0.2, 0.4], ddof=1))
    bagged = OutOfBag(scores, scores[None], 0.5)
    assert bagged.standard_error() == pytest.approx(error)
    at_bound = error * scipy.stats.t.ppf(0.975, 3)
    assert bagged.interval(at_bound).low == pytest.approx(0, abs=1e-12)
    assert bagged.p_value(at_bound) == pytest.approx(0.05)
    nought = OutOfBag(np.zeros(5), np.zeros((1, 5)), 0.5)
    assert (nought.p_value(0.0), nought.p_value(0.1)) == (1, 0)
    single = OutOfBag(np.array([np.nan, 0.3]), np.array([[0.1, 0.3]]), 0.5)
    assert np.isnan(single.interval(1.0).low)
    assert np.isnan(single.p_value(1.0))


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, np.nan, 0.03])) == pytest.approx(
        [0.06, 0.03, np.nan, 0.06], nan_ok=True
    )
    assert holm(np.array([0.6, 0.9])).tolist() == [1, 1]


def test_the_papers_formulas_by_hand():
    assert variance_formula(1, 2.0, 0.3) == pytest.approx(2.0)
    assert variance_formula(4, 2.0, 0.3) == pytest.approx(0.5 + 0.75 * 0.3 * 2)
    assert vote_formula(3, 0.2, 1.0) == pytest.approx(3 * 0.2 * 0.64 + 3 * 0.04 * 0.8 + 0.008)
    assert vote_formula(2, 0.2, 0.0) == pytest.approx(2 * 0.04 * 0.96 + 0.04**2)


def test_pairs_by_hand():
    task = type(SST)("t", ("a",), "b", "classes", "cross_entropy", "accuracy", ("x", "y"))
    said = np.array([[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 1]])
    pool = Pool(task, ("a", "b"), np.ones(2), 5.0 * np.eye(2)[said], np.array([0.0, 0, 1, 1, 1, 0]))
    right, one, wrong = pair_counts(pool)
    assert (right[0, 1], one[0, 1], wrong[0, 1]) == pytest.approx((2 / 6, 2 / 6, 2 / 6))
    assert q_statistic(pool)[0, 1] == pytest.approx((2 * 2 - 2 * 0) / (2 * 2 + 2 * 0))
    found = summary(pool)
    assert (found["disagreement"], found["double_fault"], found["q_statistic"]) == pytest.approx(
        (1 / 3, 1 / 3, 1.0)
    )
    assert found["mean_agreement"] == pytest.approx(4 / 6)


def test_ambiguity_and_predicted_variance(make_pool):
    pool = make_pool(STS, 8, 4000)
    pool = Pool(
        STS,
        pool.names,
        pool.ranks,
        pool.labels[None, :, None] + RNG.normal(0, 1, (8, 4000, 1)),
        pool.labels,
    )
    found = summary(pool)
    assert found["member_mse"] - found["ambiguity"] == pytest.approx(found["mean_mse"], abs=1e-12)
    assert found["error_variance_predicted"] == pytest.approx(
        found["error_variance_observed"], rel=0.02
    )
    votes = summary(make_pool(SST, 7, 500))
    assert 0 < votes["vote_error_observed"] < 1
    assert np.isnan(summary(pool.of([0]))["mean_pearson"])
