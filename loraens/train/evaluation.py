"""Logits of all members on the splits that were evaluated, and their scores.

Shape letters: M members, N examples of a split, C outputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from loraens.metrics import overall
from loraens.model.batch import PackedBatch
from loraens.records import Scores
from loraens.tasks import Task
from loraens.train.features import SplitName


class Evaluation:
    """Collects the logits of one pass over some splits, batch by batch.

    Attributes:
        logits: `(M, N, C)` of each split, in the order of `indices`.
        indices: `(N,)` examples of each split that were evaluated, in their order.
    """

    def __init__(self) -> None:
        self.logits: dict[SplitName, Tensor] = {}
        self.indices: dict[SplitName, np.ndarray] = {}
        self._batches: dict[SplitName, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, batch: PackedBatch, logits: Tensor) -> None:
        """Keep the logits `(M, B, C)` of a batch, in which all members have the same examples."""
        part = batch.indices[0].cpu(), logits.float().cpu()
        self._batches[batch.task, batch.split].append(part)

    def finish(self) -> Tensor:
        """Put the batches of the pass together; returns `(M,)` whose logits are all finite."""
        for name, batches in self._batches.items():
            indices = torch.cat([part for part, _ in batches])
            order = indices.argsort()
            self.indices[name] = indices[order].numpy()
            self.logits[name] = torch.cat([logits for _, logits in batches], dim=1)[:, order]
        self._batches.clear()
        finite = [logits.isfinite().flatten(1).all(1) for logits in self.logits.values()]
        return torch.stack(finite).all(0)

    def member_scores(
        self, tasks: Sequence[Task], labels: Sequence[np.ndarray], split: str, member: int
    ) -> Scores:
        """All metrics of one member by task.

        Args:
            tasks: The tasks.
            labels: Labels of each task's whole split.
            split: Name of the split.
            member: Index of the member.
        """
        scores = {}
        for task, of_split in zip(tasks, labels, strict=True):
            evaluated = self.indices[task.name, split]
            logits = self.logits[task.name, split][member].numpy()
            scores[task.name] = task.scores(logits, of_split[evaluated])
        return scores


def undefined_scores(tasks: Sequence[Task]) -> Scores:
    """Scores of a member that failed."""
    return {task.name: {task.metric: math.nan} for task in tasks}


def overall_score(tasks: Sequence[Task], scores: Scores) -> float | None:
    """The paper's overall score of a member over the three tasks, if all are there."""
    return overall({task.name: scores[task.name][task.metric] for task in tasks})
