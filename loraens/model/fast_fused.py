"""A forward and a backward of the fast path on a GPU by kernels: dropout, residual and norm in one,
and attention without padding; no mask is stored.

Shape letters: S sequences, N tokens, Q query tokens, D width, H heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loraens.model.fast_layer import FastLayer, SavedLayer, SavedNorm
from loraens.model.fast_run import Run
from loraens.model.upload import upload


class Rows(NamedTuple):
    """Where the tokens of sequences are."""

    query_tokens: Tensor | None  # (Q,) tokens that are query tokens; None if all are
    q_offsets: Tensor  # (S + 1,) first query token of each sequence, and the end
    k_offsets: Tensor  # (S + 1,) first token of each sequence, and the end
    longest: int  # most tokens of a sequence
    queries: int  # most query tokens of a sequence
    of_masks: tuple[Tensor, Tensor] | None  # (Q,) sequence and position of each query token


class FusedRun(Run):
    """One forward, and the backward that belongs to it, by kernels."""

    def _make_slots(
        self, lengths: list[int], device: torch.device, first_only: bool
    ) -> tuple[Rows, Rows]:
        offsets = torch.from_numpy(np.cumsum([0, *lengths]))
        numbers = torch.arange(len(offsets), dtype=torch.int32)
        first, ends, numbers = upload([offsets[:-1], offsets.to(torch.int32), numbers], device)
        rates = [d.p for layer in self.layers for d in layer.dropouts()]
        masks = self.masks.rows() if self.training and any(rates) else None
        longest = max(lengths)
        others = Rows(None, ends, ends, longest, longest, masks)
        if not first_only:
            return others, others
        of_first = None if masks is None else (masks[0][first], masks[1][first])
        return Rows(first, numbers, ends, longest, 1, of_first), others

    def _attention(self, layer: FastLayer, slots: Rows, saved: SavedLayer) -> Tensor:
        """Attention's context `(Q, D)`, before its output projection."""
        from loraens.model.kernels import operators

        x = saved.x
        width = x.shape[1]
        saved.q = self._new("q", layer, saved.xq.shape, x)
        saved.kv = self._new("kv", layer, (len(x), 2 * width), x)
        self._project(layer, slots, saved, saved.q, saved.kv)
        saved.context = self._new("context", layer, saved.xq.shape, x)
        saved.lse = self._new("lse", layer, (len(saved.xq), layer.heads), x, torch.float32)
        key, value = saved.kv[:, :width], saved.kv[:, width:]
        operators.attend(saved.q, key, value, saved.context, saved.lse, *self._spans(layer, slots))
        return saved.context

    def _spans(self, layer: FastLayer, slots: Rows) -> tuple[Any, ...]:
        """The last arguments of attention's operators."""
        dropout = layer.attention_dropout
        dropped = self.training and dropout.p > 0
        keys = self.masks.keys(dropout.site) if dropped else (None, None)
        ends = slots.q_offsets, slots.k_offsets
        return (*ends, slots.longest, layer.heads, *keys, dropout.p, slots.queries)

    def _keys(self, dropout: Any, slots: Rows) -> tuple[Tensor | None, ...]:
        """Keys, sequences and positions of a mask of token vectors; without dropout Nones."""
        if not self.training or dropout.p == 0:
            return (None,) * 4
        assert slots.of_masks is not None
        return (*self.masks.keys(dropout.site), *slots.of_masks)

    def _add_and_norm(
        self, layer: FastLayer, part: Any, y: Tensor, residual: Tensor, slots: Rows
    ) -> tuple[Tensor, SavedNorm]:
        """Layer norm of residual plus dropout of y; the sum is left in y, for the backward."""
        from loraens.model.kernels import operators

        norm = part.LayerNorm
        out = torch.empty_like(y)
        mean, rstd = (y.new_empty(len(y), dtype=torch.float32) for _ in range(2))
        keys = self._keys(part.dropout, slots)
        operators.add_norm(
            y, residual, norm.weight, norm.bias, out, mean, rstd, *keys, part.dropout.p, norm.eps
        )
        return out, SavedNorm(y, mean, rstd)

    def _add_and_norm_backward(
        self, part: Any, grad: Tensor, saved: SavedNorm, slots: Rows
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual, which may be written to, and of y."""
        from loraens.model.kernels import operators

        keys = self._keys(part.dropout, slots)
        residual = torch.empty_like(saved.x)
        g = None
        if keys[0] is not None:
            g = self._scratch("norm grad", residual.shape, residual)
        of_norm = (saved.x, saved.mean, saved.rstd, part.LayerNorm.weight)
        operators.add_norm_backward(grad.contiguous(), *of_norm, residual, g, *keys, part.dropout.p)
        return residual, residual if g is None else g

    def _attention_backward(
        self, layer: FastLayer, slots: Rows, saved: SavedLayer, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients `(Q, D)` of queries and `(N, 2 D)` of keys and values, from that of attention's
        projected context.
        """
        from loraens.model.kernels import operators

        width = g.shape[1]
        weight = layer.attention_output.dense.weight
        grad = torch.mm(g, weight, out=self._scratch("context grad", g.shape, g))
        q_grad = self._scratch("q grad", g.shape, g)
        kv_grad = self._scratch("kv grad", saved.kv.shape, g)
        tensors = (saved.q, saved.kv[:, :width], saved.kv[:, width:], saved.context, saved.lse)
        operators.attend_backward(*tensors, grad, q_grad, kv_grad, *self._spans(layer, slots))
        return q_grad, kv_grad
