"""A run of an experiment tracker for each member of a sweep, written when the member has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from loraens.errors import InputError
from loraens.train.account import run_id
from loraens.train.callbacks import wandb_summary
from loraens.train.runs import default_logger

KNOWN: dict[str, type[Logger]] = {
    kind.__name__: kind for kind in (CSVLogger, TensorBoardLogger, WandbLogger)
}


def check_logger(given: Any) -> None:
    """Refuse what cannot log members one by one.

    Raises:
        InputError: It names what can.
    """
    if isinstance(given, list) or not (given in (None, True, False) or _kind(given) in KNOWN):
        raise InputError(
            f"--trainer.logger: a sweep logs to one of {', '.join(KNOWN)}, or with false to none"
        )


def _kind(given: Any) -> str:
    return str(given["class_path"]).rpartition(".")[2]


def log_member(given: Any, directory: Path, manifest: dict[str, Any]) -> None:
    """Log a member's settings, its training curve and its best scores.

    W&B gets one run a member, of job type `member` and in the sweep's group, under an id that a
    repetition meets again.

    Args:
        given: The trainer's `logger` as configured: None or True for W&B, False for none, or a
            class path with arguments.
        directory: The sweep's directory.
        manifest: The member's manifest.
    """
    if given is False:
        return
    logger = _logger(given, directory, manifest["name"])
    settings = {
        name: value for name, value in manifest["settings"].items() if name not in ("data", "tasks")
    }
    tasks = [task["name"] for task in manifest["settings"]["tasks"]]
    logger.log_hyperparams(
        {**manifest["member"], **settings, "task": "-".join(tasks), "sweep": directory.name}
    )
    for entry in manifest["history"]:
        scores = {
            f"dev/{task}/{name}": value
            for task, found in entry["dev"].items()
            for name, value in found.items()
        }
        known = {name: value for name, value in scores.items() if value is not None}
        logger.log_metrics(
            {"epoch": entry["epoch"], "train/loss": entry["train_loss"], **known}, entry["step"]
        )
    logger.save()
    if isinstance(logger, WandbLogger):
        logger.experiment.summary.update(wandb_summary(manifest))
        logger.experiment.finish()
    else:
        logger.finalize("success")


def _logger(given: Any, directory: Path, name: str) -> Logger:
    arguments = {} if given in (None, True) else dict(given.get("init_args") or {})
    if given not in (None, True) and (kind := KNOWN[_kind(given)]) is not WandbLogger:
        return kind(**{**arguments, "name": "", "version": name})
    ours = {
        "name": name,
        "version": run_id(directory, name),
        "group": directory.name,
        "job_type": "member",
    }
    if not arguments:
        return default_logger(directory, **ours)
    directory.mkdir(parents=True, exist_ok=True)
    return WandbLogger(**{**arguments, "save_dir": directory, **ours})
