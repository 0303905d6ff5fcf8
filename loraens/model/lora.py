"""LoRA with a leading member axis: every member of a population has its own adapter on one frozen
backbone.

Shape letters: M members, N tokens of all sequences of all members, R largest rank, I inputs, O
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraens.model.architectures import architecture_of
from loraens.model.routing import Routing
from loraens.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoRALinear(nn.Module):
    """A frozen linear layer plus the low-rank update of each member: y = W0 x + b + c B A x (Hu et
    al. 2021).

    A is Gaussian and B zero at the start, so that every member starts as the backbone. Members of
    lower rank than R have zero rows in A and zero columns in B there; both get zero gradients and
    stay zero.

    Args:
        base: The layer to adapt; shared by all members, not copied.
        ranks: Rank of each member, at least 1.
        scales: Scale c = alpha / r of each member.
        routing: Which tokens belong to which member.
    """

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing
    ) -> None:
        super().__init__()
        self.base = base
        self.ranks = tuple(ranks)
        self.scales = tuple(scales)
        self.routing = routing
        weight = base.weight
        self._scale = torch.empty(0)
        self.lora_A = nn.Parameter(weight.new_zeros(len(ranks), max(ranks), base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(len(ranks), base.out_features, max(ranks)))

    @torch.no_grad()
    def reset(self, seeds: Sequence[int], name: str, std: float) -> None:
        """Draw A of each member from N(0, std^2) by its seed and this layer's name, and set B to
        zero.
        """
        self.lora_A.zero_()
        self.lora_B.zero_()
        for index, (rank, seed) in enumerate(zip(self.ranks, seeds, strict=True)):
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora_A", name))
            start = torch.empty(rank, self.base.in_features, dtype=torch.float32).normal_(
                0, std, generator=generator
            )
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

    @torch.no_grad()
    def add_to(self, out: Tensor, x: Tensor, tokens: Sequence[int]) -> Tensor:
        """Add c B A x of each member to `out` `(N, O)`, without autograd; x is `(N, I)`, the result
        A x is `(N, R)`.

        Products are taken in x's type, member by member, or, if the routing says so, padded and all
        at once.
        """
        down_weight = self.lora_A.to(x.dtype)
        up_weight = (self.lora_B * self._scale_tensor()).to(x.dtype)
        if self.routing.batched:
            rows = self.routing.member_rows(tokens)
            down = rows.pad(x) @ down_weight.mT
            rows.add(out, down @ up_weight.mT)
            return rows.unpad(down)
        down = x.new_empty(len(x), down_weight.shape[1])
        for part, x_m, out_m, a, b in zip(
            down.split(tokens),
            x.split(tokens),
            out.split(tokens),
            down_weight,
            up_weight,
            strict=True,
        ):
            torch.mm(x_m, a.t(), out=part)
            out_m.addmm_(part, b.t())
        return down

    @torch.no_grad()
    def backward_of_add(
        self, grad: Tensor, x: Tensor, down: Tensor, tokens: Sequence[int], x_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of A and B from that of `add_to`'s `out`; what belongs to x is added to
        `x_grad`.
        """
        down_weight = self.lora_A.to(x.dtype)
        up_weight = (self.lora_B * self._scale_tensor()).to(x.dtype)
        if self.routing.batched:
            rows = self.routing.member_rows(tokens)
            g = rows.pad(grad)
            up = g @ up_weight
            a_grad = up.mT @ rows.pad(x)
            b_grad = g.mT @ rows.pad(down)
            if x_grad is not None:
                rows.add(x_grad, up @ down_weight)
        else:
            a_grad = torch.empty_like(down_weight)
            b_grad = torch.empty_like(up_weight)
            starts = np.cumsum([0, *tokens]).tolist()
            for index, (low, high) in enumerate(pairwise(starts)):
                up = grad[low:high] @ up_weight[index]
                torch.mm(up.t(), x[low:high], out=a_grad[index])
                torch.mm(grad[low:high].t(), down[low:high], out=b_grad[index])
                if x_grad is not None:
                    x_grad[low:high].addmm_(up, down_weight[index])
        return a_grad.to(self.lora_A.dtype), b_grad.to(self.lora_B.dtype) * self._scale_tensor()

    def _scale_tensor(self) -> Tensor:
        """`(M, 1, 1)`, made once for each type and device of the weights."""
        if (
            self._scale.dtype != self.lora_B.dtype
            or self._scale.device != self.lora_B.device
            or not len(self._scale)
        ):
            self._scale = self.lora_B.new_tensor(self.scales)[:, None, None]
        return self._scale

    def delta_weight(self, index: int) -> Tensor:
        """The member's weight change c B A, `(O, I)`."""
        return self.scales[index] * self.lora_B[index] @ self.lora_A[index]

    @torch.no_grad()
    def joined(self, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """B `(O, R)` and A `(R, I)` whose product is the sum of the members' weight changes, each
        times its weight.

        Exact: the members' matrices side by side, or, of more columns than B can need, their QR
            decomposition.
        """
        chosen = [(index, weight) for index, weight in enumerate(weights) if weight]
        up = torch.cat(
            [weight * self.scales[m] * self.lora_B[m, :, : self.ranks[m]] for m, weight in chosen],
            dim=1,
        )
        down = torch.cat([self.lora_A[m, : self.ranks[m]] for m, _ in chosen])
        if up.shape[1] <= up.shape[0]:
            return up, down
        q, r = torch.linalg.qr(up)
        return q, r @ down

    @torch.no_grad()
    def merged(self, index: int) -> nn.Linear:
        """A new linear layer of the weights W0 + c B A of one member; this layer is left as it
        is.
        """
        layer = nn.Linear(
            self.base.in_features,
            self.base.out_features,
            self.base.bias is not None,
            device=self.base.weight.device,
        ).to(self.base.weight.dtype)
        layer.weight.copy_(self.base.weight + self.delta_weight(index))
        if self.base.bias is not None:
            layer.bias.copy_(self.base.bias)
        return layer


def linear_names(encoder: PreTrainedModel) -> list[str]:
    """Last name components of the encoder's linear layers, each once, in order of occurrence."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name, _ in _linears(encoder)))


def _linears(encoder: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers by name; a pooler is not among them, it stays frozen."""
    architecture = architecture_of(encoder)
    modules = encoder.named_modules()
    return [
        (name, module)
        for name, module in modules
        if isinstance(module, nn.Linear) and not architecture.is_in_pooler(name)
    ]


def inject(
    encoder: PreTrainedModel,
    targets: Sequence[str],
    ranks: Sequence[int],
    scales: Sequence[float],
    routing: Routing,
) -> dict[str, LoRALinear]:
    """Replace every linear layer whose name ends with a target by a `LoRALinear`; returns them by
    full name.

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
            raise ValueError(
                f"target {target!r} matches no linear layer; the encoder has"
                f" {', '.join(linear_names(encoder))}"
            )
        adapted.update({name: LoRALinear(layer, ranks, scales, routing) for name, layer in matches})
    for name, layer in adapted.items():
        encoder.set_submodule(name, layer)
    return adapted


def merge(encoder: nn.Module, index: int) -> None:
    """Put W0 + c B A of one member in place of every `LoRALinear`; a second call finds none and
    changes nothing.
    """
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoRALinear):
            encoder.set_submodule(name, module.merged(index))
