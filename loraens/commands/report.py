"""`loraens report`: one page, and pictures, of the members and ensembles of one or more tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loraens import __version__
from loraens.commands.parser import ALLOW, BACKBONE_HELP, UNFINISHED, Parser
from loraens.data.imports import allow
from loraens.errors import say
from loraens.records import Epoch
from loraens.train.account import check_wandb, ensembles_run


def log(pictures: Mapping[str, Path], first: Path) -> None:
    """The pictures, as images of the ensembles' W&B run."""
    import wandb

    with wandb.init(**ensembles_run(first, first)) as run:
        run.log({f"report/{name}": wandb.Image(str(path)) for name, path in pictures.items()})


def main(args: list[str]) -> None:
    """Run `report` with the options of the command line."""
    parser = Parser("report", __doc__)
    parser.add_argument(
        "--runs",
        nargs="+",
        type=str,
        required=True,
        help="Directories of runs or sweeps, ensembles included.",
    )
    parser.add_argument(
        "--task", nargs="+", type=str, default=None, help="Names of tasks; all by default."
    )
    epoch = "Epoch of each member; that of the ensembles by default."
    parser.add_argument("--epoch", type=Epoch | None, default=None, help=epoch)
    parser.add_argument(
        "--out", type=str | None, default=None, help="Directory of the page; RUN/report by default."
    )
    parser.add_argument(
        "--texts", type=bool, default=True, help="Whether to show texts and maps of embeddings."
    )
    parser.add_argument(
        "--logger", type=bool, default=True, help="Whether to log the pictures to W&B."
    )
    parser.add_argument("--backbone", type=str | None, default=None, help=BACKBONE_HELP)
    parser.add_argument("--unfinished", action="store_true", help=UNFINISHED)
    parser.add_argument("--allow", nargs="+", type=str, default=[], help=ALLOW)
    given = parser.parse_args(args)
    allow(given.allow)
    if given.logger:
        check_wandb()
    from loraens.report.build import write_report  # its figures take seconds to import

    out = Path(given.runs[0]) / "report" if given.out is None else Path(given.out)
    report = write_report(
        runs=[Path(path) for path in given.runs],
        out=out,
        tasks=given.task,
        epoch=given.epoch,
        texts=given.texts,
        version=__version__,
        backbone=given.backbone,
        unfinished=given.unfinished,
    )
    for sentence in report.verdicts:
        say(sentence)
    if given.logger:
        log(report.pictures, Path(given.runs[0]))
    say(f"the report is {report.path}, with {len(report.pictures)} pictures beside it")
