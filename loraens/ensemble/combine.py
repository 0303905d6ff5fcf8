"""Rules by which the members of an ensemble are combined.

Shape letters: M members, N examples, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loraens.ensemble.pool import Pool
from loraens.labels.base import working_type
from loraens.labels.classes import vote_shares
from loraens.metrics import Outcome

MERGED = "merged"  # the rule of soups: one model merged of the members


def combine(pool: Pool, weights: np.ndarray, rule: str, standings: np.ndarray) -> Outcome:
    """Predictions of an ensemble.

    Args:
        pool: The members.
        weights: `(M,)`; members of weight zero are left out.
        rule: "vote" (see `majority_vote`), "logits" (weighted mean logit), "probs" (weighted mean
            probability) or "merged" (the one model that `pool.merged` makes of them).
        standings: `(M,)` standing of each member where the ensemble was chosen, 0 the best: the
            examples that are voted on must not break their own ties.
    """
    if rule == MERGED:
        assert pool.merged is not None
        return pool.task.outcome(pool.merged(weights))
    chosen: np.ndarray | slice = np.flatnonzero(weights)
    weights = weights[chosen]
    if len(weights) == len(pool):
        chosen = slice(None)  # nothing is copied
    if rule == "vote":
        votes = pool.predictions[chosen]
        return Outcome(majority_vote(votes, pool.ranks[chosen], weights, standings[chosen]))
    if rule == "probs":
        return pool.kind.outcome_of_mean(mean(weights / weights.sum(), pool.averaged[chosen]))
    return pool.task.outcome(mean(weights, pool.logits[chosen]))


def mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The weighted sum `(N, C)` of values `(M, N, C)`, as float64, in their working type."""
    working = working_type(values)
    summed = np.tensordot(weights.astype(working), values.astype(working, copy=False), 1)
    return summed.astype(np.float64, copy=False)


def combine_apart(chosen_on: Pool, scored: Pool, weights: np.ndarray, rule: str) -> Outcome:
    """Predictions for some examples of an ensemble that was chosen on others, which also choose
    its thresholds where predictions are by such.

    Args:
        chosen_on: The examples that the ensemble was chosen on.
        scored: The others.
        weights: `(M,)`.
        rule: As in `combine`.
    """
    outcome = combine(scored, weights, rule, chosen_on.standings)
    return outcome.decided(thresholds_of(chosen_on, weights, rule))


def thresholds_of(pool: Pool, weights: np.ndarray, rule: str) -> np.ndarray | None:
    """Thresholds `(K,)` of an ensemble's probabilities that are the best on a pool; None where
    predictions are by no thresholds.
    """
    return pool.kind.thresholds(lambda: combine(pool, weights, rule, pool.standings), pool.labels)


def with_vote_shares(pool: Pool, weights: np.ndarray, outcome: Outcome) -> Outcome:
    """The outcome, of votes with the shares of the votes as its probabilities."""
    if outcome.probabilities is not None or not pool.kind.categorical:
        return outcome
    shares = vote_shares(pool.predictions, weights, len(pool.task.class_names))
    return replace(outcome, probabilities=shares)


def majority_vote(
    votes: np.ndarray,
    ranks: Sequence[int] | np.ndarray,
    weights: np.ndarray | None = None,
    standings: np.ndarray | None = None,
) -> np.ndarray:
    """The class with most votes, `(M, N)` -> `(N,)`; of tied classes, the one that the member of
    highest rank voted for.

    Only members that voted for a tied class can break the tie; of members of equal rank the one of
    the better standing does, or without standings the first.

    Args:
        votes: `(M, N)` class numbers.
        ranks: `(M,)` rank of each member.
        weights: `(M,)` weight of each vote; equal by default.
        standings: `(M,)` standing of each member, 0 the best.

    Examples:
        Three members vote on two examples; the last example is a tie, which rank 16 breaks.

        >>> votes = np.array([[0, 0], [1, 1], [1, 2]])
        >>> majority_vote(votes, ranks=[8, 4, 16]).tolist()
        [1, 2]
    """
    votes = np.asarray(votes)
    shares = np.ones(len(votes)) if weights is None else np.asarray(weights, np.float64)
    # counts and tied are (N, K)
    classes = range(int(votes.max()) + 1)
    counts = np.stack([shares @ (votes == number) for number in classes], axis=1)
    tied = counts >= counts.max(axis=1, keepdims=True) - 1e-9 * shares.sum()
    winners: np.ndarray = counts.argmax(axis=1).astype(votes.dtype)
    contested = np.flatnonzero(np.count_nonzero(tied, axis=1) > 1)
    tie_breaker = np.arange(len(votes)) if standings is None else standings
    order = np.lexsort((tie_breaker, -np.asarray(ranks)))  # highest rank first
    by_rank = votes[:, contested][order]  # (M, n)
    votes_for_tied = np.take_along_axis(tied[contested], by_rank.T, axis=1)
    winners[contested] = by_rank[votes_for_tied.argmax(axis=1), np.arange(len(contested))]
    return winners
