"""Callbacks: what a run writes to its store and to W&B."""

from __future__ import annotations

import math
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from loraens.data.splits import Split
from loraens.errors import InputError
from loraens.metrics import predictions, probabilities
from loraens.model.weights import member_files
from loraens.store import CHECKPOINT, Logits, MemberStore, logits_to_bytes
from loraens.tasks import LOWER_IS_BETTER, Task
from loraens.train.checkpoints import WRITER
from loraens.train.failures import PopulationError
from loraens.train.module import Population


def score_of(module: Population, index: int) -> float:
    """The score that chooses a member's best epoch, higher is better: the task's metric, its sign
    turned where lower is better; of several tasks the paper's overall score, or, where they are
    others, the mean.
    """
    together = module.overall(index)
    if together is not None:
        return together
    signs = [-1 if task.metric in LOWER_IS_BETTER else 1 for task in module.tasks]
    return float(
        np.mean(
            [
                sign * module.scores[index][task.name][task.metric]
                for sign, task in zip(signs, module.tasks, strict=True)
            ]
        )
    )


class MemberWriter(Callback):
    """Writes every member after each validation: weights, logits of dev and test, and the manifest.

    The best epoch is the one with the best dev score (the first of equals); best and last are kept.

    Args:
        directory: The run's directory; members lie right below it.
        finish: Whether members are finished when the trainer is.
    """

    def __init__(self, directory: Path, finish: bool = True) -> None:
        self.directory = directory
        self.finish = finish
        self.progress: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._started = 0.0

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state."""
        return WRITER

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: the history of every member and the seconds spent."""
        return {"progress": self.progress, "seconds": self._spent()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a former run's history."""
        self.progress = state_dict["progress"]
        self._seconds = state_dict["seconds"]

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several devices: members are trained side by side on one.

        Raises:
            InputError: There are several.
        """
        if trainer.world_size > 1:
            raise InputError(f"--trainer.devices gives {trainer.world_size} devices: 1 is expected")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        if not self.progress:
            self.progress = [
                {"best": None, "score": None, "history": []}
                for _ in cast(Population, pl_module).members
            ]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write every member."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module = cast(Population, pl_module)
        epoch = (
            trainer.fit_loop.epoch_progress.current.ready
        )  # the running epoch, or the last one, from 1
        earlier = max(
            sum(entry["epoch"] == epoch for entry in progress["history"])
            for progress in self.progress
        )
        name = f"epoch-{epoch:03d}" + (f"-{earlier + 1}" if earlier else "")
        for index, progress in enumerate(self.progress):
            if module.failures.of(index) is not None:
                self._store(module, index).write({}, self._manifest(module, index, "failed"))
                continue
            score = score_of(module, index)
            if (
                progress["best"] is None
                or math.isnan(progress["score"])
                or score > progress["score"]
            ):
                progress["best"] = name
                progress["score"] = score
            progress["history"].append(
                {
                    "name": name,
                    "epoch": epoch,
                    "step": trainer.global_step,
                    "train_loss": module.mean_losses[index],
                    "dev": module.scores[index],
                    "score": score,
                }
            )
            files = member_files(module.model, index, module.backbone, module.options["targets"])
            for task, split in module.outputs:
                files[f"{task}-{split}.npz"] = logits_to_bytes(
                    self._logits(module, index, task, split)
                )
            self._store(module, index).write(
                {name: files}, self._manifest(module, index, "training")
            )

    def _store(self, module: Population, index: int) -> MemberStore:
        return MemberStore(self.directory / module.members[index].name)

    @staticmethod
    def _logits(module: Population, index: int, task: str, split: str) -> Logits:
        source: Split = module.data.splits[task, split].split
        rows = module.rows[task, split]
        labels = None if source.labels is None else source.labels[rows]
        return Logits(
            module.outputs[task, split][index].numpy(), np.array(source.ids)[rows], labels
        )

    def _manifest(self, module: Population, index: int, status: str) -> dict[str, Any]:
        progress = self.progress[index]
        member = module.members[index]
        history: list[dict[str, Any]] = progress["history"]
        epochs = {"best": progress["best"], "last": history[-1]["name"]} if history else {}
        by_name = {entry["name"]: entry["dev"] for entry in history}
        ended = {}
        if (failure := module.failures.of(index)) is not None:
            ended = {"ended": f"step {failure[0]}: {failure[1]}"}
        return {
            "name": member.name,
            "status": status,
            "member": member.to_dict(),
            "settings": module.settings(),
            **ended,
            "epochs": epochs,
            "dev": {which: by_name[name] for which, name in epochs.items()},
            "history": history,
            "dropped": {
                f"{task}-{split}": part.split.dropped
                for (task, split), part in module.data.splits.items()
                if part.split.dropped
            },
            "truncated": {
                f"{task}-{split}": part.tokens.truncated
                for (task, split), part in module.data.splits.items()
            },
            "trainable_parameters": module.model.trainable_parameters(index),
            "seconds": round(self._spent(), 1),
            "versions": _versions(),
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final weights if the last validation came before them, and mark every member as
        finished.
        """
        if trainer.fast_dev_run or not self.finish:  # type: ignore[attr-defined]
            return
        module = cast(Population, pl_module)
        history = self.progress[0]["history"]
        if not history or history[-1]["step"] != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        for index in range(len(self.progress)):
            store = self._store(module, index)
            store.write({}, self._manifest(module, index, "finished"))
            rank_zero_info(f"member {module.members[index].name} lies in {store.directory}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell how an interrupted run goes on; mark the members of a population that failed as a
        whole.
        """
        module = cast(Population, pl_module)
        if isinstance(exception, PopulationError) and not self.finish:
            for index in range(len(self.progress)):
                self._store(module, index).write({}, self._manifest(module, index, "failed"))
        checkpoint = self.directory / CHECKPOINT
        if isinstance(exception, KeyboardInterrupt) and self.finish and checkpoint.is_file():
            rank_zero_info(
                f"to go on: loraens fit --config {self.directory / 'config.yaml'} --ckpt_path"
                f" {checkpoint}"
            )


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("loraens", "torch", "transformers", "lightning")}


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
            logger.log_hyperparams(
                {**module.members[0].to_dict(), **module.settings(), "task": task}
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log one table a task, and the best scores as the run's summary."""
        module = cast(Population, pl_module)
        store = MemberStore(self.directory / module.members[0].name)
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                continue
            for task in module.tasks:
                columns, rows = prediction_table(
                    task, module.data.splits[task.name, "dev"].split, store.logits(task.name, "dev")
                )
                logger.log_table(f"dev/{task.name}/predictions", columns, rows)
            logger.experiment.summary.update(wandb_summary(store.manifest()))


def wandb_summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """The summary of a member's W&B run: its best scores, and what they cost."""
    best = manifest["dev"].get("best", {})
    return {
        **{
            f"best/{task}/{name}": value
            for task, found in best.items()
            for name, value in found.items()
        },
        "best/epoch": manifest["epochs"].get("best"),
        "status": manifest["status"],
        "ended": manifest.get("ended"),
        "trainable_parameters": manifest["trainable_parameters"],
        "seconds": manifest["seconds"],
    }


def prediction_table(task: Task, split: Split, logits: Logits) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of predictions beside texts and labels."""
    texts = dict(zip(split.ids, split.texts, strict=True))
    found = predictions(task, logits.logits).tolist()
    columns = ["id", *task.text_columns, "label", "prediction"]
    labels = [] if logits.labels is None else logits.labels.tolist()
    if task.kind == "number":
        cells = [[label, value] for label, value in zip(labels, found, strict=True)]
    else:
        columns += [f"probability_{name}" for name in task.class_names]
        names = task.class_names
        shares = probabilities(task, logits.logits).tolist()
        cells = [
            [names[int(label)], names[value], *share]
            for label, value, share in zip(labels, found, shares, strict=True)
        ]
    return columns, [
        [key, *texts[key], *cell]
        for key, cell in zip(logits.example_id.tolist(), cells, strict=True)
    ]
