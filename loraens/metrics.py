"""Metrics of predictions against labels, each written once, by numpy.

They are of a whole split at once, never averaged over batches.

Shape letters: N examples, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

CALIBRATION_BINS = 15
TINY = np.finfo(np.float64).tiny
FEW = 8  # classes; below, NumPy sums one after another too
Score = TypeVar("Score", float, np.ndarray)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, over the last axis."""
    exponentials = np.exp(logits - _over_last(np.maximum, logits))
    probabilities: np.ndarray = exponentials / _over_last(np.add, exponentials)
    return probabilities


def _over_last(function: np.ufunc, x: np.ndarray) -> np.ndarray:
    """Its reduction of the last axis, which stays with length one; where that is short, column by
    column: the same bits, in a fraction of the time of NumPy's loop over rows.
    """
    if x.shape[-1] >= FEW:
        reduced: np.ndarray = function.reduce(x, axis=-1, keepdims=True)
        return reduced
    result: np.ndarray = x[..., :1]
    for column in range(1, x.shape[-1]):
        result = function(result, x[..., column : column + 1])
    return result


@dataclass(frozen=True)
class Outcome:
    """Predictions of a member or an ensemble.

    Args:
        predictions: `(N,)` class numbers or values; `(N, K)` where each of K labels is there (1) or
            not (0).
        probabilities: `(N, K)` of classes, or of each label; None for numbers, and for votes, which
            have none.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None = None

    def at(self, indices: np.ndarray) -> Outcome:
        """The outcome of some of the examples."""
        probabilities = None if self.probabilities is None else self.probabilities[indices]
        return Outcome(self.predictions[indices], probabilities)

    def of(self, index: int) -> Outcome:
        """One of several outcomes that are one along their first axis."""
        probabilities = None if self.probabilities is None else self.probabilities[index]
        return Outcome(self.predictions[index], probabilities)

    def reshaped(self, count: int) -> Outcome:
        """So many outcomes, that are one along their first axis, of one of all their examples."""
        predictions = self.predictions.reshape(count, -1, *self.predictions.shape[1:])
        if self.probabilities is None:
            return Outcome(predictions)
        return Outcome(
            predictions, self.probabilities.reshape(count, -1, *self.probabilities.shape[1:])
        )

    @classmethod
    def concatenated(cls, parts: Sequence[Outcome]) -> Outcome:
        """The outcome of the examples of several, one after another."""
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        predictions = np.concatenate([part.predictions for part in parts])
        return cls(predictions, np.concatenate(probabilities) if probabilities else None)

    def decided(self, thresholds: np.ndarray | None) -> Outcome:
        """The outcome with those labels predicted whose probability is above a threshold `(K,)`; as
        it is without thresholds.
        """
        if thresholds is None:
            return self
        assert self.probabilities is not None
        return replace(self, predictions=(self.probabilities > thresholds).astype(np.int64))


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: Its name in settings and files.
        title: Its name in prose.
        compute: From an outcome and labels, of the shape of its predictions, to the score; NaN
            where it is not defined.
        higher_is_better: Its direction.
        compares: Whether it compares predictions of one example with those of another. Then those
            of different ensembles, which may differ in offset and scale, are not pooled: the metric
            is the mean of the folds of a cross-validation (Forman and Scholz 2010, on the area
            under the curve).
        right: Where it is a share of the examples: whether each counts, `(..., N)`, of predictions
            `(..., N)`, or `(..., N, K)` of several labels, and labels.
        of_members: The same score of each of M members, `(M,)`, from their predictions `(M, N)` and
            labels, at once; None where they are computed one by one.
    """

    name: str
    title: str
    compute: Callable[[Outcome, np.ndarray], float]
    higher_is_better: bool = True
    compares: bool = False
    right: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    of_members: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def __call__(self, outcome: Outcome, labels: np.ndarray) -> float:
        """The score; NaN where it is not defined."""
        return self.compute(outcome, labels)

    def utility(self, score: Score) -> Score:
        """The score, or array of scores, with its sign turned where lower is better."""
        return score if self.higher_is_better else -score


def _accuracy(outcome: Outcome, labels: np.ndarray) -> float:
    return float(_right(outcome.predictions, labels).mean())


def _accuracies(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    accuracies: np.ndarray = np.count_nonzero(_right(predictions, labels), axis=1) / len(labels)
    return accuracies


def _right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = predictions == labels
    return right


def _macro_f1(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean F1 of the classes that occur in labels or predictions."""
    scores = []
    for number in np.union1d(outcome.predictions, labels):
        predicted = outcome.predictions == number
        actual = labels == number
        scores.append(2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()))
    return float(np.mean(scores))


def _nll(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean negative log probability of the label, in nats; of several labels, which are taken as
    independent, of all together.
    """
    if outcome.probabilities is None:
        return float("nan")
    if labels.ndim == 2:
        of_values = np.where(labels == 1, outcome.probabilities, 1 - outcome.probabilities)
        return float(-np.log(np.maximum(of_values, TINY)).sum(axis=1).mean())
    label_probabilities = outcome.probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    return float(-np.log(np.maximum(label_probabilities, TINY)).mean())


def _brier(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot label, in [0, 2] (Brier 1950); of
    several labels, from their zeros and ones, in [0, K].
    """
    if outcome.probabilities is None:
        return float("nan")
    if labels.ndim == 2:
        return float(((outcome.probabilities - labels) ** 2).sum(axis=1).mean())
    one_hot = np.eye(outcome.probabilities.shape[1])[labels.astype(np.int64)]
    return float(((outcome.probabilities - one_hot) ** 2).sum(axis=1).mean())


def _calibration_error(outcome: Outcome, labels: np.ndarray) -> float:
    """Expected calibration error in 15 equal bins of confidence (Guo et al. 2017)."""
    if outcome.probabilities is None:
        return float("nan")
    confidence, correct = confidences(outcome.probabilities, labels)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, correct - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def defined_or_lowest(scores: ArrayLike) -> np.ndarray:
    """Scores, and minus infinity where one is not defined."""
    return np.where(np.isnan(scores), -np.inf, scores)


def confidences(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that calibration is measured on, and whether what they are of is so.

    Of classes, the most probable one of each example, `(N,)`; of several labels every probability
    that one is there, `(N K,)`.

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)` class numbers or `(N, K)` zeros and ones.
    """
    if labels.ndim == 2:
        return probabilities.ravel(), labels.ravel() == 1
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.astype(np.int64)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's r of two vectors `(N,)`; NaN if one of them is constant.

    Examples:
        >>> round(correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])), 6)
        0.5
        >>> correlation(np.array([1.0, 1.0]), np.array([0.0, 1.0]))
        nan
    """
    a = left - left.mean()
    b = right - right.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-12 * max(1.0, len(a)) else float("nan")


def _pearson(outcome: Outcome, labels: np.ndarray) -> float:
    return correlation(outcome.predictions, labels)


def _correlations(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`correlation` of each row."""
    a = predictions - predictions.mean(axis=1, keepdims=True)
    b = labels - labels.mean()
    scale = np.sqrt(np.einsum("mn,mn->m", a, a) * (b @ b))
    defined = scale > 1e-12 * max(1.0, len(b))
    correlations: np.ndarray = np.where(defined, a @ b / np.where(defined, scale, 1), np.nan)
    return correlations


def _spearman(outcome: Outcome, labels: np.ndarray) -> float:
    return correlation(_ranks(outcome.predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _mse(outcome: Outcome, labels: np.ndarray) -> float:
    return float(((outcome.predictions - labels) ** 2).mean())


def _mae(outcome: Outcome, labels: np.ndarray) -> float:
    return float(np.abs(outcome.predictions - labels).mean())


def _quadratic_kappa(outcome: Outcome, labels: np.ndarray) -> float:
    """Cohen's kappa (1968) of class numbers with quadratic weights: 1 - sum of squared differences
    / that of predictions and labels as if independent; NaN if both are one and the same class.
    """
    predictions = outcome.predictions.astype(np.float64)
    observed = ((predictions - labels) ** 2).mean()
    # mean squared difference of independent draws with these marginal distributions
    expected = predictions.var() + labels.var() + (predictions.mean() - labels.mean()) ** 2
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _exact_match(outcome: Outcome, labels: np.ndarray) -> float:
    return float(_all_right(outcome.predictions, labels).mean())


def _all_right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right: np.ndarray = (predictions == labels).all(axis=-1)
    return right


def _micro_f1(outcome: Outcome, labels: np.ndarray) -> float:
    """F1 of all decisions together; NaN where no label is predicted or there."""
    total = outcome.predictions.sum() + labels.sum()
    both = (outcome.predictions * labels).sum()
    return float(2 * both / total) if total else float("nan")


def f1_of_labels(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 of each label, `(K,)`, of zeros and ones `(N, K)`; NaN of one that is neither predicted
    nor there.
    """
    totals = predictions.sum(axis=0) + labels.sum(axis=0)
    both = (predictions * labels).sum(axis=0)
    scores: np.ndarray = np.where(totals > 0, 2 * both / np.maximum(totals, 1), np.nan)
    return scores


def _macro_f1_of_labels(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean F1 of the labels that occur in labels or predictions."""
    return _mean_of_defined(f1_of_labels(outcome.predictions, labels))


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _average_precision(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean over the labels that occur of the average precision: the mean, over the examples that
    have the label, of the precision of all that are at least as probable (no interpolation).
    """
    if outcome.probabilities is None:
        return float("nan")
    there = labels.any(axis=0)
    probabilities = outcome.probabilities[:, there]
    order = np.argsort(-probabilities, axis=0, kind="stable")
    falling = np.take_along_axis(probabilities, order, 0)
    has = np.take_along_axis(labels[:, there], order, 0)
    precision = np.cumsum(has, axis=0) / np.arange(1, len(labels) + 1)[:, None]
    # equal probabilities have one precision, that of the last of them
    last = np.append(falling[1:] != falling[:-1], np.ones_like(falling[:1], bool), axis=0)
    rows = np.where(last, np.arange(len(labels))[:, None], len(labels))
    rows = np.minimum.accumulate(rows[::-1], axis=0)[::-1]
    of_each = np.take_along_axis(precision, rows, 0) * has
    return _mean_of_defined(of_each.sum(axis=0) / has.sum(axis=0))


ACCURACY = Metric("accuracy", "accuracy", _accuracy, right=_right, of_members=_accuracies)
MACRO_F1 = Metric("macro_f1", "macro F1", _macro_f1)
NLL = Metric("nll", "NLL", _nll, higher_is_better=False)
BRIER = Metric("brier", "brier", _brier, higher_is_better=False)
CALIBRATION_ERROR = Metric(
    "calibration_error", "calibration error", _calibration_error, higher_is_better=False
)
PEARSON = Metric("pearson", "Pearson's r", _pearson, compares=True, of_members=_correlations)
SPEARMAN = Metric("spearman", "Spearman's rho", _spearman, compares=True)
MSE = Metric("mse", "mean squared error", _mse, higher_is_better=False)
MAE = Metric("mae", "mean absolute error", _mae, higher_is_better=False)
QUADRATIC_KAPPA = Metric("quadratic_kappa", "quadratic weighted kappa", _quadratic_kappa)
# Pooled over folds although it ranks: of few examples of a label it is too high (by chance alone
# 0.26 for one of twelve), and probabilities of different folds are of one scale
AVERAGE_PRECISION = Metric("average_precision", "average precision", _average_precision)
LABELS_MACRO_F1 = Metric("macro_f1", "macro F1", _macro_f1_of_labels)
LABELS_MICRO_F1 = Metric("micro_f1", "micro F1", _micro_f1)
EXACT_MATCH = Metric("exact_match", "exact match", _exact_match, right=_all_right)


def overall(by_task: Mapping[str, float]) -> float | None:
    """The paper's overall score (SST accuracy + Quora accuracy + (1 + STS Pearson) / 2) / 3; None
    unless all are there.
    """
    if not {"sst", "quora", "sts"} <= set(by_task):
        return None
    return (by_task["sst"] + by_task["quora"] + (1 + by_task["sts"]) / 2) / 3
