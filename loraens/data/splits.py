"""The usable records of a split: texts, ids and labels read from the rows of a table; what is
dropped is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from loraens.data.files import open_table
from loraens.data.tables import BAR_DELAY, Position, Reading, Row, Table, line_of
from loraens.data.values import cell_text, without_marks
from loraens.errors import InputError
from loraens.labels.classes import label_value
from loraens.seeding import derive_seed
from loraens.tasks import Task


@dataclass
class Split:
    """The usable records of one split.

    Args:
        name: "train", "dev" or "test".
        ids: One unique id a record.
        texts: One or two texts a record.
        labels: `(N,)` float64, class numbers or values; None where the split has no labels.
        origin: Where it came from, in words.
        dropped: Reason -> positions (line numbers, or FILE:NUMBER in a table of several files) of
            the records that could not be used.
        groups: For each record the name of its group, "" where it has none; None where the split
            has no groups. Records of one group are in one fold.
    """

    name: str
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None
    origin: str
    dropped: dict[str, list[Position]] = field(default_factory=dict)
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def report(self) -> str:
        """One line: how many records were kept and which were dropped."""
        parts = [f"{self.name}: {len(self)} records from {self.origin}"]
        for reason, lines in self.dropped.items():
            shown = line_of(*lines[:5]) + (", ..." if len(lines) > 5 else "")
            parts.append(f"dropped {len(lines)} ({reason}; {shown})")
        return "; ".join(parts)


def limited(split: Split, limit: int | None) -> Split:
    """At most `limit` records of a split, drawn by a fixed seed; all of them for None."""
    if limit is None or limit >= len(split):
        return split
    rng = np.random.default_rng(derive_seed(0, "limit"))
    indices = np.sort(rng.permutation(len(split))[:limit])
    return replace(
        split,
        ids=[split.ids[index] for index in indices],
        texts=[split.texts[index] for index in indices],
        labels=None if split.labels is None else split.labels[indices],
        origin=f"{split.origin} ({len(indices)} of {len(split)})",
        groups=None if split.groups is None else [split.groups[index] for index in indices],
    )


def row_texts(
    row: Row, columns: tuple[str, ...], missing: frozenset[str] = frozenset()
) -> tuple[str, ...] | None:
    """The texts of a row, stripped; None where one is missing or blank.

    Raises:
        ValueError: A cell holds no text; the message names its column.
    """
    texts = tuple(_cell(row, column, missing) for column in columns)
    # JSON may contain lone surrogates, which tokenizers refuse
    whole = tuple(text.encode("utf-8", "replace").decode() for text in texts)
    return whole if all(whole) else None


def _cell(row: Row, column: str | None, missing: frozenset[str]) -> str:
    try:
        return "" if column is None else cell_text(row.get(column), missing)
    except ValueError as error:
        raise ValueError(f"column {column!r} {error}") from None


@dataclass
class Records:
    """The records of a table that have their texts, with labels as they stand in it.

    Args:
        table: Name of the table.
        positions: Where each begins.
        ids: One unique id a record.
        texts: One or two texts a record.
        labels: Labels as texts, "" where one is missing.
        groups: As in `Split`.
        dropped: As in `Split`.
    """

    table: str
    positions: list[Position] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    dropped: dict[str, list[Position]] = field(default_factory=dict)

    def keep(self, kept: list[bool], reason: str) -> None:
        """Drop the records that are not kept."""
        gone = [place for place, keep in zip(self.positions, kept, strict=True) if not keep]
        if not gone:
            return
        self.dropped[reason] = gone
        self.positions = list(compress(self.positions, kept))
        self.ids = list(compress(self.ids, kept))
        self.texts = list(compress(self.texts, kept))
        self.labels = list(compress(self.labels, kept))
        self.groups = None if self.groups is None else list(compress(self.groups, kept))


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read.

    Args:
        texts: One or two.
        label: Label.
        id: Unique ids; where it is not there, positions are the ids.
        group: Groups, or None.
    """

    texts: tuple[str, ...]
    label: str
    id: str = "id"
    group: str | None = None


def read_records(table: Table, columns: Columns, missing: frozenset[str] = frozenset()) -> Records:
    """The records of an open table. Those without a text or with the wrong number of fields are
    dropped and counted.

    Raises:
        InputError: A cell holds no single value, or an id repeats.
    """
    from tqdm import tqdm

    records = Records(table.name, groups=None if columns.group is None else [])
    options = {"unit": " rows", "delay": BAR_DELAY, "leave": False, "disable": None}
    for position, row in tqdm(table.rows, f"read {Path(table.name).name}", **options):
        try:
            texts = None if row is None else row_texts(row, columns.texts, missing)
            if row is None or texts is None:
                reason = f"not {len(table.columns)} fields" if row is None else "no text"
                records.dropped.setdefault(reason, []).append(position)
                continue
            records.ids.append(_cell(row, columns.id, frozenset()) or str(position))
            records.labels.append(_cell(row, columns.label, missing))
            if records.groups is not None:
                records.groups.append(_cell(row, columns.group, missing))
        except ValueError as error:
            raise InputError(f"{table.at(position)}: {error}") from None
        records.positions.append(position)
        records.texts.append(texts)
    records.labels = without_marks(records.labels)
    _check_ids(table, records)
    return records


def _check_ids(table: Table, records: Records) -> None:
    if len(set(records.ids)) == len(records.ids):
        return
    positions: dict[str, Position] = {}
    for identity, position in zip(records.ids, records.positions, strict=True):
        first = positions.setdefault(identity, position)
        if first != position:
            raise InputError(
                f"{table.at(position)} repeats the id {identity!r} of {line_of(first)}"
            )


def split_of(records: Records, name: str, task: Task) -> Split:
    """The split of records: those without a label are dropped and counted, unless none has one.

    Labels that are all -1 are hidden, as in GLUE's test splits, unless -1 is a class.

    Raises:
        InputError: No usable record is left, or a label is none of the task's.
    """
    distinct = set(records.labels) - {""}
    names = map(label_value, task.class_names)
    if all(label_value(label) == -1 for label in distinct) and -1 not in names:
        records.labels = [""] * len(records.labels)
    labelled = any(records.labels)
    if labelled:
        records.keep([bool(label) for label in records.labels], "no label")
    if not records.ids:
        raise InputError(
            f"{records.table} has no usable record of the {name} split: a text is expected in every"
            " line"
        )
    return Split(
        name=name,
        ids=records.ids,
        texts=records.texts,
        labels=_numbers(task, records) if labelled else None,
        origin=Path(records.table).name,
        dropped=records.dropped,
        groups=records.groups,
    )


def _numbers(task: Task, records: Records) -> np.ndarray:
    """Labels `(N,)` as numbers."""
    known: dict[str, float] = {}
    for label, position in zip(records.labels, records.positions, strict=True):
        if label not in known:
            try:
                known[label] = task.parse_label(label)
            except ValueError as error:
                raise InputError(f"{records.table} {line_of(position)}: {error}") from None
    return np.array([known[label] for label in records.labels])


def read_split(
    source: Any,
    name: str,
    task: Task,
    id_column: str = "id",
    group_column: str | None = None,
    reading: Reading | None = None,
) -> Split:
    """Read one split of a task from a file, or what else `open_table` takes.

    Raises:
        InputError: A text column or, of train or dev, the group column is missing, no usable record
            is left, an id repeats, or a label is out of range.
    """
    columns = Columns(task.text_columns, task.label_column, id_column, group_column)
    with open_table(source, reading=reading) as table:
        return collect_split(table, name, task, columns)


def collect_split(table: Table, name: str, task: Task, columns: Columns) -> Split:
    """The split of an open table; as `read_split`."""
    require(table, columns, name)
    return split_of(read_records(table, columns), name, task)


def require(table: Table, columns: Columns, split: str) -> None:
    """Refuse a table without the columns of texts or, but for test, of groups.

    Raises:
        InputError: It names the column.
    """
    table.require(columns.texts, "text columns")
    if columns.group is not None and split != "test":
        table.require([columns.group], "group_column")
