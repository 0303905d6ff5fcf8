"""What every training run needs: its directory, its checkpoint checked, its callbacks and its
default logger.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from loraens.errors import InputError
from loraens.store import CHECKPOINT, EXAMPLES
from loraens.tasks import Task
from loraens.train.account import run_options
from loraens.train.callbacks import MemberWriter
from loraens.train.checkpoints import read_checkpoint
from loraens.train.device import check_device
from loraens.train.evaluation import overall_score, undefined_scores
from loraens.train.module import Population
from loraens.train.wandb_run import WandbRun

TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "max_epochs": 10,
    "log_every_n_steps": 20,
}


# of weights: Lightning may round what is computed, but not what is kept
PRECISIONS = ("None", "32-true", "bf16-mixed", "64-true", "32", "64", "bf16")
STRATEGIES = ("auto", "single_device", "single_xla", "single_hpu")
MINIMA = {  # of options of the trainer that are numbers
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "val_check_interval": 1e-9,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
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


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse options of Lightning's `Trainer` with which no member would be trained and written.

    Args:
        options: Options by name; those that are not there have their defaults.

    Raises:
        InputError: It names the option.
    """

    def refuse(name: str, reason: str) -> None:
        value = options[name]
        shown = f"{value:g}" if isinstance(value, float) else value
        raise InputError(f"{name} {shown}: {reason}", option=f"trainer.{name}")

    if options.get("barebones"):
        refuse("barebones", "no member would be written, leave it out")
    if options.get("overfit_batches"):
        refuse("overfit_batches", "dev would not be read, use --data.limit for a quick look")
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if options.get(name) == 0:
            refuse(name, "nothing would be trained, more than 0 is expected")
    for name, least in MINIMA.items():
        value = options.get(name)
        if isinstance(value, (int, float)) and not least <= value < math.inf:
            refuse(name, f"a number of at least {least:g} is expected")
    devices = options.get("devices")
    several = isinstance(devices, int) and devices not in (-1, 1)
    if several or (isinstance(devices, (list, tuple)) and len(devices) != 1):
        refuse(
            "devices",
            "members are trained side by side on one, 1 is expected; `sweep` trains packs on"
            " several by --sweep.engine ray --sweep.workers N",
        )
    strategy = options.get("strategy")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        refuse("strategy", "members are trained side by side on one device, leave it out")
    if options.get("num_nodes") not in (None, 1):
        refuse("num_nodes", "members are trained side by side on one, 1 is expected")
    if options.get("limit_val_batches") == 0:
        refuse("limit_val_batches", "a member is written when dev is scored, leave it out")
    if str(options.get("precision")) not in PRECISIONS:
        refuse("precision", f"one of {', '.join(PRECISIONS[1:4])} is expected")
    check_device(options)


def check_monitors(callbacks: Sequence[Any], tasks: Sequence[Task], split: str = "dev") -> None:
    """Refuse a callback of Lightning's that waits for a value which nothing logs.

    Args:
        callbacks: Those that were configured. If one is not Lightning's, it may log anything.
        tasks: The tasks of the run.
        split: The split that is scored.

    Raises:
        InputError: It names the values that there are.
    """
    names = ["train/loss"]
    for task in tasks:
        names += [f"{split}/{task.name}/{metric.name}" for metric in task.label_kind.metrics]
        names += [f"train/{task.name}/loss"] if len(tasks) > 1 else []
    names += (
        [f"{split}/overall"] if overall_score(tasks, undefined_scores(tasks)) is not None else []
    )
    if not all(type(callback).__module__.startswith("lightning.") for callback in callbacks):
        return
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor not in (None, "epoch", "step", *names):
            raise InputError(
                f"callbacks: {type(callback).__name__} monitors {monitor!r}, which is not there:"
                f" there are {', '.join(names)}",
                option="trainer.callbacks",
            )


def run_name(module: Population) -> str:
    """Name of a run of one member: its tasks, its mode unless that is LoRA, and the member."""
    mode = module.options["mode"]
    parts = [
        "-".join(task.name for task in module.tasks),
        *([] if mode == "lora" else [mode]),
        module.members[0].name,
    ]
    return "-".join(parts)


def check_run(name: str | None) -> None:
    """Refuse a name of a run that is no directory below that of all runs.

    Raises:
        InputError: It leaves that directory, or is empty.
    """
    parts = Path(name).parts if name is not None else (".",)
    outside = Path(name or "").is_absolute() or ".." in parts or "\0" in (name or "")
    if outside or not parts:
        raise InputError(
            f"run {name!r} is no name of a directory below --store.root: give another name, or"
            " another root",
            option="store.run",
        )


def run_directory(root: str, given: str | None, default: str, ckpt_path: str | None) -> Path:
    """The directory of a run: that of the checkpoint it is resumed from, else one below `root`
    that holds no run yet.

    Raises:
        InputError: The name was given and is taken or is none, or the checkpoint is not in its
            run's directory.
    """
    if ckpt_path:
        if not Path(ckpt_path).parent.joinpath("config.yaml").is_file():
            raise InputError(
                f"ckpt_path {ckpt_path} is not in its run's directory: give RUN/{CHECKPOINT},"
                " where config.yaml is",
                option="ckpt_path",
            )
        return Path(ckpt_path).parent
    check_run(given)
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
        read_checkpoint(Path(path))
    except InputError as error:
        raise InputError(
            f"ckpt_path {error}: give the {CHECKPOINT} of a run", "ckpt_path"
        ) from None


def default_logger(directory: Path, name: str | None = None, **options: Any) -> WandbLogger:
    """W&B, without a question, as `run_options`; the name is the directory's by default."""
    given = run_options(directory, name or directory.name, **options)
    save_dir = given.pop("dir")
    save_dir.mkdir(parents=True, exist_ok=True)  # where it is not there, W&B writes elsewhere
    return WandbLogger(save_dir=save_dir, **given)


def run_callbacks(directory: Path) -> list[Any]:
    """The callbacks that every training needs."""
    checkpoint = ModelCheckpoint(
        directory,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return [MemberWriter(directory), WandbRun(directory), checkpoint]
