"""Padding-free batches, and the attention function that reads them.

The tokens of all sequences of all members are concatenated to `(1, N)`; linear layers, norms and
activations see only real tokens. Attention alone pads, sequences of similar length to the longest
of them.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens, P padded slots of
attention, H heads, K head width; a group has s sequences of at most L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraens.model.dropout import MaskGenerator, MemberDropout, attention_coordinates, factor
from loraens.model.upload import upload

ATTENTION = "loraens_packed"
# arguments that the stock encoders pass down and that attention need not read: the embeddings have
# read the positions, hooks capture the hidden states, and FlashAttention may be deterministic
HARMLESS = frozenset({"output_hidden_states", "position_ids", "deterministic"})


@dataclass
class Group:
    """Sequences of similar length that attention pads to the longest of them.

    Args:
        start: First padded slot of the group.
        sequences: `(s,)` indices of the sequences.
        length: L, the longest one's length.
        bias: `(s, 1, 1, L)` 0 at real tokens, minus infinity at padding; None where no sequence is
            padded.
    """

    start: int
    sequences: Tensor
    length: int
    bias: Tensor | None

    @property
    def end(self) -> int:
        """The first padded slot behind the group."""
        return self.start + len(self.sequences) * self.length


@dataclass
class Layout:
    """Where the tokens of a pack are in the padded layout that attention works in.

    Args:
        groups: Groups of sequences; their padded slots follow each other.
        token_of_slot: `(P,)` token at each padded slot; N at padding.
        slot_of_token: `(N,)` padded slot of each token.
        order: `(S,)` sequences in the order of the groups.
        first: `(S,)` first token of each sequence.
    """

    groups: list[Group]
    token_of_slot: Tensor
    slot_of_token: Tensor
    order: Tensor
    first: Tensor


def layout_of(lengths: list[int], device: torch.device, growth: float | None = None) -> Layout:
    """The layout of a pack; made once a forward and read by every layer.

    Sequences are sorted by length, and a new group begins where one is longer than `growth` times
    the group's first.

    Args:
        lengths: S sequence lengths, in the order of the pack.
        device: Device of the tensors.
        growth: 1 or more: 1 pads nothing, larger values make fewer groups; by default 1.25 on a
            CPU, and elsewhere 2, where padding costs less than another group.
    """
    growth = growth or (1.25 if device.type == "cpu" else 2.0)
    sizes = np.array(lengths)
    order = np.argsort(sizes, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    groups: list[Group] = []
    tokens: list[np.ndarray] = []
    start = 0
    for low, high in pairwise([*_group_starts(sizes[order], growth), len(order)]):
        chosen = order[low:high]
        longest = int(sizes[chosen].max())
        column = np.arange(longest)
        padding = column >= sizes[chosen][:, None]
        tokens.append(np.where(padding, offsets[-1], offsets[chosen][:, None] + column).ravel())
        groups.append(Group(start, torch.from_numpy(chosen), longest, _padding_bias(padding)))
        start = groups[-1].end
    token_of_slot = np.concatenate(tokens)
    # all padding writes to the one entry behind the last token, which is cut off
    slot_of_token = np.empty(offsets[-1] + 1, np.int64)
    slot_of_token[token_of_slot] = np.arange(start)
    arrays = (token_of_slot, slot_of_token[:-1], order, offsets[:-1])
    return _moved(groups, list(map(torch.from_numpy, arrays)), device)


def _moved(groups: list[Group], arrays: list[Tensor], device: torch.device) -> Layout:
    """A layout whose tensors go to a device in one copy."""
    biases = [group.bias for group in groups if group.bias is not None]
    moved = iter(upload([*arrays, *(group.sequences for group in groups), *biases], device))
    token_of_slot, slot_of_token, order, first = (next(moved) for _ in arrays)
    for group in groups:
        group.sequences = next(moved)
    for group in groups:
        group.bias = None if group.bias is None else next(moved)
    return Layout(groups, token_of_slot, slot_of_token, order, first)


def _group_starts(sizes: np.ndarray, growth: float) -> list[int]:
    """Index of the first sequence of each group, of lengths in ascending order."""
    starts = [0]
    limit = sizes[0] * growth
    for index, size in enumerate(sizes):
        if size > limit:
            starts.append(index)
            limit = size * growth
    return starts


def _padding_bias(padding: np.ndarray) -> Tensor | None:
    """`(s, L)` of booleans -> `(s, 1, 1, L)` of 0 and minus infinity; None without padding."""
    if not padding.any():
        return None
    bias = torch.zeros(padding.shape).masked_fill_(torch.from_numpy(padding), float("-inf"))
    return bias[:, None, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    *,
    masks: MaskGenerator,
    layout: Layout,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed batch, as `transformers` calls it.

    `query`, `key` and `value` are `(1, H, N, K)`; the result is `(1, N, H, K)`. With a
    `sliding_window` tokens attend to those at a smaller distance than this; a `position_bias` of
    shape `(1, H, L, L)`, L the longest sequence, is added to the scores.

    Raises:
        NotImplementedError: The model passed an argument that would change the result and that is
            not honoured here.
    """
    _refuse_unsupported(module, attention_mask, kwargs)
    # not the rate that the caller gives, which may be on where the model's dropout is off
    dropout = cast(MemberDropout, module.dropout).p if module.training else 0.0
    padded = [
        _with_zero_row(x[0].transpose(0, 1)).index_select(0, layout.token_of_slot)
        for x in (query, key, value)
    ]
    outputs = []
    for group in layout.groups:
        shape = (len(group.sequences), group.length, *padded[0].shape[1:])
        q, k, v = (x[group.start : group.end].view(shape).transpose(1, 2) for x in padded)
        bias = _bias(group, q.dtype, sliding_window, position_bias)
        if dropout == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
        else:
            scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            inputs = attention_coordinates(shape[2], group.length, group.length, q.device)
            site = cast(MemberDropout, module.dropout).site
            mask = masks.attention_mask(site, inputs, group.sequences, dropout)
            mixed = (weights * factor(mask, dropout, weights.dtype)) @ v
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.slot_of_token)[None], None


def _bias(
    group: Group, dtype: torch.dtype, window: int | None, of_positions: Tensor | None
) -> Tensor | None:
    """What is added to a group's scores `(s, H, L, L)`: a tensor that broadcasts, or nothing."""
    L = group.length
    bias = None if group.bias is None else group.bias.to(dtype)
    if of_positions is not None:
        of_positions = of_positions[..., :L, :L].to(dtype)
        bias = of_positions if bias is None else bias + of_positions
    if window is not None and window < L:
        position = torch.arange(L, device=group.sequences.device)
        near = (position - position[:, None]).abs() < window
        # not minus infinity: padding may be near no token, and its NaN would spoil the gradients
        least = torch.finfo(dtype).min
        bias = torch.where(near, near.new_zeros((), dtype=dtype) if bias is None else bias, least)
    return bias


def _refuse_unsupported(
    module: nn.Module, attention_mask: Tensor | None, kwargs: Mapping[str, Any]
) -> None:
    """Refuse what would silently change the result; None and False mean "not given"."""
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    unsupported = sorted(given - HARMLESS)
    if attention_mask is not None:
        unsupported.insert(0, "attention_mask")
    if getattr(module, "is_causal", False):
        unsupported.append("is_causal")
    if unsupported:
        raise NotImplementedError(
            f"packed attention does not support {', '.join(unsupported)}, which"
            f" {type(module).__name__} passes: it attends to all tokens of the same sequence, and"
            " padding comes from the layout"
        )


def refuse_padding_mask(
    *args: Any,
    attention_mask: Tensor | None = None,
    mask_function: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """The attention mask of packed batches, as `transformers` asks for it: none.

    Without it, `transformers` would drop a mask that is given to the encoder, or that the encoder
    makes, such as that of a window.

    Raises:
        NotImplementedError: A mask is given, or not all tokens attend to all.
    """
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function not in (None, bidirectional_mask_function):
        raise NotImplementedError(
            f"packed attention does not support the mask {mask_function.__qualname__}: it attends"
            " to all tokens of the same sequence"
        )
    if attention_mask is not None:
        raise NotImplementedError(
            "packed attention does not support attention_mask: a packed batch has no padding"
        )
    return None


def _with_zero_row(x: Tensor) -> Tensor:
    """`(N, *)` -> `(N + 1, *)`: padded slots read row N."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])


def register_attention() -> None:
    """Make `attn_implementation="loraens_packed"` known to `transformers`, which is imported here
    only, as it takes seconds.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, refuse_padding_mask)
