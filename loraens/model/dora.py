"""DoRA with a leading member axis: magnitude and direction of a weight are learned apart.

Shape letters: M members, n tokens of one member, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraens.errors import InputError
from loraens.members import Member
from loraens.model.adapters import ADAPTERS
from loraens.model.lora import LoRALinear
from loraens.model.routing import Routing


class DoRALinear(LoRALinear):
    """A frozen linear layer whose weight becomes m (W0 + c B A) / ||W0 + c B A||, the norm of each
    row, through which no gradient goes (Liu et al. 2024).

    The magnitude m starts as the norm of W0, so that every member starts as the backbone.

    Args:
        base: The layer to adapt; shared by all members, not copied.
        ranks: Rank of each member, at least 1.
        scales: Scale c = alpha / r of each member.
        routing: Which tokens belong to which member.

    Attributes:
        magnitude: `(M, O)`.
    """

    supports_fast = False

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing
    ) -> None:
        super().__init__(base, ranks, scales, routing)
        self.magnitude = nn.Parameter(base.weight.new_zeros(len(ranks), base.out_features))

    @torch.no_grad()
    def reset(self, seeds: Sequence[int], name: str, std: float) -> None:
        """Draw A as LoRA does, set B to zero and m to the norm of W0."""
        super().reset(seeds, name, std)
        self.magnitude.copy_(self.base.weight.norm(dim=1).expand_as(self.magnitude))

    def _direction(self, index: int) -> Tensor:
        """W0 + c B A of one member, `(O, I)`."""
        return self.base.weight + super().delta_weight(index)

    def _factor(self, index: int) -> Tensor:
        """Magnitude by norm of one member, `(O,)`."""
        with torch.no_grad():
            norm = self._direction(index).norm(dim=1)
        factor: Tensor = self.magnitude[index] / norm
        return factor

    def delta(self, x: Tensor, y: Tensor, index: int) -> Tensor:
        """Change of the output of one member, `(1, n, O)`."""
        factor = self._factor(index)
        without_bias = y if self.base.bias is None else y - self.base.bias
        change = F.linear(F.linear(x, self.lora_A[index]) * self.scales[index], self.lora_B[index])
        return (factor - 1) * without_bias + factor * change

    def delta_weight(self, index: int) -> Tensor:
        """The member's weight change, `(O, I)`."""
        return self._factor(index)[:, None] * self._direction(index) - self.base.weight

    def member_tensors(self, index: int) -> dict[str, Tensor]:
        """A `(r, I)`, B `(O, r)` and m `(O,)` of one member, under the ends of PEFT's keys."""
        tensors = super().member_tensors(index)
        return {**tensors, "lora_magnitude_vector": self.magnitude[index]}

    @classmethod
    def peft_config(cls, member: Member) -> dict[str, Any]:
        """PEFT's `LoraConfig` of DoRA."""
        return {**super().peft_config(member), "use_dora": True}

    def combined(self, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Refuse to combine members, whose weight changes are of full rank.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "adapters of kind dora cannot be combined into one model, since their weight changes"
            " are of full rank: choose another method than soup"
        )


ADAPTERS.register("dora", DoRALinear)
