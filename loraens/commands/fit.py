"""`loraens fit | validate | test`: Lightning's command line over our module and data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.members import Member
from loraens.model.device import allow_tf32
from loraens.model.population import Mode
from loraens.store import CHECKPOINT
from loraens.tasks import Task
from loraens.train.account import check_wandb
from loraens.train.callbacks import MemberWriter
from loraens.train.checkpoints import with_whole_checkpoints
from loraens.train.device import accelerator_of, check_device, default_precision, in_words
from loraens.train.module import Population
from loraens.train.runs import (
    TRAINER_DEFAULTS,
    check_checkpoint,
    check_monitors,
    check_trainer,
    default_logger,
    is_run,
    quiet,
    run_callbacks,
    run_directory,
    run_name,
)
from loraens.train.state import locked


class LoraModule(Population):
    """One member: a rank, a scale, a seed, a learning rate."""

    def __init__(
        self,
        tasks: Sequence[Task],
        rank: int = 8,
        scale: float = 1.0,
        seed: int = 0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        head_dropout: float = 0.3,
        loraplus_lr_ratio: float = 1.0,
        mode: Mode = "lora",
        **kwargs: Any,
    ) -> None:
        """Make the module of one member.

        Args:
            tasks: What is predicted; linked from the data.
            rank: Rank r of the adapter.
            scale: Scale c = alpha / r of the adapter's effect c B A.
            seed: Names the initial weights, the data order and the dropout masks.
            lr: Learning rate.
            weight_decay: Decoupled weight decay of AdamW.
            head_dropout: Dropout before the heads.
            loraplus_lr_ratio: Learning rate of B by that of A (LoRA+); 16 is usual there.
            mode: "lora" trains adapter and heads, "frozen" heads alone on features computed once,
                "full" the whole encoder.
        """
        try:
            member = Member(
                rank=rank if mode == "lora" else 0,
                scale=scale,
                seed=seed,
                lr=lr,
                weight_decay=weight_decay,
                head_dropout=head_dropout,
                loraplus_lr_ratio=loraplus_lr_ratio,
            )
        except ValueError as error:
            raise InputError(f"--model: {error}") from None
        super().__init__([member], tasks, mode=mode, **kwargs)


class RunConfig(SaveConfigCallback):
    """Writes the settings of a run to its directory."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a resume may still be refused, and must leave the run's settings alone."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml beside the run's members, once a checkpoint was compared."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MemberWriter):
                text = self.parser.dump(self.config, skip_none=False)
                write_atomically(callback.directory / "config.yaml", text.encode())


class Cli(LightningCLI):
    """Lightning's command line, with our store, logger and links.

    Args:
        locks: Keeps the lock of the run's directory until it is closed.
        options: Of Lightning's command line.
    """

    def __init__(self, locks: ExitStack | None = None, **options: Any) -> None:
        self.locks = locks
        super().__init__(**options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the store's options, and link what data and model share."""
        parser.add_argument(
            "--store.root", type=str, default="checkpoints", help="Directory of all runs."
        )
        parser.add_argument(
            "--store.run",
            type=str | None,
            default=None,
            help="Name of this run; made from task and member by default.",
        )
        parser.link_arguments("model.backbone", "data.init_args.backbone")
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands, and their arguments that are no options."""
        skipped = {"model", "datamodule", "weights_only"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders"},
            "validate": skipped | {"dataloaders"},
            "test": skipped | {"dataloaders"},
        }

    def before_instantiate_classes(self) -> None:
        """Settle the precision, which config.yaml then has, and refuse several devices."""
        trainer = self._get(self.config, "trainer")
        check_device(trainer)
        trainer.precision = trainer.precision or default_precision(trainer)

    def _trainer(self, **kwargs: Any) -> Trainer:
        accelerator = accelerator_of(self._get(self.config_init, "trainer"))
        trainer = super().instantiate_trainer(**{"accelerator": accelerator, **kwargs})
        allow_tf32(trainer.strategy.root_device)
        if said := in_words(trainer):
            rank_zero_info(said)
        return trainer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's callbacks and its default logger while fitting."""
        store = self._get(self.config, "store")
        ckpt_path = self._get(self.config, "ckpt_path")
        trainer_config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            if not ckpt_path:
                raise InputError(
                    f"--ckpt_path is missing: `{self.subcommand}` scores the {CHECKPOINT} of a run"
                )
            unlogged = {"logger": trainer_config.logger or False, "enable_checkpointing": False}
            return self._trainer(**{**unlogged, **kwargs})
        assert isinstance(self.model, Population)
        assert isinstance(self.datamodule, TextData)
        check_trainer(vars(trainer_config))
        given = trainer_config.callbacks or []
        given = given if isinstance(given, list) else [given]
        check_monitors(given, self.model.tasks)
        directory = run_directory(store.root, store.run, run_name(self.model), ckpt_path)
        self.datamodule.setup(
            "fit"
        )  # what is wrong with data or model is noticed before anything is written
        self.model.build(self.datamodule.max_length)
        if trainer_config.fast_dev_run:
            return self._trainer(**kwargs)
        callbacks = [*given, *run_callbacks(directory)]
        if trainer_config.enable_checkpointing is False:
            callbacks.pop()
        by_default = trainer_config.logger in (None, True)
        if by_default:
            check_wandb("trainer.logger")
        logger = False if by_default else trainer_config.logger
        options = {"logger": logger, "callbacks": callbacks, **kwargs}
        trainer = with_whole_checkpoints(self._trainer(**options))
        self._take(directory, resumed=bool(ckpt_path))
        if by_default:  # once the directory is ours: the logger writes to it
            job_type = "member" if self.model.options["mode"] == "lora" else "baseline"
            trainer.logger = default_logger(directory, job_type=job_type)
        return trainer

    def _take(self, directory: Path, resumed: bool) -> None:
        """Lock the run's directory.

        Raises:
            InputError: Another training runs there, it has come to hold a run since its name was
                chosen, or it has something that is not ours.
        """
        assert self.locks is not None
        self.locks.enter_context(locked(directory, known=resumed))
        if not resumed and is_run(directory):
            raise InputError(
                f"run {directory} holds a run: choose another name", option="store.run"
            )

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; it holds no hyperparameters to parse."""
        if ckpt_path := self.config[self.config.subcommand].ckpt_path:
            check_checkpoint(ckpt_path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


CLI_OPTIONS: dict[str, Any] = {  # of Lightning's command line, for `sweep` too
    "model_class": LoraModule,
    "datamodule_class": TextData,
    "subclass_mode_data": True,
    "trainer_defaults": TRAINER_DEFAULTS,
    "seed_everything_default": False,
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
}


def main(args: list[str]) -> None:
    """Run `fit`, `validate` or `test` with its options."""
    quiet()
    sys.argv = [sys.argv[0], *args]
    strict = {"exit_on_error": False}  # `cli.main` words the errors
    with ExitStack() as locks:
        Cli(
            locks,
            **CLI_OPTIONS,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"prog": "loraens", **strict, **dict.fromkeys(Cli.subcommands(), strict)},
        )
