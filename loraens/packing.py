"""Padding-free batches, and the attention function that reads them.

The tokens of all sequences of all members are concatenated to `(1, N)`; linear layers, norms and activations see only real
tokens. Attention alone pads, each member's sequences to that member's longest.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens, L longest sequence, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from loraens.lora import Routing, dropout_mask

ATTENTION = "loraens_packed"


@dataclass
class PackedBatch:
    """One step's sequences of every member, member by member, without padding.

    Args:
        input_ids: `(N,)` token ids.
        token_type_ids: `(N,)` 0 for the first text, 1 for the second.
        position_ids: `(N,)` position in its own sequence, from 0.
        lengths: S sequence lengths; sequence s = m B + b is example b of member m.
        members: M.
        rows: `(M, B)` row numbers in the data set.
        labels: `(M, B)` class numbers or values; None without labels.
        task: Name of the task.
        split: Name of the split.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    lengths: list[int]
    members: int
    rows: Tensor
    labels: Tensor | None
    task: str
    split: str

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The batch with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
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
    rows: np.ndarray,
    labels: np.ndarray | None,
    task: str,
    split: str,
) -> PackedBatch:
    """Gather rows of flat token arrays into one batch.

    Args:
        tokens: Token ids of all examples, concatenated.
        types: Token types, likewise.
        offsets: Start of each example in `tokens`, and one more entry for the end.
        rows: `(M, B)` examples of each member.
        labels: Labels of all examples, or None.
        task: Name of the task.
        split: Name of the split.
    """
    flat = rows.reshape(-1)
    lengths = offsets[flat + 1] - offsets[flat]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    index = positions + np.repeat(offsets[flat], lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(tokens[index].astype(np.int64)),
        token_type_ids=torch.from_numpy(types[index].astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        lengths=lengths.tolist(),
        members=len(rows),
        rows=torch.from_numpy(rows),
        labels=None if labels is None else torch.from_numpy(labels[rows]),
        task=task,
        split=split,
    )


@dataclass
class AttentionLayout:
    """Where one member's tokens stand in the padded layout that attention works in.

    Args:
        shape: Number of sequences b, and the longest one's length L.
        packed: `(n,)` places of the member's tokens in the flattened padded layout.
        mask: `(b, 1, 1, L)` true at real tokens; None where no sequence is padded.
    """

    shape: tuple[int, int]
    packed: Tensor
    mask: Tensor | None

    def pad(self, x: Tensor) -> Tensor:
        """`(n, H, K)` -> `(b, H, L, K)`, zero at padding."""
        sequences, longest = self.shape
        padded = x.new_zeros(sequences * longest, *x.shape[1:]).index_copy(0, self.packed, x)
        return padded.view(sequences, longest, *x.shape[1:]).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """`(b, H, L, K)` -> `(n, H, K)`."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.packed)


def attention_layouts(member_lengths: list[list[int]], device: torch.device) -> list[AttentionLayout]:
    """Layouts of each member; made once a forward and read by every layer."""
    layouts = []
    for lengths in member_lengths:
        longest = max(lengths)
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        packed = real.flatten().nonzero().flatten().to(device)
        mask = None if bool(real.all()) else real[:, None, None, :].to(device)
        layouts.append(AttentionLayout((len(lengths), longest), packed, mask))
    return layouts


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    routing: Routing,
    layouts: list[AttentionLayout],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed batch, as `transformers` calls it.

    `query`, `key` and `value` are `(1, H, N, K)`; the result is `(1, N, H, K)`. Dropout masks come from the members'
    generators. Other arguments that the model hands down are not needed.
    """
    dropout = dropout if module.training else 0.0
    parts = (torch.split(x[0].transpose(0, 1), routing.tokens) for x in (query, key, value))  # of (n, H, K) each
    outputs = []
    for index, (layout, *member) in enumerate(zip(layouts, *parts)):
        q, k, v = (layout.pad(x) for x in member)
        if dropout == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, scale=scaling)
        else:
            scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
            if layout.mask is not None:
                scores = scores.masked_fill(~layout.mask, float("-inf"))
            weights = scores.softmax(-1)
            mixed = (weights * dropout_mask(weights.shape, dropout, routing.generators[index], weights.dtype)) @ v
        outputs.append(layout.unpad(mixed))
    return torch.cat(outputs)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
