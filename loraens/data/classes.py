"""The classes that the labels of train stand for, and whether they look like classes at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from loraens.data.splits import Records
from loraens.data.tables import line_of
from loraens.data.values import cell_text, class_names_of
from loraens.errors import InputError
from loraens.labels.classes import label_value

MANY = 20  # classes; fewer are never taken for texts or numbers
LONG = 100  # characters of a label, on average


def checked_classes(
    records: Records,
    column: str,
    given: Sequence[str | int | float | bool] | None,
    flag: str = "data.",
    names_in: Callable[[str], list[str]] = lambda label: [label],
) -> tuple[str, ...]:
    """The names of the classes in train.

    Args:
        records: Those of train.
        column: Name of the label column.
        given: Class names of which some are truth values, as YAML reads yes and no; or None.
        flag: What option names begin with in messages.
        names_in: From a label to the names of classes in it; one by default.

    Raises:
        InputError: The names that were given are no truth values in train; or without names: the
            labels look like texts or numbers, or a class has one example.
    """
    labels = [label for label in dict.fromkeys(records.labels) if label]
    names_of = {label: _names(records, label, names_in) for label in labels}
    counts = Counter(name for label in records.labels if label for name in names_of[label])
    names = class_names_of(counts)
    if given is not None:
        if all(label_value(name) in (0, 1) for name in names):
            return tuple(cell_text(name) for name in given)
        raise InputError(
            f"class_names {list(given)}: YAML reads yes, no, on, off, true and false as truth"
            " values, which the labels in train are not: quote them, such as ['no', 'yes']",
            option="data.class_names",
        )
    insist = f"name all classes to insist (--{flag}class_names)"
    where = f"{records.table}: column {column!r}"
    total = counts.total()
    if total and sum(len(label) * count for label, count in counts.items()) > LONG * total:
        raise InputError(f"{where} holds texts and no classes: choose another column, or {insist}")
    if len(names) > MANY and 2 * len(names) > total:
        number = all(label_value(name) is not None for name in names)
        like = f"numbers (--{flag}kind number)" if number else "texts, or ids"
        raise InputError(
            f"{where} has {len(names)} values in {total} records, as {like}: choose another column"
            f" or kind, or {insist}"
        )
    values = {label: label_value(label) for label in counts}
    keys = {label: label if None in values.values() else values[label] for label in counts}
    sizes = Counter(keys[label] for label in counts.elements())
    single = [label for label in counts if sizes[keys[label]] == 1]
    if single:
        holders = (label for label in records.labels if single[0] in names_of.get(label, ()))
        position = records.positions[records.labels.index(next(holders))]
        more = f", and {len(single) - 1} more classes have one each" if len(single) > 1 else ""
        raise InputError(
            f"{records.table} {line_of(position)} is the only example of class"
            f" {single[0]!r}{more}: correct the label, add examples, or {insist}"
        )
    return names


def _names(records: Records, label: str, names_in: Callable[[str], list[str]]) -> list[str]:
    try:
        return names_in(label)
    except ValueError as error:
        position = records.positions[records.labels.index(label)]
        raise InputError(f"{records.table} {line_of(position)}: {error}") from None
