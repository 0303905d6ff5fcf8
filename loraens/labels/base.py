"""What every label kind tells the rest of loraens.

Shape letters: M members, B examples of a member in a batch, N examples, C outputs of the head, K
classes or labels. Where an example has several labels, `(N,)` of labels and predictions is
`(N, K)`, and `(M, N)` of predictions `(M, N, K)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from loraens.errors import InputError
from loraens.metrics import Metric, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from loraens.tasks import Task

WeightLoss = Callable[[np.ndarray], tuple[float, np.ndarray]]
LARGE = 2**25  # bytes of logits


def working_type(logits: np.ndarray) -> np.dtype:
    """Type of what is computed of all members' logits at once: float64, or where they are large
    that of the logits, which halves memory and time; over so many examples rounding averages out.
    """
    return logits.dtype if logits.nbytes >= LARGE else np.dtype(np.float64)


def of_mean_logit(
    logits: np.ndarray, count: int, loss: Callable[[np.ndarray], tuple[float, np.ndarray]]
) -> WeightLoss:
    """The loss of the weighted mean logit as a function of the weights.

    Args:
        logits: `(M, N, C)`.
        count: The gradient is divided by it.
        loss: Of the mean logit, `(N * C,)`, with `count` times its gradient.
    """
    flat = logits.reshape(len(logits), -1).astype(working_type(logits), copy=False)

    def of_weights(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(weights.astype(flat.dtype) @ flat)
        return value, flat @ gradient.astype(flat.dtype) / count

    return of_weights


class SoftTargets(NamedTuple):
    """What a teacher predicts for the examples of a batch, to be learned beside their labels.

    Args:
        targets: Probabilities `(M, B, K)`, or values `(M, B)` where there are no classes.
        label_shares: `(M, B)` share of the label's loss in that of the example: 1 where there is no
            target, 0 where there is no label.
        temperature: Divides log probabilities, of teacher and member, in the loss of the targets.
    """

    targets: Tensor
    label_shares: Tensor
    temperature: float


class LabelKind(ABC):
    """One kind of label: its loss, its link from logits to predictions, its metrics, its files.

    Attributes:
        losses: Names of the training losses, the default first.
        metrics: Its metrics, the default first.
        rules: Rules by which members can be combined, the paper's first.
        similarity: The paper's measure of how similar two members are: a key of
            `ensemble.diversity.SIMILARITIES`.
        similarities: Measures that the summary of an ensemble's diversity has.
        categorical: Whether what is predicted is named by `Task.class_names`: one class, or any of
            several labels. Then folds are stratified, errors are 0 or 1, and an outcome has
            probabilities.
        options: Fields of `Task` that only some kinds take, and this one does.
        most_probable: Whether the prediction is the class of the highest probability.
        not_rules: Rules that make no sense -> why, in words.
        uncertainties: Names of the columns that `uncertainty` adds to predictions of an ensemble.
        regions: Names of the columns that `region` adds to predictions.
    """

    losses: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[Metric, ...]]
    rules: ClassVar[tuple[str, ...]]
    similarity: ClassVar[str]
    similarities: ClassVar[tuple[str, ...]]
    categorical: ClassVar[bool]
    options: ClassVar[tuple[str, ...]] = ()
    most_probable: ClassVar[bool] = False
    not_rules: ClassVar[Mapping[str, str]] = {}
    uncertainties: ClassVar[tuple[str, ...]]
    regions: ClassVar[tuple[str, ...]]

    def metric(self, name: str) -> Metric:
        """The metric of a name.

        Raises:
            ValueError: The kind has none of that name; the message lists its metrics.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise ValueError(f"metric {name!r} is none of {', '.join(m.name for m in self.metrics)}")

    # A task, its labels in files, and its head

    @abstractmethod
    def check(self, task: Task) -> None:
        """Refuse a task whose fields do not fit the kind.

        Raises:
            ValueError: It says what does not fit.
        """

    @abstractmethod
    def parse(self, task: Task, text: str) -> float | tuple[float, ...]:
        """The label, as a number or as K zeros and ones, of its text in a file.

        Raises:
            ValueError: It is no label of the task; the message says what is expected.
        """

    def are_labels(self, task: Task, labels: np.ndarray) -> bool:
        """Whether an array has labels of the task alone, one an example."""
        return labels.ndim == 1 and bool(np.isfinite(labels).all())

    @abstractmethod
    def format(self, task: Task, value: Any) -> str | float | list[str]:
        """A prediction or label as it stands in a table or file."""

    def names_in(self, text: str, delimiter: str | None) -> list[str]:
        """The names of classes in the text of a label.

        Raises:
            ValueError: It is not written as labels are.
        """
        return [text]

    def strata(self, labels: np.ndarray) -> np.ndarray | None:
        """The class number `(N,)` that folds have in like shares; None where there are none."""
        return None

    @abstractmethod
    def num_outputs(self, task: Task) -> int:
        """Width C of the head."""

    def initial_bias(self, task: Task) -> float:
        """The head's biases at the start."""
        return 0.0

    def counts(self, task: Task, labels: np.ndarray) -> np.ndarray | None:
        """Number of examples `(K,)` of each class; None where there are none."""
        return None

    def balanced_weights(self, task: Task, labels: np.ndarray) -> np.ndarray:
        """Class weights `(K,)` by which rare classes count as much as frequent ones.

        Raises:
            ValueError: There are no classes, or one has no example.
        """
        raise ValueError("class_weights: there are no classes to weight, leave it out")

    # Training

    @abstractmethod
    def losses_of(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, `(M, B)`, of logits `(M, B, C)` and labels `(M, B)`."""

    def soft_losses_of(
        self, task: Task, logits: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Loss of each example, `(M, B)`, of logits `(M, B, C)` against what a teacher predicts.

        Args:
            task: The task, whose options of the loss of labels do not apply.
            logits: `(M, B, C)`.
            targets: As of `SoftTargets`.
            temperature: As of `SoftTargets`.

        Raises:
            InputError: The kind cannot be distilled.
        """
        raise InputError(
            f"task {task.name}: label kinds of the class {type(self).__name__} cannot be distilled"
        )

    # From logits to predictions

    @abstractmethod
    def probabilities(self, task: Task, logits: np.ndarray) -> np.ndarray | None:
        """Class probabilities `(N, K)` of logits `(N, C)`; None where there are no classes."""

    @abstractmethod
    def predictions(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """Class numbers or values `(N,)` of logits `(N, C)`."""

    def outcome(self, task: Task, logits: np.ndarray) -> Outcome:
        """Predictions, and probabilities where there are classes, of logits `(N, C)`."""
        return Outcome(self.predictions(task, logits), self.probabilities(task, logits))

    def averaged(self, predictions: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """What members contribute to a mean, `(M, N, K)`: probabilities, or else predictions."""
        return predictions[..., None] if probabilities is None else probabilities

    @abstractmethod
    def outcome_of_mean(self, mean: np.ndarray) -> Outcome:
        """The outcome of a mean `(N, K)` of what `averaged` gives."""

    def breakdown(
        self, task: Task, outcome: Outcome, labels: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """Where the predictions are right and wrong: tables of rows of cells, by name."""
        return {}

    def thresholds(self, outcome: Callable[[], Outcome], labels: np.ndarray) -> np.ndarray | None:
        """Thresholds `(K,)` of probabilities, chosen on labelled examples; None where predictions
        are by no thresholds.

        Args:
            outcome: Gives the outcome of the examples, where it is needed.
            labels: Their labels.
        """
        return None

    # Ensembles

    @abstractmethod
    def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Errors `(M, N)` of predictions `(M, N)`: 0 or 1 for classes, differences for numbers; of
        several labels those of all decisions, `(M, N K)`.
        """

    @abstractmethod
    def log_likelihood(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> np.ndarray:
        """Log density of each label `(M, N)` under each member; where the kind is categorical, each
        must depend on its own example alone.
        """

    @abstractmethod
    def weight_loss(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> WeightLoss:
        """The loss, and its gradient `(M,)`, of the weighted mean logit as a function of the
        weights `(M,)`, which are on the simplex; `logits` is `(M, N, C)`. It must be convex.
        """

    def stacking_weights(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Weights `(M,)` of a linear stacking of predictions `(M, N)`; None where predictive
        distributions are stacked instead.
        """
        return None

    @abstractmethod
    def uncertainty(
        self,
        predictions: np.ndarray,
        probabilities: np.ndarray | None,
        weights: np.ndarray,
        outcome: Outcome,
    ) -> dict[str, np.ndarray]:
        """What only several members can tell of each example, `(N,)` each, by `uncertainties`.

        Args:
            predictions: `(M, N)` of the members.
            probabilities: `(M, N, K)` of the members, or None.
            weights: `(M,)`.
            outcome: The ensemble's.
        """

    # Prediction sets and intervals, see `ensemble.conformal`

    @abstractmethod
    def distances(self, outcome: Outcome, labels: np.ndarray) -> np.ndarray:
        """How far the labels `(N,)` are from an outcome, `(N,)`, not negative."""

    def held(self, outcome: Outcome, labels: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Whether the labels `(N,)` are in what `region` gives for a distance `(N,)`."""
        held: np.ndarray = self.distances(outcome, labels) <= radius + 1e-9
        return held

    def spread(self, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """How far members with predictions `(M, N)` and weights `(M,)` are from each other,
        `(N,)`, in the unit of the distances; zeros where distances need no such scale.
        """
        return np.zeros(predictions.shape[1])

    @abstractmethod
    def region(self, task: Task, outcome: Outcome, radius: np.ndarray) -> list[list[Any]]:
        """All labels within a distance `(N,)` of an outcome: N cells of each of `regions`."""

    # The same of tensors, for graphs that are exported

    def probability_tensor(self, task: Task, logits: Tensor) -> Tensor | None:
        """`probabilities` `(..., K)` of logits `(..., C)`.

        Raises:
            InputError: The kind cannot be exported.
        """
        raise InputError(
            f"task {task.name}: label kinds of the class {type(self).__name__} cannot be exported"
            " as a graph"
        )

    def prediction_tensor(self, mean: Tensor) -> Tensor:
        """Predictions of probabilities `(..., K)`, or of logits `(..., C)` where there are none, as
        `outcome_of_mean`.
        """
        raise NotImplementedError

    def spread_tensor(self, predictions: Tensor, shares: Tensor) -> Tensor:
        """`spread` `(N,)` of predictions `(M, N)` and weights `(M,)` that sum to one."""
        return shares.new_zeros(predictions.shape[1])

    def region_tensors(
        self, predictions: Tensor, probabilities: Tensor | None, radius: Tensor
    ) -> dict[str, Tensor]:
        """`region` as tensors by the names of its columns: bounds `(N,)`, or whether each class or
        label is in it, `(N, K)`.
        """
        raise NotImplementedError

    # Pages

    @abstractmethod
    def describe(self, task: Task, predictions: np.ndarray) -> list[str]:
        """The predictions `(M, N)` of all members for each example, in words."""

    @abstractmethod
    def disagreement(self, task: Task, predictions: np.ndarray) -> tuple[str, np.ndarray]:
        """Name and values `(N,)` of how much members with predictions `(M, N)` disagree."""

    @abstractmethod
    def common_error(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> tuple[str, np.ndarray]:
        """Name and values `(N,)` of how wrong even the best of the members is on each example."""
