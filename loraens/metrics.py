"""Metrics of predictions against labels, each written once, by numpy.

They are of a whole split at once, never averaged over batches.

Shape letters: N examples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

CALIBRATION_BINS = 15
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Outcome:
    """Predictions of a member or an ensemble.

    Args:
        predictions: `(N,)` class numbers or values.
        probabilities: `(N, K)` of classes; None for numbers, and for votes, which have none.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None = None

    def at(self, indices: np.ndarray) -> Outcome:
        """The outcome of some of the examples."""
        probabilities = None if self.probabilities is None else self.probabilities[indices]
        return Outcome(self.predictions[indices], probabilities)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: Its name in settings and files.
        title: Its name in prose.
        compute: From an outcome and labels `(N,)` to the score; NaN where it is not defined.
        higher_is_better: Its direction.
        compares: Whether it compares predictions of one example with those of another. Then those
            of different ensembles, which may differ in offset and scale, are not pooled: the metric
            is the mean of the folds of a cross-validation (Forman and Scholz 2010, on the area
            under the curve).
        share: Whether it is a share of the examples, each of which counts 0 or 1.
    """

    name: str
    title: str
    compute: Callable[[Outcome, np.ndarray], float]
    higher_is_better: bool = True
    compares: bool = False
    share: bool = False

    def __call__(self, outcome: Outcome, labels: np.ndarray) -> float:
        """The score; NaN where it is not defined."""
        return self.compute(outcome, labels)

    def utility(self, score: float) -> float:
        """The score with its sign turned where lower is better."""
        return score if self.higher_is_better else -score


def _accuracy(outcome: Outcome, labels: np.ndarray) -> float:
    return float((outcome.predictions == labels).mean())


def _macro_f1(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean F1 of the classes that occur in labels or predictions."""
    scores = []
    for number in np.union1d(outcome.predictions, labels):
        predicted = outcome.predictions == number
        actual = labels == number
        scores.append(2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()))
    return float(np.mean(scores))


def _nll(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean negative log probability of the label, in nats."""
    if outcome.probabilities is None:
        return float("nan")
    label_probabilities = outcome.probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    return float(-np.log(np.maximum(label_probabilities, TINY)).mean())


def _brier(outcome: Outcome, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot label, in [0, 2] (Brier 1950)."""
    if outcome.probabilities is None:
        return float("nan")
    one_hot = np.eye(outcome.probabilities.shape[1])[labels.astype(np.int64)]
    return float(((outcome.probabilities - one_hot) ** 2).sum(axis=1).mean())


def _calibration_error(outcome: Outcome, labels: np.ndarray) -> float:
    """Expected calibration error in 15 equal bins of confidence (Guo et al. 2017)."""
    if outcome.probabilities is None:
        return float("nan")
    confidence = outcome.probabilities.max(axis=1)
    correct = outcome.probabilities.argmax(axis=1) == labels.astype(np.int64)
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, correct - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


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


def _spearman(outcome: Outcome, labels: np.ndarray) -> float:
    return correlation(_ranks(outcome.predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _mse(outcome: Outcome, labels: np.ndarray) -> float:
    return float(((outcome.predictions - labels) ** 2).mean())


ACCURACY = Metric("accuracy", "accuracy", _accuracy, share=True)
MACRO_F1 = Metric("macro_f1", "macro F1", _macro_f1)
NLL = Metric("nll", "NLL", _nll, higher_is_better=False)
BRIER = Metric("brier", "brier", _brier, higher_is_better=False)
CALIBRATION_ERROR = Metric(
    "calibration_error", "calibration error", _calibration_error, higher_is_better=False
)
PEARSON = Metric("pearson", "Pearson's r", _pearson, compares=True)
SPEARMAN = Metric("spearman", "Spearman's rho", _spearman, compares=True)
MSE = Metric("mse", "mean squared error", _mse, higher_is_better=False)


def overall(by_task: Mapping[str, float]) -> float | None:
    """The paper's overall score (SST accuracy + Quora accuracy + (1 + STS Pearson) / 2) / 3; None
    unless all are there.
    """
    if not {"sst", "quora", "sts"} <= set(by_task):
        return None
    return (by_task["sst"] + by_task["quora"] + (1 + by_task["sts"]) / 2) / 3
