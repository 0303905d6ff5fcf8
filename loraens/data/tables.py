"""A table that is being read: its columns, its rows, and how it is to be read."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from loraens.errors import InputError

Format = Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "excel", "memory"]
Quoting = Literal["auto", "standard", "lines", "none"]
Row = dict[str, Any]
Position = int | str  # number of the first line; FILE:NUMBER in a table of several files
BAR_DELAY = 2.0  # seconds, after which a bar is shown
SHOWN = 20  # names in a sentence
MAX_RECORD = 2**22  # characters; a text this long is a book, and no record of a data set


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        encoding: Encoding of text files.
        quoting: What quotes mean in CSV and TSV files; see `loraens.data.delimited`.
        flag: What option names begin with in messages.

    Raises:
        InputError: There is no such encoding or quoting.
    """

    encoding: str = "utf-8"
    quoting: Quoting = "auto"
    flag: str = "data."

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise InputError(
                f"encoding {self.encoding!r} is not known: give a name such as utf-8, utf-16,"
                " cp1252 or latin-1",
                option=f"{self.flag}encoding",
            ) from None
        if self.quoting not in get_args(Quoting):
            raise InputError(
                f"quoting {self.quoting!r} is none of {', '.join(get_args(Quoting))}",
                option=f"{self.flag}quoting",
            )


@dataclass
class Table:
    """A table being read: its format, its columns in order and its rows.

    Args:
        name: The file's name, for messages.
        format: What it was read as.
        columns: Column names, in order; those of the first record for JSON.
        rows: Pairs of position (the number of the record's first line, from 1, the header counted)
            and row; None for a record with the wrong number of fields.
    """

    name: str
    format: Format
    columns: list[str]
    rows: Iterator[tuple[Position, Row | None]]

    def at(self, position: Position) -> str:
        """Where a record is, for messages."""
        return f"{self.name} {line_of(position)}"

    def require(self, columns: Iterable[str], option: str) -> None:
        """Refuse a file that lacks a column.

        Raises:
            InputError: It names the column, the option that names it and the columns that are
                there.
        """
        for column in columns:
            if column not in self.columns:
                raise InputError(
                    f"{self.name} has no column {column!r} ({option}); its columns are"
                    f" {listed(self.columns)}"
                )


def check_distinct(name: str, columns: Iterable[str]) -> None:
    """Refuse columns of one name.

    Args:
        name: The file's name, for the message.
        columns: Names of its columns.

    Raises:
        InputError: Two have the same name.
    """
    ((column, count),) = Counter(columns).most_common(1) or [("", 0)]
    if count > 1:
        raise InputError(f"{name} has two columns named {column!r}: rename one")


def listed(names: Iterable[str]) -> str:
    """Names in quotes; the first ones where there are many."""
    shown = list(map(repr, names))
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more


def line_of(*positions: Position) -> str:
    """Positions in words: "line 3, 5"."""
    return f"line {', '.join(map(str, positions))}"


def too_long(where: str) -> InputError:
    """The error of a record that is longer than `MAX_RECORD`."""
    return InputError(
        f"{where} is longer than {MAX_RECORD // 2**20} MiB: records are expected, of which encoders"
        " read the first few hundred words; check the format, or cut the text"
    )
