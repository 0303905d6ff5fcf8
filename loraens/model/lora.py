"""LoRA with a leading member axis: every member of a population has its own low-rank update on one
frozen backbone.

Shape letters: M members, N tokens of all sequences of all members, R largest rank, I inputs, O
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraens.members import Member
from loraens.model.adapters import ADAPTERS, Adapter
from loraens.model.kernels import low_rank_usable
from loraens.model.routing import Routing
from loraens.seeding import derive_seed


class LoRALinear(Adapter):
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

    Attributes:
        lora_A: `(M, R, I)`.
        lora_B: `(M, O, R)`.
    """

    rank_axes = {"lora_A": 1, "lora_B": 2}
    loraplus = ("lora_B",)
    supports_fast = True

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing
    ) -> None:
        super().__init__(base, ranks, scales, routing)
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
            # drawn in float32 at the member's own rank: the start depends neither on the precision
            # nor on the ranks of the pack
            start = torch.empty(rank, self.base.in_features, dtype=torch.float32).normal_(
                0, std, generator=generator
            )
            self.lora_A[index, :rank] = start

    def delta(self, x: Tensor, y: Tensor, index: int) -> Tensor:
        """The update c B A x of one member: `(1, n, I)` -> `(1, n, O)`."""
        return F.linear(F.linear(x, self.lora_A[index]) * self.scales[index], self.lora_B[index])

    @torch.no_grad()
    def add_delta(self, out: Tensor, x: Tensor, tokens: Sequence[int]) -> Tensor:
        """Add c B A x of each member to `out` `(N, O)`, without autograd; x is `(N, I)`, the result
        A x is `(N, R)`.

        Products are taken in x's type, member by member, or, if the routing says so, padded and all
        at once, or by a kernel.
        """
        if self._fused(x):
            from loraens.model.kernels import operators

            down = x.new_empty(len(x), self.lora_A.shape[1])
            matrices = (self.lora_A, self.lora_B, self._scale_tensor().flatten(), 2)
            operators.add_low_rank(x, down, out, *matrices, *self.routing.member_ends(tokens))
            return down
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
    def add_delta_backward(
        self, grad: Tensor, x: Tensor, saved: Tensor, tokens: Sequence[int], x_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of A and B from that of `add_delta`'s `out`; `saved` is A x, and the part of
        the updates is added to `x_grad`.
        """
        if self._fused(x):
            return self._fused_backward(grad, x, saved, tokens, x_grad)
        down_weight = self.lora_A.to(x.dtype)
        up_weight = (self.lora_B * self._scale_tensor()).to(x.dtype)
        if self.routing.batched:
            rows = self.routing.member_rows(tokens)
            g = rows.pad(grad)
            up = g @ up_weight
            a_grad = up.mT @ rows.pad(x)
            b_grad = g.mT @ rows.pad(saved)
            if x_grad is not None:
                rows.add(x_grad, up @ down_weight)
        else:
            a_grad = torch.empty_like(down_weight)
            b_grad = torch.empty_like(up_weight)
            starts = np.cumsum([0, *tokens]).tolist()
            for index, (low, high) in enumerate(pairwise(starts)):
                up = grad[low:high] @ up_weight[index]
                torch.mm(up.t(), x[low:high], out=a_grad[index])
                torch.mm(grad[low:high].t(), saved[low:high], out=b_grad[index])
                if x_grad is not None:
                    x_grad[low:high].addmm_(up, down_weight[index])
        # up_weight is c B, so the gradient of B is c times that of the product
        return a_grad.to(self.lora_A.dtype), b_grad.to(self.lora_B.dtype) * self._scale_tensor()

    def _fused(self, x: Tensor) -> bool:
        """Whether kernels take the products."""
        weight = self.lora_A
        return weight.dtype is torch.float32 and low_rank_usable(x.device, x.dtype, weight.shape[1])

    def _fused_backward(
        self, grad: Tensor, x: Tensor, saved: Tensor, tokens: Sequence[int], x_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`add_delta_backward` by kernels."""
        from loraens.model.kernels import operators

        ends, longest = self.routing.member_ends(tokens)
        scales = self._scale_tensor().flatten()
        up = torch.empty_like(saved)
        # the update's gradient goes through B first, then through A
        matrices = (self.lora_B.mT, self.lora_A.mT, scales, 1)
        operators.add_low_rank(grad, up, x_grad, *matrices, ends, longest)
        a_grad, b_grad = (torch.empty_like(weight) for weight in (self.lora_A, self.lora_B))
        operators.low_rank_gradient(up, x, a_grad, None, ends)
        operators.low_rank_gradient(saved, grad, b_grad.mT, scales, ends)
        return a_grad, b_grad

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

    def member_tensors(self, index: int) -> dict[str, Tensor]:
        """A `(r, I)` and B `(O, r)` of one member, under the ends of PEFT's keys."""
        rank = self.ranks[index]
        return {
            "lora_A.weight": self.lora_A[index, :rank],
            "lora_B.weight": self.lora_B[index, :, :rank],
        }

    @classmethod
    def peft_config(cls, member: Member) -> dict[str, Any]:
        """PEFT's `LoraConfig`; it scales by `lora_alpha / r`."""
        return {
            "peft_type": "LORA",
            "r": member.rank,
            "lora_alpha": member.scale * member.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
        }

    @torch.no_grad()
    def combined(self, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
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
    def set_factors(self, index: int, up: Tensor, down: Tensor) -> None:
        """Set B `(O, r)` and A `(r, I)` of one member, r being at most its rank; the rest of its
        entries stay as they are.
        """
        self.lora_A[index, : len(down)] = down
        self.lora_B[index, :, : len(down)] = up


ADAPTERS.register("lora", LoRALinear)
