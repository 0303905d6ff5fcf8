"""A run of an experiment tracker for each member of a sweep, written when the member has ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from loraens.errors import InputError
from loraens.members import OUT_OF_FOLD
from loraens.records import Manifest
from loraens.train.account import check_wandb, run_id
from loraens.train.runs import default_logger
from loraens.train.wandb_run import wandb_summary

LOGGERS: dict[str, type[Logger]] = {
    kind.__name__: kind for kind in (CSVLogger, TensorBoardLogger, WandbLogger)
}


def check_logger(configured: Any) -> None:
    """Refuse a logger that cannot log members one by one.

    Args:
        configured: The trainer's `logger` as configured.

    Raises:
        InputError: It names the loggers that can, or W&B's package is missing.
    """
    if configured is False:
        return
    name = "WandbLogger" if configured in (None, True) else _class_name(configured)
    if name not in LOGGERS:
        raise InputError(
            f"logger: a sweep logs to one of {', '.join(LOGGERS)}, or with false to none",
            option="trainer.logger",
        )
    if name == "WandbLogger":
        check_wandb("trainer.logger")


def _class_name(configured: Any) -> str:
    if isinstance(configured, list):
        return ""
    path = configured if isinstance(configured, str) else configured.get("class_path", "")
    return str(path).rpartition(".")[2]


def log_member(configured: Any, directory: Path, manifest: Manifest) -> None:
    """Log a member's settings, its training curve and its best scores.

    W&B gets one run a member, of job type `member` and in the sweep's group, under an id that a
    repetition meets again.

    Args:
        configured: The trainer's `logger` as configured: None or True for W&B, False for none, or
            a class path with arguments.
        directory: The sweep's directory.
        manifest: The member's manifest.
    """
    if configured is False:
        return
    logger = _logger(configured, directory, manifest.name)
    settings = manifest.settings.to_json()
    for name in ("data", "tasks"):
        del settings[name]
    tasks = "-".join(task.name for task in manifest.settings.tasks)
    logger.log_hyperparams(
        {**manifest.member.to_json(), **settings, "task": tasks, "sweep": directory.name}
    )
    split = "dev" if manifest.member.fold is None else OUT_OF_FOLD
    for entry in manifest.history:
        metrics = {"epoch": entry.epoch, "train/loss": entry.train_loss}
        for task, scores in entry.dev.items():
            defined = {name: value for name, value in scores.items() if not math.isnan(value)}
            metrics |= {f"{split}/{task}/{name}": value for name, value in defined.items()}
        logger.log_metrics(metrics, entry.step)
    logger.save()
    if isinstance(logger, WandbLogger):
        logger.experiment.summary.update(wandb_summary(manifest))
        logger.experiment.finish()
    else:
        logger.finalize("success")


def _logger(configured: Any, directory: Path, name: str) -> Logger:
    """The logger of one member."""
    arguments: dict[str, Any] = {}
    kind: type[Logger] = WandbLogger
    if configured not in (None, True):
        kind = LOGGERS[_class_name(configured)]
        if not isinstance(configured, str):
            arguments = dict(configured.get("init_args") or {})
    if kind is not WandbLogger:
        return kind(**{**arguments, "name": "", "version": name})
    fixed = {
        "name": name,
        "version": run_id(directory, name),
        "group": directory.name,
        "job_type": "member",
    }
    if not arguments:
        return default_logger(directory, **fixed)
    directory.mkdir(parents=True, exist_ok=True)  # where it is not there, W&B writes elsewhere
    return WandbLogger(**{**arguments, "save_dir": directory, **fixed})
