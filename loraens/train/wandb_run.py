"""A W&B run of one member: its settings, its predictions on dev, and its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from loraens.data.splits import Split
from loraens.records import Manifest
from loraens.store import Logits, MemberStore
from loraens.tasks import Task
from loraens.train.module import Population


class WandbRun(Callback):
    """Completes a W&B run: settings at the start, and the table of dev predictions of the best
    epoch at the end.

    Args:
        directory: The run's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings to every logger."""
        module = cast(Population, pl_module)
        for logger in trainer.loggers:
            task = "-".join(task.name for task in module.tasks)
            settings = module.settings().to_json()
            logger.log_hyperparams({**module.members[0].to_json(), **settings, "task": task})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log one table a task, and the best scores as the run's summary."""
        module = cast(Population, pl_module)
        store = MemberStore(self.directory / module.members[0].name)
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                continue
            for task in module.tasks:
                split = module.data.splits[task.name, "dev"].split
                columns, rows = prediction_table(task, split, store.logits(task.name, "dev"))
                logger.log_table(f"dev/{task.name}/predictions", columns, rows)
            logger.experiment.summary.update(wandb_summary(store.manifest()))


def wandb_summary(manifest: Manifest) -> dict[str, Any]:
    """The summary of a member's W&B run: its best scores, and what they cost."""
    summary: dict[str, Any] = {}
    for task, scores in manifest.to_json()["dev"].get("best", {}).items():
        summary.update({f"best/{task}/{name}": value for name, value in scores.items()})
    return {
        **summary,
        "best/epoch": manifest.epochs.get("best"),
        "status": manifest.status,
        "ended": manifest.ended,
        "trainable_parameters": manifest.trainable_parameters,
        "seconds": manifest.seconds,
    }


def prediction_table(task: Task, split: Split, logits: Logits) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of predictions beside texts and labels."""
    texts = dict(zip(split.ids, split.texts, strict=True))
    outcome = task.outcome(logits.logits)
    assert logits.labels is not None
    probabilities = [] if outcome.probabilities is None else outcome.probabilities.T.tolist()
    cells = zip(
        logits.example_id.tolist(),
        map(_cell, map(task.format_label, logits.labels.tolist())),
        map(_cell, map(task.format_label, outcome.predictions.tolist())),
        *probabilities,
        strict=True,
    )
    columns = ["id", *task.text_columns, "label", "prediction"]
    columns += [f"probability_{name}" for name in task.class_names]
    return columns, [[key, *texts[key], *row] for key, *row in cells]


def _cell(value: str | float | list[str]) -> str | float:
    """A value as a column of one type has it; W&B takes an empty list for another type."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
