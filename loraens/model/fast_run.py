"""One forward of the fast path over all layers, and the backward that belongs to it.

Shape letters: S sequences, N tokens, Q query tokens (whose output is wanted), P and Pq padded slots
of keys and queries, D width, F width of the feed-forward part, H heads, K head width; a group of
attention has s sequences of at most L tokens, of which Lq are query tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from loraens.model.dropout import MaskGenerator, drop
from loraens.model.fast_attention import (
    LONG,
    Buffers,
    Slots,
    Span,
    attend,
    attend_backward,
    attention_weights,
)
from loraens.model.fast_layer import FastLayer, SavedLayer, SavedNorm
from loraens.model.packed import layout_of
from loraens.model.routing import Routing

_BLOCK = 1024  # tokens whose feed-forward activations stay in the caches


class Run:
    """One forward, and the backward that belongs to it.

    Args:
        layers: The encoder's layers, fused.
        routing: The model's routing.
        masks: The model's mask generator.
        buffers: The model's scratch tensors.
        lengths: S sequence lengths.
        device: Where the tokens are.
        first_only: Whether only the first token of each sequence is wanted.
        training: Whether dropout is on.
        lowest: The lowest adapted layer, where the backward ends; nothing is kept below it.
    """

    def __init__(
        self,
        layers: Sequence[FastLayer],
        routing: Routing,
        masks: MaskGenerator,
        buffers: Buffers,
        lengths: list[int],
        device: torch.device,
        first_only: bool,
        training: bool,
        lowest: int,
    ) -> None:
        self.layers = layers
        self.routing = routing
        self.masks = masks
        self.buffers = buffers
        self.keep = torch.is_grad_enabled()
        self.training = training
        self.buffers.generation += 1
        self.generation = self.buffers.generation
        last, others = self._make_slots(lengths, device, first_only)
        self.slots = [others] * (len(layers) - 1) + [last]
        self.block = _BLOCK if device.type == "cpu" else sum(lengths)
        self.lowest = lowest
        self.saved: list[SavedLayer] = []

    def _make_slots(
        self, lengths: list[int], device: torch.device, first_only: bool
    ) -> tuple[Any, Any]:
        """Where the tokens of sequences are, for the last layer and for the others."""
        layout = layout_of(lengths, device)
        heads = self.layers[0].heads
        last = Slots(layout, heads, first_only, self.training)
        return last, Slots(layout, heads, False, self.training) if first_only else last

    def _keeps(self, layer: FastLayer) -> bool:
        """Whether what the backward of a layer needs is kept."""
        return self.keep and layer.index >= self.lowest

    def _new(
        self,
        name: str,
        layer: FastLayer,
        shape: Sequence[int],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A buffer that is kept for the backward; without one, all layers share it."""
        owner = layer.index if self._keeps(layer) else -1
        return self.buffers.get(name=name, layer=owner, shape=shape, like=like, dtype=dtype)

    def _scratch(
        self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A buffer that every layer overwrites, in the forward and in the backward."""
        return self.buffers.get(name, -1, shape, like, dtype)

    # Masks are hashed again in the backward: kept, they would be a fifth of the buffers

    def _token_mask(self, part: Any, slots: Any, like: Tensor) -> Tensor | None:
        """Mask of a part's dropout, of the shape of `like`; None without dropout."""
        if not self.training or part.dropout.p == 0:
            return None
        return self.masks.token_mask(
            site=part.dropout.site,
            width=like.shape[1],
            p=part.dropout.p,
            rows=slots.query_tokens,
            out=self._scratch("token mask", like.shape, like, torch.int32),
        )

    def _attention_mask(self, layer: FastLayer, span: Span, like: Tensor) -> Tensor | None:
        """Mask of a group's attention weights, as many numbers as `like`; None without dropout."""
        if not self.training or layer.attention_dropout.p == 0:
            return None
        assert span.coordinates is not None
        return self.masks.attention_mask(
            site=layer.attention_dropout.site,
            inputs=span.coordinates,
            sequences=span.sequences,
            p=layer.attention_dropout.p,
            out=self._scratch("attention mask", like.shape, like, torch.int32),
        )

    # Forward

    def forward(self, x: Tensor) -> Tensor:
        """`(N, D)` -> `(N, D)` or `(S, D)`."""
        for layer, slots in zip(self.layers, self.slots, strict=True):
            saved = SavedLayer(x, x if slots.query_tokens is None else x[slots.query_tokens])
            context = self._attention(layer, slots, saved)
            y = torch.addmm(
                layer.attention_output.dense.bias,
                context,
                layer.attention_output.dense.weight.t(),
                out=self._new("first", layer, saved.xq.shape, x),
            )
            x, saved.first = self._add_and_norm(
                layer=layer, part=layer.attention_output, y=y, residual=saved.xq, slots=slots
            )
            y = self._feed_forward(layer, x, saved)
            x, saved.second = self._add_and_norm(
                layer=layer, part=layer.output, y=y, residual=x, slots=slots
            )
            if self._keeps(layer):
                self.saved.append(saved)
        return x

    def _attention(self, layer: FastLayer, slots: Any, saved: SavedLayer) -> Tensor:
        """Attention's context `(Q, D)`, before its output projection."""
        self._pad(layer, slots, saved)
        mixed = self._scratch("mixed", saved.q.shape, saved.x)
        for number, span in enumerate(slots.spans):
            weights = self._weights(layer, number, span, saved)
            saved.weights.append(None if span.length > LONG else weights)
            attend(
                span=span,
                kv=saved.kv,
                mask=self._attention_mask(layer, span, weights),
                p=layer.attention_dropout.p,
                buffers=self.buffers,
                weights=weights,
                out=mixed,
            )
        context = self._scratch("context", saved.xq.shape, saved.x)
        k = saved.q.shape[1]
        torch.index_select(mixed, 0, slots.q_packed, out=context.view(-1, k))
        return context

    def _weights(self, layer: FastLayer, number: int, span: Span, saved: SavedLayer) -> Tensor:
        """Attention weights of a group, which are kept for the backward unless its sequences are
        long.
        """
        shape = (span.pairs, span.queries, span.length)
        if span.length > LONG:
            weights = self._scratch("weights", shape, saved.x)
        else:
            weights = self._new(f"weights {number}", layer, shape, saved.x)
        attention_weights(span, saved.q, saved.kv, self.buffers, out=weights)
        return weights

    def _project(
        self, layer: FastLayer, slots: Any, saved: SavedLayer, q: Tensor, kv: Tensor
    ) -> None:
        """Queries `(Q, D)`, and keys and values `(N, 2 D)`, with the adapters' changes."""
        x = saved.x
        xq = saved.xq
        width = x.shape[1]
        torch.addmm(layer.query.bias, xq, layer.query.weight.t(), out=q)
        torch.addmm(layer.bias, x, layer.weight.t(), out=kv)
        outs = {"query": q, "key": kv[:, :width], "value": kv[:, width:]}
        for name, adapter in layer.adapters.items():
            saved.adapted[name] = adapter.add_delta(
                outs[name], xq if name == "query" else x, self._tokens(name, slots)
            )

    def _pad(self, layer: FastLayer, slots: Slots, saved: SavedLayer) -> None:
        """Queries, keys and values, padded, into `saved`."""
        x = saved.x
        width = x.shape[1]
        k = width // layer.heads
        q = self._scratch("q", (len(saved.xq) + 1, width), x)
        kv = self._scratch("kv", (len(x) + 1, 2 * width), x)
        # padded slots read the last row
        q[-1].zero_()
        kv[-1].zero_()
        self._project(layer, slots, saved, q[:-1], kv[:-1])
        saved.q = self._new("padded q", layer, (len(slots.q_padded), k), x)
        saved.kv = self._new("padded kv", layer, (2, len(slots.kv_padded) // 2, k), x)
        # the scaling by K ** -0.5 is done here once, on queries, instead of on all scores
        torch.index_select(q.view(-1, k), 0, slots.q_padded, out=saved.q).mul_(k**-0.5)
        torch.index_select(kv.view(-1, k), 0, slots.kv_padded, out=saved.kv.view(-1, k))

    def _add_and_norm(
        self, layer: FastLayer, part: Any, y: Tensor, residual: Tensor, slots: Any
    ) -> tuple[Tensor, SavedNorm]:
        """Layer norm of residual plus dropout of y; the sum is left in y, for the backward."""
        mask = self._token_mask(part, slots, y)
        if mask is None:
            y.add_(residual)
        else:
            torch.add(residual, drop(y, mask, out=y), alpha=1 / (1 - part.dropout.p), out=y)
        norm = part.LayerNorm
        out, mean, rstd = torch.native_layer_norm(
            input=y,
            normalized_shape=y.shape[1:],
            weight=norm.weight,
            bias=norm.bias,
            eps=norm.eps,
        )
        return out, SavedNorm(y, mean, rstd)

    def _feed_forward(self, layer: FastLayer, x: Tensor, saved: SavedLayer) -> Tensor:
        up = layer.intermediate
        down = layer.output.dense
        saved.wide = self._new("wide", layer, (len(x), up.out_features), x)
        y = self._new("second", layer, x.shape, x)
        for start in range(0, len(x), self.block):
            wide = saved.wide[start : start + self.block]
            torch.addmm(up.bias, x[start : start + self.block], up.weight.t(), out=wide)
            active = torch.ops.aten.gelu.out(wide, out=self._scratch("active", wide.shape, x))
            torch.addmm(down.bias, active, down.weight.t(), out=y[start : start + self.block])
        return y

    # Backward

    def backward(self, grad: Tensor) -> list[Tensor]:
        """Gradients of the adapters' parameters, in the order of the layers, from that of the
        output.

        Raises:
            RuntimeError: A later forward has overwritten the buffers.
        """
        if self.buffers.generation != self.generation:
            raise RuntimeError(
                "the backward of a forward must come before the next forward of the same model"
            )
        grads: list[list[Tensor]] = []
        layers, of_slots = self.layers[self.lowest :], self.slots[self.lowest :]
        for layer, slots, saved in reversed(list(zip(layers, of_slots, self.saved, strict=True))):
            residual, g = self._add_and_norm_backward(layer.output, grad, saved.second, slots)
            self._feed_forward_backward(layer, g, residual, saved)
            residual, g = self._add_and_norm_backward(
                layer.attention_output, residual, saved.first, slots
            )
            q, kv = self._attention_backward(layer, slots, saved, g)
            adapter_grads, grad = self._inputs_backward(
                layer=layer, slots=slots, saved=saved, q=q, kv=kv, residual=residual
            )
            grads.append(adapter_grads)
        self.saved.clear()
        return list(chain.from_iterable(reversed(grads)))

    def _add_and_norm_backward(
        self, part: Any, grad: Tensor, saved: SavedNorm, slots: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual, which may be written to, and of y."""
        norm = part.LayerNorm
        residual = torch.ops.aten.native_layer_norm_backward(
            grad_out=grad,
            input=saved.x,
            normalized_shape=saved.x.shape[1:],
            mean=saved.mean,
            rstd=saved.rstd,
            weight=norm.weight,
            bias=norm.bias,
            output_mask=[True, False, False],
        )[0]
        mask = self._token_mask(part, slots, saved.x)
        if mask is None:
            return residual, residual
        g = self._scratch("norm grad", residual.shape, residual)
        torch.mul(residual, 1 / (1 - part.dropout.p), out=g)
        return residual, drop(g, mask, out=g)

    def _feed_forward_backward(
        self, layer: FastLayer, g: Tensor, out: Tensor, saved: SavedLayer
    ) -> None:
        """Add the gradient of the feed-forward part's input to `out`, block by block, so that the
        activations' gradients stay in the caches.
        """
        up = layer.intermediate.weight
        down = layer.output.dense.weight
        for start in range(0, len(g), self.block):
            part = g[start : start + self.block]
            wide = saved.wide[start : start + self.block]
            grad = torch.mm(part, down, out=self._scratch("active", wide.shape, g))
            torch.ops.aten.gelu_backward.grad_input(grad, wide, grad_input=grad)
            out[start : start + self.block].addmm_(grad, up)

    def _attention_backward(
        self, layer: FastLayer, slots: Any, saved: SavedLayer, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients `(Q, D)` of queries and `(N, 2 D)` of keys and values, from that of attention's
        projected context.
        """
        k = saved.q.shape[1]
        width = g.shape[1]
        context = self._scratch("q", (len(g) + 1, width), g)
        context[-1].zero_()  # what padded slots read
        torch.mm(g, layer.attention_output.dense.weight, out=context[:-1])
        mixed = self._scratch("mixed", saved.q.shape, g)
        torch.index_select(context.view(-1, k), 0, slots.q_padded, out=mixed)
        q_grad = self._scratch("q grad", saved.q.shape, g)
        kv_grad = self._scratch("kv grad", saved.kv.shape, g)
        for number, (span, kept) in enumerate(zip(slots.spans, saved.weights, strict=True)):
            weights = self._weights(layer, number, span, saved) if kept is None else kept
            attend_backward(
                span=span,
                q=saved.q,
                kv=saved.kv,
                mask=self._attention_mask(layer, span, weights),
                p=layer.attention_dropout.p,
                buffers=self.buffers,
                weights=weights,
                grad=mixed,
                q_grad=q_grad,
                kv_grad=kv_grad,
            )
        q = self._scratch("context", g.shape, g)
        torch.index_select(q_grad.mul_(k**-0.5), 0, slots.q_packed, out=q.view(-1, k))
        kv = self._scratch("kv", (len(saved.x), 2 * width), g)
        torch.index_select(kv_grad.view(-1, k), 0, slots.kv_packed, out=kv.view(-1, k))
        return q, kv

    def _inputs_backward(
        self,
        layer: FastLayer,
        slots: Any,
        saved: SavedLayer,
        q: Tensor,
        kv: Tensor,
        residual: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the layer's adapters, and of its input.

        The input of the lowest adapted layer needs no gradient; what is returned for it is not
        used.
        """
        width = q.shape[1]
        deeper = layer.index > self.lowest
        # written into `residual`, which is a fresh tensor of the layer norm's backward
        xq_grad = residual.addmm_(q, layer.query.weight) if deeper else None
        x_grad = None
        if deeper and slots.query_tokens is None:
            x_grad = residual.addmm_(kv, layer.weight)  # the same tensor as xq_grad
        elif deeper:
            x_grad = torch.mm(kv, layer.weight)
        adapter_grads: list[Tensor] = []
        for name, adapter in layer.adapters.items():
            g, x, out = {
                "query": (q, saved.xq, xq_grad),
                "key": (kv[:, :width], saved.x, x_grad),
                "value": (kv[:, width:], saved.x, x_grad),
            }[name]
            adapter_grads.extend(
                adapter.add_delta_backward(
                    grad=g,
                    x=x,
                    saved=saved.adapted[name],
                    tokens=self._tokens(name, slots),
                    x_grad=out,
                )
            )
        if x_grad is not None and slots.query_tokens is not None:
            x_grad.index_add_(0, slots.query_tokens, residual)
        return adapter_grads, residual if x_grad is None else x_grad

    def _tokens(self, name: str, slots: Any) -> list[int]:
        """Rows of each member in the input of query, key or value."""
        tokens = self.routing.tokens
        if name == "query" and slots.query_tokens is not None:
            return self.routing.sequences
        return tokens
