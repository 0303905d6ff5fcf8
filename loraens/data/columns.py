"""Which columns of a table are the text and the label, and what the labels make to be predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from loraens.data.classes import MANY, checked_classes
from loraens.data.files import open_table
from loraens.data.splits import Columns, Records, read_records
from loraens.data.tables import Reading, line_of, listed
from loraens.data.values import cell_text
from loraens.errors import InputError
from loraens.labels import LABEL_KINDS
from loraens.labels.classes import parse_number
from loraens.tasks import Task

LABELS = (
    "label labels class category target y type intent topic tags sentiment rating stars score"
    " similarity"
)
TEXTS = "text sentence review question comment content message body tweet title description"
PAIRS = (
    *(("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2")),
    *(("text_a", "text_b"), ("premise", "hypothesis"), ("query", "document")),
)
WORDS = 3  # of a text, on average; fewer are names or classes
SAMPLE = 5000  # records by which columns are told apart


def read_found(
    source: Any,
    texts: Sequence[str] | None = None,
    label: str | None = None,
    reading: Reading | None = None,
) -> tuple[Records, Columns]:
    """Read a table, once, and find its columns of texts and labels.

    Args:
        source: A file, or what else `open_table` takes.
        texts: The text columns, where they are known.
        label: The label column, where it is known.
        reading: How files are read.

    Raises:
        InputError: No column, or more than one, looks like it, or one that was named is not there;
            or the table has no label.
    """
    with open_table(source, reading=reading) as table:
        table.require(texts or (), "--text")
        table.require([label] if label else [], "--label")
        sample = list(islice(table.rows, SAMPLE))
        rows = [row for _, row in sample if row is not None]
        cells = {name: [_cell(row.get(name)) for row in rows] for name in table.columns}
        label = label or _label_of(table.name, cells, texts or ())
        others = {name: values for name, values in cells.items() if name != label}
        columns = Columns(tuple(texts or _texts_of(table.name, others)), label, lists=True)
        table.rows = chain(sample, table.rows)
        records = read_records(table, columns)
    if not any(records.labels):
        raise InputError(f"{records.table}: column {label!r} has no label: name another (--label)")
    return records, columns


def task_of(
    records: Records,
    columns: Columns,
    kind: str | None = None,
    class_names: Sequence[str] | None = None,
    metric: str | None = None,
    delimiter: str | None = None,
) -> Task:
    """What the labels of train make to be predicted.

    Args:
        records: Those of train.
        columns: Their columns.
        kind: "classes", "number", "labels" or "levels"; by default "labels" where they are lists
            or a delimiter is given, "number" where they are numbers of many values or with
            decimals, else "classes".
        class_names: All classes, where labels are to be taken for classes whatever they look like.
        metric: Score that chooses; the kind's first by default.
        delimiter: What is between the names of several labels in a cell.

    Raises:
        InputError: The labels do not look like the kind, a class has one example, or an argument is
            unknown.
    """
    labels = [label for label in records.labels if label]
    distinct = dict.fromkeys(labels)
    numbers = {text: parse_number(text) for text in distinct}
    values = [n for n in numbers.values() if n is not None and math.isfinite(n)]
    if kind is None and (delimiter or all(label.startswith("[") for label in labels)):
        kind = "labels"
    if kind is None:
        whole = all(number.is_integer() for number in values)
        numeric = len(values) == len(distinct) and (not whole or len(distinct) > MANY)
        kind = "number" if numeric and class_names is None else "classes"
    label_kind = LABEL_KINDS[kind]
    names: tuple[str, ...] = ()
    low = high = None
    if label_kind.categorical:
        names_in = partial(label_kind.names_in, delimiter=delimiter)
        names = tuple(class_names or checked_classes(records, columns.label, None, "", names_in))
        if len(names) < 2:
            raise InputError(
                f"{records.table}: column {columns.label!r} has one class only, {names[0]!r}: two"
                " or more are expected"
            )
    else:
        for text, number in numbers.items():
            if number is None or not math.isfinite(number):
                where = line_of(records.positions[records.labels.index(text)])
                raise InputError(
                    f"{records.table} {where}: label {text!r}, and a number is expected: correct"
                    " it, or name another column (--label)"
                )
        # the middle is where a head begins; wide, as these bounds are to refuse nothing
        low, high = 2 * min(values) - max(values), 2 * max(values) - min(values)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(records.table).name.partition(".")[0]).strip("-")
    try:
        return Task(
            name=name or "texts",
            text_columns=columns.texts,
            label_column=columns.label,
            kind=kind,
            loss=label_kind.losses[0],
            metric=metric or label_kind.metrics[0].name,
            class_names=names,
            low=low,
            high=high,
            numbered=class_names is not None,
            delimiter=delimiter,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def _cell(value: Any) -> str:
    """A cell as a text; "" where it is missing or no single value."""
    try:
        return cell_text(value)
    except ValueError:
        return ""


def _is_text(values: Sequence[str]) -> bool:
    """Whether a column has texts of several words, most of them different."""
    given = [value for value in values if value]
    if not given or len(set(given)) <= len(given) / 4:
        return False
    return sum(len(value.split()) for value in given) >= WORDS * len(given)


def _is_class(values: Sequence[str]) -> bool:
    """Whether a column has few values, each several times."""
    given = [value for value in values if value]
    return 2 <= len(set(given)) <= min(MANY, len(given) / 2)


def _named(names: Sequence[str], known: str) -> str | None:
    """The first of the known names that a column has, in any case."""
    by_name = {name.casefold(): name for name in names}
    return next((by_name[name] for name in known.split() if name in by_name), None)


def _label_of(table: str, names: dict[str, list[str]], texts: Sequence[str]) -> str:
    others = [name for name in names if name not in texts]
    if (named := _named(others, LABELS)) is not None:
        return named
    likely = [name for name in others if _is_class(names[name])]
    if len(likely) == 1:
        return likely[0]
    found = f"{len(likely)} columns look" if likely else "no column looks"
    raise InputError(
        f"{table}: {found} like a label; its columns are {listed(likely or names)}:"
        " name one (--label)"
    )


def _texts_of(table: str, names: dict[str, list[str]]) -> tuple[str, ...]:
    by_name = {name.casefold(): name for name in names}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            return tuple(by_name[name] for name in pair)
    if (named := _named(list(names), TEXTS)) is not None:
        return (named,)
    likely = [name for name, values in names.items() if _is_text(values)]
    if len(likely) == 1:
        return (likely[0],)
    found = f"{len(likely)} columns look" if likely else "no column looks"
    raise InputError(
        f"{table}: {found} like a text; its columns are {listed(likely or names)}:"
        " name one, or two of a pair (--text)"
    )
