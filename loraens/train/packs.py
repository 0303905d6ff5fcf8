"""A pack of a sweep: what it is trained with, its file, and when its training stops.

Shape letters: M members.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import Member
from loraens.store import write_atomically
from loraens.train.callbacks import MemberWriter
from loraens.train.checkpoints import progress_of
from loraens.train.module import Population

TRAINER: dict[str, Any] = {  # what a sweep does itself, for all packs
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass
class Options:
    """How the members are trained together.

    Args:
        pack_size: Members that share each forward and backward pass, or "auto": measured.
        patience: Stop a member after so many epochs without a better dev score.
        halving_factor: Successive halving: after `halving_epochs`, and that times the factor, and
            so on, keep the best 1 / factor of the members by their last dev score.
        halving_epochs: Epochs before the first halving.
    """

    pack_size: int | Literal["auto"] = "auto"
    patience: int | None = None
    halving_factor: float | None = None
    halving_epochs: int = 1

    def __post_init__(self) -> None:
        minima = {"pack_size": 1, "patience": 1, "halving_epochs": 1}
        for name, least in minima.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise InputError(
                    f"--sweep.{name} {value} is too small: at least {least} is expected"
                )
        if self.halving_factor is not None and self.halving_factor <= 1:
            raise InputError(f"--sweep.halving_factor {self.halving_factor:g} must be above 1")

    def rungs(self, epochs: int) -> list[int]:
        """Epochs after which members are compared; the last is the end."""
        found = []
        rung = float(self.halving_epochs)
        while self.halving_factor is not None and round(rung) < epochs:
            found.append(round(rung))
            rung *= self.halving_factor
        return [*dict.fromkeys(found), epochs]


@dataclass
class Setup:
    """What every pack is trained with.

    Args:
        directory: The sweep's directory.
        members: The grid.
        data: The texts, set up.
        build: Makes the population of some members.
        trainer: Makes a trainer from callbacks and further arguments.
        epochs: Epochs of a member that is not stopped.
        logger: The trainer's `logger` as configured; members are logged to it one by one.
        resume: The command that goes on after an interruption.
        bar: Whether to show the progress bar.
    """

    directory: Path
    members: Sequence[Member]
    data: TextData
    build: Callable[[Sequence[Member]], Population]
    trainer: Callable[..., Trainer]
    epochs: int
    logger: Any = False
    resume: str = "the same command again"
    bar: bool = True


class Watch(Callback):
    """Keeps a pack's checkpoint, counts its steps, and ends its training where members have to be
    looked at.

    Args:
        checkpoint: The pack's file.
        until: Epoch after which the training ends.
        patience: Epochs without a better dev score after which a member stops.
        advance: Is told the members of every step.
    """

    def __init__(
        self, checkpoint: Path, until: int, patience: int | None, advance: Callable[[int], Any]
    ) -> None:
        self.checkpoint = checkpoint
        self.until = until
        self.patience = patience
        self.advance = advance

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Move the bar."""
        self.advance(len(pl_module.members))  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the pack after its members' epoch was written."""
        beside = self.checkpoint.with_suffix(".part")
        trainer.save_checkpoint(beside, weights_only=False)
        beside.replace(self.checkpoint)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writer = next(callback for callback in callbacks if isinstance(callback, MemberWriter))
        if trainer.current_epoch + 1 == self.until or any(
            stalled(found, self.patience) for found in writer.progress
        ):
            trainer.should_stop = True


def stalled(progress: dict[str, Any], patience: int | None) -> bool:
    """Whether a member has had no better dev score for `patience` epochs."""
    if patience is None or not progress["history"]:
        return False
    names = [entry["name"] for entry in progress["history"]]
    return len(names) - 1 - names.index(progress["best"]) >= patience


def name_of(member: dict[str, Any]) -> str:
    """A member's name, from its settings."""
    return Member(**member).name


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Whole epochs behind a pack's checkpoint."""
    return max(
        int(progress["history"][-1]["epoch"])
        for progress in progress_of(checkpoint)
        if progress["history"]
    )


def load(path: Path) -> dict[str, Any]:
    """Read a pack's checkpoint, without running any code in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a pack's checkpoint, all of it or nothing."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(path, buffer.getvalue())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or not."""
    return isinstance(
        error, (MemoryError, torch.OutOfMemoryError)
    ) or "can't allocate memory" in str(error)
