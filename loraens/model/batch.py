"""Padding-free batches: the tokens of all sequences of all members, concatenated.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        lengths: S sequence lengths; sequence s = m B + b is example b of member m.
        members: M.
        indices: `(M, B)` examples of the split.
        labels: `(M, B)` class numbers or values, or `(M, B, K)` zeros and ones; None without
            labels.
        task: Name of the task.
        split: Name of the split.
        weights: `(M, B)` of the examples in the loss; None for equal ones.
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
    def member_lengths(self) -> list[list[int]]:
        """Sequence lengths of each member."""
        size = len(self.lengths) // self.members
        return [self.lengths[start : start + size] for start in range(0, len(self.lengths), size)]


def pack(
    tokens: np.ndarray,
    types: np.ndarray,
    offsets: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray | None,
    task: str,
    split: str,
    weights: np.ndarray | None = None,
) -> PackedBatch:
    """Gather examples of flat token arrays into one batch.

    Args:
        tokens: Token ids of all examples, concatenated.
        types: Token types, likewise.
        offsets: Start of each example in `tokens`, and one more entry for the end.
        indices: `(M, B)` examples of each member.
        labels: Labels of all examples, or None.
        task: Name of the task.
        split: Name of the split.
        weights: Weights of all examples, or None.
    """
    flat = indices.reshape(-1)
    lengths = offsets[flat + 1] - offsets[flat]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
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
    )
