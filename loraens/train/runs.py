"""What every training run needs: its directory, its checkpoint checked, its callbacks and its
default logger.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from loraens.errors import InputError
from loraens.store import CHECKPOINT, EXAMPLES
from loraens.train.account import wandb_mode
from loraens.train.callbacks import MemberWriter
from loraens.train.module import Population
from loraens.train.wandb_run import WandbRun

TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "max_epochs": 10,
    "log_every_n_steps": 20,
}


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
    loggers = [
        logging.getLogger(f"lightning.pytorch.{name}")
        for name in ("utilities.rank_zero", "accelerators.cuda")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()


def run_name(module: Population) -> str:
    """Name of a run of one member: its tasks, its mode unless that is LoRA, and the member."""
    mode = module.options["mode"]
    parts = [
        "-".join(task.name for task in module.tasks),
        *([] if mode == "lora" else [mode]),
        module.members[0].name,
    ]
    return "-".join(parts)


def run_directory(root: str, given: str | None, default: str, ckpt_path: str | None) -> Path:
    """The directory of a run: that of the checkpoint it is resumed from, else one below `root`
    that holds no run yet.

    Raises:
        InputError: The name was given and is taken, or the checkpoint is not in its run's
            directory.
    """
    if ckpt_path:
        if not Path(ckpt_path).parent.joinpath("config.yaml").is_file():
            raise InputError(
                f"ckpt_path {ckpt_path} is not in its run's directory: give RUN/{CHECKPOINT},"
                " where config.yaml is",
                option="ckpt_path",
            )
        return Path(ckpt_path).parent
    if given is not None:
        if is_run(directory := Path(root) / given):
            resume = (
                f", or resume with --ckpt_path {directory / CHECKPOINT}"
                if (directory / CHECKPOINT).exists()
                else ""
            )
            raise InputError(
                f"run {directory} holds a run: choose another name{resume}", option="store.run"
            )
        return directory
    names = (default if number == 1 else f"{default}-{number}" for number in count(1))
    return next(directory for name in names if not is_run(directory := Path(root) / name))


def is_run(directory: Path) -> bool:
    """Whether a directory holds something of a run that may be worth keeping: a checkpoint, or
    anything below it but examples, which are written before any member.
    """
    return (directory / CHECKPOINT).exists() or any(
        path.is_dir() and path.name != EXAMPLES for path in directory.glob("*")
    )


def check_checkpoint(path: str) -> None:
    """Refuse what is not a whole checkpoint of ours, without running any code in it.

    Raises:
        InputError: It says what is wrong.
    """
    if not Path(path).is_file():
        raise InputError(
            f"ckpt_path {path} does not exist: give the {CHECKPOINT} of a run", option="ckpt_path"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        checkpoint = None
    if (
        not isinstance(checkpoint, dict)
        or not {"loraens", "state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
    ):
        raise InputError(
            f"ckpt_path {path} is not a whole checkpoint of loraens: give the {CHECKPOINT} of"
            " a run",
            option="ckpt_path",
        )


def default_logger(directory: Path, project: str = "loraens", **options: Any) -> WandbLogger:
    """W&B, without a question: online if an account is set up, else offline; `WANDB_MODE` decides
    where it is set.
    """
    directory.mkdir(parents=True, exist_ok=True)  # where it is not there, W&B writes elsewhere
    return WandbLogger(
        **{
            "name": directory.name,
            "save_dir": directory,
            "project": project,
            **wandb_mode(),
            **options,
        }
    )


def run_callbacks(directory: Path) -> list[Any]:
    """The callbacks that every training needs."""
    checkpoint = ModelCheckpoint(
        directory,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return [MemberWriter(directory), WandbRun(directory), checkpoint]
