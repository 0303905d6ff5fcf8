"""Attention over a pack without autograd: sequences of similar length together, forward and
backward by hand.

Shape letters: S sequences, N tokens, Q query tokens, P padded slots of keys, Pq padded slots of
queries, H heads, K head width; a group has s sequences of at most L tokens, of which Lq are query
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from loraens.model.dropout import attention_coordinates, drop
from loraens.model.packed import Layout

LONG = 128  # tokens of a sequence above which its attention weights, as many as all else that a
# layer keeps at some 350, are computed again in the backward


class Buffers:
    """Named scratch tensors, grown on demand, reused every step.

    A name is valid until it is asked for again: what is kept for the backward has a name of its own
    for each layer, what is needed for a moment shares one.

    Attributes:
        generation: Number of forwards so far; a backward checks that no later forward has
            overwritten what it reads.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, int], Tensor] = {}
        self.generation = 0

    def get(
        self,
        name: str,
        layer: int,
        shape: Sequence[int],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """An uninitialised tensor of a shape; its former content is lost."""
        size = prod(shape)
        tensor = self._tensors.get((name, layer))
        if (
            tensor is None
            or tensor.numel() < size
            or tensor.dtype != (dtype or like.dtype)
            or tensor.device != like.device
        ):
            # an eighth more than needed: packs vary a little in size from step to step
            tensor = like.new_empty(size + size // 8, dtype=dtype)
            self._tensors[name, layer] = tensor
        return tensor[:size].view(*shape)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


class Span(NamedTuple):
    """Where one group is in the padded buffers, whose rows are (sequence, head, token)."""

    sequences: Tensor  # (s,)
    pairs: int  # s H
    queries: int  # Lq
    length: int  # L
    q_start: int
    kv_start: int
    bias: Tensor | None  # (s, 1, 1, L)
    coordinates: Tensor | None  # (H, Lq, L) hash inputs of the dropout mask

    def q(self, x: Tensor) -> Tensor:
        """The group's part `(s H, Lq, K)` of a padded buffer of queries `(H Pq, K)`."""
        return x[self.q_start : self.q_start + self.pairs * self.queries].view(
            self.pairs, self.queries, -1
        )

    def kv(self, x: Tensor) -> Tensor:
        """The group's part `(s H, L, K)` of a padded buffer of keys or values `(H P, K)`."""
        return x[self.kv_start : self.kv_start + self.pairs * self.length].view(
            self.pairs, self.length, -1
        )


class Slots:
    """Where the heads of tokens are in the padded buffers.

    Args:
        layout: The pack's layout.
        heads: H.
        first_only: Whether only the first token of each sequence is a query token.
        training: Whether dropout masks will be needed.

    Attributes:
        kv_padded: Index from the padded buffer of keys and values `(2, H P)` into `(N + 1, 2, H)`.
        kv_packed: The inverse index, `(2 H N,)`.
        q_padded: Index from the padded buffer of queries `(H Pq,)` into `(Q + 1, H)`.
        q_packed: The inverse index, `(H Q,)`.
        query_tokens: `(Q,)` tokens that are query tokens; None if all are.
        spans: The groups.
    """

    def __init__(self, layout: Layout, heads: int, first_only: bool, training: bool) -> None:
        device = layout.token_of_slot.device
        tokens = len(layout.slot_of_token)
        head = torch.arange(heads, device=device)
        parts = [
            layout.token_of_slot[g.start : g.end].view(-1, 1, g.length) * heads + head[:, None]
            for g in layout.groups
        ]
        # index into (N + 1, H), of which the last row is zero and is what padding reads
        padded = torch.cat([part.flatten() for part in parts])
        packed = _inverse(padded, (tokens + 1) * heads)[: tokens * heads]
        token = padded // heads
        column = padded % heads
        # a token's row holds its key's heads, then its value's
        self.kv_padded = torch.cat([token * 2 * heads + column, (token * 2 + 1) * heads + column])
        self.kv_packed = torch.stack(
            [packed.view(-1, heads), packed.view(-1, heads) + len(padded)], 1
        ).flatten()
        self.query_tokens = layout.first if first_only else None
        self.q_padded = padded
        self.q_packed = packed
        if first_only:
            # one query token a sequence: nothing is padded, only the order is the groups'
            self.q_padded = (layout.order[:, None] * heads + head).flatten()
            self.q_packed = _inverse(self.q_padded, len(self.q_padded))
        self.spans = _spans(layout, heads, first_only, training)


def _spans(layout: Layout, heads: int, first_only: bool, training: bool) -> list[Span]:
    device = layout.token_of_slot.device
    spans: list[Span] = []
    q_start = 0
    for g in layout.groups:
        pairs = len(g.sequences) * heads
        queries = 1 if first_only else g.length
        spans.append(
            Span(
                sequences=g.sequences,
                pairs=pairs,
                queries=queries,
                length=g.length,
                q_start=q_start,
                kv_start=g.start * heads,
                bias=g.bias,
                coordinates=(
                    attention_coordinates(heads, queries, g.length, device) if training else None
                ),
            )
        )
        q_start += pairs * queries
    return spans


def _inverse(index: Tensor, size: int) -> Tensor:
    """`(size,)`, at each index the position at which it occurs; 0 where it does not occur."""
    inverse = index.new_zeros(size)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse


def attention_weights(span: Span, q: Tensor, kv: Tensor, buffers: Buffers, out: Tensor) -> None:
    """Attention weights of one group.

    Args:
        span: The group.
        q: `(H Pq, K)` padded queries, scaled.
        kv: `(2, H P, K)` padded keys and values.
        buffers: Scratch tensors.
        out: `(s H, Lq, L)`, written.
    """
    keys = span.kv(kv[0])
    scores = torch.bmm(span.q(q), keys.transpose(1, 2), out=buffers.get("scores", -1, out.shape, q))
    if span.bias is not None:
        scores.view(len(span.sequences), -1, *scores.shape[1:]).add_(span.bias)
    # the operator behind softmax: unlike the public one it writes into a given tensor
    torch._softmax(scores, -1, False, out=out)


def attend(
    span: Span,
    kv: Tensor,
    mask: Tensor | None,
    p: float,
    buffers: Buffers,
    weights: Tensor,
    out: Tensor,
) -> None:
    """Attention of one group.

    Args:
        span: The group.
        kv: `(2, H P, K)` padded keys and values.
        mask: `(s, H, Lq, L)` of dropout, or None.
        p: Probability of dropout.
        buffers: Scratch tensors.
        weights: `(s H, Lq, L)`.
        out: `(H Pq, K)`, the group's part of it is written.
    """
    values = span.kv(kv[1])
    if mask is None:
        torch.bmm(weights, values, out=span.q(out))
        return
    # the scores are not needed any more, their memory is reused; the weights are kept whole for the
    # backward, and the scaling by 1 / (1 - p) is done by the product
    scores = buffers.get("scores", -1, weights.shape, weights)
    dropped = drop(weights, mask.view(weights.shape), out=scores)
    torch.baddbmm(span.q(out), dropped, values, beta=0, alpha=1 / (1 - p), out=span.q(out))


def attend_backward(
    span: Span,
    q: Tensor,
    kv: Tensor,
    mask: Tensor | None,
    p: float,
    buffers: Buffers,
    weights: Tensor,
    grad: Tensor,
    q_grad: Tensor,
    kv_grad: Tensor,
) -> None:
    """Gradients of `attend` and `attention_weights`: from `grad` `(H Pq, K)` into the group's parts
    of `q_grad` `(H Pq, K)` and `kv_grad` `(2, H P, K)`; the other arguments are those of these.
    """
    keys = span.kv(kv[0])
    values = span.kv(kv[1])
    queries = span.q(q)
    g = span.q(grad)
    scale = 1 / (1 - p) if mask is not None else 1.0
    dropped, g_weights = (
        buffers.get(name, -1, weights.shape, q) for name in ("scores", "score grads")
    )
    used = weights if mask is None else drop(weights, mask.view(weights.shape), out=dropped)
    g_values = span.kv(kv_grad[1])
    g_keys = span.kv(kv_grad[0])
    torch.baddbmm(g_values, used.transpose(1, 2), g, beta=0, alpha=scale, out=g_values)
    torch.baddbmm(g_weights, g, values.transpose(1, 2), beta=0, alpha=scale, out=g_weights)
    if mask is not None:
        drop(g_weights, mask.view(weights.shape), out=g_weights)
    # `dropped` was last read by the product above; the gradient of the scores takes its memory
    g_scores = torch._softmax_backward_data(
        g_weights, weights, -1, weights.dtype, grad_input=dropped
    )
    torch.bmm(g_scores, keys, out=span.q(q_grad))
    torch.bmm(g_scores.transpose(1, 2), queries, out=g_keys)
