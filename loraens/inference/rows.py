"""Predictions as rows of named cells.

Shape letters: M members, N texts, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraens.data.tables import Row
from loraens.ensemble.conformal import Region
from loraens.ensemble.pool import Pool
from loraens.inference.combination import Combination
from loraens.tasks import Task

MEMBERS = "members"


def column_names(task: Task, ensemble: bool, region: Region | None) -> list[str]:
    """Names of the columns that predictions have.

    Args:
        task: The task.
        ensemble: Whether members are combined, which then disagree.
        region: The rule of prediction sets or intervals.
    """
    columns = ["prediction", *(f"probability_{name}" for name in task.class_names)]
    if ensemble:
        columns += task.label_kind.uncertainties
    if region is not None:
        columns += task.label_kind.regions
    return columns


def rows_of(
    pool: Pool,
    combination: Combination,
    ensemble: bool,
    region: Region | None = None,
    members: bool = False,
    kept: Sequence[str] | None = None,
) -> list[Row]:
    """One row a text.

    Args:
        pool: The members' logits of N texts.
        combination: How they are combined.
        ensemble: As of `column_names`.
        region: The rule of prediction sets or intervals; none by default.
        members: Whether rows have a column `members`, a list of each member's prediction.
        kept: Names of the columns that rows have; all by default.
    """
    task = pool.task
    outcome = combination.outcome(pool)
    numbers = [] if outcome.probabilities is None else list(outcome.probabilities.T)
    if ensemble:
        uncertainty = task.label_kind.uncertainty(
            predictions=pool.predictions,
            probabilities=pool.probabilities,
            weights=combination.weights,
            outcome=outcome,
        )
        numbers += uncertainty.values()
    cells: list[list[Any]] = [[task.format_label(value) for value in outcome.predictions]]
    cells += [[round(value, 6) for value in column.tolist()] for column in numbers]
    if region is not None:
        radius = region.radius(combination.spread(pool))
        cells += task.label_kind.region(task, outcome, radius)
    columns = dict(zip(column_names(task, ensemble, region), cells, strict=True))
    if kept is not None:
        columns = {name: columns[name] for name in kept}
    if members:  # (M, N), or (M, N, K) where examples have several labels
        each = pool.predictions.swapaxes(0, 1)
        columns[MEMBERS] = [[task.format_label(value) for value in of_text] for of_text in each]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
