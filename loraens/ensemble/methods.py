"""Ensemble methods by name: which members an ensemble has, and with which weights.

A further method is a function from a pool, options and a random generator to weights `(M,)`,
registered under a name: `METHODS.register("first", Method(first))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loraens.ensemble import select, weighting
from loraens.ensemble.options import Select
from loraens.ensemble.pool import Pool
from loraens.registry import Registry

CONTROLS = ("random", "longest")  # which ensembles are compared with, and which are no advice
REPEATS = 5
BAGS = 100


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        select: From a pool, options and a random generator to weights `(M,)`. It must read the
            pool it is given and nothing else, so that a fold of a cross-validation is a pool of
            its own.
        merges: Whether the members are merged into one model (a soup): this needs the backbone
            and the texts.
        repeats: Repetitions of its cross-validation.
        bags: Bootstrap samples in which its choice is repeated, for the intervals; at least 2. The
            fewer, the wider the interval.
        problem: Says in words why it does not apply to a pool, or None if it does; without it the
            method applies to all.
    """

    select: Select
    merges: bool = False
    repeats: int = REPEATS
    bags: int = BAGS
    problem: Callable[[Pool], str | None] | None = None

    def applies(self, pool: Pool | None) -> bool:
        """Whether it applies to a pool, or, without one, to all."""
        return self.problem is None or (pool is not None and self.problem(pool) is None)


METHODS: Registry[Method] = Registry("methods")
for _name, _select in (
    ("best", select.best),
    ("omni", select.omni),
    ("dicor", select.dicor),
    ("topk", select.topk),
    ("random", select.random),
    ("greedy", select.greedy),
    ("weighted", weighting.weighted),
    ("stacking", weighting.stacking),
    ("bma", weighting.bma),
    ("pseudo_bma", weighting.pseudo_bma),
):
    METHODS.register(_name, Method(_select))
METHODS.register("longest", Method(select.longest, problem=select.without_longest))
METHODS.register("soup", Method(select.omni, merges=True))
# once: a greedy soup runs the backbone for every choice
METHODS.register("greedy_soup", Method(select.greedy_soup, merges=True, repeats=1, bags=10))


def names(merges: bool, pool: Pool | None = None) -> list[str]:
    """Names of the methods that merge members, or of those that do not, as far as they apply to a
    pool, or, without one, to all.
    """
    return [n for n, method in METHODS.items() if method.merges == merges and method.applies(pool)]
