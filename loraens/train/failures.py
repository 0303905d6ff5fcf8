"""Members whose numbers stopped being finite: when and why; the others stay active.

Shape letters: M members.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from loraens.errors import InputError

LOOK_EVERY = 20  # steps between looks at a GPU's memory


class PopulationError(InputError):
    """No member of a population is active any more: the numbers of each became NaN or infinite."""


class Failures(nn.Module):
    """Which members failed; it is part of the checkpoint, and is on the members' device.

    Args:
        members: M.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        self.step: Tensor  # (M,) step at which a member failed; -1 where it has not
        self.loss: Tensor  # (M,) its loss then
        self.register_buffer("step", torch.full((members,), -1))
        self.register_buffer("loss", torch.zeros(members))

    @property
    def active(self) -> Tensor:
        """`(M,)` active members: those that did not fail."""
        return self.step < 0

    def note(
        self, finite: Tensor, step: int, losses: Tensor | None = None, look: bool = False
    ) -> None:
        """Mark members that are not finite, the first time.

        Args:
            finite: `(M,)`.
            step: Number of the training step.
            losses: `(M,)` losses of the step, where those are what was looked at.
            look: Whether to see if any member is left; on a GPU that is otherwise done every 20
                steps.

        Raises:
            PopulationError: No member is left.
        """
        new = ~finite & self.active
        if losses is not None:
            self.loss.copy_(torch.where(new, losses.detach().to(self.loss.dtype), self.loss))
        self.step.copy_(torch.where(new, step, self.step))
        look = look or self.step.device.type == "cpu" or step % LOOK_EVERY == 0
        if look and (first := self.of(0)) is not None and not bool(self.active.any()):
            raise PopulationError(f"{first[1]} at step {first[0]}: choose a lower lr or scale")

    def of(self, index: int) -> tuple[int, str] | None:
        """Step and reason of a member's failure, if it failed."""
        step = int(self.step[index])
        loss = float(self.loss[index])
        if step < 0:
            return None
        return step, (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else "a gradient or logit is not finite"
        )
