"""Tasks: what is predicted from one or two texts."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.labels import LABEL_KINDS, LabelKind
from loraens.metrics import Metric, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One task: its columns, its label and its metric.

    Args:
        name: Name of the task; names its files and figures.
        text_columns: One or two columns; two are combined into one sequence by the tokenizer's
            separator.
        label_column: Column of the label.
        kind: Label kind: "classes" (softmax, or sigmoid with `binary_cross_entropy`), "number" (a
            real number), or one that was registered in `labels.LABEL_KINDS`.
        loss: Training loss; one of the kind's `losses`.
        metric: What "best" means; the name of one of the kind's `metrics`.
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
    kind: str
    loss: str
    metric: str
    class_names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    numbered: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(
                f"task name {self.name!r}: letters, digits, - and _ are expected, for file names"
            )
        if len(self.text_columns) not in (1, 2):
            raise ValueError(
                f"task {self.name}: one or two text columns are expected, got"
                f" {len(self.text_columns)}"
            )
        if self.kind not in LABEL_KINDS:
            raise ValueError(
                f"task {self.name}: kind {self.kind!r} is none of {', '.join(LABEL_KINDS)}"
            )
        kind = self.label_kind
        if self.loss not in kind.losses:
            raise ValueError(
                f"task {self.name}: loss {self.loss!r} does not fit kind {self.kind!r}, which has"
                f" {', '.join(kind.losses)}"
            )
        try:
            kind.metric(self.metric)
            kind.check(self)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {error}") from None

    @property
    def label_kind(self) -> LabelKind:
        """The object of the task's label kind."""
        return LABEL_KINDS[self.kind]

    @property
    def num_outputs(self) -> int:
        """Width C of the head."""
        return self.label_kind.num_outputs(self)

    @property
    def main_metric(self) -> Metric:
        """The metric that `metric` names."""
        return self.label_kind.metric(self.metric)

    def utility(self, score: float) -> float:
        """A score of the task's metric with its sign turned where lower is better."""
        return self.main_metric.utility(score)

    def parse_label(self, text: str) -> float:
        """Class number or value of a label as it stands in a file.

        Raises:
            ValueError: It is no label of the task.

        Examples:
            >>> questions = Task(
            ...     name="questions",
            ...     text_columns=("text",),
            ...     label_column="type",
            ...     kind="classes",
            ...     loss="cross_entropy",
            ...     metric="accuracy",
            ...     class_names=("WHO", "WHERE"),
            ... )
            >>> questions.parse_label("WHERE")
            1.0
            >>> STS.parse_label("3.8")
            3.8
            >>> STS.parse_label("7")
            Traceback (most recent call last):
            ValueError: label '7' is not a number from 0.0 to 5.0
        """
        return self.label_kind.parse(self, text)

    def format_label(self, value: float) -> str | float:
        """A label or prediction as it stands in a table or file."""
        return self.label_kind.format(self, value)

    def member_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of each member, `(M,)`, of logits `(M, B, C)` and labels `(M, B)`."""
        return self.label_kind.member_losses(self, logits, labels)

    def outcome(self, logits: np.ndarray) -> Outcome:
        """Predictions `(N,)`, and probabilities `(N, K)` of classes, of logits `(N, C)`."""
        return self.label_kind.outcome(self, logits)

    def score(self, outcome: Outcome, labels: np.ndarray) -> float:
        """The task's metric, its sign turned where lower is better; NaN where not defined."""
        return self.utility(self.main_metric(outcome, labels))

    def all_scores(self, outcome: Outcome, labels: np.ndarray) -> dict[str, float]:
        """Every metric of the task's kind, by name; NaN where one is not defined."""
        return {metric.name: metric(outcome, labels) for metric in self.label_kind.metrics}

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric of logits `(N, C)` against labels `(N,)`, by name.

        Raises:
            ValueError: A logit is not finite, or lengths differ.
        """
        if len(logits) != len(labels):
            raise ValueError(f"{len(logits)} logits for {len(labels)} labels")
        if not np.isfinite(logits).all():
            raise ValueError("a logit is not finite")
        return self.all_scores(self.outcome(logits), labels)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; `Task.from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Task:
        """The task that `to_json` wrote."""
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
