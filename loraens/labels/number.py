"""Labels that are real numbers.

Shape letters: M members, B examples of a member in a batch, N examples, C outputs of the head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.labels.base import LabelKind, WeightLoss
from loraens.labels.classes import parse_number
from loraens.metrics import MSE, PEARSON, SPEARMAN, TINY, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from loraens.tasks import Task

QUANTILES = (0.5, 0.75, 0.9, 0.95, 1.0)  # of the absolute error
PARTS = 5  # of the labels, of equal numbers of examples


class Number(LabelKind):
    """A real number, in a legal range where the task has one; the logit is the prediction."""

    losses = ("mse",)
    metrics = (PEARSON, SPEARMAN, MSE)
    rules = ("logits",)
    similarity = "pearson"
    similarities = ("pearson", "errors")
    categorical = False
    not_rules = {
        "vote": "numbers are hardly ever equal",
        "probs": "the mean of numbers is that of logits",
    }
    uncertainties = ("spread",)
    regions = ("low", "high")

    def check(self, task: Task) -> None:
        """There are no classes."""
        if task.class_names:
            raise ValueError(f"no class names are expected for numbers: {task.class_names}")

    def parse(self, task: Task, text: str) -> float:
        """A finite number in the legal range."""
        number = parse_number(text)
        low = -math.inf if task.low is None else task.low
        high = math.inf if task.high is None else task.high
        if number is not None and math.isfinite(number) and low <= number <= high:
            return number
        bounded = task.low is not None or task.high is not None
        expected = f"a number from {task.low} to {task.high}" if bounded else "a finite number"
        raise ValueError(f"label {text!r} is not {expected}")

    def format(self, task: Task, value: Any) -> float:
        """To six decimals."""
        return round(float(value), 6)

    def num_outputs(self, task: Task) -> int:
        """One logit."""
        return 1

    def initial_bias(self, task: Task) -> float:
        """The middle of the legal range: from zero, adapters of high rank and scale can collapse
        to a constant on their way there.
        """
        return 0.0 if task.low is None or task.high is None else (task.low + task.high) / 2

    def losses_of(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error."""
        from torch.nn import functional as F

        targets = labels.to(logits.dtype)
        return F.mse_loss(logits[..., 0], targets, reduction="none")

    def soft_losses_of(
        self, task: Task, logits: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Squared difference from the teacher's value; values have no temperature."""
        return self.losses_of(task, logits, targets)

    def probabilities(self, task: Task, logits: np.ndarray) -> None:
        """There are none."""

    def predictions(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """The logit."""
        return np.asarray(logits, np.float64)[:, 0]

    def outcome_of_mean(self, mean: np.ndarray) -> Outcome:
        """The mean."""
        return Outcome(mean[:, 0])

    def breakdown(
        self, task: Task, outcome: Outcome, labels: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """`errors`: quantiles of the absolute error; `labels`: error of the prediction (its mean,
        and the root of its mean square) in fifths of the labels.
        """
        errors = outcome.predictions - labels
        quantiles = {f"{q:.0%}": float(np.quantile(abs(errors), q)) for q in QUANTILES}
        order = np.argsort(labels, kind="stable")
        return {
            "errors": [{"mean": float(errors.mean()), **quantiles}],
            "labels": [
                {
                    "from": float(labels[part].min()),
                    "to": float(labels[part].max()),
                    "examples": len(part),
                    "mean_error": float(errors[part].mean()),
                    "rms_error": float(np.sqrt((errors[part] ** 2).mean())),
                }
                for part in np.array_split(order, PARTS)
                if len(part)
            ],
        }

    def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Differences from the label."""
        errors: np.ndarray = predictions - labels
        return errors

    def log_likelihood(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> np.ndarray:
        """Log density of a normal distribution with the member's own mean squared error."""
        squares = (predictions - labels) ** 2
        variance = np.maximum(squares.mean(axis=1, keepdims=True), TINY)
        density: np.ndarray = -0.5 * (np.log(2 * np.pi * variance) + squares / variance)
        return density

    def weight_loss(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> WeightLoss:
        """MSE of the weighted mean: a quadratic form, since the weights sum to one."""
        flat = logits.reshape(-1, logits.shape[-1])
        errors = self.predictions(task, flat).reshape(logits.shape[:2]) - labels
        gram = errors @ errors.T / len(labels)
        return lambda weights: (float(weights @ gram @ weights), 2 * gram @ weights)

    def stacking_weights(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Non-negative least squares (Breiman 1996); the weights need not sum to one."""
        from scipy.optimize import nnls

        weights: np.ndarray = nnls(predictions.T, labels)[0]
        return weights

    def uncertainty(
        self,
        predictions: np.ndarray,
        probabilities: np.ndarray | None,
        weights: np.ndarray,
        outcome: Outcome,
    ) -> dict[str, np.ndarray]:
        """`spread`, the members' weighted standard deviation."""
        return {"spread": self.spread(predictions, weights)}

    def distances(self, outcome: Outcome, labels: np.ndarray) -> np.ndarray:
        """Absolute errors."""
        distances: np.ndarray = np.abs(labels - outcome.predictions)
        return distances

    def spread(self, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The members' weighted standard deviation."""
        shares = weights / weights.sum()
        mean = shares @ predictions
        spread: np.ndarray = np.sqrt(shares @ (predictions - mean) ** 2)
        return spread

    def region(self, task: Task, outcome: Outcome, radius: np.ndarray) -> list[list[Any]]:
        """Bounds; like predictions they may be outside of the legal range."""
        bounds = (outcome.predictions - radius, outcome.predictions + radius)
        return [[self.format(task, value) for value in bound] for bound in bounds]

    def probability_tensor(self, task: Task, logits: Tensor) -> None:
        """There are none."""

    def prediction_tensor(self, mean: Tensor) -> Tensor:
        """The logit."""
        return mean[..., 0]

    def spread_tensor(self, predictions: Tensor, shares: Tensor) -> Tensor:
        """The members' weighted standard deviation."""
        mean = shares @ predictions
        return (shares @ (predictions - mean) ** 2).sqrt()

    def region_tensors(
        self, predictions: Tensor, probabilities: Tensor | None, radius: Tensor
    ) -> dict[str, Tensor]:
        """`low` and `high`."""
        return {"low": predictions - radius, "high": predictions + radius}

    def describe(self, task: Task, predictions: np.ndarray) -> list[str]:
        """The range of the members' predictions."""
        bounds = zip(predictions.min(axis=0), predictions.max(axis=0), strict=True)
        return [f"{low:.2f} to {high:.2f}" for low, high in bounds]

    def disagreement(self, task: Task, predictions: np.ndarray) -> tuple[str, np.ndarray]:
        """Standard deviation of the members' predictions."""
        return "spread", predictions.std(axis=0)

    def common_error(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> tuple[str, np.ndarray]:
        """The least error of a member."""
        return "least error", np.abs(predictions - labels).min(axis=0)
