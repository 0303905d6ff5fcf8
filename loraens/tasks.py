"""What is predicted from one or two texts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["classes", "number"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "mse"]
Metric = Literal["accuracy", "macro_f1", "nll", "brier", "calibration_error", "pearson", "spearman", "mse"]

METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classes": ("accuracy", "macro_f1", "nll", "brier", "calibration_error"),
    "number": ("pearson", "spearman", "mse"),
}
LOWER_IS_BETTER = frozenset({"nll", "brier", "calibration_error", "mse"})


@dataclass(frozen=True)
class Task:
    """One task: its columns, its label and how it is scored.

    Args:
        name: Name of the task; names its files and figures.
        text_columns: One or two columns; two are joined in one sequence by the tokenizer's separator.
        label_column: Column of the label.
        kind: "classes" (softmax, or sigmoid with `binary_cross_entropy`) or "number" (a real number).
        loss: Training loss; "mse" for numbers.
        metric: What "best" means; one of `METRICS[kind]`.
        class_names: Names of the classes, in the order of their numbers; empty for numbers.
        low: Smallest legal number, or None.
        high: Largest legal number, or None.

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

    def __post_init__(self) -> None:
        if len(self.text_columns) not in (1, 2):
            raise ValueError(f"task {self.name}: one or two text columns are expected, got {len(self.text_columns)}")
        if self.metric not in METRICS[self.kind]:
            raise ValueError(f"task {self.name}: metric {self.metric!r} is none of {', '.join(METRICS[self.kind])}")
        if (self.loss == "mse") != (self.kind == "number"):
            raise ValueError(f"task {self.name}: loss {self.loss!r} does not fit kind {self.kind!r}")
        if self.kind == "classes" and len(self.class_names) < 2:
            raise ValueError(f"task {self.name}: at least two classes are expected, got {list(self.class_names)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"task {self.name}: class names repeat in {list(self.class_names)}")
        if self.loss == "binary_cross_entropy" and len(self.class_names) != 2:
            raise ValueError(f"task {self.name}: binary_cross_entropy needs two classes, got {len(self.class_names)}")

    @property
    def num_outputs(self) -> int:
        """Width C of the head: one logit for numbers and for sigmoid, else one a class."""
        return len(self.class_names) if self.loss == "cross_entropy" else 1

    def parse_label(self, text: str) -> float:
        """Class number or value of a label as it stands in a file.

        Raises:
            ValueError: It is neither a class (by name, or by number) nor a number in the legal range.

        """
        if self.kind == "classes" and text in self.class_names:
            return float(self.class_names.index(text))
        expected = self.expected_label()
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"label {text!r} is not {expected}") from None
        if not self.is_legal(value):
            raise ValueError(f"label {text!r} is not {expected}")
        return value

    def is_legal(self, value: float) -> bool:
        """Whether a number can be a label of this task."""
        if self.kind == "classes":
            return value in range(len(self.class_names))
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return math.isfinite(value) and low <= value <= high

    def expected_label(self) -> str:
        """What a label may be, in words."""
        if self.kind == "classes":
            return f"one of the classes {', '.join(self.class_names)}, or their numbers 0 to {len(self.class_names) - 1}"
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
