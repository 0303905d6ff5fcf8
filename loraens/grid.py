"""Members of a population and the grids that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Member:
    """One adapter and its heads, trained with settings of their own.

    Args:
        rank: Rank r of the adapter; 0 where there is none (modes `frozen` and `full`).
        scale: Scale c = alpha / r of the adapter's effect c B A.
        seed: Names the member's initial weights, data order and dropout masks.
        lr: Learning rate.
        weight_decay: Decoupled weight decay (AdamW).
        head_dropout: Dropout before the heads, in [0, 1).
    """

    rank: int
    scale: float
    seed: int = 0
    lr: float = 1e-4
    weight_decay: float = 0.01
    head_dropout: float = 0.3

    def __post_init__(self) -> None:
        if self.rank < 0 or self.scale <= 0 or self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.head_dropout < 1:
            raise ValueError(
                "rank and weight decay of at least 0, positive scale and learning rate and a dropout in [0, 1) "
                f"are expected: {self}"
            )

    @property
    def name(self) -> str:
        """Short name, unique within a grid over rank, scale, seed and learning rate."""
        adapter = f"r{self.rank}-c{self.scale:g}-" if self.rank else ""
        return f"{adapter}s{self.seed}-lr{self.lr:g}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self)


def cross(
    ranks: Sequence[int], scales: Sequence[float], seeds: Sequence[int] = (0,), lrs: Sequence[float] = (1e-4,)
) -> list[Member]:
    """Members of the full grid, the last axis running fastest."""
    return [Member(rank, scale, seed, lr) for rank, scale, seed, lr in product(ranks, scales, seeds, lrs)]
