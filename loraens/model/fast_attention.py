"""Attention over a pack without autograd: sequences of similar length together, forward and
backward by hand.

Shape letters: S sequences, N tokens, Q tokens that ask, P padded places, H heads, K head width; a
group has s sequences of at most L tokens, of which each asks Lq.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from loraens.model.dropout import attention_coordinates, drop
from loraens.model.packed import Layout


class Buffers:
    """Memory by name, which grows to the largest size asked for and is used again in every step."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Tensor] = {}
        self.generation = 0

    def get(
        self,
        name: str,
        layer: int,
        shape: Sequence[int],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """An uninitialised tensor of a shape; what the name held before is lost."""
        size = prod(shape)
        held = self._held.get((name, layer))
        if (
            held is None
            or held.numel() < size
            or held.dtype != (dtype or like.dtype)
            or held.device != like.device
        ):
            self._held[name, layer] = held = like.new_empty(size + size // 8, dtype=dtype)
        return held[:size].view(*shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(held.numel() * held.element_size() for held in self._held.values())


class Span(NamedTuple):
    """One group's place in the padded buffers, the first of its (sequence, head, token) rows."""

    sequences: Tensor  # (s,)
    pairs: int  # s H
    queries: int  # Lq
    length: int  # L
    q_start: int
    kv_start: int
    bias: Tensor | None  # (s, 1, 1, L)
    places: Tensor | None  # (H, Lq, L) hash inputs of the dropout mask

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


class Places:
    """Where the heads of tokens stand in the padded buffers.

    Args:
        layout: The pack's layout.
        heads: H.
        first_only: Whether only the first token of each sequence asks.
        training: Whether dropout masks will be needed.
    """

    def __init__(self, layout: Layout, heads: int, first_only: bool, training: bool) -> None:
        device = layout.rows.device
        tokens = len(layout.places)
        head = torch.arange(heads, device=device)
        parts = [
            layout.rows[g.start : g.end].view(-1, 1, g.length) * heads + head[:, None]
            for g in layout.groups
        ]
        padded = torch.cat(
            [part.flatten() for part in parts]
        )  # of (N + 1, H), the last row being zero
        packed = _inverse(padded, (tokens + 1) * heads)[: tokens * heads]
        row = padded // heads
        column = padded % heads
        self.kv_padded = torch.cat(
            [row * 2 * heads + column, (row * 2 + 1) * heads + column]
        )  # of (N + 1, 2, H)
        self.kv_packed = torch.stack(
            [packed.view(-1, heads), packed.view(-1, heads) + len(padded)], 1
        ).flatten()
        self.rows = layout.first if first_only else None
        self.q_padded = padded
        self.q_packed = packed
        if first_only:
            self.q_padded = (layout.order[:, None] * heads + head).flatten()
            self.q_packed = _inverse(self.q_padded, len(self.q_padded))
        self.spans = []
        q_start = 0
        for g in layout.groups:
            pairs = len(g.sequences) * heads
            queries = 1 if first_only else g.length
            places = attention_coordinates(heads, queries, g.length, device) if training else None
            self.spans.append(
                Span(
                    g.sequences, pairs, queries, g.length, q_start, g.start * heads, g.bias, places
                )
            )
            q_start += pairs * queries


def _inverse(index: Tensor, size: int) -> Tensor:
    inverse = index.new_zeros(size)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse


def attend(
    span: Span,
    q: Tensor,
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
        q: `(H Pq, K)` padded queries, scaled.
        kv: `(2, H P, K)` padded keys and values.
        mask: `(s, H, Lq, L)` of dropout, or None.
        p: Probability of dropout.
        buffers: For what is needed here alone.
        weights: `(s H, Lq, L)`, written.
        out: `(H Pq, K)`, the group's part of it is written.
    """
    keys = span.kv(kv[0])
    values = span.kv(kv[1])
    scores = torch.bmm(
        span.q(q), keys.transpose(1, 2), out=buffers.get("scores", 0, weights.shape, q)
    )
    if span.bias is not None:
        scores.view(len(span.sequences), -1, *scores.shape[1:]).add_(span.bias)
    torch._softmax(scores, -1, False, out=weights)
    if mask is None:
        torch.bmm(weights, values, out=span.q(out))
        return
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
    """Gradients of `attend`: from `grad` `(H Pq, K)` into the group's parts of `q_grad` and
    `kv_grad`.
    """
    keys = span.kv(kv[0])
    values = span.kv(kv[1])
    queries = span.q(q)
    g = span.q(grad)
    scale = 1 / (1 - p) if mask is not None else 1.0
    dropped, g_weights = (
        buffers.get(name, 0, weights.shape, q) for name in ("scores", "score grads")
    )
    used = weights if mask is None else drop(weights, mask.view(weights.shape), out=dropped)
    g_values = span.kv(kv_grad[1])
    g_keys = span.kv(kv_grad[0])
    torch.baddbmm(g_values, used.transpose(1, 2), g, beta=0, alpha=scale, out=g_values)
    torch.baddbmm(g_weights, g, values.transpose(1, 2), beta=0, alpha=scale, out=g_weights)
    if mask is not None:
        drop(g_weights, mask.view(weights.shape), out=g_weights)
    g_scores = torch._softmax_backward_data(
        g_weights, weights, -1, weights.dtype, grad_input=dropped
    )
    torch.bmm(g_scores, keys, out=span.q(q_grad))
    torch.bmm(g_scores.transpose(1, 2), queries, out=g_keys)
