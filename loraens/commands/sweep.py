"""The command line of `loraens sweep`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from loraens.commands.fit import Cli, LoraModule
from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import Grid, packs
from loraens.store import write_atomically
from loraens.tasks import LOWER_IS_BETTER
from loraens.train.cost import measure
from loraens.train.module import Population
from loraens.train.packs import TRAINER, Options, Setup
from loraens.train.runs import TRAINER_DEFAULTS, quiet, quiet_trainers
from loraens.train.sweep import Sweep
from loraens.train.tracking import check_logger

_FIXED: dict[str, Any] = {
    "max_steps": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "check_val_every_n_epoch": 1,
}
_FIXED |= {
    "val_check_interval": None,
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "limit_val_batches": None,
}


class SweepCli(Cli):
    """`fit`'s settings, and a grid."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the grid and how its members are trained together."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Grid, "grid", sub_configs=True, fail_untyped=False)
        parser.add_class_arguments(Options, "sweep")
        parser.add_argument(
            "--dry-run", action="store_true", help="Print the plan, and train nothing."
        )

    def _parse_ckpt_path(self) -> None:
        """There is none: a sweep knows where it was."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Trainers are made pack by pack."""

    def pack_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer of one pack."""
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = [*(given if isinstance(given, list) else [given]), *kwargs.pop("callbacks", [])]
        trainer: Trainer = LightningCLI.instantiate_trainer(
            self, **TRAINER, callbacks=callbacks, **kwargs
        )
        return trainer

    def setup_of_packs(self) -> Setup:
        """What the sweep needs, from the settings.

        Raises:
            InputError: A setting does not fit a sweep.
        """
        module = self.model
        data = self.datamodule
        trainer = self._get(self.config_init, "trainer")
        assert isinstance(module, Population)
        assert isinstance(data, TextData)
        if module.options["mode"] != "lora":
            raise InputError(
                f"--model.mode {module.options['mode']}: a sweep trains LoRA members, use `loraens"
                " fit`"
            )
        for name, value in _FIXED.items():
            if trainer.get(name) not in (value, None):
                raise InputError(
                    f"--trainer.{name} {trainer[name]}: a sweep trains whole epochs, leave it out"
                )
        if not trainer.max_epochs or trainer.max_epochs < 1:
            raise InputError(
                f"--trainer.max_epochs {trainer.max_epochs}: a sweep needs an end, at least 1 is"
                " expected"
            )
        logger = self.config.as_dict()["trainer"]["logger"]
        check_logger(logger)
        store = self._get(self.config, "store")
        base = module.members[0]
        try:
            members = self._get(self.config_init, "grid").expand(base)
        except (TypeError, ValueError) as error:
            raise InputError(f"--grid: {error}") from None
        if any(member.rank < 1 for member in members):
            raise InputError("--grid.rank must be at least 1")
        directory = Path(store.root) / (
            store.run or "-".join(task.name for task in data.tasks) + "-sweep"
        )
        options = {
            "backbone": module.backbone,
            **module.options,
            "schedule": module.schedule,
            "warmup": module.warmup,
        }
        data.setup("fit")
        return Setup(
            directory,
            members,
            data,
            lambda chosen: Population(chosen, data.tasks, **options),
            self.pack_trainer,
            trainer.max_epochs,
            logger,
            f"loraens sweep --config {directory / 'config.yaml'}",
            trainer.enable_progress_bar is not False,
        )


def plan(sweep: Sweep) -> str:
    """What is to be done, in words: members, packs, steps, and the time and memory of it, measured
    on this machine.
    """
    setup = sweep.setup
    left = sweep.left()
    size = min(sweep.pack_size(), len(setup.members))
    cost = measure(
        setup.build,
        packs(setup.members, len(setup.members))[0][-size:],
        setup.data,
        setup.trainer(),
    )
    each = sweep.steps_of_epoch()
    train = sum(int(part.tokens.lengths.sum()) for part in setup.data.of("train"))
    evaluated = sum(
        int(part.tokens.lengths.sum()) for split in ("dev", "test") for part in setup.data.of(split)
    )
    steps = len(left) * each * setup.epochs
    seconds = steps * cost.seconds * (1 + evaluated / train / 3)  # a forward is a third of a step
    mib = 2**20
    return "\n".join(
        [
            f"{len(setup.members)} members, of which {len(setup.members) - len(left)} have ended",
            f"{len(packs(left, size)) if left else 0} packs of at most {size} members",
            (
                f"{each * setup.epochs:,} steps a member ({setup.epochs} epochs of {each:,}),"
                f" {steps:,} member-steps"
            ),
            (
                f"{_duration(seconds)} at {1 / cost.seconds:.1f} member-steps a second, if nothing"
                " stops early"
            ),
            (
                f"{cost.total_bytes / mib:,.0f} MiB for a pack: {cost.member_bytes / mib:,.0f} a"
                f" member at the longest texts, {cost.backbone_bytes / mib:,.0f} for the backbone"
            ),
        ]
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"about {minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"about {max(1, minutes)} min"
    )


def print_table(manifests: dict[str, dict[str, Any]]) -> None:
    """Print the members, the best dev score first."""
    from rich.console import Console
    from rich.table import Table

    tasks = next(iter(manifests.values()))["settings"]["tasks"]
    table = Table(
        title="Members by dev score of their best epoch",
        caption="The best epoch was chosen on dev.",
    )
    for column in (
        "member",
        "rank",
        "scale",
        *(f"{task['name']} {task['metric']}" for task in tasks),
        "epoch",
        "status",
    ):
        table.add_column(column, justify="left" if column in ("member", "status") else "right")

    def scores(manifest: dict[str, Any]) -> list[float]:
        best = manifest["dev"].get("best", {})
        found = [best.get(task["name"], {}).get(task["metric"]) for task in tasks]
        return [float("nan") if value is None else value for value in found]

    def order(manifest: dict[str, Any]) -> float:
        signs = [-1 if task["metric"] in LOWER_IS_BETTER else 1 for task in tasks]
        total = sum(sign * score for sign, score in zip(signs, scores(manifest), strict=True))
        return -total if total == total else float("inf")

    for manifest in sorted(manifests.values(), key=order):
        member = manifest["member"]
        ended = f" ({manifest['ended']})" if "ended" in manifest else ""
        epoch = manifest["epochs"].get("best", "").removeprefix("epoch-").lstrip("0")
        cells = [f"{score:.4f}" for score in scores(manifest)]
        table.add_row(
            manifest["name"],
            f"{member['rank']}",
            f"{member['scale']:g}",
            *cells,
            epoch,
            manifest["status"] + ended,
        )
    Console().print(table)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep others from sweeping in a directory; the operating system lets go of it when the process
    ends, however it ends.

    Raises:
        InputError: Another sweep runs there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another sweep runs in {directory}: wait until it ends, or give another --store.run"
        ) from None
    try:
        yield
    finally:
        lock.release()


def main(args: list[str]) -> None:
    """Run `sweep` with its options."""
    quiet()
    sys.argv = [sys.argv[0], *args]
    cli = SweepCli(
        LoraModule,
        TextData,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={"prog": "loraens sweep", "exit_on_error": False},
        run=False,
    )
    setup = cli.setup_of_packs()
    with quiet_trainers():
        if cli.config.dry_run:
            print(plan(Sweep(setup, cli.config_init.sweep)))
            return
        with alone(setup.directory):
            sweep = Sweep(setup, cli.config_init.sweep)
            write_atomically(
                setup.directory / "config.yaml",
                cli.parser.dump(cli.config, skip_none=False).encode(),
            )
            print_table(sweep.run())
    print(f"the members lie in {setup.directory}")
