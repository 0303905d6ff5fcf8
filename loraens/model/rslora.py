"""Rank-stabilised LoRA: another rule for the scale.

Shape letters: as of `lora`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from loraens.members import Member
from loraens.model.adapters import ADAPTERS
from loraens.model.lora import LoRALinear
from loraens.model.routing import Routing


class RSLoRALinear(LoRALinear):
    """LoRA with the scale alpha / sqrt(r) in place of c = alpha / r, so that updates of high rank
    do not vanish (Kalajdzievski 2023): a member's c counts sqrt(r) times.

    Args:
        base: The layer to adapt; shared by all members, not copied.
        ranks: Rank of each member, at least 1.
        scales: c of each member.
        routing: Which tokens belong to which member.
    """

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing
    ) -> None:
        stable = [scale * rank**0.5 for rank, scale in zip(ranks, scales, strict=True)]
        super().__init__(base, ranks, stable, routing)

    @classmethod
    def peft_config(cls, member: Member) -> dict[str, Any]:
        """PEFT's `LoraConfig`; it scales by `lora_alpha / sqrt(r)`."""
        return {**super().peft_config(member), "use_rslora": True}


ADAPTERS.register("rslora", RSLoRALinear)
