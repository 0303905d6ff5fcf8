"""Cells of any format as texts, so that they mean the same in each."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from loraens.labels.classes import label_value

# what programs write for a missing number; as texts they may be words, or names of classes
MARKS = frozenset({"na", "n/a", "#n/a", "nan", "<na>", "null", "none"})


def cell_text(value: Any, missing: Set[str] = frozenset()) -> str:
    """A cell as a text without white space around it; "" where it is missing: null, NaN, blank, or
    one of `missing`.

    Whole numbers have no point and truth values are "True" and "False", whatever their type.

    Raises:
        ValueError: It is no single value.

    Examples:
        >>> [cell_text(value) for value in (1.0, 2.5, True, " a ", None, float("nan"))]
        ['1', '2.5', 'True', 'a', '', '']
    """
    if isinstance(value, str):
        text = value.strip()
    elif value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' NA and NaT
        return ""
    elif isinstance(value, Iterable):
        raise ValueError(f"holds a {type(value).__name__}, and one text or number is expected")
    elif value != value:
        return ""
    else:
        text = str(value).strip()
        if not isinstance(value, int) and text.endswith(".0"):
            text = text[:-2]  # floats of Python, numpy and pandas, and Decimal
    return "" if text in missing else text


def without_marks(labels: list[str]) -> list[str]:
    """Labels of a column, with "" for each mark of a missing number if all others are numbers or
    truth values.

    Examples:
        >>> without_marks(["1", "NA", "0"]), without_marks(["DE", "NA"])
        (['1', '', '0'], ['DE', 'NA'])
    """
    others = {label for label in labels if label.lower() not in MARKS} - {""}
    if any(label_value(label) is None for label in others):
        return labels
    return ["" if label.lower() in MARKS else label for label in labels]


def class_names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """The names of the classes that labels stand for: in numeric order and each value once if all
    are numbers, "False" and "True" if all are truth values, else sorted.

    Examples:
        >>> class_names_of(["10", "9", "10.0"]), class_names_of(["true", "FALSE"])
        (('9', '10'), ('False', 'True'))
    """
    texts = set(labels) - {""}
    values = {text: value for text in texts if (value := label_value(text)) is not None}
    if len(values) < len(texts):
        return tuple(sorted(texts))
    numbers = sorted(set(values.values()))
    if texts and all(text.lower() in ("true", "false") for text in texts):
        return tuple(str(bool(number)) for number in numbers)
    return tuple(repr(number).removesuffix(".0") for number in numbers)
