"""A measure of all candidates, by which one of them is picked and its optimism is corrected.

Shape letters: V candidates, B bags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loraens.ensemble.cross_validation import nll_of_bags
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import Proof
from loraens.ensemble.significance import Interval, OutOfBag
from loraens.metrics import NLL, Outcome, defined_or_lowest


@dataclass(frozen=True)
class Values:
    """One measure of all candidates, higher is better.

    Args:
        scores: `(V,)` cross-validated; minus infinity where not defined.
        inside: `(B, V)` of the cross-validated outcomes of the examples in each bag.
        outside: `(B, V)` of those out of it; as `bagged`, NaN where a candidate has fewer bags.
        bagged: `(B, V)` of the choice in each bag, out of it.
        ratio: As in `significance.OutOfBag`.
    """

    scores: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    bagged: np.ndarray
    ratio: float

    @classmethod
    def of_metric(cls, pool: Pool, rows: Sequence[Proof]) -> Values:
        """The task's metric."""
        scores = [pool.task.utility(proof.interval.value) for proof in rows]
        outcomes = [proof.outcomes.outcome(0) for proof in rows]
        shape = max(len(proof.bagged) for proof in rows), len(rows)
        outside = np.full(shape, np.nan)
        bagged = np.full(shape, np.nan)
        for column, proof in enumerate(rows):
            outside[: len(proof.bagged), column] = proof.bagged.fixed.mean(axis=0)
            bagged[: len(proof.bagged), column] = proof.bagged.chosen
        drawn = rows[0].drawn[: len(bagged)]
        inside = _scores(pool, outcomes, [inside for inside, _ in drawn], pool.task.score)
        return cls._of(scores, inside, outside, bagged, rows[0].bagged.ratio)

    @classmethod
    def of_nll(cls, pool: Pool, rows: Sequence[Proof]) -> Values:
        """The NLL at temperatures that are fitted in the folds and bags."""

        def utility(outcome: Outcome, labels: np.ndarray) -> float:
            return NLL.utility(NLL(outcome, labels))

        scores = [NLL.utility(proof.calibrated[NLL.name]) for proof in rows]
        outcomes = [proof.outcomes.outcome(0, calibrated=True) for proof in rows]
        count = max(len(proof.chosen) for proof in rows)
        rules = [proof.candidate.rule for proof in rows]
        drawn = rows[0].drawn[:count]
        nll = nll_of_bags(pool, rules, [proof.chosen for proof in rows], drawn)
        inside = _scores(pool, outcomes, [inside for inside, _ in drawn], utility)
        outside = _scores(pool, outcomes, [outside for _, outside in drawn], utility)
        return cls._of(scores, inside, outside, NLL.utility(1.0) * nll, rows[0].bagged.ratio)

    @classmethod
    def _of(
        cls,
        scores: Sequence[float],
        inside: np.ndarray,
        outside: np.ndarray,
        bagged: np.ndarray,
        ratio: float,
    ) -> Values:
        """Scores that decide are minus infinity where they are not defined."""
        lowest = np.where(np.isnan(inside), -np.inf, inside)
        defined = defined_or_lowest(scores)
        return cls(defined, lowest, outside, bagged, ratio)

    def margins(self, of_interval: bool) -> dict[int, np.ndarray]:
        """By how much each candidate may be below the best one, for each that is the best of all or
        in a bag: one standard error of their difference, or half its 95 % interval; nought where it
        is not defined.
        """
        margins = {}
        for top in {int(np.argmax(self.scores)), *self.inside.argmax(axis=1).tolist()}:
            differences = [self._bags(top) - self._bags(row) for row in range(len(self.scores))]
            errors = [
                one.interval(0.0).high if of_interval else one.standard_error()
                for one in differences
            ]
            margins[top] = np.where(np.isnan(errors), 0.0, errors)
        return margins

    def worth(
        self, picked: int, picks: np.ndarray, best: int | None, sign: float
    ) -> tuple[Interval, Interval]:
        """What the picked candidate is worth on new texts, and its difference to the best member.

        Args:
            picked: Its index.
            picks: `(B,)` the index that each bag picks.
            best: Index of the best member; None where that is what is picked: then there is no
                difference.
            sign: Of the measure where higher is better.
        """
        each = np.arange(len(picks))
        optimism = self.inside[each, picks] - self.outside[each, picks]
        own = self._bags(picked)
        again = OutOfBag(self.bagged[each, picks], own.fixed, self.ratio)
        value = float(self.scores[picked]) - max(0.0, float(np.nanmean(optimism)))
        gain = 0.0
        differences = [again - again]
        if best is not None:
            of_best = self.inside[:, best] - self.outside[:, best]
            excess = max(0.0, float(np.nanmean(optimism - of_best)))
            gain = float(self.scores[picked] - self.scores[best]) - excess
            differences = [again - self._bags(best), own - self._bags(best)]
        estimate = _widest([again, own], value)
        low, high = sorted([sign * estimate.low, sign * estimate.high])
        return Interval(sign * value, low, high), _widest(differences, gain)

    def _bags(self, column: int) -> OutOfBag:
        return OutOfBag(self.bagged[:, column], self.outside[None, :, column], self.ratio)


def _widest(bags: Sequence[OutOfBag], value: float) -> Interval:
    """The widest interval: where bags pick the best member, they differ less from it."""
    return max((one.interval(value) for one in bags), key=lambda one: one.high - one.low)


def _scores(
    pool: Pool,
    outcomes: Sequence[Outcome],
    examples: Sequence[np.ndarray],
    utility: Callable[[Outcome, np.ndarray], float],
) -> np.ndarray:
    """A measure `(B, V)` of V outcomes on the examples in each bag, or on those out of it."""
    return np.array(
        [
            [utility(outcome.at(indices), pool.labels[indices]) for outcome in outcomes]
            for indices in examples
        ]
    )
