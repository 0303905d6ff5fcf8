"""Padding-free batches: the tokens of all sequences of all members, concatenated.

Shape letters: M members, B examples of a member, S sequences, N tokens. S is M B, unless examples
have several windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraens.labels.base import SoftTargets
from loraens.model.upload import upload


@dataclass
class PackedBatch:
    """One step's sequences of every member, member by member, without padding.

    Args:
        input_ids: `(N,)` token ids.
        token_type_ids: `(N,)` 0 for the first text, 1 for the second.
        position_ids: `(N,)` position in its own sequence, from 0.
        lengths: S sequence lengths, in the order of members, and of each member's examples.
        members: M.
        indices: `(M, B)` examples of the split.
        labels: `(M, B)` class numbers or values, or `(M, B, K)` zeros and ones; None without
            labels.
        task: Name of the task.
        split: Name of the split.
        weights: `(M, B)` of the examples in the loss; None for equal ones.
        windows: Sequences of each of the M B examples; None where each is one.
        soft: What a teacher predicts for them; None without one.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    lengths: list[int]
    members: int
    indices: Tensor
    labels: Tensor | None
    task: str
    split: str
    weights: Tensor | None = None
    windows: list[int] | None = None
    soft: SoftTargets | None = None

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch with its tensors on a device, on a GPU in one copy that is not waited for."""
        there = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        of_teacher = self.soft[:2] if self.soft else ()
        tensors = upload([*there.values(), *of_teacher], device)
        moved: dict[str, Any] = dict(zip(there, tensors[: len(there)], strict=True))
        if self.soft:
            targets, shares = tensors[len(there) :]
            moved["soft"] = SoftTargets(targets, shares, self.soft.temperature)
        return replace(self, **moved)

    @property
    def sequences(self) -> list[int]:
        """Sequences of each member."""
        if self.windows is None:
            return [len(self.lengths) // self.members] * self.members
        each = len(self.windows) // self.members
        return [sum(self.windows[m * each : (m + 1) * each]) for m in range(self.members)]

    @property
    def member_lengths(self) -> list[list[int]]:
        """Sequence lengths of each member."""
        ends = [0, *accumulate(self.sequences)]
        return [self.lengths[low:high] for low, high in pairwise(ends)]


def pack(
    tokens: np.ndarray,
    types: np.ndarray,
    offsets: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray | None,
    task: str,
    split: str,
    weights: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> PackedBatch:
    """Gather examples of flat token arrays into one batch.

    Args:
        tokens: Token ids of all examples, concatenated.
        types: Token types, likewise.
        offsets: Start of each sequence in `tokens`, and one more entry for the end.
        indices: `(M, B)` examples of each member.
        labels: Labels of all examples, or None.
        task: Name of the task.
        split: Name of the split.
        weights: Weights of all examples, or None.
        starts: First sequence of each example, and one more entry for the end; None where each
            example is one sequence.
    """
    flat = indices.reshape(-1)
    windows = None
    if starts is not None:
        counts = starts[flat + 1] - starts[flat]
        flat = _ranges(starts[flat], counts)
        windows = counts.tolist()
    lengths = offsets[flat + 1] - offsets[flat]
    positions = _ranges(np.zeros_like(lengths), lengths)
    gathered = positions + np.repeat(offsets[flat], lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(tokens[gathered].astype(np.int64)),
        token_type_ids=torch.from_numpy(types[gathered].astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        lengths=lengths.tolist(),
        members=len(indices),
        indices=torch.from_numpy(indices),
        labels=None if labels is None else torch.from_numpy(labels[indices]),
        task=task,
        split=split,
        weights=None if weights is None else torch.from_numpy(weights[indices]),
        windows=windows,
    )


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its count, in a row."""
    ends = np.cumsum(counts)
    numbers: np.ndarray = np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)
    return numbers
