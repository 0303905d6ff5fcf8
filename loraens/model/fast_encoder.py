"""The fast forward and backward over the weights of a stock BERT-like encoder, with the adapters of
every member.

The numbers are those of the stock model. What is saved is work: no gradient of anything frozen,
attention grouped by length, buffers that are used again in every step, and, where only the first
token of each sequence is read, nothing but keys and values for the other tokens of the last layer.

Shape letters: S sequences, N tokens, Q tokens whose output is wanted, P padded places, D width, F
width of the feed-forward part, H heads, K head width, R largest rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loraens.model.adapters import Adapter
from loraens.model.architectures import architecture_of
from loraens.model.dropout import MaskGenerator, drop
from loraens.model.fast_attention import Buffers, Places, attend, attend_backward
from loraens.model.packed import Layout
from loraens.model.routing import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PARTS = ("query", "key", "value")
_BLOCK = 1024  # tokens whose feed-forward activations stay in the caches


def is_fast(encoder: PreTrainedModel, adapters: Mapping[str, Adapter]) -> bool:
    """Whether the fast path supports the encoder's layout, its activation, the adapted layers and
    the kind of their adapters.
    """
    config: Any = encoder.config
    architecture = architecture_of(encoder)
    return (
        architecture.fast
        and config.hidden_act == "gelu"
        and all(name.rpartition(".")[2] in architecture.projections for name in adapters)
        and all(adapter.supports_fast for adapter in adapters.values())
    )


class _Layer:
    """One layer of the stock encoder: its modules by what they do, and the weights of key and value
    side by side.
    """

    def __init__(self, layer: Any, index: int, projections: Sequence[str]) -> None:
        attention = layer.attention
        self.stock: nn.Module = layer
        self.index = index
        self.heads = int(attention.self.num_attention_heads)
        inputs: dict[str, nn.Linear | Adapter] = {
            part: getattr(attention.self, name)
            for part, name in zip(_PARTS, projections, strict=True)
        }
        self.adapters = {
            name: module for name, module in inputs.items() if isinstance(module, Adapter)
        }
        self.query, self.key, self.value = (
            module.base if isinstance(module, Adapter) else module for module in inputs.values()
        )
        self.attention_dropout = attention.self.dropout
        self.attention_output = attention.output
        self.intermediate = layer.intermediate.dense
        self.output = layer.output
        # of key and value: (2 D, D) and (2 D,)
        self.weight = torch.empty(0)
        self.bias = torch.empty(0)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the layer's adapters, in the order of query, key and value."""
        return list(chain.from_iterable(a.own_parameters() for a in self.adapters.values()))

    def fuse(self, dtype: torch.dtype) -> None:
        """Bring the frozen weights to a type, lay those of key and value side by side, and let the
        stock modules' be views.
        """
        if self.weight.data_ptr() == self.key.weight.data_ptr() and self.weight.dtype == dtype:
            return
        trained = {id(parameter) for parameter in self.trained_parameters()}
        for parameter in self.stock.parameters():
            if id(parameter) not in trained:
                parameter.data = parameter.data.to(dtype)
        self.weight = torch.cat([self.key.weight.data, self.value.weight.data])
        self.bias = torch.cat([self.key.bias.data, self.value.bias.data])
        for linear, weight, bias in zip(
            (self.key, self.value), self.weight.chunk(2), self.bias.chunk(2), strict=True
        ):
            linear.weight.data = weight
            linear.bias.data = bias


class FastEncoder:
    """Runs a stock encoder's layers; it holds no weights of its own.

    Args:
        encoder: The stock encoder, its adapters injected; `is_fast` must hold.
        routing: The model's routing.
        masks: The model's mask generator.
    """

    def __init__(self, encoder: PreTrainedModel, routing: Routing, masks: MaskGenerator) -> None:
        stock: Any = encoder
        self.stock = stock
        self.routing = routing
        self.masks = masks
        self.buffers = Buffers()
        projections = architecture_of(encoder).projections
        self.layers = [
            _Layer(layer, index, projections) for index, layer in enumerate(stock.encoder.layer)
        ]

    def __call__(self, layout: Layout, first_only: bool, **embedded: Tensor) -> Tensor:
        """Hidden states after the last layer.

        Args:
            layout: Padded places of attention.
            first_only: Whether only the first token of each sequence is wanted.
            embedded: Arguments of the stock embeddings, `(1, N)` each.

        Returns:
            `(N, D)`, or `(S, D)` with `first_only`.
        """
        device = layout.rows.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = (
            torch.get_autocast_dtype(device)
            if mixed
            else self.stock.embeddings.word_embeddings.weight.dtype
        )
        for layer in self.layers:
            layer.fuse(dtype)
        with torch.no_grad():
            x = self.stock.embeddings(**embedded)
            if hasattr(self.stock, "embeddings_project"):
                x = self.stock.embeddings_project(x)
        run = _Run(self, layout, first_only)
        x = x[0].to(dtype)
        if not run.keep:
            return run.forward(x)
        parameters = chain.from_iterable(layer.trained_parameters() for layer in self.layers)
        hidden: Tensor = _Function.apply(run, x, *parameters)  # type: ignore[no-untyped-call]
        return hidden


class _Function(torch.autograd.Function):
    """The whole encoder as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, run: _Run, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run = run
        return run.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.run.backward(grads[0])


@dataclass
class _Norm:
    """What the backward of dropout, residual and layer norm needs: `(Q, D)`, `(Q, 1)`, `(Q, 1)`,
    `(Q, D)` or None.
    """

    x: Tensor
    mean: Tensor
    rstd: Tensor
    mask: Tensor | None


@dataclass
class _Saved:
    """What the backward of one layer needs."""

    x: Tensor  # (N, D) input
    xq: Tensor  # (Q, D) the rows of it whose output is wanted
    q: Tensor = field(init=False)  # (H Pq, K), scaled
    kv: Tensor = field(init=False)  # (2, H P, K)
    weights: list[Tensor] = field(default_factory=list)  # of each group (s H, Lq, L)
    masks: list[Tensor | None] = field(default_factory=list)  # likewise
    adapted: dict[str, Tensor] = field(default_factory=dict)  # what each adapter keeps
    first: _Norm = field(init=False)
    wide: Tensor = field(init=False)  # (Q, F) before the activation
    second: _Norm = field(init=False)


class _Run:
    """One forward, and the backward that belongs to it."""

    def __init__(self, fast: FastEncoder, layout: Layout, first_only: bool) -> None:
        self.fast = fast
        self.routing = fast.routing
        self.masks = fast.masks
        self.buffers = fast.buffers
        self.keep = torch.is_grad_enabled()
        self.training = bool(fast.stock.training)
        self.buffers.generation += 1
        self.generation = self.buffers.generation
        heads = fast.layers[0].heads
        last = Places(layout, heads, first_only, self.training)
        others = Places(layout, heads, False, self.training) if first_only else last
        self.places = [others] * (len(fast.layers) - 1) + [last]
        self.block = _BLOCK if layout.rows.device.type == "cpu" else max(1, len(layout.places))
        self.saved: list[_Saved] = []

    def _new(
        self,
        name: str,
        layer: _Layer,
        shape: Sequence[int],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A buffer that is kept for the backward, if there will be one."""
        return self.buffers.get(name, layer.index if self.keep else -1, shape, like, dtype)

    def _scratch(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.buffers.get(name, -1, shape, like)

    # Forward

    def forward(self, x: Tensor) -> Tensor:
        """`(N, D)` -> `(N, D)` or `(S, D)`."""
        for layer, places in zip(self.fast.layers, self.places, strict=True):
            saved = _Saved(x, x if places.rows is None else x[places.rows])
            context = self._attention(layer, places, saved)
            y = torch.addmm(
                layer.attention_output.dense.bias,
                context,
                layer.attention_output.dense.weight.t(),
                out=self._new("first", layer, saved.xq.shape, x),
            )
            x, saved.first = self._add_and_norm(layer, layer.attention_output, y, saved.xq, places)
            y = self._feed_forward(layer, x, saved)
            x, saved.second = self._add_and_norm(layer, layer.output, y, x, places)
            if self.keep:
                self.saved.append(saved)
        return x

    def _attention(self, layer: _Layer, places: Places, saved: _Saved) -> Tensor:
        x = saved.x
        xq = saved.xq
        k = saved.x.shape[1] // layer.heads
        q = self._scratch("q", (len(xq) + 1, x.shape[1]), x)
        kv = self._scratch("kv", (len(x) + 1, 2 * x.shape[1]), x)
        q[-1].zero_()
        kv[-1].zero_()
        torch.addmm(layer.query.bias, xq, layer.query.weight.t(), out=q[:-1])
        torch.addmm(layer.bias, x, layer.weight.t(), out=kv[:-1])
        outs = {"query": q[:-1], "key": kv[:-1, : x.shape[1]], "value": kv[:-1, x.shape[1] :]}
        for name, adapter in layer.adapters.items():
            saved.adapted[name] = adapter.add_delta(
                outs[name], xq if name == "query" else x, self._tokens(name, places)
            )
        saved.q = self._new("padded q", layer, (len(places.q_padded), k), x)
        saved.kv = self._new("padded kv", layer, (2, len(places.kv_padded) // 2, k), x)
        torch.index_select(q.view(-1, k), 0, places.q_padded, out=saved.q).mul_(k**-0.5)
        torch.index_select(kv.view(-1, k), 0, places.kv_padded, out=saved.kv.view(-1, k))
        mixed = self._scratch("mixed", saved.q.shape, x)
        p = layer.attention_dropout.p
        for number, span in enumerate(places.spans):
            mask = None
            if self.training and p > 0:
                assert span.places is not None
                kept = self._new(
                    f"mask {number}", layer, (span.pairs, span.queries, span.length), x, torch.int32
                )
                mask = self.masks.attention_mask(
                    layer.attention_dropout.site, span.places, span.sequences, p, kept
                )
            saved.masks.append(mask)
            saved.weights.append(
                self._new(f"weights {number}", layer, (span.pairs, span.queries, span.length), x)
            )
            attend(span, saved.q, saved.kv, mask, p, self.buffers, saved.weights[-1], mixed)
        context = self._scratch("context", xq.shape, x)
        torch.index_select(mixed, 0, places.q_packed, out=context.view(-1, k))
        return context

    def _add_and_norm(
        self, layer: _Layer, part: Any, y: Tensor, residual: Tensor, places: Places
    ) -> tuple[Tensor, _Norm]:
        """Layer norm of residual plus dropout of y; the sum is left in y."""
        mask = None
        p = part.dropout.p
        if self.training and p > 0:
            kept = self._new(
                "first mask" if part is layer.attention_output else "second mask",
                layer,
                y.shape,
                y,
                torch.int32,
            )
            mask = self.masks.token_mask(part.dropout.site, y.shape[1], p, places.rows, kept)
            torch.add(residual, drop(y, mask, out=y), alpha=1 / (1 - p), out=y)
        else:
            y.add_(residual)
        norm = part.LayerNorm
        out, mean, rstd = torch.native_layer_norm(y, y.shape[1:], norm.weight, norm.bias, norm.eps)
        return out, _Norm(y, mean, rstd, mask)

    def _feed_forward(self, layer: _Layer, x: Tensor, saved: _Saved) -> Tensor:
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
        """Gradients of A and B of every adapter, in the order of the layers, from that of the
        output.
        """
        if self.buffers.generation != self.generation:
            raise RuntimeError(
                "the backward of a forward must come before the next forward of the same model"
            )
        grads: list[list[Tensor]] = []
        for layer, places, saved in reversed(
            list(zip(self.fast.layers, self.places, self.saved, strict=True))
        ):
            residual, g = self._add_and_norm_backward(layer.output, grad, saved.second)
            self._feed_forward_backward(layer, g, residual, saved)
            residual, g = self._add_and_norm_backward(layer.attention_output, residual, saved.first)
            q, kv = self._attention_backward(layer, places, saved, g)
            found, grad = self._inputs_backward(layer, places, saved, q, kv, residual)
            grads.append(found)
        self.saved.clear()
        return [grad for found in reversed(grads) for grad in found]

    def _add_and_norm_backward(
        self, part: Any, grad: Tensor, saved: _Norm
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the residual, which may be written to, and of y."""
        norm = part.LayerNorm
        residual = torch.ops.aten.native_layer_norm_backward(
            grad,
            saved.x,
            saved.x.shape[1:],
            saved.mean,
            saved.rstd,
            norm.weight,
            norm.bias,
            [True, False, False],
        )[0]
        if saved.mask is None:
            return residual, residual
        g = self._scratch("norm grad", residual.shape, residual)
        torch.mul(residual, 1 / (1 - part.dropout.p), out=g)
        return residual, drop(g, saved.mask, out=g)

    def _feed_forward_backward(self, layer: _Layer, g: Tensor, out: Tensor, saved: _Saved) -> None:
        """Add the gradient of the feed-forward part's input to `out`."""
        up = layer.intermediate.weight
        down = layer.output.dense.weight
        for start in range(0, len(g), self.block):
            part = g[start : start + self.block]
            wide = saved.wide[start : start + self.block]
            grad = torch.mm(part, down, out=self._scratch("active", wide.shape, g))
            torch.ops.aten.gelu_backward.grad_input(grad, wide, grad_input=grad)
            out[start : start + self.block].addmm_(grad, up)

    def _attention_backward(
        self, layer: _Layer, places: Places, saved: _Saved, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients `(Q, D)` of queries and `(N, 2 D)` of keys and values, from that of attention's
        projected context.
        """
        k = saved.q.shape[1]
        width = g.shape[1]
        context = self._scratch("q", (len(g) + 1, width), g)
        context[-1].zero_()
        torch.mm(g, layer.attention_output.dense.weight, out=context[:-1])
        mixed = self._scratch("mixed", saved.q.shape, g)
        torch.index_select(context.view(-1, k), 0, places.q_padded, out=mixed)
        q_grad, kv_grad = (
            self._scratch(f"{name} grad", x.shape, g)
            for name, x in (("q", saved.q), ("kv", saved.kv))
        )
        for span, weights, mask in zip(places.spans, saved.weights, saved.masks, strict=True):
            p = layer.attention_dropout.p
            attend_backward(
                span, saved.q, saved.kv, mask, p, self.buffers, weights, mixed, q_grad, kv_grad
            )
        q = self._scratch("context", g.shape, g)
        torch.index_select(q_grad.mul_(k**-0.5), 0, places.q_packed, out=q.view(-1, k))
        kv = self._scratch("kv", (len(saved.x), 2 * width), g)
        torch.index_select(kv_grad.view(-1, k), 0, places.kv_packed, out=kv.view(-1, k))
        return q, kv

    def _inputs_backward(
        self, layer: _Layer, places: Places, saved: _Saved, q: Tensor, kv: Tensor, residual: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the layer's adapters, and of its input unless it is the first layer."""
        width = q.shape[1]
        deeper = layer.index > 0
        xq_grad = residual.addmm_(q, layer.query.weight) if deeper else None
        x_grad = None
        if deeper and places.rows is None:
            x_grad = residual.addmm_(kv, layer.weight)
        elif deeper:
            x_grad = torch.mm(kv, layer.weight)
        found: list[Tensor] = []
        for name, adapter in layer.adapters.items():
            g, x, out = {
                "query": (q, saved.xq, xq_grad),
                "key": (kv[:, :width], saved.x, x_grad),
                "value": (kv[:, width:], saved.x, x_grad),
            }[name]
            found.extend(
                adapter.add_delta_backward(
                    g, x, saved.adapted[name], self._tokens(name, places), out
                )
            )
        if x_grad is not None and places.rows is not None:
            x_grad.index_add_(0, places.rows, residual)
        return found, residual if x_grad is None else x_grad

    def _tokens(self, name: str, places: Places) -> list[int]:
        """Rows of each member in the input of query, key or value."""
        tokens = self.routing.tokens
        if name == "query" and places.rows is not None:
            return [len(places.rows) // len(tokens)] * len(tokens)
        return tokens
