"""What is kept at a halving, where it is decided by an ensemble of all members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraens.ensemble.read import read_runs
from loraens.ensemble.select import forward_order
from loraens.train.evaluation import combined_score
from loraens.train.packs import Standing


def ranked_by_ensemble(standings: Sequence[Standing], directory: Path) -> list[Standing]:
    """The members of a rung in the order in which forward selection adds them to an ensemble, on
    the logits of their last epoch: of dev, or, with folds, the configurations' out of fold.

    So a member that repeats what those before it predict is far down, good as it may be alone.

    Args:
        standings: Of members that have a score; of all folds of their configurations.
        directory: The sweep's directory.

    Raises:
        InputError: A member's file is missing or altered.
    """
    if not standings:
        return []
    units: dict[str, list[Standing]] = {}  # without folds one member each
    for standing in standings:
        units.setdefault(standing.member.configuration, []).append(standing)
    stores = [directory / standing.member.name for standing in standings]
    pools = [members.dev for members in read_runs(stores, epoch="last").values()]
    tasks = [pool.task for pool in pools]

    def combined(utilities: Sequence[float]) -> float:
        pairs = zip(tasks, utilities, strict=True)
        return combined_score(tasks, {task.name: task.utility(value) for task, value in pairs})

    names = pools[0].names
    return [
        standing for index in forward_order(pools, combined) for standing in units[names[index]]
    ]
