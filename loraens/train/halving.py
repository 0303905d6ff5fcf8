"""Which members of a rung continue, by their own scores or by an ensemble of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from loraens.ensemble.read import read_runs
from loraens.ensemble.select import forward_order
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.evaluation import combined_score
from loraens.train.options import SweepOptions
from loraens.train.packs import FOLD_FAILED, Standing, beside_failed_folds, ranked


def halved(
    checkpoints: Sequence[PackCheckpoint],
    options: SweepOptions,
    folds: int | None,
    directory: Path,
) -> tuple[list[Standing], dict[str, str]]:
    """Decide which members continue.

    Args:
        checkpoints: Of the rung's packs.
        options: How many continue, and what decides.
        folds: Members of each configuration; None without folds.
        directory: The sweep's directory.

    Returns:
        The members that continue, and for each other one that has not failed, by name, why it is
        stopped.

    Raises:
        InputError: A member's file is missing or altered.
    """
    assert options.halving_factor is not None
    standings = ranked(checkpoints)
    criterion = "dev score" if folds is None else "out-of-fold score"
    if options.halving_by == "ensemble":
        standings = ranked_by_ensemble(standings, directory)
        criterion = "forward selection " + ("on dev" if folds is None else "out of fold")
    unit = folds or 1
    units = len(standings) // unit
    kept = math.ceil(units / options.halving_factor) * unit
    stopped = {
        standing.member.name: f"number {number // unit + 1} of {units} by {criterion}"
        for number, standing in enumerate(standings[kept:], kept)
    }
    stopped |= dict.fromkeys(beside_failed_folds(checkpoints), FOLD_FAILED)
    return standings[:kept], stopped


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
    read = read_runs(stores, epoch="last", unfinished=True, report=lambda sentence: None)
    pools = [members.dev for members in read.values()]
    tasks = [pool.task for pool in pools]

    def combined(utilities: Sequence[float]) -> float:
        pairs = zip(tasks, utilities, strict=True)
        return combined_score(tasks, {task.name: task.utility(value) for task, value in pairs})

    names = pools[0].names
    return [
        standing for index in forward_order(pools, combined) for standing in units[names[index]]
    ]
