"""How the members of an ensemble are joined.

Shape letters: M members, N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loraens.metrics import predictions
from loraens.tasks import Task


def mean_logits(logits: np.ndarray) -> np.ndarray:
    """Mean over the members: `(M, N, C)` -> `(N, C)`."""
    mean: np.ndarray = np.asarray(logits, np.float64).mean(axis=0)
    return mean


def majority_vote(votes: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """The class with most votes, `(M, N)` -> `(N,)`; of tied classes, the one that the member of highest rank voted for.

    Only members that voted for a tied class can break the tie; of members of equal rank the first one does.
    """
    votes = np.asarray(votes)
    counts = (votes[:, :, None] == np.arange(votes.max() + 1)).sum(axis=0)  # (N, classes)
    tied = counts == counts.max(axis=1, keepdims=True)
    by_rank = votes[np.argsort(-np.asarray(ranks), kind="stable")]  # (M, N), highest rank first
    allowed = np.take_along_axis(tied, by_rank.T, axis=1)  # (N, M): the member voted for a tied class
    chosen: np.ndarray = by_rank[allowed.argmax(axis=1), np.arange(votes.shape[1])]
    return chosen


def omni(task: Task, logits: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """Predictions `(N,)` of Omni-LoRA (the paper): mean logit for numbers, majority vote for classes, of all members."""
    if task.kind == "number":
        return predictions(task, mean_logits(logits))
    return majority_vote(np.stack([predictions(task, member) for member in logits]), ranks)
