"""A member or an ensemble as one module of padded token ids, for exporters: the stock encoder once,
all members' adapters and heads inside, and how they are combined.

Shape letters: M members, N texts, L tokens of the longest text, C outputs of a head, K classes or
labels, D width of the encoder, I inputs and O outputs of an adapted layer, R largest rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from loraens.ensemble.conformal import Region
from loraens.errors import InputError
from loraens.inference.combination import Combination
from loraens.inference.predictor import Predictor
from loraens.metrics import TINY
from loraens.model.backbone import load_encoder
from loraens.tasks import Task


def check_texts(predictor: Predictor) -> None:
    """Refuse members whose texts a tokenizer alone cannot prepare.

    Raises:
        InputError: Of long texts they read head and tail.
    """
    if predictor.long != "cut":
        raise InputError(
            f"the members read long texts by {predictor.long}, which no tokenizer does alone: give"
            " --format loraens or peft"
        )


class StackedLinear(nn.Module):
    """A linear layer of M texts' copies, each with its member's low-rank change.

    Args:
        base: The frozen layer.
        factors: B `(O, r)` and A `(r, I)` of each member's change.
    """

    def __init__(self, base: nn.Linear, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.base = base
        members = self.members = len(factors)
        rank = max(len(down) for _, down in factors)
        up = torch.zeros(members, rank, base.out_features)
        down = torch.zeros(members, base.in_features, rank)
        for index, (u, d) in enumerate(factors):
            up[index, : len(d)] = u.T
            down[index, :, : len(d)] = d.T
        self.register_buffer("up", up)
        self.register_buffer("down", down)

    def forward(self, x: Tensor) -> Tensor:
        """`(M N, L, I)` -> `(M N, L, O)`, the texts of a member one after another."""
        by_member = x.reshape(self.members, -1, x.shape[-1])
        change = by_member @ cast(Tensor, self.down) @ cast(Tensor, self.up)
        return cast(Tensor, self.base(x)) + change.reshape(*x.shape[:-1], -1)


def _factors(predictor: Predictor, name: str, base: nn.Linear) -> list[tuple[Tensor, Tensor]]:
    """B `(O, r)` and A `(r, I)` of each member's change of a layer; of rank 0 where it has none.

    Raises:
        InputError: A change is not of low rank.
    """
    weight = base.weight
    factors = [(weight.new_zeros(len(weight), 0), weight.new_zeros(0, weight.shape[1]))]
    factors *= predictor.members
    for model, members in predictor.parts:
        adapter = model.adapters.get(name)
        if adapter is None:
            continue
        for one, index in zip(torch.eye(len(members)).tolist(), members, strict=True):
            try:
                factors[index] = adapter.combined(one)
            except InputError as error:
                reason = str(error).partition(":")[0]
                raise InputError(
                    f"format onnx: {reason}: give --format loraens or peft", option="format"
                ) from None
    return factors


class Graph(nn.Module):
    """From token ids to predictions.

    Args:
        predictor: The member or ensemble.
        task: Its task.
        region: The rule of prediction sets or intervals; none by default.

    Raises:
        InputError: The backbone cannot be had, or the label kind or the adapters cannot be written
            as a graph.
    """

    def __init__(self, predictor: Predictor, task: Task, region: Region | None = None) -> None:
        super().__init__()
        model = predictor.model
        self.members = predictor.members
        self.task = task
        self.kind = task.label_kind
        self.combination: Combination = predictor.combined(task)
        self.region = region
        self.pooling = model.pooling
        self.reads_token_types = model.architecture.reads_token_types(model.encoder.config)
        check_texts(predictor)
        pooler = model.pooling == "pooler"
        encoder = load_encoder(predictor.backbone, pooler=pooler, packed=False)
        encoder.set_attn_implementation("eager")
        names = dict.fromkeys(name for part in predictor.parts for name in part.model.adapters)
        if names:
            for name in names:
                base = cast(nn.Linear, encoder.get_submodule(name))
                encoder.set_submodule(name, StackedLinear(base, _factors(predictor, name, base)))
        else:  # its only member is merged with the encoder
            encoder.load_state_dict(model.encoder.state_dict())
        self.encoder = encoder.eval()
        order = torch.tensor(
            [index for part in predictor.parts for index in part.indices]
        ).argsort()
        heads = [part.model.heads[task.name] for part in predictor.parts]
        weight = torch.cat([head.weight.detach() for head in heads])[order]
        self.register_buffer("weight", weight.transpose(1, 2).clone())
        self.register_buffer("bias", torch.cat([head.bias.detach() for head in heads])[order, None])
        weights = torch.from_numpy(self.combination.weights.astype("float64"))
        self.register_buffer("weights", weights)
        self.register_buffer("shares", weights / weights.sum())

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What `Predictor.rows` gives, without the uncertainties.

        Args:
            input_ids: `(N, L)`.
            attention_mask: `(N, L)`, 1 at tokens and 0 at padding.
            token_type_ids: `(N, L)`, where the encoder reads them.

        Returns:
            `prediction`, `(N,)` or `(N, K)`; `probability`, `(N, K)`, where there are classes; and
            what the label kind's `region_tensors` gives.
        """
        logits = self.logits(input_ids, attention_mask, token_type_ids).double()
        kind = self.kind
        each = kind.probability_tensor(self.task, logits)  # (M, N, K)
        predictions = kind.prediction_tensor(logits if each is None else each)
        weights = cast(Tensor, self.weights)
        shares = cast(Tensor, self.shares)
        probability: Tensor | None
        if self.combination.rule == "vote":
            assert each is not None
            votes = nn.functional.one_hot(predictions, each.shape[2]).double()
            probability = torch.tensordot(shares, votes, 1)
            prediction = self._elected(predictions, votes)
        elif self.combination.rule == "probs":
            probability = torch.tensordot(shares, cast(Tensor, each), 1)
            prediction = self._decided(probability)
        else:
            mean = torch.tensordot(weights, logits, 1)
            probability = kind.probability_tensor(self.task, mean)
            prediction = self._decided(mean if probability is None else probability)
        outputs = {"prediction": prediction}
        if probability is not None:
            probability = self._scaled(probability, several=prediction.ndim == 2)
            outputs["probability"] = probability
        if self.region is not None:
            spread = kind.spread_tensor(predictions, shares)
            radius = self.region.quantile * (spread + self.region.offset)
            outputs |= kind.region_tensors(prediction, probability, radius)
        return outputs

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        """`(M, N, C)` of token ids `(N, L)`."""
        members = self.members
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.reads_token_types:
            assert token_type_ids is not None
            given["token_type_ids"] = token_type_ids
        if members > 1:
            given = {name: ids.repeat(members, 1) for name, ids in given.items()}
        if self.encoder.config.model_type == "xlnet":  # which subtracts it from a float
            given["attention_mask"] = given["attention_mask"].float()
        output = self.encoder(**given)
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "mean":
            real = given["attention_mask"][:, :, None].to(hidden.dtype)
            pooled = (hidden * real).sum(1) / real.sum(1)
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            last = given["attention_mask"].long().sum(1) - 1
            index = last[:, None, None].expand(-1, 1, hidden.shape[2])
            pooled = hidden.gather(1, index)[:, 0]
        else:
            pooled = output.pooler_output
        pooled = pooled.reshape(members, -1, pooled.shape[-1])
        return pooled @ cast(Tensor, self.weight) + cast(Tensor, self.bias)

    def _decided(self, mean: Tensor) -> Tensor:
        thresholds = self.combination.thresholds
        if thresholds is None:
            return self.kind.prediction_tensor(mean)
        return (mean > torch.from_numpy(thresholds)).long()

    def _elected(self, predictions: Tensor, votes: Tensor) -> Tensor:
        """As `majority_vote`, of predictions `(M, N)` and one-hot votes `(M, N, K)`."""
        weights = cast(Tensor, self.weights)
        counts = torch.tensordot(weights, votes, 1)
        tied = counts >= counts.amax(1, keepdim=True) - 1e-9 * weights.sum()
        order = sorted(
            range(len(predictions)),
            key=lambda m: (-self.combination.ranks[m], self.combination.standings[m]),
        )
        by_rank = predictions[order].T  # (N, M), highest rank first
        first = tied.gather(1, by_rank).long().argmax(1, keepdim=True)
        return by_rank.gather(1, first)[:, 0]

    def _scaled(self, probability: Tensor, several: bool) -> Tensor:
        """As `ensemble.calibration.scaled`; shares of votes stay."""
        temperature = self.combination.temperature
        if temperature is None:
            return probability
        logs = probability.clamp_min(TINY).log()
        if several:
            others = (1 - probability).clamp_min(TINY).log()
            return torch.sigmoid((logs - others) / temperature)
        return torch.softmax(logs / temperature, 1)
