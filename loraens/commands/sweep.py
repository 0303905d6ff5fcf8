"""The command line of `loraens sweep`."""

from __future__ import annotations

import math
import sys

from lightning.pytorch.cli import LightningArgumentParser

from loraens.commands.fit import CLI_OPTIONS, Cli
from loraens.errors import say
from loraens.members import Grid
from loraens.records import Manifest
from loraens.train.config import SweepConfig
from loraens.train.coordinator import Coordinator
from loraens.train.options import SweepOptions
from loraens.train.plan import Plan
from loraens.train.runs import quiet


class SweepCli(Cli):
    """`fit`'s settings, and a grid; they are parsed, and the coordinator makes what they name."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the grid and how its members are trained together."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Grid, "grid", sub_configs=True, fail_untyped=False)
        parser.add_class_arguments(SweepOptions, "sweep")
        parser.add_argument(
            "--dry-run", action="store_true", help="Print the plan, and train nothing."
        )

    def _parse_ckpt_path(self) -> None:
        """There is none: a sweep knows where it was."""

    def instantiate_classes(self) -> None:
        """There are none."""

    def sweep_config(self) -> SweepConfig:
        """The settings, as config.yaml will contain them.

        Raises:
            InputError: A setting does not fit a sweep.
        """
        return SweepConfig.from_yaml(self.parser.dump(self.config, skip_none=False))


def plan_text(plan: Plan) -> str:
    """A plan in words: members, packs, steps, and the time and memory of it."""
    cost = plan.cost
    mib = 2**20
    steps = " or ".join(f"{plan.steps_of_epoch * epochs:,}" for epochs in plan.epochs)
    epochs = " or ".join(map(str, plan.epochs))
    each = together = ""
    if plan.workers.threads is not None:
        each = f" each, with {plan.workers.in_words}"
        together = f"; {plan.total_bytes / mib:,.0f} MiB for all packs at a time"
    kinds = [
        f"  {kind}: {left} members left, {1 / of_kind.seconds:.1f} member-steps a second,"
        f" {of_kind.total_bytes / mib:,.0f} MiB for a pack"
        for kind, left, of_kind in plan.kinds
    ]
    return "\n".join(
        [
            f"{plan.count}, of which {plan.ended} have ended",
            f"{plan.packs} packs of at most {plan.pack_size} members",
            (
                f"{steps} steps a member ({epochs} epochs of"
                f" {plan.steps_of_epoch:,}), {plan.member_steps:,} member-steps"
            ),
            (
                f"{_duration(plan.seconds)} at {1 / cost.seconds:.1f} member-steps a second{each},"
                " if nothing stops early"
            ),
            (
                f"{cost.total_bytes / mib:,.0f} MiB for a pack: {cost.member_bytes / mib:,.0f} a"
                f" member at the longest texts, {cost.backbone_bytes / mib:,.0f} for the backbone"
                f"{together}"
            ),
            *(kinds if len(kinds) > 1 else ()),
        ]
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"about {minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"about {max(1, minutes)} min"
    )


def print_table(manifests: dict[str, Manifest]) -> None:
    """Print the members, the best dev score first; with folds, configurations by their
    out-of-fold score.
    """
    from rich.table import Table

    from loraens.report.terminal import show

    tasks = next(iter(manifests.values())).settings.tasks
    units: dict[str, list[Manifest]] = {}
    for manifest in manifests.values():
        units.setdefault(manifest.member.configuration, []).append(manifest)
    folds = max(map(len, units.values()))
    kind = "member" if folds == 1 else "configuration"
    title = "Members by dev score of their best epoch"
    caption = "The best epoch was chosen on dev."
    if folds > 1:
        title = f"Configurations of {folds} folds by out-of-fold score of their best epoch"
        caption = "The best epoch was chosen on these scores."
    table = Table(title=title, caption=caption)
    metrics = [f"{task.name} {task.metric}" for task in tasks]
    for column in (kind, "rank", "scale", *metrics, "epoch", "status"):
        left = column in (kind, "status")
        table.add_column(column, justify="left" if left else "right")

    def scores(manifest: Manifest) -> list[float]:
        values = [manifest.score(task) for task in tasks]
        return [math.nan if value is None else value for value in values]

    def utility(manifest: Manifest) -> float:
        pairs = zip(tasks, scores(manifest), strict=True)
        total = sum(task.utility(score) for task, score in pairs)
        return -math.inf if math.isnan(total) else total

    shown = map(_representative, units.values())
    for manifest in sorted(shown, key=utility, reverse=True):
        member = manifest.member
        ended = "" if manifest.ended is None else f" ({manifest.ended})"
        if folds > 1 and manifest.status == "failed":
            ended = f" (fold {member.fold}, {manifest.ended})"
        epoch = manifest.epochs.get("best", "").removeprefix("epoch-").lstrip("0")
        cells = [f"{score:.4f}" for score in scores(manifest)]
        cells = [member.configuration, f"{member.rank}", f"{member.scale:g}", *cells, epoch]
        table.add_row(*cells, manifest.status + ended)
    show(table)


def _representative(unit: list[Manifest]) -> Manifest:
    """The manifest that says most of a configuration: of the fold that failed, if one did; their
    scores are the same.
    """
    return next((manifest for manifest in unit if manifest.status == "failed"), unit[0])


def parsed(args: list[str]) -> SweepCli:
    """The settings that the options are."""
    quiet()
    sys.argv = [sys.argv[0], *args]
    return SweepCli(
        **CLI_OPTIONS,
        save_config_callback=None,
        parser_kwargs={"prog": "loraens sweep", "exit_on_error": False},
        run=False,
    )


def main(args: list[str]) -> None:
    """Run `sweep` with its options."""
    cli = parsed(args)
    sweep = Coordinator(cli.sweep_config())
    if cli.config.dry_run:
        say(plan_text(sweep.plan()))
        return
    print_table(sweep.run())
    say(f"the members are in {sweep.directory}")
