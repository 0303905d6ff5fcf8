"""An adapter of PEFT as a member of a population.

Shape letters: C outputs and D inputs of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loraens.members import Member
from loraens.model.injection import linears_of, matching
from loraens.model.peft_adapter import Layer, PeftAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraens.model.population import MemberModel

INTERCHANGEABLE = ("lora", "rslora")  # kinds that differ in what their scale is called


@dataclass(frozen=True)
class Imported:
    """An adapter as a member of a run.

    Args:
        name: The member's name.
        adapter: The adapter.
        layers: The adapted layers, by their names in the encoder.
        weight: `(C, D)` of the head.
        bias: `(C,)` of the head.
        kind: Kind of the member's adapters.
        targets: Names of the layers that the member adapts.
    """

    name: str
    adapter: PeftAdapter
    layers: dict[str, Layer]
    weight: Tensor
    bias: Tensor
    kind: str
    targets: tuple[str, ...]

    @property
    def largest(self) -> Layer:
        """The layer of the largest rank, whose scale is the member's."""
        return max(self.layers.values(), key=lambda layer: len(layer.down))

    @property
    def member(self) -> Member:
        """Rank and scale; how it was trained is not known."""
        rank = len(self.largest.down)
        scale = self.largest.scale
        return Member(rank=rank, scale=scale / rank**0.5 if self.kind == "rslora" else scale)

    @property
    def trained(self) -> int:
        """Trained numbers."""
        tensors = [t for layer in self.layers.values() for t in layer if isinstance(t, Tensor)]
        return sum(tensor.numel() for tensor in (*tensors, self.weight, self.bias))

    @torch.no_grad()
    def copy_to(self, model: MemberModel, index: int, task: str) -> None:
        """Give a member of a model its weights; exact but for rounding where layers differ in
        scale, since the ratio of the scales is then in B.
        """
        scale = self.largest.scale
        for name, adapter in model.adapters.items():
            tensors = adapter.member_tensors(index)
            down, up = tensors["lora_A.weight"].zero_(), tensors["lora_B.weight"].zero_()
            layer = self.layers.get(name)
            if layer is None:  # which is left as it is
                continue
            down[: len(layer.down)] = layer.down
            up[:, : len(layer.down)] = layer.up * (layer.scale / scale)
            if layer.magnitude is not None:
                tensors["lora_magnitude_vector"].copy_(layer.magnitude)
        head = model.heads[task]
        head.weight[index] = self.weight
        head.bias[index] = self.bias


def kind_of(adapter: PeftAdapter, of_run: str) -> str:
    """Kind of a member's adapters: the run's, where the adapter is of that kind, too."""
    both = {adapter.kind, of_run} <= {*INTERCHANGEABLE}
    return of_run if both else adapter.kind


def targets_of(
    encoder: PreTrainedModel, layers: dict[str, Layer], of_run: Sequence[str]
) -> tuple[str, ...]:
    """Targets of a member: the run's, where these are all layers that the adapter changes; else
    last parts of names, where no other layer has them, or full names.
    """
    if layers.keys() <= matching(encoder, of_run).keys():
        return tuple(of_run)
    last = tuple(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    ends = [name for name, _ in linears_of(encoder) if name.rpartition(".")[2] in last]
    return last if {*ends} == {*layers} else tuple(layers)
