"""What is predicted from one or two texts."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["classes", "number"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "mse"]
Metric = Literal[
    "accuracy", "macro_f1", "nll", "brier", "calibration_error", "pearson", "spearman", "mse"
]

METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classes": ("accuracy", "macro_f1", "nll", "brier", "calibration_error"),
    "number": ("pearson", "spearman", "mse"),
}
LOWER_IS_BETTER = frozenset({"nll", "brier", "calibration_error", "mse"})


def _number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Task:
    """One task: its columns, its label and how it is scored.

    Args:
        name: Name of the task; names its files and figures.
        text_columns: One or two columns; two are joined in one sequence by the tokenizer's
            separator.
        label_column: Column of the label.
        kind: "classes" (softmax, or sigmoid with `binary_cross_entropy`) or "number" (a real
            number).
        loss: Training loss; "mse" for numbers.
        metric: What "best" means; one of `METRICS[kind]`.
        class_names: Names of the classes, in the order of their numbers; empty for numbers.
        low: Smallest legal number, or None.
        high: Largest legal number, or None.
        numbered: Whether a label may also be the number of its class, from 0, where no class name
            is a number.

    Raises:
        ValueError: The fields contradict each other.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    kind: Kind
    loss: Loss
    metric: Metric
    class_names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    numbered: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(
                f"task name {self.name!r}: letters, digits, - and _ are expected, for names of"
                " files"
            )
        if len(self.text_columns) not in (1, 2):
            raise ValueError(
                f"task {self.name}: one or two text columns are expected, got"
                f" {len(self.text_columns)}"
            )
        if self.metric not in METRICS[self.kind]:
            raise ValueError(
                f"task {self.name}: metric {self.metric!r} is none of"
                f" {', '.join(METRICS[self.kind])}"
            )
        if (self.loss == "mse") != (self.kind == "number"):
            raise ValueError(
                f"task {self.name}: loss {self.loss!r} does not fit kind {self.kind!r}"
            )
        if (self.kind == "classes") != bool(self.class_names) or len(self.class_names) == 1:
            raise ValueError(
                f"task {self.name}: two class names or more are expected for classes, none for"
                f" numbers: {self.class_names}"
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"task {self.name}: class names repeat in {list(self.class_names)}")
        if self.loss == "binary_cross_entropy" and len(self.class_names) != 2:
            raise ValueError(
                f"task {self.name}: binary_cross_entropy needs two classes, got"
                f" {len(self.class_names)}"
            )

    @property
    def num_outputs(self) -> int:
        """Width C of the head: one logit for numbers and for sigmoid, else one a class."""
        return len(self.class_names) if self.loss == "cross_entropy" else 1

    @property
    def midpoint(self) -> float:
        """Middle of the legal range of a number; 0 where there is none."""
        return 0.0 if self.low is None or self.high is None else (self.low + self.high) / 2

    def parse_label(self, text: str) -> float:
        """Class number or value of a label as it stands in a file.

        Class names that are numbers match by value ("1.0" is "1"), so they are never taken for
        positions.

        Raises:
            ValueError: It is neither a class nor a number in the legal range.
        """
        if self.kind == "classes":
            if text in self.class_names:
                return float(self.class_names.index(text))
            values = [_number(name) for name in self.class_names]
            if None in values:
                values = [float(index) for index in range(len(values))] if self.numbered else []
            if (number := _number(text)) in values and number is not None:
                return float(values.index(number))
        else:
            number = _number(text)
            low = -math.inf if self.low is None else self.low
            high = math.inf if self.high is None else self.high
            if number is not None and math.isfinite(number) and low <= number <= high:
                return number
        raise ValueError(f"label {text!r} is not {self._expected_label()}")

    def _expected_label(self) -> str:
        if self.kind == "classes":
            return f"one of the classes {', '.join(self.class_names)}"
        if self.low is None and self.high is None:
            return "a finite number"
        return f"a number from {self.low} to {self.high}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; `Task.from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Task:
        """The task that `to_dict` wrote."""
        lists = {name: tuple(fields[name]) for name in ("text_columns", "class_names")}
        return cls(**{**fields, **lists})


SST = Task(
    name="sst",
    text_columns=("sentence",),
    label_column="sentiment",
    kind="classes",
    loss="cross_entropy",
    metric="accuracy",
    class_names=("0", "1", "2", "3", "4"),
)
QUORA = Task(
    name="quora",
    text_columns=("sentence1", "sentence2"),
    label_column="is_duplicate",
    kind="classes",
    loss="binary_cross_entropy",
    metric="accuracy",
    class_names=("0", "1"),
)
STS = Task(
    name="sts",
    text_columns=("sentence1", "sentence2"),
    label_column="similarity",
    kind="number",
    loss="mse",
    metric="pearson",
    low=0.0,
    high=5.0,
)
