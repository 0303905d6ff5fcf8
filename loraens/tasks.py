"""Tasks: what is predicted from one or two texts."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.labels import LABEL_KINDS, LabelKind
from loraens.labels.base import SoftTargets
from loraens.metrics import Metric, Outcome

if TYPE_CHECKING:
    from torch import Tensor


# fields that only some label kinds take, and their defaults
OPTIONS: dict[str, Any] = {
    "delimiter": None,
    "class_weights": (),
    "label_smoothing": 0.0,
    "focal_gamma": 0.0,
}


@dataclass(frozen=True)
class Task:
    """One task: its columns, its label and its metric.

    Args:
        name: Name of the task; names its files and figures.
        text_columns: One or two columns; two are combined into one sequence by the tokenizer's
            separator.
        label_column: Column of the label.
        kind: Label kind: "classes" (softmax, or sigmoid with `binary_cross_entropy`), "labels" (any
            of several), "levels" (ordered classes), "number" (a real number), or one that was
            registered in `labels.LABEL_KINDS`.
        loss: Training loss; one of the kind's `losses`.
        metric: What "best" means; the name of one of the kind's `metrics`.
        class_names: Names of the classes, in the order of their numbers; empty for numbers.
        low: Smallest legal number, or None.
        high: Largest legal number, or None.
        numbered: Whether a label may also be the number of its class, from 0, where no class name
            is a number.
        delimiter: What separates labels in one cell; None where they are a JSON list.
        class_weights: Weight of the loss of each class, or of each label's presence; none for equal
            ones.
        label_smoothing: Share of the target that is spread over all classes.
        focal_gamma: Exponent of the focal loss; 0 for none.

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
    delimiter: str | None = None
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0

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
            self._check_options()
            kind.check(self)
        except ValueError as error:
            raise ValueError(f"task {self.name}: {error}") from None

    def _check_options(self) -> None:
        """Refuse options that do not apply to the kind, or are out of range."""
        for name, default in OPTIONS.items():
            if getattr(self, name) != default and name not in self.label_kind.options:
                raise ValueError(f"{name} does not apply to kind {self.kind!r}: leave it out")
        weights = self.class_weights
        positive = all(0 < weight < math.inf for weight in weights)
        if weights and (len(weights) != len(self.class_names) or not positive):
            raise ValueError(
                f"class_weights {list(weights)}: one positive number for each of"
                f" {', '.join(self.class_names)} is expected"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing}: 0 to below 1 is expected")
        if not 0 <= self.focal_gamma < math.inf:
            raise ValueError(f"focal_gamma {self.focal_gamma}: a number from 0 on is expected")

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

    def parse_label(self, text: str) -> float | tuple[float, ...]:
        """Class number or value of a label as it stands in a file; of several labels, for each
        whether it is there.

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

    def format_label(self, value: Any) -> str | float | list[str]:
        """A label or prediction as it stands in a table or file."""
        return self.label_kind.format(self, value)

    def label_text(self, value: Any) -> str:
        """A label or prediction in words."""
        formatted = self.format_label(value)
        return ", ".join(formatted) or "none" if isinstance(formatted, list) else f"{formatted}"

    def member_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        soft: SoftTargets | None = None,
    ) -> Tensor:
        """Mean loss of each member, `(M,)`.

        Args:
            logits: `(M, B, C)`.
            labels: `(M, B)`, or `(M, B, K)` where there are several.
            weights: `(M, B)` of the examples; equal by default.
            soft: What a teacher predicts for them; nothing by default.

        Raises:
            InputError: There is a teacher, and the kind cannot be distilled.
        """
        losses = self.label_kind.losses_of(self, logits, labels)
        if soft is not None:
            taught = self.label_kind.soft_losses_of(self, logits, soft.targets, soft.temperature)
            losses = taught + soft.label_shares.to(losses.dtype) * (losses - taught)
        return (losses if weights is None else losses * weights.to(losses.dtype)).mean(1)

    def outcome(self, logits: np.ndarray) -> Outcome:
        """Predictions, and probabilities `(N, K)` of classes, of logits `(N, C)`."""
        return self.label_kind.outcome(self, logits)

    def score(self, outcome: Outcome, labels: np.ndarray) -> float:
        """The task's metric, its sign turned where lower is better; NaN where not defined."""
        return self.utility(self.main_metric(outcome, labels))

    def scores_of(self, outcomes: Outcome, labels: np.ndarray) -> np.ndarray:
        """`score` of each of M outcomes `(M,)`, which are one along their first axis."""
        metric = self.main_metric
        if metric.of_members is not None:
            return metric.utility(metric.of_members(outcomes.predictions, labels))
        each = range(len(outcomes.predictions))
        return np.array([self.score(outcomes.of(index), labels) for index in each])

    def all_scores(self, outcome: Outcome, labels: np.ndarray) -> dict[str, float]:
        """Every metric of the task's kind, by name; NaN where one is not defined."""
        return {metric.name: metric(outcome, labels) for metric in self.label_kind.metrics}

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric of logits `(N, C)` against labels of N examples, by name.

        Raises:
            ValueError: A logit is not finite, or lengths differ.
        """
        if len(logits) != len(labels):
            raise ValueError(f"{len(logits)} logits for {len(labels)} labels")
        if not np.isfinite(logits).all():
            raise ValueError("a logit is not finite")
        return self.all_scores(self.outcome(logits), labels)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them, without options that are not used, so that older runs have
        the same; `Task.from_json` reads them.
        """
        fields = asdict(self)
        return {k: v for k, v in fields.items() if k not in OPTIONS or v != OPTIONS[k]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Task:
        """The task that `to_json` wrote."""
        names = ("text_columns", "class_names", "class_weights")
        lists = {name: tuple(fields[name]) for name in names if name in fields}
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
