import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from loraens.ensemble.combine import combine, majority_vote
from loraens.ensemble.pool import Pool
from loraens.metrics import overall, predictions, probabilities, scores
from loraens.tasks import QUORA, SST, STS


def test_classes_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 5)) * 2
    labels = rng.integers(0, 5, 200).astype(float)
    found = scores(SST, logits, labels)
    shares = probabilities(SST, logits)
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
    assert probabilities(QUORA, logits)[:, 1] == pytest.approx(1 / (1 + np.exp(-logits[:, 0])))
    assert predictions(QUORA, logits).tolist() == [1, 0, 0]
    found = scores(QUORA, logits, np.array([1.0, 1.0, 0.0]))
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
    assert scores(QUORA, logit, labels)["calibration_error"] == pytest.approx(
        0.5 * 0.1 + 0.5 * 0.2, abs=1e-6
    )


def test_numbers_against_scipy():
    rng = np.random.default_rng(1)
    labels = np.round(rng.random(100) * 5, 1)
    logits = (labels + rng.normal(size=100))[:, None]
    found = scores(STS, logits, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(logits[:, 0], labels)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], labels)[0])
    assert found["mse"] == pytest.approx(((logits[:, 0] - labels) ** 2).mean())


def test_what_is_not_defined():
    found = scores(STS, np.ones((4, 1)), np.arange(4.0))
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
        scores(STS, np.array(logits), np.ones(1))


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
            pool, np.full(len(ranks), 1 / len(ranks)), rule, pool.places
        ).predictions.tolist()

    assert join(STS, np.array([[[1.0], [2.0]], [[3.0], [6.0]]]), [1, 2], "logits") == [2.0, 4.0]
    logits = np.array([[[5.0]], [[-1.0]], [[-1.0]]])
    assert join(QUORA, logits, [1, 2, 3], "vote") == [0]
    assert join(QUORA, logits, [1, 2, 3], "logits") == [1]
