"""What every ensemble method is given, and what it returns.

Shape letters: M members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loraens.ensemble.pool import Pool
from loraens.errors import InputError

RANGES: dict[str, tuple[float, float]] = {  # of the options; the largest take minutes and GB
    "size": (1, 10**6),
    "max_size": (1, 10**6),
    "pool": (1e-6, 10**6),
    "within": (0, 10**9),
    "bags": (1, 10**4),
    "steps": (1, 10**4),
    "start": (1, 10**6),
    "draws": (1, 10**5),
    "tried": (1, 10**6),
}


@dataclass(frozen=True)
class Options:
    """Options of the methods.

    Args:
        size: Members that `dicor`, `topk` and `random` choose; None for the best of 4 to 11
            by cross-validation on the pool.
        max_size: Most members that they try where `size` is None; None for all of these.
        pool: Members that `dicor` considers: a number from 1 on, a share below 1, or None for half
            of them, at least 11.
        within: Instead of `pool`: those whose score is at most this much below the best one's.
        measure: Similarity of two members, for `dicor`: agreement, cosine, pearson or errors; None
            for the paper's.
        bags: Bags of `greedy`, of half the members each; a single one has all.
        steps: Members that one bag of `greedy` adds at most.
        start: Best members that each bag of `greedy` starts with.
        draws: Draws of the Bayesian bootstrap of `pseudo_bma`.
        tried: Best members that `greedy_soup` tries to merge.
    """

    size: int | None = None
    max_size: int | None = None
    pool: float | None = None
    within: float | None = None
    measure: str | None = None
    bags: int = 8
    steps: int = 16
    start: int = 2
    draws: int = 1000
    tried: int = 11

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                bound = f"at most {most:,}" if value > most else f"at least {least}"
                raise InputError(f"{name} {value}: {bound} is expected", option=name)


Select = Callable[[Pool, Options, np.random.Generator], np.ndarray]


def equal_weights(pool: Pool, members: np.ndarray | list[int]) -> np.ndarray:
    """Weights `(M,)`: equal for some members, zero for the others."""
    weights = np.zeros(len(pool))
    weights[members] = 1 / len(members)
    return weights
