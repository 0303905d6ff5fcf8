"""One frozen backbone, the adapters of every member, and their heads.

Shape letters: M members, B examples of a member, S sequences (M B, unless examples have several
windows), N tokens, D width of the encoder, C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from loraens.members import Member
from loraens.model.adapters import ADAPTERS, Adapter
from loraens.model.architectures import architecture_of
from loraens.model.backbone import is_packed, pooler_of
from loraens.model.batch import PackedBatch
from loraens.model.dropout import MaskGenerator, factor, replace_dropout
from loraens.model.fast_encoder import FastEncoder, is_fast
from loraens.model.injection import inject, merge
from loraens.model.packed import layout_of
from loraens.model.padded import PaddedEncoder
from loraens.model.routing import Routing
from loraens.model.upload import upload
from loraens.seeding import derive_seed
from loraens.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Mode = Literal["lora", "frozen", "full"]
Pooling = Literal["pooler", "cls", "mean", "last"]


class Heads(nn.Module):
    """Dropout, then one linear layer, for one task and every member: `(M, B, D)` -> `(M, B, C)`.

    Computed in the type of the weights, without autocast: logits in bfloat16 would be rounded to
    1/64 of scores above 2.

    Weights are drawn from N(0, 0.02^2), as BERT's are. Biases start at zero, or, for a number whose
    range is known, in its middle: from zero, adapters of high rank and scale can collapse to a
    constant on their way there.
    """

    def __init__(
        self, task: Task, width: int, members: Sequence[Member], masks: MaskGenerator
    ) -> None:
        super().__init__()
        self.dropouts = tuple(member.head_dropout for member in members)
        self.masks = masks
        self._made: Tensor | None = None
        self.site = masks.site(f"head {task.name}")
        weights = []
        for member in members:
            generator = torch.Generator().manual_seed(derive_seed(member.seed, "head", task.name))
            weights.append(
                torch.empty(task.num_outputs, width, dtype=torch.float32).normal_(
                    0, 0.02, generator=generator
                )
            )
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(
            torch.full((len(members), task.num_outputs), task.label_kind.initial_bias(task))
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """`(M, B, D)` -> `(M, B, C)`."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(self.weight.dtype)
            if self.training and any(self.dropouts):
                p = self._rates(pooled)
                pooled = pooled * factor(
                    self.masks.feature_mask(self.site, pooled.shape[1], pooled.shape[2], p),
                    p,
                    pooled.dtype,
                )
            return torch.baddbmm(self.bias[:, None], pooled, self.weight.transpose(1, 2))

    def _rates(self, pooled: Tensor) -> Tensor:
        """`(M, 1, 1)` the members' rates of dropout, in the type and on the device of features."""
        made = self._made
        if made is None or made.dtype != pooled.dtype or made.device != pooled.device:
            made = self._made = pooled.new_tensor(self.dropouts)[:, None, None]
        return made


def _means(x: Tensor, counts: Tensor) -> Tensor:
    """Means of rows that follow each other: `(N, D)` -> `(S, D)`, of as many as `counts` `(S,)`."""
    means: Tensor = torch.segment_reduce(
        x.float() if x.dtype.itemsize < 4 else x,
        "mean",
        lengths=counts,
        unsafe=True,  # unchecked, for which a GPU would be waited for
    )
    return means


class MemberModel(nn.Module):
    """Backbone, adapters and heads of a population.

    Args:
        encoder: The backbone, as `backbone.load_encoder` gives it.
        tasks: One head for each.
        members: The population; one member in the modes `frozen` and `full`.
        mode: "lora" trains adapters and heads; "frozen" heads only, over features without dropout;
            "full" everything.
        targets: Names of the linear layers to adapt, in mode "lora"; `query`, `key` and `value` are
            attention's projections, whatever they are called, `attention` is all three, and
            `all-linear` is every linear layer.
        pooling: "pooler" (the backbone's own, over [CLS]), "cls" (the first token as it is), "mean"
            (over real tokens) or "last" (the last token as it is).
        init_std: Standard deviation of A at the start.
        encoder_dropout: Whether the backbone's own dropout is on while training.
        fast: Whether to take the fast path where backbone and adapters support it; the numbers are
            the same.
        adapter: Kind of the adapters, one of `adapters.ADAPTERS`.

    Raises:
        KeyError: The kind of adapters is not registered.
        ValueError: A target matches no layer, or a mode that has no member axis got several
            members.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tasks: Sequence[Task],
        members: Sequence[Member],
        mode: Mode = "lora",
        targets: Sequence[str] = ("query", "value"),
        pooling: Pooling = "pooler",
        init_std: float = 0.02,
        encoder_dropout: bool = True,
        fast: bool = True,
        adapter: str = "lora",
    ) -> None:
        super().__init__()
        if mode != "lora" and len(members) != 1:
            raise ValueError(f"mode {mode!r} trains one member at a time, got {len(members)}")
        self.mode = mode
        self.pooling = pooling
        self.members = tuple(members)
        self.routing = Routing()
        self.masks = MaskGenerator(self.routing)
        self.architecture = architecture_of(encoder)
        self.encoder = encoder.requires_grad_(mode == "full")
        dropout = encoder_dropout and mode != "frozen"
        packed = is_packed(encoder)
        if packed:
            replace_dropout(encoder, self.masks, enabled=dropout)
        self.adapter_kind = ADAPTERS[adapter]
        self.adapters = self._add_adapters(targets, adapter, init_std) if mode == "lora" else {}
        self.heads = {
            task.name: Heads(task, encoder.config.hidden_size, members, self.masks)
            for task in tasks
        }
        for name, head in self.heads.items():
            self.add_module(f"head_{name}", head)
        self.padded = None if packed else self._padded_encoder(dropout)
        self.fast = self._fast_encoder() if fast and mode != "full" else None
        self._position_offset = self.architecture.position_offset(encoder.config)
        self._token_types = self.architecture.reads_token_types(encoder.config)

    def _add_adapters(
        self, targets: Sequence[str], adapter: str, init_std: float
    ) -> dict[str, Adapter]:
        adapters = inject(
            encoder=self.encoder,
            targets=targets,
            ranks=[member.rank for member in self.members],
            scales=[member.scale for member in self.members],
            routing=self.routing,
            adapter=adapter,
        )
        for name, layer in adapters.items():
            layer.reset([member.seed for member in self.members], name, init_std)
        return adapters

    def _padded_encoder(self, dropout: bool) -> PaddedEncoder:
        return PaddedEncoder(
            encoder=self.encoder,
            routing=self.routing,
            masks=self.masks,
            adapters=self.adapters,
            pooling=self.pooling,
            dropout=dropout,
        )

    def _fast_encoder(self) -> FastEncoder | None:
        if self.padded is not None or not is_fast(self.encoder, self.adapters):
            return None
        return FastEncoder(self.encoder, self.routing, self.masks)

    def trainable_parameters(self, index: int) -> int:
        """Trained numbers of one member, at its own rank."""
        heads = sum(
            head.weight[index].numel() + head.bias[index].numel() for head in self.heads.values()
        )
        if self.mode == "full":
            return heads + sum(parameter.numel() for parameter in self.encoder.parameters())
        return heads + sum(a.trainable_parameters(index) for a in self.adapters.values())

    @torch.no_grad()
    def fold(self) -> None:
        """For inference: add the only member's adapter to the backbone's weights, so that it costs
        nothing any more.
        """
        merge(self.encoder, 0)
        self.become_one()

    def become_one(self) -> None:
        """For inference: be a model of one member that is merged with the encoder."""
        self.adapters = {}
        self.mode = "frozen"
        self.fast = self._fast_encoder()

    def seed_dropout(self, *counter: int) -> None:
        """Seed the dropout masks of the next training forward, by the members' seeds and a counter;
        the same counter gives the same masks.
        """
        self.masks.seed([member.seed for member in self.members], *counter)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits `(M, B, C)` of a packed batch."""
        return self.head(self.pooled(batch), batch.task)

    def head(self, pooled: Tensor, task: str) -> Tensor:
        """Logits `(M, B, C)` of pooled features `(M, B, D)`."""
        logits: Tensor = self.heads[task](pooled)
        return logits

    def pooled(self, batch: PackedBatch) -> Tensor:
        """Features `(M, B, D)` of a packed batch, before the head.

        Raises:
            RuntimeError: In training mode, `seed_dropout` was not called before.
        """
        counts = [batch.lengths] if batch.windows is None else [batch.lengths, batch.windows]
        lengths, *windows = upload(list(map(torch.tensor, counts)), batch.input_ids.device)
        tokens = [sum(member_lengths) for member_lengths in batch.member_lengths]
        self.routing.route(tokens, lengths, batch.position_ids, batch.sequences)
        features = self._features(batch, lengths) if self.padded is None else self.padded(batch)
        if windows:
            features = _means(features, *windows)
        return features.view(batch.members, -1, features.shape[-1])

    def _features(self, batch: PackedBatch, lengths: Tensor) -> Tensor:
        """Pooled features `(S, D)` of the sequences of a batch that was routed, without padding."""
        hidden = self._hidden(batch)
        if self.pooling == "mean":
            return _means(hidden, lengths)
        if self.pooling == "last":
            return hidden[lengths.cumsum(0) - 1]
        if self.pooling == "cls":
            return hidden
        # the stock pooler reads the first token of each sequence
        pooled: Tensor = cast(nn.Module, pooler_of(self.encoder))(hidden[:, None])
        return pooled

    def _hidden(self, batch: PackedBatch) -> Tensor:
        """Hidden states after the last layer: `(N, D)`, or `(S, D)` of the first tokens where
        pooling reads nothing else.
        """
        first_only = self.pooling in ("cls", "pooler")
        embedded: dict[str, Any] = {
            "input_ids": batch.input_ids[None],
            "position_ids": batch.position_ids[None] + self._position_offset,
        }
        if self._token_types:
            embedded["token_type_ids"] = batch.token_type_ids[None]
        if self.fast is not None:
            return self.fast(batch.lengths, first_only, **embedded)
        layout = layout_of(batch.lengths, batch.input_ids.device)
        if self.architecture.layer_types:
            embedded["attention_mask"] = dict.fromkeys(self.encoder.config.layer_types)
        hidden: Tensor = self.encoder(
            **embedded, masks=self.masks, layout=layout
        ).last_hidden_state[0]
        return hidden[layout.first] if first_only else hidden
