"""`loraens ensemble`: choose members, combine them, and prove what that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loraens.api.ensembles import write_ensembles
from loraens.commands.parser import ALLOW, BACKBONE_HELP, UNFINISHED, Parser
from loraens.data.imports import allow
from loraens.ensemble.methods import names
from loraens.ensemble.options import Options
from loraens.ensemble.recommend import RECOMMENDED, Goal, Recommendation
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import say
from loraens.records import Epoch
from loraens.report import ensembles as tables
from loraens.report.terminal import show
from loraens.train.account import check_wandb, ensembles_run

METHOD_HELP = (
    f"all, or some of {', '.join(names(merges=False))}; longest for the best of the members trained"
    " for the most epochs, which all has where these numbers differ; soup for soup (all members"
    " merged into one model) and greedy_soup, which need the backbone and the texts, and which all"
    " leaves out."
)

GOAL_HELP = (
    "The recommended ensemble is the cheapest within one standard error of the best score (score)"
    " or of the best NLL at fitted temperatures (calibration), or that is not shown to be worse"
    " than the best score: the 95 % interval of the difference has zero (cost)."
)


def run(
    runs: Sequence[str],
    methods: Sequence[str],
    rules: Sequence[str] | None,
    tasks: Sequence[str] | None,
    epoch: Epoch,
    options: Options,
    out: Path | None,
    logged: bool = False,
    max_members: int | None = None,
    goal: Goal = "score",
    refit: bool = False,
    backbone: str | None = None,
    unfinished: bool = False,
) -> list[EnsembleRecord]:
    """Choose, prove and write ensembles of each task, print their tables, and recommend one of
    each; returns them.
    """
    folder = out or Path(runs[0]) / "ensembles"
    records, recommended = write_ensembles(
        runs=[Path(path) for path in runs],
        methods=methods,
        rules=rules,
        tasks=tasks,
        epoch=epoch,
        options=options,
        folder=folder,
        max_members=max_members,
        goal=goal,
        refit=refit,
        unfinished=unfinished,
        on_task=print_tables,
        backbone=backbone,
    )
    for sentence in tables.overall_sentences(records):
        say(sentence)
    if logged:
        log(records, recommended, folder, Path(runs[0]))
    say(f"the ensembles are in {folder}")
    for one in recommended.values():
        say(one.sentence)
    say(f"to predict with it: loraens predict --model {folder / RECOMMENDED} --input FILE")
    return records


def print_tables(records: Sequence[EnsembleRecord], recommended: str) -> None:
    """Print scores, calibration and diversity of one task's ensembles; the recommended one is
    marked.
    """
    show(tables.score_table(records, recommended), keys=2)
    if (calibration := tables.calibration_table(records)) is not None:
        show(calibration, keys=2)
    if (diversity := tables.diversity_table(records)) is not None:
        show(diversity)


def log(
    records: Sequence[EnsembleRecord],
    recommended: Mapping[str, Recommendation],
    folder: Path,
    first: Path,
) -> None:
    """A W&B run of job type `ensemble` in the group of the first sweep, with the table and what is
    recommended.
    """
    import wandb

    task_names = "-".join(dict.fromkeys(record.task.name for record in records))
    config = {"task": task_names, **asdict(records[0].options)}
    rows = [tables.row(record) for record in records]
    with wandb.init(**ensembles_run(first, folder), config=config) as run:
        run.log({"ensembles": wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
        for task, one in recommended.items():
            run.summary.update(
                {
                    f"{task}/recommended": one.ensemble,
                    f"{task}/recommended/estimate": one.estimate.value,
                    f"{task}/recommended/gain": one.gain.value,
                    f"{task}/recommended/goal": one.goal,
                }
            )
            if one.nll is not None:
                run.summary.update({f"{task}/recommended/nll": one.nll.value})
        for record in records:
            name = f"{record.task.name}/{record.method}/{record.rule}"
            run.summary.update(
                {f"{name}/held_out": record.interval.value, f"{name}/to_best": record.to_best.value}
            )


def main(args: list[str]) -> None:
    """Run `ensemble` with the options of the command line."""
    parser = Parser("ensemble", __doc__)
    several: dict[str, Any] = {"nargs": "+", "type": str}
    text = str | None
    parser.add_argument(
        "--runs", **several, required=True, help="Directories of runs, sweeps or members."
    )
    parser.add_argument("--method", **several, default=["all"], help=METHOD_HELP)
    parser.add_argument(
        "--rule", **several, default=None, help="vote, logits or probs; all that apply by default."
    )
    parser.add_argument("--task", **several, default=None, help="Names of tasks; all by default.")
    parser.add_argument("--epoch", type=Epoch, default="best", help="Epoch of each member.")
    parser.add_argument(
        "--out", type=text, default=None, help="Where ensembles go; RUN/ensembles by default."
    )
    parser.add_argument("--logger", type=bool, default=True, help="Whether to log a W&B run.")
    parser.add_argument(
        "--max_members",
        type=int | None,
        default=None,
        help="Most models that run for the recommended ensemble; larger sizes are not tried.",
    )
    parser.add_argument("--goal", type=Goal, default="score", help=GOAL_HELP)
    parser.add_argument(
        "--refit",
        type=bool,
        default=False,
        help="Train the recommended configurations once more, on all labelled texts of a sweep with"
        " folds: one member each in place of one a fold.",
    )
    parser.add_argument("--backbone", type=text, default=None, help=BACKBONE_HELP)
    parser.add_argument("--unfinished", action="store_true", help=UNFINISHED)
    parser.add_class_arguments(Options, skip={"max_size"})
    parser.add_argument("--allow", **several, default=[], help=ALLOW)
    given = parser.parse_args(args)
    if given.logger:
        check_wandb()
    allow(given.allow)
    run(
        runs=given.runs,
        methods=given.method,
        rules=given.rule,
        tasks=given.task,
        epoch=given.epoch,
        options=Options(**{name: given[name] for name in asdict(Options()) if name in given}),
        out=None if given.out is None else Path(given.out),
        logged=given.logger,
        max_members=given.max_members,
        goal=given.goal,
        refit=given.refit,
        backbone=given.backbone,
        unfinished=given.unfinished,
    )
