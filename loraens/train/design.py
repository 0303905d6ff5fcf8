"""A default sweep that fits into a given time, by what steps were measured to cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from loraens.members import Member
from loraens.records import Count, Record
from loraens.train.plan import Plan

SIZES = (  # members, epochs; patience stops members that do not get better
    *((16, 10), (16, 8), (12, 8), (12, 6), (8, 6), (8, 5), (6, 5), (6, 4)),
    *((4, 4), (4, 3), (3, 3), (3, 2), (2, 2)),
)
FEWER = ((4, 3), (2, 3), (2, 2), (2, 1))  # of a part of the texts
LEAST = 64  # training texts of a part
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SCALE = 3.0  # the paper's best
RANGE_RANK = 8


@dataclass(frozen=True)
class Size(Record):
    """How much is trained.

    Args:
        members: Members.
        epochs: Most epochs of each.
        texts: Training records of each epoch.
        seconds: Of all, if nothing stops early.
    """

    members: Count
    epochs: Count
    texts: Count
    seconds: float


def seconds_of(plan: Plan, members: int, epochs: int, texts: int, batch_size: int) -> float:
    """Time of training and evaluation.

    Args:
        plan: Of members like these on all texts, measured on this machine, none of them trained.
        members: Members.
        epochs: Epochs of each.
        texts: Training records of each epoch.
        batch_size: Training records of one member in a batch.
    """
    step = plan.cost.seconds
    # dev and test do not shrink with the training texts
    evaluation = (plan.seconds / plan.member_steps - step) * plan.steps_of_epoch
    return members * epochs * (math.ceil(texts / batch_size) * step + evaluation)


def largest(plan: Plan, texts: int, batch_size: int, limit: float) -> Size:
    """The first of the sizes that fits into a time; the last one where none does.

    Args:
        plan: As in `seconds_of`.
        texts: Training records that there are.
        batch_size: Training records of one member in a batch.
        limit: Seconds.
    """
    for members, epochs, part in _sizes(texts):
        needed = seconds_of(plan, members, epochs, part, batch_size)
        size = Size(members, epochs, part, needed)
        if needed <= limit:
            break
    return size


def _sizes(texts: int) -> Iterator[tuple[int, int, int]]:
    """Members, epochs and texts, the most wanted first."""
    yield from ((members, epochs, texts) for members, epochs in SIZES)
    part = texts // 2
    while part >= LEAST:
        yield from ((members, epochs, part) for members, epochs in FEWER)
        part //= 2
    yield 2, 1, min(texts, LEAST)


def rate_members() -> list[Member]:
    """Members of a range test: they differ in the learning rate alone."""
    return [Member(rank=RANGE_RANK, scale=SCALE, lr=rate) for rate in RATES]


def default_members(lr: float, count: int) -> list[Member]:
    """Members that differ in rank, learning rate and seed; the first few of them are a pool, too.

    Args:
        lr: The best rate of a range test.
        count: How many, at most 16.
    """
    settings = [(8, lr), (16, lr / 2), (8, lr / 2), (16, lr)]
    return [
        Member(rank=rank, scale=SCALE, lr=float(f"{rate:.3g}"), seed=seed)
        for seed in range(4)
        for rank, rate in settings
    ][:count]
