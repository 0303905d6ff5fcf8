"""A default sweep: its sizes and its members."""

from __future__ import annotations

from collections.abc import Iterator

from loraens.members import Member
from loraens.train.sizing import Size

SIZES = (  # members, epochs; patience stops members that do not get better
    *((16, 10), (16, 8), (12, 8), (12, 6), (8, 6), (8, 5), (6, 5), (6, 4)),
    *((4, 4), (4, 3), (3, 3), (3, 2), (2, 2)),
)
FEWER = ((4, 3), (2, 3), (2, 2), (2, 1))  # of a part of the texts
LEAST = 64  # training texts of a part
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SCALE = 3.0  # the paper's best
RANGE_RANK = 8


def sizes(texts: int) -> Iterator[Size]:
    """Sizes of a sweep, the most wanted first.

    Args:
        texts: Training records that there are.
    """
    yield from (Size(members, epochs, texts) for members, epochs in SIZES)
    part = texts // 2
    while part >= LEAST:
        yield from (Size(members, epochs, part) for members, epochs in FEWER)
        part //= 2
    yield Size(2, 1, min(texts, LEAST))


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
