"""LoRA with a leading member axis: every member of a population has its own adapter on one frozen backbone.

Shape letters: M members, N tokens of all sequences of all members, R largest rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraens.seeding import derive_seed


@dataclass
class Routing:
    """What the layers must know of the running forward: which tokens are whose, and each member's random stream.

    The model sets it before a forward; all adapted layers and dropouts of the model share one.

    Args:
        tokens: Number of tokens of each member; the tokens of member m follow those of member m - 1.
        generators: One generator a member while dropout is on.
    """

    tokens: list[int] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)

    def seed(self, seeds: Sequence[int], device: torch.device, *counter: int) -> None:
        """Start each member's dropout stream for one step, named by the member's seed and a counter."""
        if len(self.generators) != len(seeds) or self.generators[0].device != device:
            self.generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self.generators, seeds):
            generator.manual_seed(derive_seed(seed, "dropout", *counter))


def dropout_mask(shape: Sequence[int], p: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A mask of zeros and 1 / (1 - p), for inverted dropout (Srivastava et al. 2014).

    One 64-bit draw gives four 16-bit thresholds, so p is rounded to a multiple of 2 ** -16; the same generator state
    gives the same mask in every floating type.
    """
    threshold = round(p * 2**16)
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    keep = bits.view(torch.int16)[:count].view(*shape) >= threshold - 2**15
    return keep.to(dtype).mul_(2**16 / (2**16 - threshold))


class MemberDropout(nn.Module):
    """Dropout whose masks come from each member's own generator; x is `(1, N, *)` with members along N."""

    def __init__(self, p: float, routing: Routing) -> None:
        super().__init__()
        self.p = p
        self.routing = routing

    def forward(self, x: Tensor) -> Tensor:
        """`(1, N, *)` -> `(1, N, *)`."""
        if not self.training or self.p == 0:
            return x
        masks = [
            dropout_mask((1, tokens, *x.shape[2:]), self.p, generator, x.dtype)
            for tokens, generator in zip(self.routing.tokens, self.routing.generators)
        ]
        return x * (masks[0] if len(masks) == 1 else torch.cat(masks, dim=1))


class LoRALinear(nn.Module):
    """A frozen linear layer plus the low-rank update of each member: y = W0 x + b + c B A x (Hu et al. 2021).

    A is Gaussian and B zero at the start, so that every member starts as the backbone. Members of lower rank than R have
    zero rows in A and zero columns in B there; both get zero gradients and stay zero.

    Args:
        base: The layer to adapt; shared by all members, not copied.
        ranks: Rank of each member, at least 1.
        scales: Scale c = alpha / r of each member.
        routing: Which tokens belong to which member.
    """

    def __init__(self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing) -> None:
        super().__init__()
        self.base, self.ranks, self.scales, self.routing = base, tuple(ranks), tuple(scales), routing
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_zeros(len(ranks), max(ranks), base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(len(ranks), base.out_features, max(ranks)))

    @torch.no_grad()
    def reset(self, seeds: Sequence[int], name: str, std: float) -> None:
        """Draw A of each member from N(0, std^2) by its seed and this layer's name, and set B to zero."""
        self.lora_A.zero_()
        self.lora_B.zero_()
        for index, (rank, seed) in enumerate(zip(self.ranks, seeds)):
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora_A", name))
            start = torch.empty(rank, self.base.in_features, dtype=torch.float32).normal_(0, std, generator=generator)
            self.lora_A[index, :rank] = start

    def forward(self, x: Tensor) -> Tensor:
        """`(1, N, I)` -> `(1, N, O)`."""
        y: Tensor = self.base(x)
        if len(self.ranks) == 1:
            return y + self._delta(x, 0)
        parts = torch.split(x, self.routing.tokens, dim=1)
        return y + torch.cat([self._delta(part, index) for index, part in enumerate(parts)], dim=1)

    def _delta(self, x: Tensor, index: int) -> Tensor:
        return F.linear(F.linear(x, self.lora_A[index]) * self.scales[index], self.lora_B[index])

    def delta_weight(self, index: int) -> Tensor:
        """The member's weight change c B A, `(O, I)`."""
        return self.scales[index] * self.lora_B[index] @ self.lora_A[index]

    @torch.no_grad()
    def merged(self, index: int) -> nn.Linear:
        """A new linear layer of the weights W0 + c B A of one member; this layer is left as it is."""
        layer = nn.Linear(
            self.base.in_features, self.base.out_features, self.base.bias is not None, device=self.base.weight.device
        ).to(self.base.weight.dtype)
        layer.weight.copy_(self.base.weight + self.delta_weight(index))
        if self.base.bias is not None:
            layer.bias.copy_(self.base.bias)
        return layer


def linear_names(encoder: nn.Module) -> list[str]:
    """Last name components of the encoder's linear layers, each once, in order of occurrence."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name, _ in _linears(encoder)))


def _linears(encoder: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers by name; a pooler is not among them, it stays frozen."""
    modules = encoder.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, nn.Linear) and not name.startswith("pooler.")]


def inject(
    encoder: nn.Module, targets: Sequence[str], ranks: Sequence[int], scales: Sequence[float], routing: Routing
) -> dict[str, LoRALinear]:
    """Replace every linear layer whose name ends with a target by a `LoRALinear`; returns them by full name.

    A target is the tail of a dotted name: `query`, or `layer.0.attention.self.query`.

    Raises:
        ValueError: A target matches no linear layer; the message lists the names that are there.
    """
    if not targets:
        raise ValueError("at least one name of a linear layer is expected")
    found = _linears(encoder)
    adapted: dict[str, LoRALinear] = {}
    for target in targets:
        matches = [(name, layer) for name, layer in found if f".{name}".endswith(f".{target}")]
        if not matches:
            raise ValueError(f"target {target!r} matches no linear layer; the encoder has {', '.join(linear_names(encoder))}")
        adapted.update({name: LoRALinear(layer, ranks, scales, routing) for name, layer in matches})
    for name, layer in adapted.items():
        encoder.set_submodule(name, layer)
    return adapted


def merge(encoder: nn.Module, index: int) -> None:
    """Put W0 + c B A of one member in place of every `LoRALinear`; a second call finds none and changes nothing."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoRALinear):
            encoder.set_submodule(name, module.merged(index))


def route_dropout(encoder: nn.Module, routing: Routing, enabled: bool) -> None:
    """Replace every `nn.Dropout` by one with the members' own streams, or, where not enabled, by one that does nothing."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.Dropout):
            encoder.set_submodule(name, cast(nn.Module, MemberDropout(module.p if enabled else 0.0, routing)))
