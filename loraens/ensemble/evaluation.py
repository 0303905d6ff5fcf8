"""Scores of a trained model on labelled examples, with intervals.

The estimand of every interval is the score of this model, as it is, on new examples that are drawn
as these were: neither its training nor its choice is repeated. Shares of examples (accuracy,
coverage) have the exact interval of Clopper and Pearson (1934); other scores, and differences, the
percentile bootstrap over examples (Efron 1979).

Shape letters: N examples, R resamples, V outcomes, S metrics, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from loraens.ensemble.conformal import Conformal
from loraens.ensemble.significance import LEVEL, Interval
from loraens.errors import InputError
from loraens.metrics import Outcome, confidences
from loraens.records import Record, Score
from loraens.seeding import derive_seed
from loraens.tasks import Task

Row = dict[str, Any]
RESAMPLES = (200, 1000)  # least and most
WORK = 20_000_000  # examples of all resamples together, between these bounds
COVERAGES = (0.8, 0.9, 0.95)
BINS = 5  # of confidence or spread, of equal numbers of examples


@dataclass(frozen=True)
class MemberScores:
    """A member of an ensemble, alone; with folds a configuration, the mean logit of its folds.

    Args:
        name: Its name.
        standing: Its standing by the score that it was chosen by, 0 the best.
        scores: Every metric.
        interval: The task's metric.
    """

    name: str
    standing: int
    scores: dict[str, Score]
    interval: Interval


@dataclass(frozen=True)
class Evaluation(Record):
    """Scores of a model on labelled examples.

    Args:
        task: Name of the task.
        metric: The task's metric.
        examples: N.
        scores: Every metric of the label kind; NaN where not defined.
        parts: Tables of the label kind, rows of cells: for classes `classes` and `confusion`, for
            numbers `errors` and `labels`.
        calibration: For classes the share of right predictions in bins of confidence, for several
            labels that of the labels that are there in bins of their probability, for numbers
            the error in bins of the members' spread.
        coverage: How often prediction sets and intervals hold the label, and how large they are.
        members: The members of an ensemble, each alone.
        best: The member of the best standing.
        to_best: Difference of every metric to that member's.
        origin: Where the examples are from.
        dropped: Records that could not be used: reason -> line numbers.
        seen: The split of the training that these examples are: "train" or "dev"; None where they
            are neither.
        no_coverage: Why there is no coverage; None where there is.
    """

    task: str
    metric: str
    examples: int
    scores: dict[str, Interval]
    parts: dict[str, list[Row]]
    calibration: list[Row]
    coverage: list[Row]
    members: tuple[MemberScores, ...] = ()
    best: str | None = None
    to_best: dict[str, Interval] = field(default_factory=dict)
    origin: str = "texts in memory"
    dropped: dict[str, list[Any]] = field(default_factory=dict)
    seen: str | None = None
    no_coverage: str | None = None

    @property
    def score(self) -> Interval:
        """The task's metric."""
        return self.scores[self.metric]

    def rows(self) -> list[Row]:
        """All numbers, one a row: part, name, measure, value, low, high."""
        rows = [_row("scores", "", name, score) for name, score in self.scores.items()]
        for member in self.members:
            for name, value in member.scores.items():
                score = member.interval if name == self.metric else value
                rows.append(_row("members", member.name, name, score))
        rows += [_row("minus best", self.best or "", *item) for item in self.to_best.items()]
        tables = {**self.parts, "calibration": self.calibration, "coverage": self.coverage}
        for part, cells in tables.items():
            for row in cells:
                name = " / ".join(str(value) for value in row.values() if isinstance(value, str))
                for measure, value in row.items():
                    if not isinstance(value, (str, list)):
                        rows.append(_row(part, name, measure, value))
        return rows


def _row(part: str, name: str, measure: str, score: Interval | float | None) -> Row:
    cells: Row = {"value": score, "low": None, "high": None}
    if isinstance(score, Interval):
        cells = asdict(score)
    defined = {key: None if value != value else value for key, value in cells.items()}  # NaN
    return {"part": part, "name": name, "measure": measure, **defined}


def evaluate(
    task: Task,
    outcome: Outcome,
    labels: np.ndarray,
    *,
    members: Mapping[str, Outcome] | None = None,
    standings: Sequence[int] = (),
    spread: np.ndarray | None = None,
    conformal: Conformal | None = None,
    regions_of: Outcome | None = None,
) -> Evaluation:
    """Score an outcome against labels.

    Args:
        task: The task.
        outcome: The model's; of votes without probabilities, as their shares are none.
        labels: `(N,)` class numbers or values; of several labels `(N, K)` zeros and ones.
        members: Outcome of each member of an ensemble, by name.
        standings: Of each member, 0 the best.
        spread: `(N,)` of the members of an ensemble, which scales conformal intervals.
        conformal: Held-out quantiles, for prediction sets and intervals.
        regions_of: The outcome that these are made of, of votes with their shares.
    """
    kind = task.label_kind
    named = dict(members or {})
    outcomes = [outcome, *named.values()]
    best = 1 + int(np.argmin(standings)) if named else 0  # among the outcomes
    values = np.array([[metric(one, labels) for metric in kind.metrics] for one in outcomes])
    resampled = _resampled(task, outcomes, (0, best), labels)
    main = [metric.name for metric in kind.metrics].index(task.metric)
    scores = {}
    to_best = {}
    for index, metric in enumerate(kind.metrics):
        if metric.right is not None:
            scores[metric.name] = exact(round(values[0, index] * len(labels)), len(labels))
        else:
            scores[metric.name] = percentile(values[0, index], resampled[:, 0, index])
        if named:
            difference = resampled[:, 0, index] - resampled[:, best, index]
            value = values[0, index] - values[best, index]
            to_best[metric.name] = percentile(value, difference)
    return Evaluation(
        task=task.name,
        metric=task.metric,
        examples=len(labels),
        scores=scores,
        parts=kind.breakdown(task, outcome, labels),
        calibration=_calibration(task, outcome, labels, spread if named else None),
        coverage=_coverage(task, regions_of or outcome, labels, spread, conformal),
        members=tuple(
            MemberScores(
                name=name,
                standing=int(standings[index]),
                scores=dict(zip(scores, values[1 + index].tolist(), strict=True)),
                interval=percentile(values[1 + index, main], resampled[:, 1 + index, main]),
            )
            for index, name in enumerate(named)
        ),
        best=list(named)[best - 1] if named else None,
        to_best=to_best,
    )


def exact(successes: int, count: int) -> Interval:
    """The share of successes, and its interval by Clopper and Pearson.

    Examples:
        >>> exact(0, 10).high  # 1 - 0.025 ** (1 / 10)
        0.3084971078187608
    """
    from scipy.stats import binomtest

    bounds = binomtest(successes, count).proportion_ci(LEVEL, method="exact")
    return Interval(successes / count, float(bounds.low), float(bounds.high))


def percentile(value: float, resampled: np.ndarray) -> Interval:
    """The interval of a value by its resamples `(R,)`; NaN where none of them is defined."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def _resampled(
    task: Task, outcomes: Sequence[Outcome], wholly: Sequence[int], labels: np.ndarray
) -> np.ndarray:
    """Metrics `(R, V, S)` of outcomes on the same resamples of the examples; of those that are not
    `wholly` wanted only the task's metric, and NaN for the others.
    """
    count = len(labels)
    resamples = int(np.clip(WORK // count, *RESAMPLES))
    metrics = task.label_kind.metrics
    wanted = [
        (v, s, metric)
        for v in range(len(outcomes))
        for s, metric in enumerate(metrics)
        if v in wholly or metric.name == task.metric
    ]
    rng = np.random.default_rng(derive_seed(0, "evaluate"))
    scores = np.full((resamples, len(outcomes), len(metrics)), np.nan)
    for of_resample in scores:
        drawn = rng.integers(0, count, count)
        of_labels = labels[drawn]
        parts = [outcome.at(drawn) for outcome in outcomes]
        for v, s, metric in wanted:
            of_resample[v, s] = metric(parts[v], of_labels)
    return scores


def _bins(key: np.ndarray) -> list[np.ndarray]:
    """Indices of the examples in bins of equal numbers, from low to high key `(N,)`."""
    order = np.argsort(key, kind="stable")
    return [part for part in np.array_split(order, BINS) if len(part)]


def _calibration(
    task: Task, outcome: Outcome, labels: np.ndarray, spread: np.ndarray | None
) -> list[Row]:
    """What the model says of its certainty against how right it is, in bins of the former."""
    if outcome.probabilities is not None and task.label_kind.categorical:
        confidence, right = confidences(outcome.probabilities, labels)
        return [
            {
                "examples": len(part),
                "confidence": float(confidence[part].mean()),
                "accuracy": float(right[part].mean()),
            }
            for part in _bins(confidence)
        ]
    if spread is None or not spread.any():
        return []
    errors = task.label_kind.errors(outcome.predictions[None], labels)[0]
    return [
        {
            "examples": len(part),
            "spread": float(spread[part].mean()),
            "rms_error": float(np.sqrt((errors[part] ** 2).mean())),
        }
        for part in _bins(spread)
    ]


def _coverage(
    task: Task,
    outcome: Outcome,
    labels: np.ndarray,
    spread: np.ndarray | None,
    conformal: Conformal | None,
) -> list[Row]:
    """Share of the labels that are in their region at each of `COVERAGES`, as far as the held-out
    examples give them, and the regions' mean size: classes in a set, width of an interval.
    """
    if conformal is None:
        return []
    kind = task.label_kind
    spread = np.zeros(len(labels)) if spread is None else spread
    rows: list[Row] = []
    for coverage in COVERAGES:
        try:
            radius = conformal.at(coverage).radius(spread)
        except InputError:  # too few held-out examples for this one and those after it
            break
        held = kind.held(outcome, labels, radius)
        if kind.categorical:
            possible = kind.region(task, outcome, radius)[-1]
            size = float(np.mean([len(names) for names in possible]))
        else:
            size = float(2 * radius.mean())
        share = exact(int(held.sum()), len(labels))
        rows.append(
            {
                "promised": coverage,
                "held": share.value,
                "low": share.low,
                "high": share.high,
                "size": size,
            }
        )
    return rows
