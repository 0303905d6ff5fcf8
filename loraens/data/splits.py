"""The usable records of a split: texts, ids and labels read from the rows of a table; what is
dropped is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from loraens.data.files import open_table
from loraens.data.tables import BAR_DELAY, Position, Reading, Row, Table, line_of
from loraens.data.values import cell_text, without_marks
from loraens.errors import InputError
from loraens.labels.classes import label_value, parse_number
from loraens.seeding import derive_seed
from loraens.tasks import Task


@dataclass
class Split:
    """The usable records of one split.

    Args:
        name: "train", "dev" or "test".
        ids: One unique id a record.
        texts: One or two texts a record.
        labels: `(N,)` float64, class numbers or values, or `(N, K)` where an example has several
            labels; None where the split has no labels.
        origin: Where it came from, in words.
        dropped: Reason -> positions (line numbers, or FILE:NUMBER in a table of several files) of
            the records that could not be used.
        groups: For each record the name of its group, "" where it has none; None where the split
            has no groups. Records of one group are in one fold.
        weights: `(N,)` of the records in training, 1 on average; None for equal ones.
    """

    name: str
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None
    origin: str
    dropped: dict[str, list[Position]] = field(default_factory=dict)
    groups: list[str] | None = None
    weights: np.ndarray | None = None

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
        weights=None if split.weights is None else split.weights[indices],
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
        weights: Positive; None where there are none.
        dropped: As in `Split`.
    """

    table: str
    positions: list[Position] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    weights: list[float] | None = None
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
        self.weights = None if self.weights is None else list(compress(self.weights, kept))


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read.

    Args:
        texts: One or two.
        label: Label; of several columns a name for them all.
        id: Unique ids; where it is not there, positions are the ids.
        group: Groups, or None.
        weight: Weights in training, or None.
        flags: Several columns of 0 and 1 that are the label together, named as its names are.
        lists: Whether a cell of the label may hold a list of names.
    """

    texts: tuple[str, ...]
    label: str
    id: str = "id"
    group: str | None = None
    weight: str | None = None
    flags: tuple[str, ...] = ()
    lists: bool = False

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        label: str | Sequence[str],
        id: str,
        group: str | None,
        weight: str | None,
    ) -> Columns:
        """The columns as options name them: a list of columns of the label are flags."""
        flags = () if isinstance(label, str) else tuple(label)
        name = label if isinstance(label, str) else ", ".join(label)
        return cls(tuple(texts), name, id, group, weight, flags)

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns of the label."""
        return self.flags or (self.label,)


def read_records(table: Table, columns: Columns, missing: frozenset[str] = frozenset()) -> Records:
    """The records of an open table. Those without a text or with the wrong number of fields are
    dropped and counted.

    Raises:
        InputError: A cell holds no single value, or a label or weight that cannot be used; or an id
            repeats.
    """
    from tqdm import tqdm

    records = Records(
        table.name,
        groups=None if columns.group is None else [],
        weights=None if columns.weight is None else [],
    )
    options = {"unit": " rows", "delay": BAR_DELAY, "leave": False, "disable": None}
    for position, row in tqdm(table.rows, f"read {Path(table.name).name}", **options):
        try:
            texts = None if row is None else row_texts(row, columns.texts, missing)
            if row is None or texts is None:
                reason = f"not {len(table.columns)} fields" if row is None else "no text"
                records.dropped.setdefault(reason, []).append(position)
                continue
            records.ids.append(_cell(row, columns.id, frozenset()) or str(position))
            records.labels.append(_label_text(row, columns, missing))
            if records.groups is not None:
                records.groups.append(_cell(row, columns.group, missing))
            if records.weights is not None:
                records.weights.append(_weight(row, columns.weight))
        except ValueError as error:
            raise InputError(f"{table.at(position)}: {error}") from None
        records.positions.append(position)
        records.texts.append(texts)
    records.labels = without_marks(records.labels)
    _check_ids(table, records)
    return records


def _label_text(row: Row, columns: Columns, missing: frozenset[str]) -> str:
    """The label of a row; a list in its cell, or the names of the flags that are set, as JSON."""
    if not columns.flags:
        value = row.get(columns.label)
        if columns.lists and isinstance(value, (list, tuple)):
            return json.dumps(value, ensure_ascii=False)
        return _cell(row, columns.label, missing)
    cells = {name: _cell(row, name, missing) for name in columns.flags}
    if not any(cells.values()):
        return ""
    values = {name: label_value(cell) for name, cell in cells.items()}
    for name, value in values.items():
        if value not in (0, 1):
            raise ValueError(f"column {name!r} has {cells[name]!r}, and 0 or 1 is expected")
    return json.dumps([name for name, value in values.items() if value], ensure_ascii=False)


def _weight(row: Row, column: str | None) -> float:
    cell = _cell(row, column, frozenset())
    weight = parse_number(cell)
    if weight is None or not 0 < weight < math.inf:
        raise ValueError(f"column {column!r} has {cell!r}, and a positive weight is expected")
    return weight


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
        weights=None if records.weights is None else _weights(records.weights),
    )


def _weights(given: list[float]) -> np.ndarray:
    """Weights `(N,)`, divided by their mean."""
    weights = np.array(given)
    weights /= weights.mean()
    return weights


def _numbers(task: Task, records: Records) -> np.ndarray:
    """Labels `(N,)` as numbers, or `(N, K)` as zeros and ones."""
    known: dict[str, float | tuple[float, ...]] = {}
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
    several = "delimiter" in task.label_kind.options
    columns = Columns(task.text_columns, task.label_column, id_column, group_column, lists=several)
    with open_table(source, reading=reading) as table:
        if several and task.label_column not in table.columns:
            flags = [name for name in task.class_names if name in table.columns]
            columns = replace(columns, flags=tuple(flags))
        return collect_split(table, name, task, columns)


def collect_split(table: Table, name: str, task: Task, columns: Columns) -> Split:
    """The split of an open table; as `read_split`."""
    require(table, columns, name)
    return split_of(read_records(table, columns), name, task)


def require(table: Table, columns: Columns, split: str) -> None:
    """Refuse a table without the columns of texts or, but for test, of groups and weights; or with
    a part of the columns of several labels.

    Raises:
        InputError: It names the column.
    """
    table.require(columns.texts, "text columns")
    for column, option in ((columns.group, "group_column"), (columns.weight, "weight_column")):
        if column is not None and split != "test":
            table.require([column], option)
    if split != "test" or set(columns.flags) & set(table.columns):
        table.require(columns.flags, "label_column")
