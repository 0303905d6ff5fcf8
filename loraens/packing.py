"""Padding-free batches, and the attention function that reads them.

The tokens of all sequences of all members are concatenated to `(1, N)`; linear layers, norms and activations see only real
tokens. Attention alone pads, sequences of similar length to the longest of them.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens, P padded places, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from loraens.dropout import MemberDropout, Routing, attention_places, factor

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
class Group:
    """Sequences of similar length that attention pads to the longest of them.

    Args:
        start: First padded place of the group.
        sequences: `(s,)` numbers of the sequences.
        length: L, the longest one's length.
        bias: `(s, 1, 1, L)` 0 at real tokens, minus infinity at padding; None where no sequence is padded.
    """

    start: int
    sequences: Tensor
    length: int
    bias: Tensor | None

    @property
    def end(self) -> int:
        """The first padded place behind the group."""
        return self.start + len(self.sequences) * self.length


@dataclass
class Layout:
    """Where the tokens of a pack stand in the padded layout that attention works in.

    Args:
        groups: Groups of sequences; their padded places follow each other.
        rows: `(P,)` token at each padded place; N at padding.
        places: `(N,)` padded place of each token.
        order: `(S,)` sequences in the order of the groups.
        first: `(S,)` first token of each sequence.
    """

    groups: list[Group]
    rows: Tensor
    places: Tensor
    order: Tensor
    first: Tensor


def layout_of(lengths: list[int], device: torch.device, growth: float = 1.25) -> Layout:
    """The layout of a pack; made once a forward and read by every layer.

    Sequences are sorted by length, and a new group begins where one is longer than `growth` times the group's first.
    """
    sizes = np.array(lengths)
    order = np.argsort(sizes, kind="stable")
    bounds, limit = [0], sizes[order[0]] * growth
    for place, size in enumerate(sizes[order]):
        if size > limit:
            bounds.append(place)
            limit = size * growth
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    groups, rows, start = [], [], 0
    for low, high in pairwise([*bounds, len(order)]):
        chosen = order[low:high]
        longest = int(sizes[chosen].max())
        column = np.arange(longest)
        padding = column >= sizes[chosen][:, None]
        rows.append(np.where(padding, offsets[-1], offsets[chosen][:, None] + column).ravel())
        bias = None
        if padding.any():
            bias = torch.zeros(padding.shape).masked_fill_(torch.from_numpy(padding), float("-inf"))[:, None, None].to(device)
        groups.append(Group(start, torch.from_numpy(chosen).to(device), longest, bias))
        start = groups[-1].end
    row = np.concatenate(rows)
    places = np.empty(offsets[-1] + 1, np.int64)
    places[row] = np.arange(start)
    to = partial(torch.Tensor.to, device=device)
    return Layout(groups, *(to(torch.from_numpy(x)) for x in (row, places[:-1], order, offsets[:-1])))


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
    layout: Layout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed batch, as `transformers` calls it.

    `query`, `key` and `value` are `(1, H, N, K)`; the result is `(1, N, H, K)`. Other arguments that the model hands down
    are not needed.
    """
    dropout = dropout if module.training else 0.0
    padded = [_with_zero_row(x[0].transpose(0, 1)).index_select(0, layout.rows) for x in (query, key, value)]
    outputs = []
    for group in layout.groups:
        shape = (len(group.sequences), group.length, *padded[0].shape[1:])
        q, k, v = (x[group.start : group.end].view(shape).transpose(1, 2) for x in padded)
        bias = None if group.bias is None else group.bias.to(q.dtype)
        if dropout == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
        else:
            scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            place = attention_places(shape[2], group.length, group.length, q.device)
            mask = routing.attention_mask(cast(MemberDropout, module.dropout).site, place, group.sequences, dropout)
            mixed = (weights * factor(mask, dropout, weights.dtype)) @ v
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.places)[None], None


def _with_zero_row(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])


AttentionInterface.register(ATTENTION, packed_attention)
