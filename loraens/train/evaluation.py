"""Logits of all members on the splits that were evaluated, and their scores.

Shape letters: M members, N examples of a split, C outputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

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

    The examples may be others for each member, and of other numbers.

    Attributes:
        logits: For each split and member `(N, C)`, in the order of `indices`.
        indices: For each split and member `(N,)` examples that were evaluated, in their order.
    """

    def __init__(self) -> None:
        self.logits: dict[SplitName, list[np.ndarray]] = {}
        self.indices: dict[SplitName, list[np.ndarray]] = {}
        self._batches: dict[SplitName, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, batch: PackedBatch, logits: Tensor) -> None:
        """Keep the logits `(M, B, C)` of a batch."""
        part = batch.indices.cpu(), logits.float().cpu()
        self._batches[batch.task, batch.split].append(part)

    def finish(self) -> Tensor:
        """Put the batches of the pass together, an example that was repeated to fill batches once;
        returns `(M,)` whose logits are all finite.
        """
        for name, batches in self._batches.items():
            indices = torch.cat([part for part, _ in batches], dim=1).numpy()
            logits = torch.cat([part for _, part in batches], dim=1).numpy()
            once = [np.unique(of_member, return_index=True) for of_member in indices]
            self.indices[name] = [examples for examples, _ in once]
            self.logits[name] = [
                of_member[order] for of_member, (_, order) in zip(logits, once, strict=True)
            ]
        self._batches.clear()
        finite = [
            [bool(np.isfinite(of_member).all()) for of_member in of_split]
            for of_split in self.logits.values()
        ]
        return torch.tensor(finite).all(0)

    def scores(
        self,
        tasks: Sequence[Task],
        labels: Sequence[np.ndarray],
        split: str,
        members: Sequence[int],
    ) -> Scores:
        """All metrics by task of the logits of some members together, each on its own examples.

        Args:
            tasks: The tasks.
            labels: Labels of each task's whole split.
            split: Name of the split.
            members: Indices of the members: one, or those of the folds of a configuration.
        """
        scores = {}
        for task, of_split in zip(tasks, labels, strict=True):
            name = task.name, split
            evaluated = np.concatenate([self.indices[name][member] for member in members])
            logits = np.concatenate([self.logits[name][member] for member in members])
            order = evaluated.argsort(kind="stable")
            scores[task.name] = task.scores(logits[order], of_split[evaluated[order]])
        return scores


def undefined_scores(tasks: Sequence[Task]) -> Scores:
    """Scores of a member that failed."""
    return {task.name: {task.metric: math.nan} for task in tasks}


def combined_score(tasks: Sequence[Task], by_task: Mapping[str, float]) -> float:
    """One score of several tasks, higher is better: of one task its metric, its sign turned where
    lower is better; of several the paper's overall score, or, where they are others, the mean.

    Args:
        tasks: The tasks.
        by_task: The metric of each, by its name.
    """
    paper = overall(by_task)
    if paper is not None:
        return paper
    return float(np.mean([task.utility(by_task[task.name]) for task in tasks]))


def overall_score(tasks: Sequence[Task], scores: Scores) -> float | None:
    """The paper's overall score of a member over the three tasks, if all are there."""
    return overall({task.name: scores[task.name][task.metric] for task in tasks})
