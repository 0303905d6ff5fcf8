"""The forward of a stock model, its dropout met.

Shape letters: s sequences of a forward, L tokens of the longest of these.
"""

from __future__ import annotations

from contextlib import nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

from loraens.model.architectures import architecture_of
from loraens.model.routing import Routing
from loraens.model.sites import Calls, Drop

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StockForward:
    """Runs a stock model on padded sequences.

    Args:
        encoder: The stock model, its adapters injected.
        routing: The model's routing.
    """

    def __init__(self, encoder: PreTrainedModel, routing: Routing) -> None:
        config: Any = encoder.config
        self.encoder: Any = encoder
        self.routing = routing
        self._padding = getattr(config, "pad_token_id", None) or 0
        self._types = architecture_of(encoder).reads_token_types(config)
        takes = signature(encoder.forward).parameters
        self._fixed = {"use_cache": False} if "use_cache" in takes else {}
        self._calls = Calls(encoder)

    def __call__(self, ids: Tensor, types: Tensor, real: Tensor, drop: Drop | None = None) -> Any:
        """Outputs of the stock model.

        Args:
            ids: `(s, L)` token ids.
            types: `(s, L)` 0 for the first text, 1 for the second.
            real: `(s, L)` which tokens are no padding.
            drop: In training mode, what drops values.
        """
        given = {"input_ids": ids.masked_fill(~real, self._padding), **self._fixed}
        if self._types:
            given["token_type_ids"] = types.masked_fill(~real, 0)
        with self._calls.met(drop) if drop and self.encoder.training else nullcontext():
            return self.encoder(**given, attention_mask=real.long())
