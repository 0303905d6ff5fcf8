"""A worker: trains one pack after another, in this process or, pickled, in another one.

It is made from a sweep's `config.yaml` alone, and writes only the pack's checkpoint, the
directories of the pack's members and, with the same contents as every other worker, `examples/`.
"""

from __future__ import annotations

import signal
import time
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import Member
from loraens.model.device import allow_tf32
from loraens.records import ENDED
from loraens.store import MANIFEST, MemberStore
from loraens.train.callbacks import MemberWriter
from loraens.train.checkpoints import PackCheckpoint, Progress, with_whole_checkpoints
from loraens.train.config import CONFIG, SweepConfig, TrainConfig
from loraens.train.device import accelerator_of
from loraens.train.failures import PopulationError
from loraens.train.memory import give_back, is_out_of_memory
from loraens.train.module import Population
from loraens.train.packs import (
    FOLD_FAILED,
    MemberResult,
    Pack,
    PackResult,
    Report,
    Status,
    incomplete,
)
from loraens.train.runs import check_monitors, quiet, quiet_trainers

# what a sweep does itself, for all packs
_TRAINER: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class PackWatch(Callback):
    """Saves a pack's checkpoint after every epoch, counts its steps, and ends its training where a
    member stops.

    Args:
        pack: The pack.
        report: Is told the member-steps of every batch.
    """

    def __init__(self, pack: Pack, report: Report | None = None) -> None:
        self.pack = pack
        self.report = report

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the step of every member."""
        if self.report is not None:
            self.report(self.pack, len(pl_module.members))  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the pack.

        Validation has run, so the members' epoch is written: a checkpoint never is ahead of the
        members' files.
        """
        trainer.save_checkpoint(self.pack.checkpoint, weights_only=False)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writer = next(callback for callback in callbacks if isinstance(callback, MemberWriter))
        progress = map(Progress.of, writer.state_dict()["progress"])
        module = cast(Population, pl_module)
        failed = (~module.failures.active).tolist()
        if (
            trainer.current_epoch + 1 == self.pack.until
            or any(member.stalled(self.pack.patience) for member in progress)
            or all(incomplete(module.members, failed))
        ):
            trainer.should_stop = True


class Worker:
    """Trains packs.

    Pickled, it is no more than its directory: where it is unpickled, it reads config.yaml again.

    Args:
        directory: The sweep's directory.
        config: The settings in its config.yaml.
        data: The texts, where they are at hand; made from the settings by default.

    Raises:
        InputError: The settings name no data and it is not given.
    """

    def __init__(self, directory: Path, config: TrainConfig, data: TextData | None = None) -> None:
        if data is None and config.data is None:
            raise InputError(
                f"{directory / CONFIG} names no data, as it was made in the memory of a Python"
                " program: run that program again"
            )
        quiet()
        self.directory = directory
        self.config = config
        self._given_data = data

    @classmethod
    def from_directory(cls, directory: Path) -> Worker:
        """The worker of a sweep.

        Raises:
            InputError: config.yaml is missing, or names no data.
        """
        return cls(directory, TrainConfig.read(directory))

    def __reduce__(self) -> tuple[Callable[[Path], Worker], tuple[Path]]:
        """Pickle the directory's name.

        Raises:
            InputError: The data is only in this process's memory.
        """
        if self.config.data is None:
            raise InputError(
                "the data is only in this process's memory, so packs cannot be trained in another"
                " one: give a data module of files, or use engine in_process"
            )
        return _unpickled, (self.directory.resolve(),)

    @cached_property
    def _data_module(self) -> TextData:
        """The texts, which need not be read yet."""
        if self._given_data is not None:
            self._given_data.cut(self.config.folds)
            return self._given_data
        assert self.config.data is not None
        return self.config.data.build(self.config.backbone, self.config.folds)

    @cached_property
    def data(self) -> TextData:
        """The texts, read and tokenised.

        Raises:
            InputError: They cannot be used.
        """
        self._data_module.setup("fit")
        return self._data_module

    @cached_property
    def _trainer_options(self) -> Callable[[], dict[str, Any]]:
        """Gives the trainer's options, with new objects for the class paths among them: a callback
        may hold tensors of the pack that it has seen.
        """
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(Trainer, "trainer")
        try:
            parsed = parser.parse_object({"trainer": {**self.config.trainer, "logger": False}})
        except ArgumentError as error:
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error
        return lambda: dict(parser.instantiate_classes(parsed).trainer)

    def trainer(self, callbacks: Sequence[Callback] = (), epochs: int | None = None) -> Trainer:
        """A trainer of one pack.

        Args:
            callbacks: Beside those of the settings.
            epochs: Epochs that it trains; those of the settings by default.
        """
        given = self._trainer_options()
        configured = given.get("callbacks") or []
        configured = configured if isinstance(configured, list) else [configured]
        check_monitors(configured, self._data_module.tasks, self._data_module.scored)
        options = {**given, **_TRAINER, "callbacks": [*configured, *callbacks]}
        options["max_epochs"] = epochs or self.config.epochs
        options["accelerator"] = accelerator_of(options)
        with quiet_trainers():
            trainer = with_whole_checkpoints(Trainer(**options))
        allow_tf32(trainer.strategy.root_device)
        return trainer

    def build(self, members: Sequence[Member]) -> Population:
        """The population of some members; its backbone is not loaded yet.

        Raises:
            InputError: An option of the model is out of range.
        """
        return Population(members, self._data_module.tasks, **self.config.model)

    def train(self, pack: Pack, report: Report | None = None) -> PackResult:
        """Train a pack, from its checkpoint if there is one, until its epoch.

        Args:
            pack: The pack.
            report: Is told the member-steps that are done.

        Returns:
            What became of each member; it is marked in the manifests of those that are done.
        """
        started = time.monotonic()
        results, members, epochs = self.resumed(pack)
        problem: tuple[Status, str] | None = None
        with quiet_trainers():
            while problem is None and members:
                if pack.checkpoint.is_file():
                    members, epochs = self._drop_stopped(pack, results)
                if not members or epochs >= pack.until:
                    break
                problem = self._fit(pack, members, report)
        if problem is not None:
            if problem[0] == "population_failed":
                pack.checkpoint.unlink(missing_ok=True)
            results += [MemberResult(member.name, problem[0], epochs) for member in members]
        elif members:
            results += self._close(pack)
        seconds = time.monotonic() - started
        return PackResult(pack, tuple(results), seconds, problem[1] if problem else None)

    def resumed(self, pack: Pack) -> tuple[list[MemberResult], tuple[Member, ...], int]:
        """How far a pack is, of which another worker may have trained a part before it died.

        Returns:
            The results of members that have ended; the members that are left, and the epochs that
            these are trained.
        """
        left: tuple[Member, ...] = ()
        epochs = 0
        if pack.checkpoint.is_file():
            checkpoint = PackCheckpoint.load(pack.checkpoint)
            left, epochs = checkpoint.members, checkpoint.epochs_done
        ended = []
        for member in pack.members:
            store = MemberStore(self.directory / member.name)
            if member not in left and (store.directory / MANIFEST).is_file():
                manifest = store.read()
                if manifest.status in ENDED:
                    last = manifest.history[-1].epoch if manifest.history else 0
                    status = cast(Status, manifest.status)
                    ended.append(MemberResult(member.name, status, last))
        if not left and len(ended) < len(pack.members):
            return [], pack.members, 0
        return ended, left, epochs

    def _fit(
        self, pack: Pack, members: Sequence[Member], report: Report | None
    ) -> tuple[Status, str] | None:
        """Train until the pack's epoch, or until a member stops; returns why no member can
        continue, if so.
        """
        give_back()  # of measuring, too
        module = self.build(members)
        writer = MemberWriter(self.directory, finish=False)
        epochs = self.config.epochs_of(pack.members[0])
        trainer = self.trainer([writer, PackWatch(pack, report)], epochs)
        resumed = pack.checkpoint if pack.checkpoint.is_file() else None
        try:
            trainer.fit(module, self.data, ckpt_path=resumed, weights_only=True)
        except SIGTERMException:  # whose exit code is that of success
            raise SystemExit(128 + signal.SIGTERM) from None
        except PopulationError as error:
            return "population_failed", str(error)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            return "out_of_memory", str(error)
        finally:
            self._data_module.trainer = None  # which holds the pack's tensors
            del module, trainer, writer
            give_back()
        return None

    def _drop_stopped(
        self, pack: Pack, results: list[MemberResult]
    ) -> tuple[tuple[Member, ...], int]:
        """Take members that have stopped out of the pack's checkpoint, and remove that where none
        is left; returns the members that are left, and the epochs that they are trained.

        Members that failed stay while no other stops: so the others' numbers stay the same bit for
        bit. The members of a configuration's folds stop together, and with one that failed.
        """
        checkpoint = PackCheckpoint.load(pack.checkpoint)
        epochs = checkpoint.epochs_done
        if epochs >= self.config.epochs_of(pack.members[0]):
            return checkpoint.members, epochs
        failed = checkpoint.failed
        stalled = [progress.stalled(pack.patience) for progress in checkpoint.progress]
        without_score = incomplete(checkpoint.members, failed)
        indices = range(len(failed))
        active = [index for index in indices if not without_score[index] and not stalled[index]]
        if active and not any(stalled[index] and not failed[index] for index in indices):
            return checkpoint.members, epochs
        score = "dev score" if self.config.folds is None else "out-of-fold score"
        reason = f"epoch {epochs}: no better {score} for {pack.patience} epochs"
        # manifests before the checkpoint: killed in between, the same members stop once more
        for index, member in enumerate(checkpoint.members):
            if failed[index]:
                results.append(MemberResult(member.name, "failed", epochs))
            elif without_score[index] or stalled[index]:
                of_fold = f"epoch {epochs}: {FOLD_FAILED}"
                ended = of_fold if without_score[index] else reason
                self._end(member, status="stopped", ended=ended)
                results.append(MemberResult(member.name, "stopped", epochs))
        if not active:
            pack.checkpoint.unlink()
            return (), epochs
        checkpoint = checkpoint.select(active)
        checkpoint.save(pack.checkpoint)
        return checkpoint.members, epochs

    def _close(self, pack: Pack) -> list[MemberResult]:
        """The results of a pack that is trained until its epoch, whose members are finished if that
        is the last one.
        """
        checkpoint = PackCheckpoint.load(pack.checkpoint)
        last = pack.until == self.config.epochs_of(pack.members[0])
        results = []
        for member, failed in zip(checkpoint.members, checkpoint.failed, strict=True):
            status: Status = "failed" if failed else "finished" if last else "trained"
            if status == "finished":
                self._end(member, status="finished")
            results.append(MemberResult(member.name, status, checkpoint.epochs_done))
        if last:  # after the manifests: killed in between, the members are finished once more
            pack.checkpoint.unlink()
        return results

    def _end(self, member: Member, **fields: str) -> None:
        MemberStore(self.directory / member.name).update(**fields)


def _unpickled(directory: Path) -> Worker:
    """The worker of a directory; a process keeps it, with its texts, for the packs that follow."""
    return _kept(directory, (directory / CONFIG).read_text())


@lru_cache(maxsize=1)
def _kept(directory: Path, text: str) -> Worker:
    return Worker(directory, SweepConfig.from_yaml(text, str(directory / CONFIG)).train)
