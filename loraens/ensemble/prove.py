"""The worth of an ensemble on examples that it was not chosen on, with intervals.

Shape letters: M members, N examples, T repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loraens.ensemble.calibration import fit_temperature
from loraens.ensemble.combine import combine, thresholds_of
from loraens.ensemble.cross_validation import (
    Advance,
    Bagged,
    Candidate,
    Choices,
    HeldOut,
    cross_validate,
    score_bags,
)
from loraens.ensemble.pool import Pool
from loraens.ensemble.significance import Interval, OutOfBag, holm
from loraens.metrics import BRIER, CALIBRATION_ERROR, NLL

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
        p_best: Two-sided p of that difference, from the same bags as its interval, adjusted for the
            number of candidates (Holm).
        temperature: Divides logits; fitted on dev. None for numbers and votes.
        thresholds: `(K,)` of probabilities before the temperature, chosen on dev; None where
            predictions are by none.
        calibrated: NLL, Brier score and calibration error, cross-validated, the temperature fitted
            in the folds.
        outcomes: Cross-validated outcomes.
        bagged: The task's metric out of bag, its sign turned where lower is better.
        chosen: Weights `(M,)` that were chosen in each bag.
        drawn: The bags: indices of the examples in each and out of it.
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
    thresholds: np.ndarray | None
    calibrated: dict[str, float]
    outcomes: HeldOut = field(repr=False)
    bagged: OutOfBag = field(repr=False)
    chosen: list[np.ndarray] = field(repr=False)
    drawn: list[tuple[np.ndarray, np.ndarray]] = field(repr=False)


def _mean_scores(pool: Pool, held_out: HeldOut, calibrated: bool = False) -> dict[str, float]:
    """Every metric, mean of the repetitions."""
    return {
        metric.name: held_out.score(metric, pool.labels, calibrated) for metric in pool.kind.metrics
    }


def prove(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> list[Proof]:
    """Every candidate's scores on dev, and cross-validated with intervals whose bags all candidates
    share.

    The candidates must contain the methods `best` and `omni` with the paper's rule.

    Args:
        pool: The pool.
        candidates: The candidates.
        advance: Called after each fold and each bag.
    """
    held_out = cross_validate(pool, candidates, advance)
    bagged = score_bags(pool, candidates, held_out, advance)
    evaluation = _Evaluation(pool, candidates, held_out, bagged)
    proofs = [evaluation.proof(index) for index in range(len(candidates))]
    # the best member is no claim about itself
    claims = [p.p_best if p.candidate.method != "best" else np.nan for p in proofs]
    adjusted = holm(np.array(claims)).tolist()
    return [replace(proof, p_best=p) for proof, p in zip(proofs, adjusted, strict=True)]


class _Evaluation:
    """Held-out outcomes of all candidates, compared in the same folds and bags.

    Scores are computed once for each candidate and number of repetitions: a candidate with fewer
    repetitions or bags is compared with the others in its own, so that both have the same.
    """

    def __init__(
        self,
        pool: Pool,
        candidates: Sequence[Candidate],
        held_out: Sequence[HeldOut],
        bagged: Bagged,
    ) -> None:
        self.pool = pool
        self.candidates = candidates
        self.held_out = held_out
        self.bagged = bagged
        self._scores: dict[tuple[int, int], dict[str, float]] = {}
        self.choices = Choices(pool)

    def scores(self, index: int, repeats: int) -> dict[str, float]:
        """Every metric in the first repetitions."""
        key = index, repeats
        if key not in self._scores:
            self._scores[key] = _mean_scores(self.pool, self.held_out[index].first(repeats))
        return self._scores[key]

    def utility(self, index: int, repeats: int) -> float:
        """The task's metric in the first repetitions, its sign turned where lower is better."""
        return self.pool.task.utility(self.scores(index, repeats)[self.pool.task.metric])

    def reference(self, method: str) -> int:
        """Index of the first candidate of a method with the paper's rule."""
        rule = self.pool.kind.rules[0]
        matches = [
            index
            for index, candidate in enumerate(self.candidates)
            if (candidate.method, candidate.rule) == (method, rule)
        ]
        return matches[-1]

    def difference(self, index: int, other: int) -> tuple[float, OutOfBag]:
        """Difference of the task's metric, its sign turned where lower is better, and the same out
        of bag.
        """
        repeats = self.candidates[index].repeats
        value = self.utility(index, repeats) - self.utility(other, repeats)
        return value, self.bagged.scores[index] - self.bagged.scores[other]

    def proof(self, index: int) -> Proof:
        """All of one candidate's scores."""
        pool = self.pool
        candidate = self.candidates[index]
        weights = self.choices.weights(candidate)
        thresholds = thresholds_of(pool, weights, candidate.rule)
        outcome = combine(pool, weights, candidate.rule, pool.standings).decided(thresholds)
        scores = self.scores(index, candidate.repeats)
        value = scores[pool.task.metric]
        to_best, best_bagged = self.difference(index, self.reference("best"))
        to_omni, omni_bagged = self.difference(index, self.reference("omni"))
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
            interval=self.bagged.scores[index].interval(value),
            to_best=best_bagged.interval(to_best),
            to_omni=omni_bagged.interval(to_omni),
            p_best=best_bagged.p_value(to_best),
            temperature=temperature,
            thresholds=thresholds,
            calibrated=calibrated,
            outcomes=self.held_out[index],
            bagged=self.bagged.scores[index],
            chosen=self.bagged.weights[index],
            drawn=self.bagged.drawn,
        )
