"""Records that the run store keeps as JSON: typed, and validated where they are read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from loraens.errors import InputError
from loraens.members import Member
from loraens.tasks import Task

Epoch = Literal["best", "last"]
Status = Literal["training", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")
# what runs of older versions were trained with, unsaid
OLDER_SETTINGS: dict[str, str | bool | None] = {
    "adapter": "lora",
    "folds": None,
    "group_by_length": False,
    "halving_by": "score",
    "long": "cut",
    "merged": None,
}
CHECKSUM = "sha256"  # field with the checksum of the others
R = TypeVar("R", bound="Record")


def _inside(path: str) -> str:
    """A path below the record's directory."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("leaves its directory")
    return path


def _nan_for_null(value: object) -> object:
    return math.nan if value is None else value


Score = Annotated[float, BeforeValidator(_nan_for_null)]  # NaN where not defined; JSON has null
Scores = dict[str, dict[str, Score]]  # by task and metric
Count = Annotated[int, Field(ge=0)]
Inside = Annotated[str, AfterValidator(_inside)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of JSON fields, however they are laid out in a file."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def signed(fields: Mapping[str, Any]) -> bytes:
    """The JSON file of some fields, with their checksum among them."""
    content = {**fields, CHECKSUM: _digest(fields)}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def read_signed(content: bytes, source: object, fix: str) -> dict[str, Any]:
    """The fields of a JSON file; those of older versions have no checksum.

    Args:
        content: The file's content.
        source: The file, for the message.
        fix: What the user can do, for the message.

    Raises:
        InputError: It is no JSON object, or its checksum is not that of its fields.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON ({error}): {fix}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{source} is no JSON object: {fix}")
    expected = fields.pop(CHECKSUM, None)
    if expected is not None and expected != _digest(fields):
        raise InputError(f"{source} was altered (its checksum is not that of its fields): {fix}")
    return fields


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class Record:
    """A dataclass that is kept as a JSON object."""

    @classmethod
    def from_json(cls: type[R], fields: object, source: object, fix: str) -> R:
        """The record of JSON fields; unknown fields are left out.

        Args:
            fields: What `json.loads` gave.
            source: The file, for the message.
            fix: What the user can do, for the message.

        Raises:
            InputError: A field is missing, of another type, out of range, or a path that leaves
                its directory.
        """
        try:
            # by way of JSON, since only there a strict adapter takes lists for tuples
            record: R = _adapter(cast("type", cls)).validate_json(json.dumps(fields), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "missing":
                problem = f"lacks the field {name!r}"
            else:
                reason = first["msg"].removeprefix("Value error, ")
                problem = f"has a field {name!r} that cannot be used ({reason})"
            raise InputError(f"{source} {problem}: {fix}") from None
        return record

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them: lists for tuples, null for numbers that are not finite."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    def dumps(self, **extra: Any) -> bytes:
        """The JSON file, with further fields before the record's."""
        return (json.dumps({**extra, **self.to_json()}, indent=2, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, (Task, Member, Record)):  # which leave out what older versions had not
        return _plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Settings(Record):
    """All that a member's weights depend on beside its own settings.

    Args:
        backbone: Hub name or directory of the encoder, or the name of a packaged one.
        backbone_fingerprint: SHA-256 of its weights.
        tasks: The tasks, each with a head.
        mode: "lora", "frozen" or "full".
        targets: Names of the adapted layers.
        pooling: What the heads read: "pooler", "cls", "mean" or "last".
        init_std: Standard deviation of A at the start.
        encoder_dropout: Whether the backbone's own dropout is on while training.
        schedule: Schedule of the learning rate.
        warmup: Share of the steps in which the learning rate rises.
        batch_size: Examples of one member in a batch.
        max_length: Longest sequence, in tokens.
        temperature: Of the shares of several tasks.
        precision: Lightning's precision.
        accumulate_grad_batches: Batches of one optimiser step.
        gradient_clip_val: Bound of a member's gradient, or None.
        gradient_clip_algorithm: "norm" or "value".
        limit_train_batches: Batches of an epoch, as a number or a share.
        data: Fingerprint of each split, by `<task>-<split>`.
        scheduled_steps: Steps that the learning rate is scheduled over; None where it is constant.
        adapter: Adapter kind.
        folds: Parts that the labelled examples are cut into; None where they are not.
        long: How sequences of more tokens are read: "cut", "head_tail" or "windows".
        group_by_length: Whether batches are of examples of similar lengths.
        merged: Of a backbone that is an adapter of PEFT, SHA-256 of the weights that it was merged
            of, "base" and "adapter".
    """

    backbone: str
    backbone_fingerprint: str
    tasks: tuple[Task, ...]
    mode: str
    targets: tuple[str, ...]
    pooling: str
    init_std: float
    encoder_dropout: bool
    schedule: str
    warmup: float
    batch_size: Count
    max_length: Count
    temperature: float
    precision: str
    accumulate_grad_batches: Count
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    limit_train_batches: int | float | None
    data: dict[str, str]
    scheduled_steps: Count | None = None
    adapter: str = "lora"
    folds: Count | None = None
    long: str = "cut"
    group_by_length: bool = False
    merged: dict[str, str] | None = None

    def task(self, name: str) -> Task | None:
        """The task of a name, if there is one."""
        return next((task for task in self.tasks if task.name == name), None)


@dataclass(frozen=True)
class EpochRecord(Record):
    """One epoch of a member, or one of several validations of it.

    Args:
        name: Directory of the epoch's files.
        epoch: Number of the epoch, from 1.
        step: Optimiser steps so far.
        train_loss: Mean training loss since the validation before.
        dev: Scores on dev. Of a member of a fold they are those of its configuration: out of
            fold, of the logits of all its members together, each on its own part.
        score: The score that chooses the best epoch, higher is better.
    """

    name: Inside
    epoch: Count
    step: Count
    train_loss: Score
    dev: Scores
    score: Score


@dataclass(frozen=True)
class Manifest(Record):
    """A member: its settings, its scores, and its files.

    Args:
        name: The member's name.
        status: "training" until it has "finished", was "stopped" early, or "failed".
        member: Its own settings.
        settings: What it shares with others.
        epochs: Directories of its best and last epoch; none if it failed in its first.
        dev: Scores on dev of these epochs; out of fold where the member is of a fold, as in
            `EpochRecord`.
        ended: Why it failed or was stopped.
        history: All its epochs.
        dropped: Records that could not be used: split -> reason -> line numbers, or FILE:NUMBER in
            a split of several files.
        truncated: Sequences that were cut, by split.
        trainable_parameters: Trained numbers.
        seconds: Wall time of the training of its pack so far.
        versions: Versions of the libraries.
        files: SHA-256 of each of its files.
        examples: SHA-256 of each file of the run's examples that its logits refer to.
        max_epochs: Epochs that its training was to have; None where it had no such end, and in runs
            of older versions.
        imported: Of a member that PEFT trained, where it was imported from: "directory", "base",
            the name of the model that was adapted, and "sha256" of the weights. How it was trained
            is not known: of its own settings only rank and scale hold, of the others those that
            predictions depend on. It has one epoch, and no history.
        backbone_path: Path of the backbone's directory from the run's, where it was given by a
            relative path; so both can be moved together.
    """

    name: str
    status: Status
    member: Member
    settings: Settings
    epochs: dict[Epoch, Inside]
    dev: dict[Epoch, Scores]
    ended: str | None = None
    history: tuple[EpochRecord, ...] = ()
    dropped: dict[str, dict[str, list[int | str]]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    trainable_parameters: Count | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[Inside, Checksum] = field(default_factory=dict)
    examples: dict[Inside, Checksum] = field(default_factory=dict)
    max_epochs: Count | None = None
    imported: dict[str, str] | None = None
    backbone_path: str | None = None

    @property
    def trained_epochs(self) -> int | None:
        """Epochs that it was trained, the last one perhaps in part; None where not known."""
        return self.history[-1].epoch if self.history else None

    @property
    def planned_epochs(self) -> int | None:
        """Epochs that it was to be trained, had it not stopped early; None where not known."""
        return self.trained_epochs if self.status == "finished" else self.max_epochs

    def score(self, task: Task, epoch: Epoch = "best") -> float | None:
        """The task's metric on dev after an epoch; None where it is not defined."""
        score = self.dev.get(epoch, {}).get(task.name, {}).get(task.metric, math.nan)
        return None if math.isnan(score) else score
