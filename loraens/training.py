"""`loraens fit | validate | test`: Lightning's command line over our module and data."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from loraens.account import wandb_mode
from loraens.callbacks import MemberWriter, WandbRun
from loraens.data import TextData
from loraens.errors import InputError
from loraens.grid import Member
from loraens.model import Mode
from loraens.module import Population
from loraens.store import CHECKPOINT, write_atomically
from loraens.tasks import Task

TRAINER_DEFAULTS: dict[str, Any] = {"devices": 1, "num_sanity_val_steps": 0, "max_epochs": 10, "log_every_n_steps": 20}
NOISE = (
    r".*does not have many workers.*",  # batches are gathered from memory
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Be aware that when using `ckpt_path`.*",  # `validate` and `test` write nothing
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*treespec, LeafSpec.* is deprecated.*",  # Lightning 2.6 under torch 2.13
)


def quiet() -> None:
    """Silence what Lightning and transformers say of choices that are made here on purpose."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's calls of it
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


@contextmanager
def quiet_trainers() -> Iterator[None]:
    """Without what Lightning says at the start and the end of every fit: a sweep has many."""
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in ("utilities.rank_zero", "accelerators.cuda")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()


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
        mode: Mode = "lora",
        **kwargs: Any,
    ) -> None:
        """See the class.

        Args:
            tasks: What is predicted; linked from the data.
            rank: Rank r of the adapter.
            scale: Scale c = alpha / r of the adapter's effect c B A.
            seed: Names the initial weights, the data order and the dropout masks.
            lr: Learning rate.
            weight_decay: Decoupled weight decay of AdamW.
            head_dropout: Dropout before the heads.
            mode: "lora" trains adapter and heads, "frozen" heads alone on features computed once, "full" the whole encoder.
        """
        try:
            member = Member(rank if mode == "lora" else 0, scale, seed, lr, weight_decay, head_dropout)
        except ValueError as error:
            raise InputError(f"--model: {error}") from None
        super().__init__([member], tasks, mode=mode, **kwargs)


def run_name(module: Population) -> str:
    """Name of a run of one member: its tasks, its mode unless that is LoRA, and the member."""
    mode = module.options["mode"]
    parts = ["-".join(task.name for task in module.tasks), *([] if mode == "lora" else [mode]), module.members[0].name]
    return "-".join(parts)


def run_directory(root: str, given: str | None, default: str, ckpt_path: str | None) -> Path:
    """The directory of a run: that of the checkpoint which it goes on from, else one below `root` that holds no run yet.

    Raises:
        InputError: The name was given and is taken, or the checkpoint is not in its run's directory.
    """
    if ckpt_path:
        if not Path(ckpt_path).parent.joinpath("config.yaml").is_file():
            raise InputError(
                f"--ckpt_path {ckpt_path} is not in its run's directory: give RUN/{CHECKPOINT}, where config.yaml is"
            )
        return Path(ckpt_path).parent
    if given is not None:
        if is_run(directory := Path(root) / given):
            resume = f", or go on with --ckpt_path {directory / CHECKPOINT}" if (directory / CHECKPOINT).exists() else ""
            raise InputError(f"--store.run {directory} holds a run: choose another name{resume}")
        return directory
    names = (default if number == 1 else f"{default}-{number}" for number in count(1))
    return next(directory for name in names if not is_run(directory := Path(root) / name))


def is_run(directory: Path) -> bool:
    """Whether a directory holds something of a run that may be worth keeping: a checkpoint, or anything below it."""
    return (directory / CHECKPOINT).exists() or any(path.is_dir() for path in directory.glob("*"))


def check_checkpoint(path: str) -> None:
    """Refuse what is not a whole checkpoint of ours, without running any code in it.

    Raises:
        InputError: It says what is wrong.
    """
    if not Path(path).is_file():
        raise InputError(f"--ckpt_path {path} does not exist: give the {CHECKPOINT} of a run")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"loraens", "state_dict", "pytorch-lightning_version"} <= found.keys():
        raise InputError(f"--ckpt_path {path} is not a whole checkpoint of loraens: give the {CHECKPOINT} of a run")


def default_logger(directory: Path, project: str = "loraens", **options: Any) -> WandbLogger:
    """W&B, without a question: online if an account is set up, else offline; `WANDB_MODE` decides where it is set."""
    directory.mkdir(parents=True, exist_ok=True)  # where it is not there, W&B writes elsewhere
    return WandbLogger(**{"name": directory.name, "save_dir": directory, "project": project, **wandb_mode(), **options})


def run_callbacks(directory: Path) -> list[Any]:
    """The callbacks that every training needs."""
    checkpoint = ModelCheckpoint(
        directory, filename=CHECKPOINT.removesuffix(".ckpt"), enable_version_counter=False, save_on_train_epoch_end=True
    )
    return [MemberWriter(directory), WandbRun(directory), checkpoint]


class RunConfig(SaveConfigCallback):
    """Writes the settings of a run to its directory."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml beside the run's members."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if stage == "fit" and isinstance(callback, MemberWriter):
                text = self.parser.dump(self.config, skip_none=False)
                write_atomically(callback.directory / "config.yaml", text.encode())


class Cli(LightningCLI):
    """Lightning's command line, with our store, logger and links."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the store's options, and link what data and model share."""
        parser.add_argument("--store.root", type=str, default="checkpoints", help="Directory of all runs.")
        parser.add_argument(
            "--store.run", type=str | None, default=None, help="Name of this run; made from task and member by default."
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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's callbacks and its default logger while fitting."""
        store, ckpt_path = self._get(self.config, "store"), self._get(self.config, "ckpt_path")
        trainer_config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            if not ckpt_path:
                raise InputError(f"--ckpt_path is missing: `{self.subcommand}` scores the {CHECKPOINT} of a run")
            unlogged = {"logger": trainer_config.logger or False, "enable_checkpointing": False}
            return super().instantiate_trainer(**{**unlogged, **kwargs})
        assert isinstance(self.model, Population)
        assert isinstance(self.datamodule, TextData)
        directory = run_directory(store.root, store.run, run_name(self.model), ckpt_path)
        self.datamodule.setup("fit")  # what is wrong with data or model is noticed before anything is written
        self.model.build(self.datamodule.max_length)
        if trainer_config.fast_dev_run:
            return super().instantiate_trainer(**kwargs)
        given = trainer_config.callbacks or []
        callbacks = [*(given if isinstance(given, list) else [given]), *run_callbacks(directory)]
        if trainer_config.enable_checkpointing is False:
            callbacks.pop()
        logger = trainer_config.logger
        if logger in (None, True):
            job_type = "member" if self.model.options["mode"] == "lora" else "baseline"
            logger = default_logger(directory, job_type=job_type)
        return super().instantiate_trainer(**{"logger": logger, "callbacks": callbacks, **kwargs})

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; it holds no hyperparameters to parse."""
        if ckpt_path := self.config[self.config.subcommand].ckpt_path:
            check_checkpoint(ckpt_path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def main(args: list[str]) -> None:
    """Run `fit`, `validate` or `test` with its options."""
    quiet()
    sys.argv = [sys.argv[0], *args]
    strict = {"exit_on_error": False}  # `cli.main` words the errors
    try:
        Cli(
            LoraModule,
            TextData,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "loraens", **strict, **dict.fromkeys(Cli.subcommands(), strict)},
        )
    except MisconfigurationException as error:
        raise InputError(f"Lightning: {error}") from error
