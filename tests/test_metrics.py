from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn import metrics as sk
from torchmetrics import functional
from torchmetrics.functional import classification

from loraens.ensemble.combine import combine, majority_vote
from loraens.ensemble.pool import Pool
from loraens.metrics import CALIBRATION_BINS, MACRO_F1, NLL, PEARSON, SPEARMAN, Outcome, overall
from loraens.tasks import QUORA, SST, STS

TASKS = {"sst": SST, "quora": QUORA, "sts": STS}


def of_torchmetrics(task, logits, labels):
    """Every metric of the task, by torchmetrics, from logits by torch."""
    logits = torch.from_numpy(np.asarray(logits, np.float64))
    if task.kind == "number":
        target = torch.from_numpy(labels)
        return {
            "pearson": functional.pearson_corrcoef(logits[:, 0], target),
            "spearman": functional.spearman_corrcoef(logits[:, 0], target),
            "mse": functional.mean_squared_error(logits[:, 0], target),
        }
    target = torch.from_numpy(labels.astype(np.int64))
    if task.num_outputs == 1:
        shares = torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)
    else:
        shares = logits.softmax(1)
    classes = shares.shape[1]
    one_hot = torch.nn.functional.one_hot(target, classes)
    chosen = shares.argmax(1)
    return {
        "accuracy": classification.multiclass_accuracy(chosen, target, classes, average="micro"),
        "macro_f1": classification.multiclass_f1_score(chosen, target, classes, average="macro"),
        "nll": torch.nn.functional.nll_loss(shares.log(), target),
        "brier": (shares - one_hot).square().sum(1).mean(),
        "calibration_error": classification.multiclass_calibration_error(
            shares, target, classes, n_bins=CALIBRATION_BINS
        ),
    }


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_all_against_torchmetrics(task, make_pool):
    pool = make_pool(task)
    for member in range(len(pool)):
        expected = of_torchmetrics(task, pool.logits[member], pool.labels)
        found = task.scores(pool.logits[member], pool.labels)
        assert set(found) == set(expected) == {m.name for m in task.label_kind.metrics}
        assert found == task.all_scores(pool.outcome(member), pool.labels)
        for name, value in expected.items():
            metric = task.label_kind.metric(name)
            assert found[name] == pytest.approx(value.item(), abs=1e-6), name
            assert metric(pool.outcome(member), pool.labels) == found[name]


def test_ties_and_what_votes_lack(make_pool):
    pool = make_pool(SST)
    numbers = make_pool(STS)
    outcome = pool.outcome(1)
    f1 = sk.f1_score(pool.labels, outcome.predictions, average="macro")
    assert MACRO_F1(outcome, pool.labels) == pytest.approx(f1)
    nll = sk.log_loss(pool.labels, outcome.probabilities)
    assert NLL(outcome, pool.labels) == pytest.approx(nll)
    ties = np.round(numbers.outcome(1).predictions)
    for metric, expected in ((PEARSON, stats.pearsonr), (SPEARMAN, stats.spearmanr)):
        assert metric(Outcome(ties), numbers.labels) == pytest.approx(
            expected(ties, numbers.labels).statistic
        )
    assert np.isnan(PEARSON(Outcome(np.full(200, 2.0)), numbers.labels))
    for metric in SST.label_kind.metrics[2:]:
        assert np.isnan(metric(Outcome(outcome.predictions), pool.labels))  # no probabilities


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_that_are_better_have_the_higher_utility(task, make_pool):
    labels = make_pool(task).labels
    good, bad = (make_pool(task, noise=noise).outcome(0) for noise in (0.3, 3.0))
    for metric in task.label_kind.metrics:
        better, worse = (metric.utility(metric(outcome, labels)) for outcome in (good, bad))
        assert better > worse, metric.name
    assert task.score(good, labels) == task.main_metric(good, labels)  # higher is better


def test_classes_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 5)) * 2
    labels = rng.integers(0, 5, 200).astype(float)
    found = SST.scores(logits, labels)
    shares = SST.outcome(logits).probabilities
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, shares.argmax(1)))
    assert found["macro_f1"] == pytest.approx(
        sk.f1_score(labels, shares.argmax(1), average="macro")
    )
    assert found["nll"] == pytest.approx(sk.log_loss(labels, shares, labels=range(5)))
    assert found["brier"] == pytest.approx(
        ((shares - np.eye(5)[labels.astype(int)]) ** 2).sum(1).mean()
    )


def test_one_logit_is_a_sigmoid():
    logits = np.array([[2.0], [-1.0], [0.0]])
    outcome = QUORA.outcome(logits)
    assert outcome.probabilities[:, 1] == pytest.approx(1 / (1 + np.exp(-logits[:, 0])))
    assert outcome.predictions.tolist() == [1, 0, 0]
    found = QUORA.scores(logits, np.array([1.0, 1.0, 0.0]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(
        -np.log([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1)), 0.5]).mean()
    )


def test_calibration_error_by_hand():
    # Confidence 0.9 (all of five right) and 0.6 (two of five right): 0.5 * |1 - 0.9| + 0.5 * |0.4 -
    # 0.6|
    logits = np.log(np.array([[0.1, 0.9]] * 5 + [[0.4, 0.6]] * 5))
    labels = np.array([1.0] * 5 + [1, 1, 0, 0, 0])
    logit = (logits[:, 1] - logits[:, 0])[:, None]
    assert QUORA.scores(logit, labels)["calibration_error"] == pytest.approx(
        0.5 * 0.1 + 0.5 * 0.2, abs=1e-6
    )


def test_numbers_against_scipy():
    rng = np.random.default_rng(1)
    labels = np.round(rng.random(100) * 5, 1)
    logits = (labels + rng.normal(size=100))[:, None]
    found = STS.scores(logits, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(logits[:, 0], labels)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], labels)[0])
    assert found["mse"] == pytest.approx(((logits[:, 0] - labels) ** 2).mean())


def test_what_is_not_defined():
    found = STS.scores(np.ones((4, 1)), np.arange(4.0))
    assert np.isnan(found["pearson"])
    assert found["mse"] == pytest.approx((1 + 0 + 1 + 4) / 4)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        pytest.param([[np.nan]], "not finite", id="nan"),
        pytest.param([[1.0], [1.0]], "2 logits for 1", id="lengths"),
    ],
)
def test_logits_without_a_score(logits, message):
    with pytest.raises(ValueError, match=message):
        STS.scores(np.array(logits), np.ones(1))


def test_overall_is_the_papers():
    assert overall({"sst": 0.544, "quora": 0.905, "sts": 0.885}) == pytest.approx(0.797, abs=5e-4)
    assert overall({"sst": 0.5}) is None


def test_votes_and_ties():
    votes = np.array([[0, 0, 1, 2], [1, 0, 2, 1], [1, 2, 0, 0]])
    assert majority_vote(votes, [4, 8, 2]).tolist() == [
        1,
        0,
        2,
        1,
    ]  # last two are three-way ties: rank 8 decides
    # Two votes each for 0 and 1, one for 2 by the member of highest rank: it has no say in the tie
    votes = np.array([[2], [0], [0], [1], [1]])
    assert majority_vote(votes, [9, 1, 2, 5, 3]).tolist() == [1]


def test_joining_all_members():
    def join(task, logits, ranks, rule):
        pool = Pool(
            task, tuple("abc"[: len(ranks)]), np.array(ranks), logits, np.zeros(logits.shape[1])
        )
        return combine(
            pool, np.full(len(ranks), 1 / len(ranks)), rule, pool.standings
        ).predictions.tolist()

    assert join(STS, np.array([[[1.0], [2.0]], [[3.0], [6.0]]]), [1, 2], "logits") == [2.0, 4.0]
    logits = np.array([[[5.0]], [[-1.0]], [[-1.0]]])
    assert join(QUORA, logits, [1, 2, 3], "vote") == [0]
    assert join(QUORA, logits, [1, 2, 3], "logits") == [1]


@pytest.mark.parametrize("task", [SST, STS], ids=lambda task: task.name)
def test_scores_of_all_members_at_once_are_those_of_each(task, make_pool):
    pool = make_pool(task)
    metric = task.main_metric
    assert metric.of_members is not None
    predictions = np.vstack([pool.predictions, np.ones(len(pool.labels))])  # a constant, too
    each = [metric(Outcome(row), pool.labels) for row in predictions]
    assert_allclose(metric.of_members(predictions, pool.labels), each, rtol=1e-13)


@pytest.mark.parametrize("task", [SST, STS], ids=lambda task: task.name)
def test_parts_of_a_pool_have_the_arrays_of_their_examples(task, make_pool):
    pool = make_pool(task)
    indices = np.array([5, 2, 2, 9, 0, 7])
    further = np.array([4, 1, 1])
    part = pool.at(indices).at(further)
    alone = Pool(
        task, pool.names, pool.ranks, pool.logits[:, [0, 2, 2]], labels=pool.labels[[0, 2, 2]]
    )
    for name in ("logits", "labels", "predictions", "errors", "averaged", "scores"):
        assert_array_equal(getattr(part, name), getattr(alone, name))
    assert_array_equal(part.of([2, 0]).predictions, alone.predictions[[2, 0]])
    with_epochs = replace(pool, epochs=tuple(pool.logits[:, None]))
    inside, _ = with_epochs.at(indices).split(further, np.array([0]))
    assert_array_equal(inside.scores, alone.scores)
