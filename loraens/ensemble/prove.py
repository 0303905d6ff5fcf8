"""The worth of an ensemble on examples that it was not chosen on, with intervals.

Shape letters: M members, N examples, R resamples, T repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from loraens.ensemble.calibration import fit_temperature
from loraens.ensemble.combine import combine
from loraens.ensemble.cross_validation import Advance, Candidate, HeldOut, cross_validate
from loraens.ensemble.pool import Pool
from loraens.ensemble.significance import (
    Interval,
    mcnemar,
    means_of_resamples,
    of_resamples,
    pearson_of_resamples,
    resamples,
)
from loraens.metrics import BRIER, CALIBRATION_ERROR, NLL
from loraens.seeding import derive_seed

CALIBRATION = (NLL.name, BRIER.name, CALIBRATION_ERROR.name)


@dataclass
class Proof:
    """Scores of one candidate.

    Args:
        candidate: The candidate.
        members: How many members it has on all of dev.
        weights: Their weights `(M,)`.
        dev: Every metric on dev, on which it was chosen.
        held_out: Every metric, cross-validated.
        interval: The task's metric, cross-validated.
        to_best: Difference of that to the best member, chosen in the same folds.
        to_omni: Difference to all members.
        p_best: p of McNemar's test against the best member, for classes; NaN for numbers.
        temperature: Divides logits; fitted on dev. None for numbers and votes.
        calibrated: NLL, Brier score and calibration error, cross-validated, the temperature fitted
            in the folds.
    """

    candidate: Candidate
    members: int
    weights: np.ndarray
    dev: dict[str, float]
    held_out: dict[str, float]
    interval: Interval
    to_best: Interval
    to_omni: Interval
    p_best: float
    temperature: float | None
    calibrated: dict[str, float]


def on_resamples(pool: Pool, held_out: HeldOut, indices: np.ndarray) -> np.ndarray:
    """The task's metric on each resample `(R,)`, mean of the repetitions.

    Args:
        pool: The pool, for its task and labels.
        held_out: Held-out outcomes.
        indices: `(R, N)` examples of each resample.
    """
    if pool.task.metric == "accuracy":  # the two most used metrics for all resamples at once
        correct = (held_out.predictions == pool.labels).astype(np.float64)
        return np.asarray(means_of_resamples(correct, indices).mean(axis=0))
    if pool.task.metric == "pearson":
        sampled = pearson_of_resamples(held_out.predictions, pool.labels, indices)
        return np.asarray(sampled.mean(axis=0))
    metric = pool.task.main_metric
    outcomes = [held_out.outcome(repeat) for repeat in range(len(held_out.predictions))]
    scores = np.empty((len(indices), len(outcomes)))
    for row, sample in zip(scores, indices, strict=True):
        row[:] = [metric(outcome.at(sample), pool.labels[sample]) for outcome in outcomes]
    return np.asarray(scores.mean(axis=1))


def _mean_scores(pool: Pool, held_out: HeldOut, calibrated: bool = False) -> dict[str, float]:
    """Every metric, mean of the repetitions."""
    repeats = range(len(held_out.predictions))
    outcomes = [held_out.outcome(repeat, calibrated) for repeat in repeats]
    return {
        metric.name: float(np.mean([metric(outcome, pool.labels) for outcome in outcomes]))
        for metric in pool.kind.metrics
    }


def prove(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> list[Proof]:
    """Every candidate's scores on dev, and cross-validated with intervals that compare on the same
    resamples.

    The candidates must contain the methods `best` and `omni` with the paper's rule.
    """
    evaluation = _Evaluation(pool, candidates, cross_validate(pool, candidates, advance))
    return [evaluation.proof(index) for index in range(len(candidates))]


class _Evaluation:
    """Held-out outcomes of all candidates, compared on the same resamples.

    Scores are computed once for each candidate and number of repetitions: a candidate with fewer
    repetitions is compared with the others in its own, so that both have the same folds.
    """

    def __init__(
        self, pool: Pool, candidates: Sequence[Candidate], held_out: Sequence[HeldOut]
    ) -> None:
        self.pool = pool
        self.candidates = candidates
        self.held_out = held_out
        self._scores: dict[tuple[int, int], tuple[dict[str, float], np.ndarray]] = {}
        self._weights: dict[object, np.ndarray] = {}

    @cached_property
    def indices(self) -> np.ndarray:
        """`(R, N)` examples of each resample."""
        rng = np.random.default_rng(derive_seed(0, "resamples"))
        return resamples(len(self.pool.labels), rng)

    def scores(self, index: int, repeats: int) -> tuple[dict[str, float], np.ndarray]:
        """Every metric in the first repetitions, and the task's on each resample `(R,)`."""
        key = index, repeats
        if key not in self._scores:
            part = self.held_out[index].first(repeats)
            sampled = on_resamples(self.pool, part, self.indices)
            self._scores[key] = _mean_scores(self.pool, part), sampled
        return self._scores[key]

    def weights(self, candidate: Candidate) -> np.ndarray:
        """Weights `(M,)` on all of dev; the rules of one method share them."""
        key = candidate.method, candidate.options
        if key not in self._weights:
            self._weights[key] = candidate.weights(self.pool, "dev")
        return self._weights[key]

    def reference(self, method: str) -> int:
        """Index of the first candidate of a method with the paper's rule."""
        rule = self.pool.kind.rules[0]
        matches = [
            index
            for index, candidate in enumerate(self.candidates)
            if (candidate.method, candidate.rule) == (method, rule)
        ]
        return matches[-1]

    def difference(self, index: int, other: int) -> Interval:
        """Difference of the task's metric, its sign turned where lower is better."""
        task = self.pool.task
        repeats = self.candidates[index].repeats
        scores, sampled = self.scores(index, repeats)
        other_scores, other_sampled = self.scores(other, repeats)
        sign = task.utility(1.0)
        value = sign * (scores[task.metric] - other_scores[task.metric])
        return of_resamples(value, sign * (sampled - other_sampled))

    def p_best(self, index: int) -> float:
        """P of McNemar's test against the best member; NaN for numbers."""
        if not self.pool.kind.categorical:
            return float("nan")
        labels = self.pool.labels
        best = self.held_out[self.reference("best")]
        return mcnemar(self.held_out[index].predictions[0] == labels, best.predictions[0] == labels)

    def proof(self, index: int) -> Proof:
        """All of one candidate's scores."""
        pool = self.pool
        candidate = self.candidates[index]
        weights = self.weights(candidate)
        outcome = combine(pool, weights, candidate.rule, pool.standings)
        scores, sampled = self.scores(index, candidate.repeats)
        temperature = None
        if outcome.probabilities is not None:
            temperature = fit_temperature(outcome, pool.labels)
        calibrated = {}
        if self.held_out[index].calibrated is not None:
            means = _mean_scores(pool, self.held_out[index], calibrated=True)
            calibrated = {name: means[name] for name in CALIBRATION}
        return Proof(
            candidate=candidate,
            members=int(np.count_nonzero(weights)),
            weights=weights,
            dev=pool.task.all_scores(outcome, pool.labels),
            held_out=scores,
            interval=of_resamples(scores[pool.task.metric], sampled),
            to_best=self.difference(index, self.reference("best")),
            to_omni=self.difference(index, self.reference("omni")),
            p_best=self.p_best(index),
            temperature=temperature,
            calibrated=calibrated,
        )
