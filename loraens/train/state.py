"""`sweep.json`: how far a sweep is, and the lock of its directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from loraens.errors import InputError
from loraens.files import make_directory, naming, part_of, write_atomically
from loraens.records import OLDER_SETTINGS, read_signed, signed
from loraens.store import SWEEP

LOCK = ".lock"
MARK = ".loraens"  # marks a directory that runs are written to
Positive = Annotated[int, Field(ge=1)]


@dataclass
class SweepState:
    """How far a sweep is.

    Args:
        settings: What all members share; a sweep is resumed only with the same.
        measured: The pack size that was measured; None where it was not.
        fits: Most members of a pack for now, where memory ran out; None where it did not.
        rung: Halvings behind it.
        logged: Names of the members that are logged to the experiment tracker.
        members: Names of all members; None in sweeps of older versions.
    """

    __pydantic_config__ = ConfigDict(strict=True)

    settings: dict[str, Any]
    measured: Positive | None
    fits: Positive | None
    rung: Annotated[int, Field(ge=0)]
    logged: list[str]
    members: list[str] | None = None

    @classmethod
    def new(cls, settings: dict[str, Any]) -> SweepState:
        """The state of a sweep that begins."""
        return cls(settings=settings, measured=None, fits=None, rung=0, logged=[])

    @classmethod
    def from_json(cls, content: bytes, path: Path) -> SweepState:
        """Read the content of sweep.json.

        Args:
            content: The content.
            path: Where it is from, for messages.

        Raises:
            InputError: A field is missing, of a wrong type or out of range.
        """
        fix = "restore it, or choose another directory"
        fields = read_signed(content, path, fix)
        try:
            return TypeAdapter(cls).validate_json(json.dumps(fields))
        except ValidationError as error:
            first = error.errors()[0]
            location = ".".join(map(str, first["loc"]))
            reason = f"field {location!r}: {first['msg']}" if location else first["msg"]
            raise InputError(f"{path} cannot be read ({reason}): {fix}") from None

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any], rungs: int) -> SweepState:
        """Read the state of a sweep that is resumed.

        Args:
            path: sweep.json.
            settings: What all members share now.
            rungs: Rungs of the sweep.

        Raises:
            InputError: A field is not right, or the sweep is one of other settings or data.
        """
        state = cls.from_json(path.read_bytes(), path)
        if changed := changed_setting(state.settings, settings):
            name, before, now = changed
            raise InputError(
                f"sweep {path.parent} was started with {name} {before!r}, now it is {now!r}: use"
                " the sweep's config.yaml and data, or choose another directory"
            )
        if state.rung >= rungs:
            raise InputError(
                f"{path} cannot be read (field 'rung': {state.rung} of {rungs} rungs): restore it,"
                " or choose another directory"
            )
        return state

    def to_json(self) -> bytes:
        """The content of sweep.json."""
        return signed(asdict(self))

    def write(self, directory: Path) -> None:
        """Replace sweep.json in a sweep's directory."""
        write_atomically(directory / SWEEP, self.to_json())


def changed_setting(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that is not as it was: its dotted name, the value before and the value
    now. Of a backbone only its weights count, as it may have been moved.
    """
    flat_before = _flat({**OLDER_SETTINGS, **before})
    for name, value in _flat(now).items():
        if name != "backbone" and flat_before.get(name) != value:
            return name, flat_before.get(name), value
    return None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextmanager
def locked(directory: Path, known: bool = False) -> Iterator[None]:
    """Keep others from training in a directory; the operating system frees the lock when the
    process ends, however it ends. The directory is marked as ours.

    Args:
        directory: The directory; made where it is missing.
        known: Whether it is known to be ours without the mark, which older versions did not leave.

    Raises:
        InputError: Another training runs there, or it has something that is not ours.
    """
    if not (known or is_ours(directory)):
        raise InputError(
            f"run {directory} has something that loraens did not write: choose another name",
            option="store.run",
        )
    make_directory(directory)
    lock = FileLock(directory / LOCK)
    with naming(directory / LOCK):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another training runs in {directory}: wait until it ends, or give another"
                " directory"
            ) from None
    try:
        if not (directory / MARK).is_file():
            write_atomically(directory / MARK, b"loraens writes and removes files here\n")
        yield
    finally:
        lock.release()


def pack_locked(checkpoint: Path, seconds: float = -1) -> FileLock:
    """A lock, to be entered, that keeps others from training a pack.

    Args:
        checkpoint: The pack's file.
        seconds: How long another worker's end is waited for; -1 is for ever.
    """
    path = checkpoint.with_suffix(".lock")
    make_directory(path.parent)
    return FileLock(path, timeout=seconds)


def wait_for_workers(packs: Path, seconds: float = 60) -> None:
    """Wait for workers of a coordinator that was killed, which soon end too.

    Args:
        packs: Directory of the packs' checkpoints.
        seconds: How long.

    Raises:
        InputError: One has not ended.
    """
    for path in packs.glob("*.lock"):
        try:
            with pack_locked(path, seconds):
                pass
        except Timeout:
            raise InputError(
                f"a worker of this sweep's last start still trains ({path}): end it first, or wait"
            ) from None


def is_ours(directory: Path) -> bool:
    """Whether a directory may be written to: it is empty or not there, or has the mark, or what
    was killed before it had it.
    """
    if not directory.is_dir():
        return True
    names = {path.name for path in directory.iterdir()}
    begun = rf"{re.escape(LOCK)}|{part_of(MARK)}"
    return MARK in names or all(re.fullmatch(begun, name) for name in names)
