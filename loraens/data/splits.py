"""The usable records of a split: texts, ids and labels read from the rows of a table; what is
dropped is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loraens.data.files import Row, Table, open_table
from loraens.errors import InputError
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
        dropped: Reason -> line numbers of the records that could not be used.
        groups: For each record the name of its group, "" where it has none; None where the split
            has no groups. Records of one group are in one fold.
    """

    name: str
    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None
    origin: str
    dropped: dict[str, list[int]] = field(default_factory=dict)
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def report(self) -> str:
        """One line: how many records were kept and which were dropped."""
        parts = [f"{self.name}: {len(self)} records from {self.origin}"]
        for reason, lines in self.dropped.items():
            shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
            parts.append(f"dropped {len(lines)} ({reason}; line {shown})")
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


def row_texts(row: Row, columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The texts of a row, stripped; None where one is missing or blank."""
    texts = tuple(_text(row.get(column)) for column in columns)
    # JSON may contain lone surrogates, which tokenizers refuse
    whole = tuple(text.encode("utf-8", "replace").decode() for text in texts)
    return whole if all(whole) else None


def read_split(
    path: str | Path,
    name: str,
    task: Task,
    id_column: str = "id",
    group_column: str | None = None,
) -> Split:
    """Read one split of a task from a file.

    Records without a text, without a label (in a labelled split) or with the wrong number of fields
    are dropped and counted. A split is labelled if any of its records is.

    Raises:
        InputError: A text column or, of train or dev, the group column is missing, no usable record
            is left, an id repeats, or a label is out of range.
    """
    with open_table(path) as table:
        table.require(task.text_columns, "text columns")
        return collect_split(table, name, task, id_column, group_column)


class _Candidate(NamedTuple):
    """A record that has its texts: line number, id, texts, label and group as they stand in the
    file.
    """

    line: int
    id: str
    texts: tuple[str, ...]
    label: str
    group: str


def collect_split(
    table: Table, name: str, task: Task, id_column: str, group_column: str | None = None
) -> Split:
    """The split of an open table; as `read_split`."""
    if group_column is not None and name != "test":
        table.require([group_column], "group_column")
    records: list[_Candidate] = []
    dropped: dict[str, list[int]] = {}
    for line, row in table.rows:
        texts = None if row is None else row_texts(row, task.text_columns)
        if row is None:
            dropped.setdefault(f"not {len(table.columns)} fields", []).append(line)
        elif texts is None:
            dropped.setdefault("no text", []).append(line)
        else:
            given = row.get(id_column)
            identity = str(line) if given in (None, "") else str(given)
            label = _text(row.get(task.label_column))
            group = "" if group_column is None else _text(row.get(group_column))
            records.append(_Candidate(line, identity, texts, label, group))
    labelled = any(record.label for record in records)
    if labelled and (unlabelled := [record.line for record in records if not record.label]):
        dropped["no label"] = unlabelled
        records = [record for record in records if record.label]
    if not records:
        raise InputError(
            f"{table.name} has no usable record of the {name} split: a text is expected in every"
            " line"
        )
    _check_ids(table, records)
    labels = None
    if labelled:
        labels = np.array([_label(task, table, record) for record in records])
    return Split(
        name=name,
        ids=[record.id for record in records],
        texts=[record.texts for record in records],
        labels=labels,
        origin=Path(table.name).name,
        dropped=dropped,
        groups=None if group_column is None else [record.group for record in records],
    )


def _check_ids(table: Table, records: list[_Candidate]) -> None:
    lines: dict[str, int] = {}
    for record in records:
        first = lines.setdefault(record.id, record.line)
        if first != record.line:
            raise InputError(
                f"{table.name} line {record.line} repeats the id {record.id!r} of line {first}"
            )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _label(task: Task, table: Table, record: _Candidate) -> float:
    try:
        return task.parse_label(record.label)
    except ValueError as error:
        raise InputError(f"{table.name} line {record.line}: {error}") from None


def distinct_labels(path: str | Path, column: str) -> tuple[str, ...]:
    """The labels that occur in a file, in numeric order and each value once if all are numbers,
    else sorted.

    Raises:
        InputError: The column is not there.
    """
    with open_table(path) as table:
        table.require([column], "label column")
        texts = {_text(row.get(column)) for _, row in table.rows if row is not None} - {""}
    try:
        numbers = sorted({float(text) for text in texts})
    except ValueError:
        return tuple(sorted(texts))
    return tuple(repr(number).removesuffix(".0") for number in numbers)
