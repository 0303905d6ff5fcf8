"""The padded path: members times batch in one forward of the stock model, for encoders and decoders
that cannot take the packed one.

Shape letters: M members, B examples of a member, S = M B sequences, s of them in a forward, L
tokens of the longest of these, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from loraens.model.adapters import Adapter
from loraens.model.batch import PackedBatch
from loraens.model.dropout import MaskGenerator
from loraens.model.routing import Routing
from loraens.model.sites import DropoutSites
from loraens.model.stock import StockForward
from loraens.model.trial import check, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# tokens of padding that are no worse than another forward
FORWARD = {"cpu": 128, "cuda": 8192}


class PaddedEncoder:
    """Runs a stock model on padded sequences of similar length; it has no weights of its own.

    Args:
        encoder: The stock model, its adapters injected.
        routing: The model's routing.
        masks: The model's mask generator.
        adapters: The adapters, by the names of their layers.
        pooling: What is read of a sequence, as `MemberModel` says.
        dropout: Whether the model's own dropout is on while training.

    Raises:
        InputError: The model's features are not exact, or the pooling does not fit it.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        routing: Routing,
        masks: MaskGenerator,
        adapters: Mapping[str, Adapter],
        pooling: str,
        dropout: bool,
    ) -> None:
        self.routing = routing
        self.pooling = pooling
        self.forward: int | None = None  # tokens that one costs; None for what suits the device
        self._forward = StockForward(encoder, routing)
        sites, self._shared_input = trace(self._forward, adapters, masks)
        self._sites = DropoutSites(masks, sites, dropout)
        check(self._forward, self._sites, self._pool, first_token=pooling in ("cls", "pooler"))

    @property
    def in_turn(self) -> bool:
        """Whether members are run one after another, since a tensor that belongs to one of them is
        the same for all sequences of a forward, such as the positions of DeBERTa.
        """
        training = self._forward.encoder.training
        return self._shared_input or (training and self._sites.shared)

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Features `(S, D)` of a batch that was routed."""
        device = batch.input_ids.device
        counts_of = batch.sequences
        member_of = np.repeat(np.arange(batch.members), counts_of)
        firsts = np.cumsum([0, *counts_of])
        lengths = np.array(batch.lengths)
        starts = np.cumsum(lengths) - lengths
        order: list[Tensor] = []
        features: list[Tensor] = []
        forward = self.forward or FORWARD.get(device.type, FORWARD["cuda"])
        for chosen in _groups(lengths, counts_of if self.in_turn else [len(lengths)], forward):
            column = np.arange(lengths[chosen].max())
            within = column < lengths[chosen][:, None]
            tokens = np.where(within, starts[chosen][:, None] + column, 0)
            real = torch.from_numpy(within).to(device)
            members, counts = np.unique(member_of[chosen], return_counts=True)
            self.routing.parts = list(zip(members.tolist(), counts.tolist(), strict=True))
            sequences = torch.from_numpy(chosen).to(device)
            self._sites.route(sequences, int(firsts[members[0]]))
            ids, types = (
                x[torch.from_numpy(tokens).to(device)]
                for x in (batch.input_ids, batch.token_type_ids)
            )
            output = self._forward(
                ids, types, real, self._sites.drop if self._sites.sites else None
            )
            features.append(self._pool(output, real))
            order.append(sequences)
        self.routing.parts = None
        return torch.cat(features)[torch.cat(order).argsort()]

    def _pool(self, output: Any, real: Tensor) -> Tensor:
        """`(s, D)` of the model's output; `real` `(s, L)` are the tokens that are no padding."""
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        lengths = real.sum(1)
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        if hidden.dtype.itemsize < 4:
            hidden = hidden.float()
        return torch.where(real[..., None], hidden, 0).sum(1) / lengths[:, None]


def _groups(lengths: np.ndarray, together: Sequence[int], forward: int) -> Iterator[np.ndarray]:
    """Sequences of similar length, in order, of those that follow each other and may be in one
    forward.

    Args:
        lengths: `(S,)` tokens of each sequence.
        together: How many sequences these are, in a row.
        forward: What another forward costs, in tokens.
    """
    for start, end in pairwise([0, *accumulate(together)]):
        order = start + np.argsort(lengths[start:end], kind="stable")
        for low, high in _cheapest(lengths[order], forward):
            yield np.sort(order[low:high])


def _cheapest(lengths: np.ndarray, forward: int) -> list[tuple[int, int]]:
    """Parts of ascending lengths `(S,)` that together have the fewest tokens, padding counted, and
    `forward` for each part.
    """
    costs = np.zeros(len(lengths) + 1)
    begins = np.zeros(len(lengths) + 1, int)
    for end in range(1, len(lengths) + 1):
        sizes = end - np.arange(end)
        tried = costs[:end] + sizes * lengths[end - 1] + forward
        begins[end] = tried.argmin()
        costs[end] = tried.min()
    parts = []
    end = len(lengths)
    while end:
        parts.append((int(begins[end]), end))
        end = int(begins[end])
    return parts[::-1]
