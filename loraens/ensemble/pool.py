"""The pool that an ensemble chooses from: what each member says of one split of one task, as
arrays.

Shape letters: M members, N examples, C outputs, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from loraens.metrics import predictions, probabilities
from loraens.tasks import LOWER_IS_BETTER, Task


@dataclass(frozen=True)
class Pool:
    """Members' logits on one split, and its labels.

    Args:
        task: The task.
        names: Name of each member.
        ranks: `(M,)` rank of each member.
        logits: `(M, N, C)`.
        labels: `(N,)` class numbers or values.
        merged: From weights `(M,)` to the logits `(N, C)` of one model merged of the members, where
            the backbone is there.
    """

    task: Task
    names: tuple[str, ...]
    ranks: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    merged: Callable[[np.ndarray], np.ndarray] | None = None
    similarities: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.names)

    def at(self, rows: np.ndarray) -> Pool:
        """The same members on some of the examples."""
        whole = self.merged
        merged = None if whole is None else lambda weights: whole(weights)[rows]
        return replace(self, logits=self.logits[:, rows], labels=self.labels[rows], merged=merged)

    def of(self, members: Sequence[int] | np.ndarray) -> Pool:
        """Some of the members on the same examples."""
        chosen = np.asarray(members)
        names = tuple(self.names[index] for index in chosen)
        return replace(
            self, names=names, ranks=self.ranks[chosen], logits=self.logits[chosen], merged=None
        )

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Class probabilities `(M, N, K)`."""
        flat = probabilities(self.task, self.logits.reshape(-1, self.logits.shape[-1]))
        return flat.reshape(*self.logits.shape[:2], -1)

    @cached_property
    def predictions(self) -> np.ndarray:
        """Class numbers or values `(M, N)`."""
        if self.task.kind == "classes":
            found: np.ndarray = self.probabilities.argmax(axis=2)
            return found
        return predictions(self.task, self.logits.reshape(-1, self.logits.shape[-1])).reshape(
            self.logits.shape[:2]
        )

    @cached_property
    def log_likelihood(self) -> np.ndarray:
        """Log density of each label `(M, N)`: of its class, or of a normal distribution with the
        member's own mean error.

        Densities of nothing are cut at the smallest positive float, so that one example does not
        decide alone.
        """
        if self.task.kind == "classes":
            picked = np.take_along_axis(
                self.probabilities, self.labels.astype(np.int64)[None, :, None], axis=2
            )[..., 0]
            found: np.ndarray = np.log(np.maximum(picked, np.finfo(np.float64).tiny))
            return found
        errors = (self.predictions - self.labels) ** 2
        variance = np.maximum(errors.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        found = -0.5 * (np.log(2 * np.pi * variance) + errors / variance)
        return found

    @cached_property
    def scores(self) -> np.ndarray:
        """The task's metric of each member `(M,)`, its sign turned where lower is better; minus
        infinity if not defined.
        """
        found = np.array(
            [
                score(self.task, outcome, self.labels)
                for outcome in map(self.outcome, range(len(self)))
            ]
        )
        return np.where(np.isnan(found), -np.inf, found)

    def outcome(self, member: int) -> Outcome:
        """What one member says."""
        shares = self.probabilities[member] if self.task.kind == "classes" else None
        return Outcome(self.predictions[member], shares)

    @cached_property
    def order(self) -> np.ndarray:
        """Members by score, the best first; equal ones by name."""
        by_name = np.argsort(np.argsort(self.names))
        return np.lexsort((by_name, -self.scores))

    @property
    def places(self) -> np.ndarray:
        """Place of each member in that order, 0 the best."""
        found: np.ndarray = np.argsort(self.order)
        return found


@dataclass(frozen=True)
class Outcome:
    """What a member or an ensemble says.

    Args:
        predictions: `(N,)` class numbers or values.
        probabilities: `(N, K)` of classes; None for numbers, and for votes, which have none.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> Outcome:
        """The same on some of the examples."""
        return Outcome(
            self.predictions[rows], None if self.probabilities is None else self.probabilities[rows]
        )


def score(task: Task, outcome: Outcome, labels: np.ndarray) -> float:
    """The task's metric, its sign turned where lower is better; NaN where it is not defined."""
    value = metric(task, task.metric, outcome, labels)
    return -value if task.metric in LOWER_IS_BETTER else value


def metric(task: Task, name: str, outcome: Outcome, labels: np.ndarray) -> float:
    """One metric of `tasks.METRICS`, by numpy alone: as `metrics.scores` has it.

    Correlations of constant predictions, and what needs probabilities where there are none, are
    NaN.
    """
    predicted = outcome.predictions
    if name == "accuracy":
        return float((predicted == labels).mean())
    if name == "mse":
        return float(((predicted - labels) ** 2).mean())
    if name == "pearson":
        return correlation(predicted, labels)
    if name == "spearman":
        return correlation(_ranked(predicted), _ranked(labels))
    if name == "macro_f1":
        return _macro_f1(predicted, labels, len(task.class_names))
    if outcome.probabilities is None:
        return float("nan")
    shares = outcome.probabilities
    classes = labels.astype(np.int64)
    if name == "nll":
        picked = shares[np.arange(len(classes)), classes]
        return float(-np.log(np.maximum(picked, np.finfo(np.float64).tiny)).mean())
    if name == "brier":
        return float(((shares - np.eye(shares.shape[1])[classes]) ** 2).sum(axis=1).mean())
    return _calibration_error(shares, classes)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's r of two vectors `(N,)`; NaN if one of them is constant."""
    a = left - left.mean()
    b = right - right.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-12 * max(1.0, len(a)) else float("nan")


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _macro_f1(predicted: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Mean F1 of the classes that occur in labels or predictions."""
    found = []
    for number in range(classes):
        hits = ((predicted == number) & (labels == number)).sum()
        said = (predicted == number).sum()
        there = (labels == number).sum()
        if said + there:
            found.append(2 * hits / (said + there))
    return float(np.mean(found))


def _calibration_error(shares: np.ndarray, classes: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in equal bins of confidence (Guo et al. 2017)."""
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == classes
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(classes))
