"""Ensembles of runs: chosen, proved and written, with the recommended one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loraens.api.proofs import candidates, check_refit, prove_members
from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.options import Options
from loraens.ensemble.read import PoolMembers, read_runs
from loraens.ensemble.recommend import (
    Goal,
    Recommendation,
    check_bound,
    check_goal,
    write_recommended,
)
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.table import TABLE
from loraens.errors import say
from loraens.files import write_atomically
from loraens.records import Epoch
from loraens.report import ensembles as tables


def write_ensembles(
    runs: Sequence[Path],
    methods: Sequence[str],
    rules: Sequence[str] | None,
    epoch: Epoch,
    folder: Path,
    tasks: Sequence[str] | None = None,
    options: Options = Options(),  # noqa: B008
    max_members: int | None = None,
    goal: Goal = "score",
    refit: bool = False,
    unfinished: bool = False,
    on_task: Callable[[Sequence[EnsembleRecord], str], None] | None = None,
    report: Callable[[str], None] = say,
    backbone: str | None = None,
) -> tuple[list[EnsembleRecord], dict[str, Recommendation]]:
    """Choose, prove and write ensembles of each task, and which of them are recommended.

    Args:
        runs: Directories of runs, sweeps or members.
        methods: Names of methods.
        rules: Combination rules; all that apply by default.
        epoch: Epoch of each member.
        folder: Where the ensembles go.
        tasks: Names of tasks; all by default.
        options: Options of the methods.
        max_members: Most members that run for what is recommended.
        goal: What is recommended.
        refit: Whether what is recommended is trained once more, on all labelled texts.
        unfinished: Whether to choose among members whose training has not ended, too.
        on_task: Is given each task's ensembles and the name of the recommended one as soon as they
            are there.
        report: Is told of members that are left out.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.

    Returns:
        The records of all ensembles, and the recommendations by task.
    """
    records: list[EnsembleRecord] = []
    recommended: dict[str, Recommendation] = {}
    pools = read_runs(runs, tasks, epoch, report, backbone=backbone, unfinished=unfinished)
    chosen = _chosen(pools, methods, rules, options, max_members, goal)
    for members in pools.values() if refit else ():
        check_refit(members)
    for name, members in pools.items():
        proofs = prove_members(members, chosen[name], _bar)
        best, recommendation = proofs.recommended(max_members, goal)
        of_task = []
        for ensemble in proofs.ensembles:
            of_task.append(EnsembleRecord.read(ensemble.save(folder / ensemble.name)))
        if on_task is not None:
            on_task(of_task, recommendation.ensemble)
        records += of_task
        if refit:
            again = best.refit()
            again.save(folder / again.name)
            recommendation = recommendation.of_refit(again.name, len(again.members.units))
        recommended[proofs.task.name] = recommendation
    write_atomically(folder / "ensembles.csv", tables.to_csv(records).encode())
    entries = [record.to_json() for record in records]
    write_atomically(folder / TABLE, (json.dumps(entries, indent=2) + "\n").encode())
    write_recommended(folder, recommended)
    return records, recommended


def _chosen(
    pools: Mapping[str, PoolMembers],
    methods: Sequence[str],
    rules: Sequence[str] | None,
    options: Options,
    max_members: int | None,
    goal: str,
) -> dict[str, list[Candidate]]:
    """The candidates of each task, all refused before any is proved."""
    if goal == "calibration":  # by every rule: what is compared with has no probabilities by vote
        methods = ["best", *methods]
    chosen: dict[str, list[Candidate]] = {}
    for name, members in pools.items():
        check_bound(max_members, members.folds)
        bounded = options
        if max_members is not None:
            bounded = replace(options, max_size=max_members // members.folds)
        chosen[name] = candidates(members.dev.task, methods, rules, bounded, members.dev)
        check_goal(goal, members.dev.task, chosen[name])
    return chosen


def _bar(description: str, total: int) -> Callable[[], Any]:
    bar = tqdm(desc=description, total=total or None, unit="", disable=None, leave=False)
    update: Callable[[], Any] = bar.update
    return update
