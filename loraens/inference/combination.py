"""How the members of a loaded ensemble are combined.

Shape letters: M members.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from loraens.ensemble.calibration import scaled
from loraens.ensemble.combine import combine, with_vote_shares
from loraens.ensemble.pool import Pool
from loraens.ensemble.record import EnsembleRecord
from loraens.metrics import Outcome
from loraens.tasks import Task


@dataclass
class Combination:
    """How the members of an ensemble are combined.

    Args:
        rule: "vote", "logits" or "probs".
        weights: `(M,)`.
        ranks: `(M,)` LoRA ranks, which break ties of a vote.
        standings: `(M,)` standings by dev score, which break ties of equal ranks.
        temperature: Divides log probabilities; None for numbers and votes.
        thresholds: `(K,)` of the probability of each label, before the temperature, where an
            example has several.
        folds: K, where the members are those of the K folds of configurations, one after another.
        names: M names of the members.
    """

    rule: str
    weights: np.ndarray
    ranks: np.ndarray
    standings: np.ndarray
    temperature: float | None
    folds: int = 1
    names: tuple[str, ...] = ()
    thresholds: np.ndarray | None = None

    @classmethod
    def of_one(cls, task: Task, thresholds: np.ndarray | None = None) -> Combination:
        """The combination of a single member, or of the one model of a soup, which has thresholds
        where predictions are by such.
        """
        temperature = 1.0 if task.label_kind.categorical else None
        return cls(
            rule="logits",
            weights=np.ones(1),
            ranks=np.ones(1),
            standings=np.zeros(1),
            temperature=temperature,
            thresholds=thresholds,
        )

    @classmethod
    def of_record(cls, record: EnsembleRecord) -> Combination:
        """The combination of a stored ensemble."""
        return cls(
            rule=record.rule,
            weights=np.array([member.weight for member in record.members]),
            ranks=np.array([member.rank for member in record.members]),
            standings=np.array([member.standing for member in record.members]),
            temperature=record.temperature,
            folds=record.members_each,
            names=tuple(member.name for member in record.members),
            thresholds=thresholds_of(record),
        )

    def of_fold(self, fold: int) -> Combination:
        """The combination of the members of one fold, which has the weights of configurations."""
        own = slice(fold, None, self.folds)
        return replace(
            self,
            weights=self.weights[own] * self.folds,
            ranks=self.ranks[own],
            standings=self.standings[own],
            folds=1,
            names=self.names[own],
        )

    def pool(self, task: Task, logits: np.ndarray) -> Pool:
        """The pool of the members, unlabelled, with their logits `(M, N, C)`."""
        return Pool(
            task=task,
            names=tuple(map(str, range(len(logits)))),
            ranks=self.ranks,
            logits=logits,
            labels=np.full(logits.shape[1], np.nan),
        )

    def outcome(self, pool: Pool) -> Outcome:
        """Predictions, and for classes probabilities: at the ensemble's temperature, or shares of
        the votes.
        """
        outcome = combine(pool, self.weights, self.rule, self.standings).decided(self.thresholds)
        if self.temperature is not None:
            return scaled(outcome, self.temperature)
        return with_vote_shares(pool, self.weights, outcome)

    def spread(self, pool: Pool) -> np.ndarray:
        """Spread `(N,)` of the members of each fold, mean of the folds: out of fold, examples have
        that of one fold.
        """
        folds = [slice(fold, None, self.folds) for fold in range(self.folds)]
        spreads = [pool.kind.spread(pool.predictions[f], self.weights[f]) for f in folds]
        mean: np.ndarray = np.mean(spreads, axis=0)
        return mean


def thresholds_of(record: EnsembleRecord) -> np.ndarray | None:
    """Thresholds `(K,)` of an ensemble's probabilities, where predictions are by such."""
    return None if record.thresholds is None else np.array(record.thresholds)
