"""The protocol of an adapter kind, and the registry of kinds.

A kind is one class in one file: it derives from `Adapter`, registers itself with
`ADAPTERS.register(name, cls)`, and `MemberModel(..., adapter=name)` uses it.

Shape letters: M members, N tokens of all sequences of all members, n tokens of one member, I
inputs, O outputs of the adapted layer; padded, S sequences of L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loraens.errors import InputError
from loraens.members import Member
from loraens.model.routing import Routing
from loraens.registry import Registry


class Adapter(nn.Module, ABC):
    """A frozen linear layer, and the change of its output that each member has learned.

    A kind registers its parameters on itself, each with a leading member axis, and says here what
    depends on how they are used. What belongs to one member must depend on nothing of the others.

    Args:
        base: The layer to adapt, W0 x + b; shared by all members, not copied.
        ranks: Rank of each member, at least 1.
        scales: Scale of each member's change.
        routing: Which tokens belong to which member.

    Attributes:
        rank_axes: For each parameter that is padded to the largest rank, which of its axes (0 is
            the member axis) is padded; entries beyond a member's rank are zero and stay zero.
        loraplus: Names of the parameters whose learning rate is times a member's
            `loraplus_lr_ratio`.
        supports_fast: Whether `add_delta` and `add_delta_backward` are implemented; a model of
            another kind takes the stock forward.
        sequence_axis: Which axis of a padded input are the sequences.
    """

    rank_axes: ClassVar[Mapping[str, int]] = {}
    loraplus: ClassVar[tuple[str, ...]] = ()
    supports_fast: ClassVar[bool] = False

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], scales: Sequence[float], routing: Routing
    ) -> None:
        super().__init__()
        self.base = base
        self.ranks = tuple(ranks)
        self.scales = tuple(scales)
        self.routing = routing
        self.sequence_axis = 0

    @abstractmethod
    def reset(self, seeds: Sequence[int], name: str, std: float) -> None:
        """Set the parameters to their start: each member's by its seed and this layer's name alone.

        Args:
            seeds: Seed of each member.
            name: Full name of the layer in the encoder.
            std: Standard deviation of what starts at random.
        """

    @abstractmethod
    def delta(self, x: Tensor, y: Tensor, index: int) -> Tensor:
        """Change of the output of one member, `(1, n, O)`, with autograd.

        Args:
            x: `(1, n, I)` the member's input.
            y: `(1, n, O)` the frozen layer's output.
            index: The member.
        """

    @abstractmethod
    def delta_weight(self, index: int) -> Tensor:
        """Change of the weight of one member, `(O, I)`, for merging."""

    @abstractmethod
    def member_tensors(self, index: int) -> dict[str, Tensor]:
        """Views of one member's parameters at its own rank, by the end of PEFT's key.

        The whole key is PEFT's prefix, the layer's name, a dot, and this end, such as
        `lora_A.weight`. They are written to disk, and read back into the same views.
        """

    @classmethod
    @abstractmethod
    def peft_config(cls, member: Member) -> dict[str, Any]:
        """Fields of PEFT's `adapter_config.json` that belong to the kind; `peft_type` is one."""

    def delta_bias(self, index: int) -> Tensor | None:
        """Change of the bias of one member, `(O,)`, for merging; None where there is none."""
        return None

    def combined(self, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Low-rank factors of the sum of the members' weight changes, each times its weight `(M,)`.

        Returns:
            `(O, R)` and `(R, I)`, whose product is the sum.

        Raises:
            InputError: The kind cannot be combined.
        """
        raise InputError(
            f"adapters of the class {type(self).__name__} cannot be combined into one model: choose"
            " another method than soup"
        )

    @torch.no_grad()
    def add_delta(self, out: Tensor, x: Tensor, tokens: Sequence[int]) -> Tensor:
        """Add the members' changes to `out` `(N, O)`, without autograd, for the fast path.

        Args:
            out: `(N, O)` output of the frozen layer, changed in place.
            x: `(N, I)` input.
            tokens: Rows of each member in x.

        Returns:
            What `add_delta_backward` needs beside x.

        Raises:
            NotImplementedError: The kind does not support the fast path.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support the fast path")

    @torch.no_grad()
    def add_delta_backward(
        self, grad: Tensor, x: Tensor, saved: Tensor, tokens: Sequence[int], x_grad: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Gradients of `own_parameters`, in their order, from that of `add_delta`'s `out`.

        Args:
            grad: `(N, O)` gradient of `out`.
            x: `(N, I)` input.
            saved: What `add_delta` returned.
            tokens: Rows of each member in x.
            x_grad: `(N, I)` gradient of x, to which the part of the changes is added; None if it is
                not needed.

        Raises:
            NotImplementedError: The kind does not support the fast path.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support the fast path")

    def own_parameters(self) -> list[nn.Parameter]:
        """The trained parameters `(M, ...)`, in the order in which they were registered; without
        the frozen layer's.
        """
        return list(self.parameters(recurse=False))

    def trainable_parameters(self, index: int) -> int:
        """Trained numbers of one member, at its own rank."""
        return sum(tensor.numel() for tensor in self.member_tensors(index).values())

    def forward(self, x: Tensor) -> Tensor:
        """`(1, N, I)` -> `(1, N, O)`; in a padded forward `(S, L, I)` -> `(S, L, O)`."""
        y: Tensor = self.base(x)
        if self.routing.parts is not None:
            return y + self._padded_delta(x, y, self.routing.parts)
        if len(self.ranks) == 1:
            return y + self.delta(x, y, 0)
        parts = zip(
            torch.split(x, self.routing.tokens, dim=1),
            torch.split(y, self.routing.tokens, dim=1),
            strict=True,
        )
        deltas = [self.delta(x_m, y_m, index) for index, (x_m, y_m) in enumerate(parts)]
        return y + torch.cat(deltas, dim=1)

    def _padded_delta(self, x: Tensor, y: Tensor, parts: Sequence[tuple[int, int]]) -> Tensor:
        """Changes of y, of which each member of `parts` has as many sequences as it says."""
        if len(parts) == 1:
            return self._whole_delta(x, y, parts[0][0])
        counts = [count for _, count in parts]
        members = [member for member, _ in parts]
        split = (torch.split(z, counts, dim=self.sequence_axis) for z in (x, y))
        deltas = [self._whole_delta(*own) for own in zip(*split, members, strict=True)]
        return torch.cat(deltas, dim=self.sequence_axis)

    def _whole_delta(self, x: Tensor, y: Tensor, index: int) -> Tensor:
        """Change of an output of one member alone, whatever its axes before the last."""
        x, out = (z.reshape(1, -1, z.shape[-1]) for z in (x, y))
        return self.delta(x, out, index).reshape(y.shape)

    @torch.no_grad()
    def merged(self, index: int) -> nn.Linear:
        """A new linear layer with one member's change added to weight and bias; this layer is left
        as it is.
        """
        weight = self.base.weight
        bias = self.delta_bias(index)
        if self.base.bias is not None:
            bias = self.base.bias if bias is None else self.base.bias + bias
        layer = nn.Linear(
            in_features=self.base.in_features,
            out_features=self.base.out_features,
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.weight.copy_(weight + self.delta_weight(index))
        if bias is not None:
            layer.bias.copy_(bias)
        return layer


ADAPTERS: Registry[type[Adapter]] = Registry("adapters")
