"""AdamW for parameters with a leading member axis: each member has its own rate, decay and
clipping.

On a GPU one kernel takes the step of all parameters, and another the squares of all gradients:
PyTorch's own operators on lists of tensors are fast only without a rate of each member's own.

Shape letters: M members, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from loraens.model import kernels

BETAS = (0.9, 0.999)
EPS = 1e-8
_PARTS = 8  # of a parameter, whose squares are summed side by side


class MemberAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019), with a learning rate and a weight decay of each member,
    and another rate of some parameters (LoRA+, Hayou et al. 2024).

    A group's `lr`, which schedulers change, is a factor of the members' rates; it is 1 at the
    start.

    Args:
        params: Parameters of shape `(M, ...)`; with one member any shape will do.
        rates: Learning rate of each member.
        decays: Weight decay of each member.
        ratios: Rate of each member's `faster` parameters by that of its others; 1 by default.
        faster: Those of `params` that have another rate.

    Attributes:
        rates: `(2, M)` of the other parameters, and of the faster ones.
        decays: `(M,)`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        rates: Sequence[float],
        decays: Sequence[float],
        ratios: Sequence[float] | None = None,
        faster: Collection[Tensor] = (),
    ) -> None:
        super().__init__(params, {"lr": 1.0})
        first: Tensor = self.param_groups[0]["params"][0]
        factors = first.new_tensor([[1.0] * len(rates), ratios or [1.0] * len(rates)])
        self.rates = factors * first.new_tensor(rates)
        self.decays = first.new_tensor(decays)
        self._faster = frozenset(map(id, faster))
        self.active: Tensor | None = None  # (M,) members that move; all, if None
        self.factor: Tensor | None = None  # (M,) of the gradients, of the kernel alone; 1, if None

    @property
    def fused(self) -> bool:
        """Whether a kernel takes the steps, which scales the gradients on the way."""
        return is_fused(self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every member that is active; the gradients of the others must be zero, and
        they stay where they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self._next_state(parameter) for parameter in parameters]
            if self.fused:
                self._update_all(parameters, states, group["lr"])
                continue
            for parameter, state in zip(parameters, states, strict=True):
                self._update(parameter, state, group["lr"])
        return loss

    def _next_state(self, parameter: Tensor) -> dict[str, Any]:
        """Moments of a parameter, zero before its first step, and the number of the step."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state.update(
                step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
            )
        state["step"] += 1
        return state

    def _update_all(
        self, parameters: list[Tensor], states: list[dict[str, Any]], lr: float
    ) -> None:
        """`_update` of all parameters by one kernel."""
        from loraens.model.kernels import operators

        ones = torch.ones_like(self.decays)
        corrections: list[float] = []
        for state in states:
            first, second = (1 - beta ** state["step"] for beta in BETAS)
            corrections += [first, second**0.5]
        operators.adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            corrections,
            [self._row(parameter) for parameter in parameters],
            self.rates * lr,
            self.decays,
            ones if self.factor is None else self.factor,
            ones > 0 if self.active is None else self.active,
            *BETAS,
            EPS,
        )

    def _row(self, parameter: Tensor) -> int:
        """The row of `rates` that a parameter has."""
        return int(id(parameter) in self._faster)

    def _update(self, parameter: Tensor, state: dict[str, Any], lr: float) -> None:
        members = len(self.decays)
        assert parameter.grad is not None
        grad = parameter.grad.view(members, -1)
        rates = self.rates[self._row(parameter), :, None] * lr
        if self.active is not None:
            rates = torch.where(self.active[:, None], rates, 0.0)
        first = state["exp_avg"].view(members, -1)
        second = state["exp_avg_sq"].view(members, -1)
        first.lerp_(grad, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        corrections = [1 - beta ** state["step"] for beta in BETAS]
        change = second.sqrt().div_(corrections[1] ** 0.5).add_(EPS)
        torch.div(first, change, out=change).mul_(rates / corrections[0])
        parameter.view(members, -1).mul_(1 - rates * self.decays[:, None]).sub_(change)


def is_fused(parameters: Sequence[Tensor]) -> bool:
    """Whether kernels read and change the parameters, all of which are of one device."""
    of_kernels = all(p.dtype is torch.float32 and p.is_contiguous() for p in parameters)
    return of_kernels and kernels.usable(parameters[0].device, torch.float32)


def gradient_norms(parameters: Sequence[Tensor], members: int) -> Tensor:
    """Norm of all gradients of each member together, `(M,)`."""
    if is_fused(parameters):
        from loraens.model.kernels import operators

        of_all = [p.grad for p in parameters if p.grad is not None]
        sums = of_all[0].new_empty(len(of_all), _PARTS, members)
        operators.gradient_squares(of_all, sums)
        return sums.sum((0, 1)).sqrt()
    grads = [p.grad.view(members, -1) for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in grads])
    total: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return total


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor, active: Tensor) -> None:
    """Multiply each member's gradients by its factor `(M,)`; those of a member that is not active
    become zero, NaN too.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            grad = parameter.grad.view(len(active), -1)
            grad.copy_(torch.where(active[:, None], grad * factor[:, None], 0.0))
