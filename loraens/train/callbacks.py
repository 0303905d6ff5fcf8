"""Writes every member of a population to the run store after each validation."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from loraens import __version__
from loraens.arrays import npz
from loraens.data.examples import write_data_examples
from loraens.data.imports import resume_options
from loraens.errors import InputError
from loraens.members import OUT_OF_FOLD
from loraens.model.weights import member_files
from loraens.records import Epoch, EpochRecord, Manifest, Status
from loraens.store import CHECKPOINT, LOGITS, MemberStore, in_16_bits, path_from_run
from loraens.train.checkpoints import WRITER
from loraens.train.evaluation import combined_score, undefined_scores
from loraens.train.failures import PopulationError
from loraens.train.module import Population


def score_of(module: Population, index: int) -> float:
    """The score that chooses a member's best epoch, higher is better."""
    scores = module.scores[index]
    by_task = {task.name: scores[task.name][task.metric] for task in module.tasks}
    return combined_score(module.tasks, by_task)


def _validations(progress: dict[str, Any], epoch: int) -> int:
    """Validations of a member in one epoch."""
    return sum(entry["epoch"] == epoch for entry in progress["history"])


class MemberWriter(Callback):
    """Writes every member after each validation: weights, logits of dev and test, and out of fold
    where there are folds, and the manifest.

    The best epoch is the one with the best dev score, or out-of-fold score of the configuration
    (the first of equals). The weights of best and last are kept, and the logits of all epochs.

    Args:
        directory: The run's directory; members lie right below it.
        finish: Whether members are finished when the trainer is.
    """

    def __init__(self, directory: Path, finish: bool = True) -> None:
        self.directory = directory
        self.finish = finish
        self.progress: list[dict[str, Any]] = []
        self._examples: dict[str, str] = {}
        self._scored: list[dict[str, bytes]] = []  # weights of each member
        self._seconds = 0.0
        self._started = 0.0
        self._finished = False

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
            raise InputError(
                f"devices gives {trainer.world_size} devices: 1 is expected",
                option="trainer.devices",
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and write the examples that the members' logits refer to."""
        self._started = time.monotonic()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            data = cast(Population, pl_module).data
            self._examples = write_data_examples(data, self.directory)
        if not self.progress:
            self.progress = [
                {"best": None, "score": None, "history": []}
                for _ in cast(Population, pl_module).members
            ]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the weights that are scored, at the last batch: a callback that averages weights
        puts back those of training before anything is written.
        """
        last = len(trainer.num_val_batches) - 1, trainer.num_val_batches[-1] - 1
        if trainer.state.fn == "fit" and (dataloader_idx, batch_idx) == last:
            self._scored = _weights(cast(Population, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write every member."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module = cast(Population, pl_module)
        # the running epoch, or, after training, the last one, from 1
        epoch = trainer.fit_loop.epoch_progress.current.ready
        name = f"epoch-{epoch:03d}"
        if earlier := max(map(partial(_validations, epoch=epoch), self.progress)):
            name += f"-{earlier + 1}"
        for index, progress in enumerate(self.progress):
            if module.failures.of(index) is not None:
                self._store(module, index).write({}, self._manifest(module, index, "failed"))
                continue
            score = score_of(module, index)
            best = progress["score"]
            if progress["best"] is None or math.isnan(best) or score > best:
                progress["best"] = name
                progress["score"] = score
            entry = EpochRecord(
                name=name,
                epoch=epoch,
                step=trainer.global_step,
                train_loss=module.mean_losses[index],
                dev=module.scores[index],
                score=score,
            )
            progress["history"].append(asdict(entry))
            files = dict(self._scored[index])
            small = {}
            for (task, split), of_members in module.evaluation.logits.items():
                file = f"{task}-{split}.npz"
                logits = of_members[index]
                indices = self._indices(module, index, task, split)
                files[file] = npz(logits=logits, indices=indices)
                small[file] = npz(logits=in_16_bits(logits), indices=indices)
            manifest = self._manifest(module, index, "training")
            self._store(module, index).write({name: files, f"{LOGITS}/{name}": small}, manifest)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write every member where there is nothing to evaluate: members that are trained on all
        labelled texts, without dev or test.
        """
        if sum(trainer.num_val_batches) == 0:
            module = cast(Population, pl_module)
            self._scored = _weights(module)
            module.scores = [undefined_scores(module.tasks)] * len(module.members)
            self.on_validation_end(trainer, pl_module)

    def _store(self, module: Population, index: int) -> MemberStore:
        return MemberStore(self.directory / module.members[index].name)

    @staticmethod
    def _indices(module: Population, index: int, task: str, split: str) -> np.ndarray | None:
        """The examples `(N,)` that were evaluated, in ascending order; None where all were."""
        evaluated = module.evaluation.indices[task, split][index]
        everything = len(evaluated) == len(module.data.splits[task, split])
        return None if everything else evaluated.astype(np.int32)

    def _manifest(self, module: Population, index: int, status: Status) -> Manifest:
        progress = self.progress[index]
        history = tuple(EpochRecord(**entry) for entry in progress["history"])
        epochs: dict[Epoch, str] = {}
        if history:
            epochs = {"best": progress["best"], "last": history[-1].name}
        by_name = {entry.name: entry.dev for entry in history}
        failure = module.failures.of(index)
        epochs_given = module.trainer.max_epochs
        splits = {
            f"{task}-{split}": part
            for (task, split), part in module.data.splits.items()
            if split != OUT_OF_FOLD  # whose examples are those of train
        }
        return Manifest(
            name=module.members[index].name,
            status=status,
            member=module.members[index],
            settings=module.settings(),
            ended=None if failure is None else f"step {failure[0]}: {failure[1]}",
            epochs=epochs,
            dev={epoch: by_name[name] for epoch, name in epochs.items()},
            history=history,
            dropped={name: p.split.dropped for name, p in splits.items() if p.split.dropped},
            truncated={name: part.tokens.truncated for name, part in splits.items()},
            trainable_parameters=module.model.trainable_parameters(index),
            seconds=round(self._spent(), 1),
            versions=versions(),
            examples=self._examples,
            backbone_path=path_from_run(module.backbone, self.directory),
            max_epochs=None if epochs_given in (None, -1) else epochs_given,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final weights if they are others than those of the last validation, and mark
        every member as finished.
        """
        if trainer.fast_dev_run or not self.finish:  # type: ignore[attr-defined]
            return
        module = cast(Population, pl_module)
        history = self.progress[0]["history"]
        last = history[-1]["step"] if history else None
        if last != trainer.global_step or self._scored != _weights(module):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        self._finish(module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the members of a training that was killed between its last checkpoint and its end:
        Lightning trains nothing then, and calls no other hook.
        """
        if self.finish and not self._finished and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._finish(cast(Population, pl_module))

    def _finish(self, module: Population) -> None:
        """Mark every member as finished."""
        for index in range(len(self.progress)):
            store = self._store(module, index)
            store.write({}, self._manifest(module, index, "finished"))
            rank_zero_info(f"member {module.members[index].name} is in {store.directory}")
        self._finished = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print how to resume an interrupted run; mark the members of a population that failed as
        a whole.
        """
        module = cast(Population, pl_module)
        if isinstance(exception, PopulationError) and not self.finish:
            for index in range(len(self.progress)):
                self._store(module, index).write({}, self._manifest(module, index, "failed"))
        checkpoint = self.directory / CHECKPOINT
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        if stopped and self.finish and checkpoint.is_file():
            options = resume_options(self.directory / "config.yaml")
            rank_zero_info(f"to resume: loraens fit {options} --ckpt_path {checkpoint}")


def _weights(module: Population) -> list[dict[str, bytes]]:
    """The files of each member's weights."""
    write = partial(member_files, backbone=module.backbone, targets=module.options["targets"])
    return [write(module.model, index) for index in range(len(module.members))]


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that a member depends on."""
    others = ("torch", "transformers", "lightning")
    return {"loraens": __version__, **{name: version(name) for name in others}}
