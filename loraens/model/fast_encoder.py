"""The fast forward and backward over the weights of a stock BERT-like encoder, with the adapters of
every member.

The numbers are those of the stock model. What is saved is work: no gradient of anything frozen,
attention grouped by length, buffers that are reused in every step, and, where only the first token
of each sequence is read, nothing but keys and values for the other tokens of the last layer.

Shape letters: S sequences, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loraens.model import kernels
from loraens.model.adapters import Adapter
from loraens.model.architectures import architecture_of
from loraens.model.dropout import MaskGenerator
from loraens.model.fast_attention import Buffers
from loraens.model.fast_fused import FusedRun
from loraens.model.fast_layer import FastLayer
from loraens.model.fast_run import Run
from loraens.model.routing import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


class FastEncoder:
    """Runs a stock encoder's layers; it has no weights of its own.

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
            FastLayer(layer, index, projections) for index, layer in enumerate(stock.encoder.layer)
        ]

    @property
    def lowest(self) -> int:
        """The lowest adapted layer: below it there is nothing to train."""
        adapted = (layer.index for layer in self.layers if layer.adapters)
        return next(adapted, len(self.layers))

    def __call__(self, lengths: list[int], first_only: bool, **embedded: Tensor) -> Tensor:
        """Hidden states after the last layer.

        Args:
            lengths: S sequence lengths.
            first_only: Whether only the first token of each sequence is wanted.
            embedded: Arguments of the stock embeddings, `(1, N)` each.

        Returns:
            `(N, D)`, or `(S, D)` with `first_only`.
        """
        device = embedded["input_ids"].device.type
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
        fused = kernels.usable(x.device, dtype)
        run = (FusedRun if fused else Run)(
            layers=self.layers,
            routing=self.routing,
            masks=self.masks,
            buffers=self.buffers,
            lengths=lengths,
            device=x.device,
            first_only=first_only,
            training=bool(self.stock.training),
            lowest=self.lowest,
        )
        x = x[0].to(dtype)
        if not run.keep:
            with torch.autocast(device, enabled=False):
                return run.forward(x)
        parameters = chain.from_iterable(layer.trained_parameters() for layer in self.layers)
        hidden: Tensor = _Function.apply(run, x, *parameters)  # type: ignore[no-untyped-call]
        return hidden


class _Function(torch.autograd.Function):
    """The whole encoder as one node of autograd's graph.

    Forward and backward run without autocast, in the type of x: autocast would give some operators
    (layer norm on a GPU) a result of another type than that of the buffers.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run = run
        with torch.autocast(x.device.type, enabled=False):
            return run.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return None, None, *ctx.run.backward(grads[0])
