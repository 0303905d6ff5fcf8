"""A layer of a BERT-like encoder as the fast path reads it, and what its backward needs.

Shape letters: N tokens, Q query tokens, P and Pq padded slots of keys and queries, D width, F width
of the feed-forward part, H heads, K head width; a group of attention has s sequences of at most L
tokens, of which Lq are query tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from loraens.model.adapters import Adapter


@dataclass
class SavedNorm:
    """What the backward of residual and layer norm needs: `(Q, D)`, `(Q, 1)`, `(Q, 1)`."""

    x: Tensor
    mean: Tensor
    rstd: Tensor


@dataclass
class SavedLayer:
    """What the backward of one layer needs."""

    x: Tensor  # (N, D) input of the layer
    xq: Tensor  # (Q, D) its rows of the query tokens
    q: Tensor = field(init=False)  # (H Pq, K), scaled
    kv: Tensor = field(init=False)  # (2, H P, K)
    weights: list[Tensor | None] = field(default_factory=list)  # of each group, if kept
    context: Tensor = field(init=False)  # (Q, D), of the kernels, as is
    lse: Tensor = field(init=False)  # (Q, H)
    adapted: dict[str, Tensor] = field(default_factory=dict)  # what each add_delta returned
    first: SavedNorm = field(init=False)
    wide: Tensor = field(init=False)  # (Q, F) before the activation
    second: SavedNorm = field(init=False)


class FastLayer:
    """One layer of the stock encoder: its modules by what they do, and the weights of key and value
    side by side.

    Args:
        layer: The stock layer, its adapters injected.
        index: Its number in the encoder.
        projections: Names of attention's query, key and value projections.

    Attributes:
        weight: `(2 D, D)` of key and value.
        bias: `(2 D,)` of key and value.
        adapters: The adapters of query, key and value, by these words.
    """

    def __init__(self, layer: Any, index: int, projections: Sequence[str]) -> None:
        attention = layer.attention
        self.stock: nn.Module = layer
        self.index = index
        self.heads = int(attention.self.num_attention_heads)
        inputs: dict[str, nn.Linear | Adapter] = {
            part: getattr(attention.self, name)
            for part, name in zip(("query", "key", "value"), projections, strict=True)
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
        self.weight = torch.empty(0)
        self.bias = torch.empty(0)

    def dropouts(self) -> tuple[Any, Any, Any]:
        """Of attention's weights, of attention's output and of the feed-forward part's."""
        return self.attention_dropout, self.attention_output.dropout, self.output.dropout

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the layer's adapters, in the order of query, key and value."""
        return list(chain.from_iterable(a.own_parameters() for a in self.adapters.values()))

    def fuse(self, dtype: torch.dtype) -> None:
        """Bring the frozen weights to a type, lay those of key and value side by side, and let the
        stock modules' be views.
        """
        # moving the model to a device or a type replaces the stock modules' tensors
        if self.weight.data_ptr() == self.key.weight.data_ptr() and self.weight.dtype == dtype:
            return
        trained = {id(parameter) for parameter in self.trained_parameters()}
        for parameter in self.stock.parameters():
            if id(parameter) not in trained:
                parameter.data = parameter.data.to(dtype)
        self.weight = torch.cat([self.key.weight.data, self.value.weight.data])
        self.bias = torch.cat([self.key.bias.data, self.value.bias.data])
        # one product gives key and value; as views, the stock modules take no memory of their own
        for linear, weight, bias in zip(
            (self.key, self.value), self.weight.chunk(2), self.bias.chunk(2), strict=True
        ):
            linear.weight.data = weight
            linear.bias.data = bias
