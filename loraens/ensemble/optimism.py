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
from loraens.ensemble.select import defined_or_lowest
from loraens.ensemble.significance import Interval, of_bags, standard_error
from loraens.metrics import NLL, Outcome


@dataclass(frozen=True)
class Values:
    """One measure of all candidates, higher is better.

    Args:
        scores: `(V,)` cross-validated; minus infinity where not defined.
        inside: `(B, V)` of the cross-validated outcomes of the examples in each bag.
        outside: `(B, V)` of those out of it.
        bagged: `(B, V)` of the choice in each bag, out of it; NaN where a candidate has fewer bags.
        ratio: As in `significance.standard_error`.
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
        bagged = np.full((max(len(proof.bagged) for proof in rows), len(rows)), np.nan)
        for column, proof in enumerate(rows):
            bagged[: len(proof.bagged), column] = proof.bagged
        return cls._of(pool, rows, scores, bagged, outcomes, pool.task.score)

    @classmethod
    def of_nll(cls, pool: Pool, rows: Sequence[Proof]) -> Values:
        """The NLL at temperatures that are fitted in the folds and bags."""

        def utility(outcome: Outcome, labels: np.ndarray) -> float:
            return NLL.utility(NLL(outcome, labels))

        scores = [NLL.utility(proof.calibrated[NLL.name]) for proof in rows]
        outcomes = [proof.outcomes.outcome(0, calibrated=True) for proof in rows]
        count = max(len(proof.chosen) for proof in rows)
        rules = [proof.candidate.rule for proof in rows]
        nll = nll_of_bags(pool, rules, [proof.chosen for proof in rows], rows[0].drawn[:count])
        return cls._of(pool, rows, scores, NLL.utility(1.0) * nll, outcomes, utility)

    @classmethod
    def _of(
        cls,
        pool: Pool,
        rows: Sequence[Proof],
        scores: Sequence[float],
        bagged: np.ndarray,
        outcomes: Sequence[Outcome],
        utility: Callable[[Outcome, np.ndarray], float],
    ) -> Values:
        sides = np.empty((2, *bagged.shape))
        for column, outcome in enumerate(outcomes):
            for number, parts in enumerate(rows[0].drawn[: len(bagged)]):
                for side, indices in enumerate(parts):
                    score = utility(outcome.at(indices), pool.labels[indices])
                    sides[side, number, column] = defined_or_lowest(score)
        defined = np.array([defined_or_lowest(score) for score in scores])
        return cls(defined, sides[0], sides[1], bagged, rows[0].ratio)

    def margins(self, of_interval: bool) -> dict[int, np.ndarray]:
        """By how much each candidate may be below the best one, for each that is the best of all or
        in a bag: one standard error of their difference, or half its 95 % interval; nought where it
        is not defined.
        """
        margins = {}
        for top in {int(np.argmax(self.scores)), *self.inside.argmax(axis=1).tolist()}:
            differences = (self.bagged[:, [top]] - self.bagged).T
            errors = [
                of_bags(0.0, row, self.ratio).high
                if of_interval
                else standard_error(row, self.ratio)
                for row in differences
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
        again = self.bagged[each, picks]
        value = float(self.scores[picked]) - max(0.0, float(np.nanmean(optimism)))
        gain = 0.0
        differences = np.zeros(len(picks))
        if best is not None:
            of_best = self.inside[:, best] - self.outside[:, best]
            excess = max(0.0, float(np.nanmean(optimism - of_best)))
            gain = float(self.scores[picked] - self.scores[best]) - excess
            differences = again - self.bagged[:, best]
        estimate = of_bags(sign * value, sign * again, self.ratio)
        return estimate, of_bags(gain, differences, self.ratio)
