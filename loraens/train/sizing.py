"""How much can be trained in a given time, by what steps were measured to cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loraens.records import Count, Record
from loraens.train.plan import Plan


@dataclass(frozen=True)
class Size(Record):
    """How much is trained.

    Args:
        members: Members.
        epochs: Most epochs of each.
        texts: Training records of each epoch.
    """

    members: Count
    epochs: Count
    texts: Count


def seconds(size: Size, plan: Plan, batch_size: int) -> float:
    """Time of training and evaluation at a size.

    Args:
        size: The size.
        plan: Of members like these on any texts, measured on this machine, none of them trained.
        batch_size: Training records of one member in a batch.
    """
    step = plan.cost.seconds
    # dev and test do not shrink with the training texts
    evaluation = (plan.seconds / plan.member_steps - step) * plan.steps_of_epoch
    steps = math.ceil(size.texts / batch_size)
    return size.members * size.epochs * (steps * step + evaluation)


def largest(
    sizes: Iterable[Size], needed: Callable[[Size], float], limit: float
) -> tuple[Size, float]:
    """The first of some sizes that fits into a time, and the time that it takes; the last one where
    none does.

    Args:
        sizes: The most wanted first.
        needed: Seconds that a size takes.
        limit: Seconds that there are.
    """
    for size in sizes:
        if needed(size) <= limit:
            break
    return size, needed(size)
