"""Checkpoints of packs, regrouped by member.

A pack that loses members (early stopping, halving, too little memory) continues from the checkpoint
of those that are left.

Shape letters: M members.
"""

from __future__ import annotations

import errno
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor

from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.members import Member
from loraens.model.injection import padded_axis

# keys of what our module and our member writer put into a checkpoint
MODULE = "loraens"
WRITER = "loraens.members"
DAMAGED = (  # what reading a damaged file raises
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, EOFError, OSError),
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError),
)
_FAILURE_STEP = "failures.step"  # (M,) step at which a member failed; -1 where it has not
_FAILURES = (_FAILURE_STEP, "failures.loss")
Regroup = Callable[[str, Sequence[Tensor]], Tensor]  # name of a tensor, the checkpoints' tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Its file is a zip archive with a CRC-32 of each record, which `torch.load` does not compare.

    Raises:
        InputError: It is damaged, or no checkpoint of loraens.
    """
    content: Any = None
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        if whole:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        of_machine = isinstance(error, OSError) and error.errno != errno.EINVAL  # of a wrong offset
        if of_machine or "alloc" in str(error):
            raise
    if (
        not isinstance(content, dict)
        or not {MODULE, "state_dict", "pytorch-lightning_version"} <= content.keys()
    ):
        raise InputError(f"{path} is not a whole checkpoint of loraens")
    return content


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, all of it or nothing, with a CRC-32 of each record."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints as all our files are written and verified: Lightning copies one over
    its place where the temporary directory is on another device.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, all of it or nothing."""
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint without running any code in it.

        Raises:
            InputError: It is damaged, or no checkpoint of loraens.
        """
        return read_checkpoint(Path(path))


def with_whole_checkpoints(trainer: Trainer) -> Trainer:
    """The trainer, whose checkpoints are whole, unless it has a plugin of its own for them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


@dataclass(frozen=True)
class Progress:
    """How a member has done so far.

    Args:
        names: Of its validations, in order.
        epochs: The epoch of each.
        scores: The dev score of each, higher is better.
        best: Name of the validation with the best score; None before the first.
    """

    names: tuple[str, ...]
    epochs: tuple[int, ...]
    scores: tuple[float, ...]
    best: str | None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Progress:
        """Read what the member writer puts into a checkpoint."""
        history = entry["history"]
        return cls(
            names=tuple(item["name"] for item in history),
            epochs=tuple(int(item["epoch"]) for item in history),
            scores=tuple(float(item["score"]) for item in history),
            best=entry["best"],
        )

    def stalled(self, patience: int | None) -> bool:
        """Whether there was no better dev score for `patience` epochs."""
        if patience is None or self.best is None:
            return False
        return len(self.names) - 1 - self.names.index(self.best) >= patience


@dataclass(frozen=True)
class PackCheckpoint:
    """Lightning's checkpoint of a pack.

    Args:
        content: The checkpoint as Lightning reads and writes it.
    """

    content: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PackCheckpoint:
        """Read a pack's file, without running any code in it.

        Raises:
            InputError: It is damaged, or no checkpoint of a pack.
        """
        checkpoint = cls(read_checkpoint(path))
        try:
            members = len(checkpoint.members)
            whole = members == len(checkpoint.progress) == len(checkpoint.failed) > 0
            whole = whole and checkpoint.epochs_done > 0 and bool(checkpoint.adapter)
        except (LookupError, TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise InputError(f"{path} is no whole checkpoint of a pack")
        return checkpoint

    def save(self, path: Path) -> None:
        """Write a pack's file, all of it or nothing."""
        write_checkpoint(path, self.content)

    @property
    def members(self) -> tuple[Member, ...]:
        """The pack's members."""
        return tuple(Member(**settings) for settings in self.content[MODULE]["members"])

    @property
    def adapter(self) -> str:
        """Kind of the members' adapters."""
        return str(self.content[MODULE].get("adapter", "lora"))

    @property
    def progress(self) -> tuple[Progress, ...]:
        """How each member has done."""
        return tuple(map(Progress.of, self._progress_entries))

    @property
    def failed(self) -> tuple[bool, ...]:
        """Whether the numbers of each member became NaN or infinite."""
        steps: list[int] = self.content["state_dict"][_FAILURE_STEP].tolist()
        return tuple(step >= 0 for step in steps)

    @property
    def epochs_done(self) -> int:
        """Whole epochs that the pack is trained; members that failed have fewer."""
        return max(progress.epochs[-1] for progress in self.progress if progress.epochs)

    @property
    def _progress_entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.content["callbacks"][WRITER]["progress"]
        return entries

    def select(self, indices: Sequence[int]) -> PackCheckpoint:
        """The checkpoint of some of the pack's members, as if it had never had others.

        Args:
            indices: Of members, in the order in which they shall be.
        """
        chosen = list(indices)
        ranks = [member.rank for member in self.members]
        rank = max(ranks[index] for index in chosen)

        def regroup(name: str, tensors: Sequence[Tensor]) -> Tensor:
            return _resized(tensors[0][chosen], padded_axis(name, self.adapter), rank)

        return _regrouped([self], regroup, [chosen])


def concatenate(checkpoints: Sequence[PackCheckpoint]) -> PackCheckpoint:
    """The checkpoint of several packs' members side by side; the packs must have come equally
    far.
    """
    rank = max(member.rank for checkpoint in checkpoints for member in checkpoint.members)

    def regroup(name: str, tensors: Sequence[Tensor]) -> Tensor:
        axis = padded_axis(name, checkpoints[0].adapter)
        return torch.cat([_resized(tensor, axis, rank) for tensor in tensors])

    everyone = [list(range(len(checkpoint.members))) for checkpoint in checkpoints]
    return _regrouped(checkpoints, regroup, everyone)


def _resized(tensor: Tensor, axis: int | None, rank: int) -> Tensor:
    """Padded with zeros to, or cut to, another largest rank.

    What is beyond a member's own rank is zero, so nothing is lost where no member's rank is larger.

    Args:
        tensor: `(M, ...)`.
        axis: Axis of the largest rank, if it has one.
        rank: Length of that axis in the result.
    """
    if axis is None or tensor.shape[axis] == rank:
        return tensor
    if tensor.shape[axis] > rank:
        return tensor.narrow(axis, 0, rank).clone()  # a view would keep the whole tensor in memory
    shape = list(tensor.shape)
    shape[axis] = rank - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _regrouped(
    checkpoints: Sequence[PackCheckpoint], regroup: Regroup, kept: Sequence[Sequence[int]]
) -> PackCheckpoint:
    """A checkpoint made of several; what is not a member's own is the first one's.

    Args:
        checkpoints: Of packs.
        regroup: Makes a tensor of the checkpoints' tensors.
        kept: For each checkpoint the indices of the members that `regroup` keeps.
    """
    first = checkpoints[0].content
    states = [checkpoint.content["state_dict"] for checkpoint in checkpoints]
    members: list[dict[str, Any]] = []
    progress: list[dict[str, Any]] = []
    for checkpoint, indices in zip(checkpoints, kept, strict=True):
        members += [checkpoint.content[MODULE]["members"][index] for index in indices]
        progress += [checkpoint._progress_entries[index] for index in indices]
    writer = {**first["callbacks"][WRITER], "progress": progress}
    return PackCheckpoint(
        {
            **first,
            "state_dict": {
                name: regroup(name, [state[name] for state in states])
                for name in first["state_dict"]
            },
            "optimizer_states": [_regrouped_optimizer(checkpoints, regroup)],
            "callbacks": {**first["callbacks"], WRITER: writer},
            MODULE: {**first[MODULE], "members": members},
        }
    )


def _regrouped_optimizer(checkpoints: Sequence[PackCheckpoint], regroup: Regroup) -> dict[str, Any]:
    """The optimiser's state; it numbers the trained tensors in the order of the module's state."""
    states = [checkpoint.content["optimizer_states"][0] for checkpoint in checkpoints]
    trained = [name for name in checkpoints[0].content["state_dict"] if name not in _FAILURES]
    moments: dict[int, dict[str, Any]] = {}
    for number, entry in states[0]["state"].items():
        entries = [state["state"][number] for state in states]
        moments[number] = {
            key: (
                regroup(trained[number], [other[key] for other in entries])
                if isinstance(value, Tensor)
                else value
            )
            for key, value in entry.items()
        }
    return {**states[0], "state": moments}
