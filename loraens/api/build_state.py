"""What a build was asked for and what it measured, so that the same again is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.records import Record, read_signed, signed
from loraens.train.sizing import Size

STATE = "build.json"
FORMAT = 1


@dataclass(frozen=True)
class Asked(Record):
    """What a build was asked for; `data` is the fingerprint of its splits."""

    backbone: str
    minutes: float
    max_length: int
    text: tuple[str, ...]
    label: str
    kind: str
    metric: str
    data: dict[str, str]


@dataclass(frozen=True)
class Measured(Record):
    """What the build chose by measuring.

    Args:
        pack_size: Members of a pack.
        range_texts: Texts of the range tests; 0 where there are too few or too little time.
        pooling: What the heads read.
        lr: The best learning rate.
        size: How much is trained; None before the range tests have ended.
    """

    pack_size: int
    range_texts: int
    pooling: str = "mean"
    lr: float = 5e-4
    size: Size | None = None


def read_state(directory: Path, asked: Asked) -> Measured | None:
    """What was measured for the same before; None where nothing was.

    Raises:
        InputError: The directory has another build, or something else.
    """
    path = directory / STATE
    fix = "give another --out, or delete it"
    if not path.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise InputError(f"out {directory} has something else: {fix}", option="out")
        return None
    fields = read_signed(path.read_bytes(), path, fix)
    if fields.get("format") != FORMAT:
        raise InputError(f"{path} is not a build that this version reads: {fix}")
    before = Asked.from_json(fields.get("asked"), path, fix).to_json()
    for name, value in asked.to_json().items():
        if before[name] != value:
            raise InputError(f"out {directory} has a build with other {name}: {fix}", option="out")
    return Measured.from_json(fields.get("measured"), path, fix)


def write_state(directory: Path, asked: Asked, measured: Measured) -> None:
    """Note what was measured."""
    content = {"format": FORMAT, "asked": asked.to_json(), "measured": measured.to_json()}
    write_atomically(directory / STATE, signed(content))
