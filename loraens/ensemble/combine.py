"""How the members of an ensemble are joined.

Shape letters: M members, N examples, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from loraens.ensemble.pool import Outcome, Pool
from loraens.metrics import predictions, probabilities
from loraens.tasks import Task

Rule = Literal["vote", "logits", "probs", "merged"]


def rules(task: Task) -> tuple[Rule, ...]:
    """The rules that a task's members can be joined by, the paper's first."""
    return ("logits",) if task.kind == "number" else ("vote", "logits", "probs")


def combine(pool: Pool, weights: np.ndarray, rule: Rule, places: np.ndarray) -> Outcome:
    """What an ensemble says.

    Args:
        pool: The members.
        weights: `(M,)`; members of weight zero have no say.
        rule: "vote" (see `majority_vote`), "logits" (weighted mean logit), "probs" (weighted mean
            probability) or "merged" (the one model that `pool.merged` makes of them).
        places: `(M,)` place of each member where the ensemble was chosen, 0 the best: what is voted
            on here has no say in that.
    """
    if rule == "merged":
        assert pool.merged is not None
        return _outcome(pool.task, pool.merged(weights))
    chosen = np.flatnonzero(weights)
    pool = pool.of(chosen)
    weights = weights[chosen]
    if rule == "vote":
        return Outcome(majority_vote(pool.predictions, pool.ranks, weights, places[chosen]))
    if rule == "probs":
        shares = np.tensordot(weights / weights.sum(), pool.probabilities, 1)
        return Outcome(shares.argmax(axis=1), shares)
    return _outcome(pool.task, np.tensordot(weights, pool.logits.astype(np.float64), 1))


def _outcome(task: Task, logits: np.ndarray) -> Outcome:
    if task.kind == "number":
        return Outcome(logits[:, 0].astype(np.float64))
    return Outcome(predictions(task, logits), probabilities(task, logits))


def majority_vote(
    votes: np.ndarray,
    ranks: Sequence[int] | np.ndarray,
    weights: np.ndarray | None = None,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """The class with most votes, `(M, N)` -> `(N,)`; of tied classes, the one that the member of
    highest rank voted for.

    Only members that voted for a tied class can break the tie; of members of equal rank the one in
    the better place does, or without places the first.

    Args:
        votes: `(M, N)` class numbers.
        ranks: `(M,)` rank of each member.
        weights: `(M,)` weight of each vote; equal by default.
        places: `(M,)` place of each member, 0 the best.
    """
    votes = np.asarray(votes)
    shares = np.ones(len(votes)) if weights is None else np.asarray(weights, np.float64)
    counts = np.stack(
        [shares @ (votes == number) for number in range(int(votes.max()) + 1)], axis=1
    )  # (N, classes)
    tied = counts >= counts.max(axis=1, keepdims=True) - 1e-9 * shares.sum()
    order = np.lexsort((np.arange(len(votes)) if places is None else places, -np.asarray(ranks)))
    by_rank = votes[order]  # (M, N), highest rank first
    allowed = np.take_along_axis(
        tied, by_rank.T, axis=1
    )  # (N, M): the member voted for a tied class
    chosen: np.ndarray = by_rank[allowed.argmax(axis=1), np.arange(votes.shape[1])]
    return chosen
