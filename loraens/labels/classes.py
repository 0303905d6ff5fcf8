"""Labels that are one class of several.

Shape letters: M members, B examples of a member in a batch, N examples, C outputs of the head, K
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from loraens.labels.base import LabelKind, WeightLoss, of_mean_logit
from loraens.metrics import (
    ACCURACY,
    BRIER,
    CALIBRATION_ERROR,
    MACRO_F1,
    NLL,
    TINY,
    Metric,
    Outcome,
    softmax,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loraens.tasks import Task

SMALL = 1e-30  # below which probabilities in float32 are taken for this one


class Classes(LabelKind):
    """Softmax over one logit a class, or, with `binary_cross_entropy`, sigmoid of one logit."""

    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "binary_cross_entropy")
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1, NLL, BRIER, CALIBRATION_ERROR)
    rules = ("vote", "logits", "probs")
    similarity = "cosine"
    similarities: ClassVar[tuple[str, ...]] = ("agreement", "cosine", "errors")
    categorical = True
    options: ClassVar[tuple[str, ...]] = ("class_weights", "label_smoothing", "focal_gamma")
    most_probable = True
    uncertainties = ("entropy", "mutual_information", "vote_share")
    regions = ("set",)

    def check(self, task: Task) -> None:
        """Two or more different class names, and two for one logit."""
        if len(task.class_names) < 2:
            raise ValueError(f"two class names or more are expected: {task.class_names}")
        if len(set(task.class_names)) != len(task.class_names):
            raise ValueError(f"class names repeat in {list(task.class_names)}")
        if task.loss == "binary_cross_entropy" and len(task.class_names) != 2:
            raise ValueError(f"binary_cross_entropy needs two classes, got {len(task.class_names)}")

    def parse(self, task: Task, text: str) -> float | tuple[float, ...]:
        """The class number of a class name, or of the number of a class.

        Class names that are numbers or truth values match by value ("1.0" is "1", "true" is "True"
        and "1"), so they are never taken for positions.
        """
        if text in task.class_names:
            return float(task.class_names.index(text))
        values = [label_value(name) for name in task.class_names]
        value = label_value(text)
        if None in values and parse_number(text) is not None:
            values = [float(index) for index in range(len(values))] if task.numbered else []
        if value is not None and value in values:
            return float(values.index(value))
        raise ValueError(f"label {text!r} is not one of the classes {', '.join(task.class_names)}")

    def are_labels(self, task: Task, labels: np.ndarray) -> bool:
        """Whether an array `(N,)` has class numbers of the task alone."""
        return labels.ndim == 1 and bool(np.isin(labels, np.arange(len(task.class_names))).all())

    def format(self, task: Task, value: Any) -> str | float | list[str]:
        """The name of the class."""
        return task.class_names[int(value)]

    def counts(self, task: Task, labels: np.ndarray) -> np.ndarray:
        """Number of examples of each class."""
        return np.bincount(labels.astype(np.int64), minlength=len(task.class_names))

    def balanced_weights(self, task: Task, labels: np.ndarray) -> np.ndarray:
        """N / (K count of the class), as scikit-learn's."""
        counts = self.counts(task, labels)
        if not counts.all():
            raise ValueError(
                f"class_weights: class {task.class_names[int(counts.argmin())]!r} has no example"
            )
        weights: np.ndarray = len(labels) / (len(counts) * counts)
        return weights

    def strata(self, labels: np.ndarray) -> np.ndarray | None:
        """The class."""
        return labels.astype(np.int64)

    def num_outputs(self, task: Task) -> int:
        """One logit a class, or one in all with `binary_cross_entropy`."""
        return len(task.class_names) if task.loss == "cross_entropy" else 1

    def losses_of(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, in nats; with `label_smoothing` against the label's share 1 - e + e / K
        and e / K of each other class (Szegedy et al. 2016), with `focal_gamma` times
        (1 - p(label)) ** gamma (Lin et al. 2017), times the weight of the class.
        """
        import torch
        from torch.nn import functional as F

        classes = labels.long()
        if task.loss == "cross_entropy":
            rows = logits.transpose(1, 2)
            smoothing = task.label_smoothing
            losses = F.cross_entropy(rows, classes, reduction="none", label_smoothing=smoothing)
            own = rows
        else:
            targets = labels.to(logits.dtype)
            if task.label_smoothing:
                targets = targets * (1 - task.label_smoothing) + task.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits[..., 0], targets, reduction="none")
            own = torch.stack([torch.zeros_like(logits[..., 0]), logits[..., 0]], dim=1)
        if task.focal_gamma:
            share = own.softmax(1).gather(1, classes[:, None])[:, 0]
            losses = losses * (1 - share) ** task.focal_gamma
        if task.class_weights:
            losses = losses * losses.new_tensor(task.class_weights)[classes]
        return losses

    def soft_losses_of(
        self, task: Task, logits: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Cross-entropy against the teacher's probabilities, in nats: both to the power of 1 / T
        and normalised, times T ** 2, so that gradients do not shrink with it (Hinton, Vinyals and
        Dean 2015).
        """
        own = (self.log_probability_tensor(task, logits) / temperature).log_softmax(-1)
        softened = (targets.to(own.dtype).clamp_min(SMALL).log() / temperature).softmax(-1)
        return -(softened * own).sum(-1) * temperature**2

    def log_probability_tensor(self, task: Task, logits: Tensor) -> Tensor:
        """Log probabilities `(..., K)` of logits `(..., C)`."""
        import torch

        if task.loss == "binary_cross_entropy":
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        return logits.log_softmax(-1)

    def probabilities(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """Softmax, or sigmoid where a task of two classes has one logit."""
        logits = np.asarray(logits, np.float64)
        if task.loss == "binary_cross_entropy":
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return softmax(logits)

    def predictions(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """The most probable class; the lower class wins a tie."""
        return self.outcome(task, logits).predictions

    def outcome(self, task: Task, logits: np.ndarray) -> Outcome:
        """Probabilities, and the most probable class; the lower class wins a tie."""
        return self.outcome_of_mean(self.probabilities(task, logits))

    def outcome_of_mean(self, mean: np.ndarray) -> Outcome:
        """The most probable class of mean probabilities."""
        return Outcome(mean.argmax(axis=1), mean)

    def breakdown(
        self, task: Task, outcome: Outcome, labels: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """`classes`: support, predictions, precision (None where it is never predicted), recall
        (None where it has no example) and F1 of each; `confusion`: how often a label was predicted
        as what, without pairs that do not occur.
        """
        names = task.class_names
        pairs = labels.astype(np.int64) * len(names) + outcome.predictions.astype(np.int64)
        counts = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), len(names))
        right, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)

        return {
            "classes": class_rows(names, right, support, predicted),
            "confusion": [
                {"label": names[k], "prediction": names[j], "count": int(counts[k, j])}
                for k, j in np.argwhere(counts)
            ],
        }

    def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """1 where the class is wrong."""
        errors: np.ndarray = (predictions != labels).astype(np.float64)
        return errors

    def log_likelihood(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> np.ndarray:
        """Log probability of the label, cut at the smallest positive float, so that one example
        does not decide alone.
        """
        assert probabilities is not None
        classes = labels.astype(np.int64)[None, :, None]
        label_probabilities = np.take_along_axis(probabilities, classes, axis=2)[..., 0]
        density: np.ndarray = np.log(np.maximum(label_probabilities, TINY))
        return density

    def weight_loss(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> WeightLoss:
        """NLL of the weighted mean logit."""
        classes = labels.astype(np.int64)
        shape = logits.shape[1:]
        examples = np.arange(len(labels))

        def loss(mean: np.ndarray) -> tuple[float, np.ndarray]:
            probabilities = self.probabilities(task, mean.reshape(shape))
            label_probabilities = np.maximum(probabilities[examples, classes], TINY)
            residual = probabilities.copy()
            residual[examples, classes] -= 1
            residual = residual[:, 1:] if shape[1] == 1 else residual  # one logit for two classes
            return float(-np.log(label_probabilities).mean()), residual.ravel()

        return of_mean_logit(logits, len(labels), loss)

    def uncertainty(
        self,
        predictions: np.ndarray,
        probabilities: np.ndarray | None,
        weights: np.ndarray,
        outcome: Outcome,
    ) -> dict[str, np.ndarray]:
        """In nats: `entropy` of the members' mean probability and `mutual_information`, the part
        of it that comes from their disagreement (Depeweg et al. 2018); `vote_share`, the share of
        the members that predict what the ensemble predicts.
        """
        assert probabilities is not None
        shares = weights / weights.sum()
        total = _entropy(np.tensordot(shares, probabilities, 1))
        own = shares @ _entropy(probabilities)
        votes = vote_shares(predictions, weights, probabilities.shape[2])
        classes = outcome.predictions[:, None].astype(np.int64)
        return {
            "entropy": total,
            "mutual_information": np.maximum(total - own, 0),
            "vote_share": np.take_along_axis(votes, classes, 1)[:, 0],
        }

    def distances(self, outcome: Outcome, labels: np.ndarray) -> np.ndarray:
        """1 - p(label)."""
        assert outcome.probabilities is not None
        classes = labels.astype(np.int64)[:, None]
        distances: np.ndarray = 1 - np.take_along_axis(outcome.probabilities, classes, 1)[:, 0]
        return distances

    def held(self, outcome: Outcome, labels: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Whether the class is within the distance, or predicted."""
        near = super().held(outcome, labels, radius)
        held: np.ndarray = near | (outcome.predictions == labels)
        return held

    def region(self, task: Task, outcome: Outcome, radius: np.ndarray) -> list[list[Any]]:
        """A list of class names, in the order of the classes, the predicted one among them."""
        assert outcome.probabilities is not None
        # shares of votes are equal but for rounding
        near = 1 - outcome.probabilities <= radius[:, None] + 1e-9
        near[np.arange(len(near)), outcome.predictions.astype(np.int64)] = True
        return [[[task.class_names[k] for k in np.flatnonzero(row)] for row in near]]

    def probability_tensor(self, task: Task, logits: Tensor) -> Tensor:
        """Softmax, or sigmoid where a task of two classes has one logit."""
        import torch

        if task.loss == "binary_cross_entropy":
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        return torch.softmax(logits, -1)

    def prediction_tensor(self, mean: Tensor) -> Tensor:
        """The most probable class."""
        return mean.argmax(-1)

    def region_tensors(
        self, predictions: Tensor, probabilities: Tensor | None, radius: Tensor
    ) -> dict[str, Tensor]:
        """`set`: whether each class is in the prediction set."""
        import torch

        assert probabilities is not None
        predicted = torch.arange(probabilities.shape[1]) == predictions[:, None]
        return {"set": (1 - probabilities <= radius[:, None] + 1e-9) | predicted}

    def describe(self, task: Task, predictions: np.ndarray) -> list[str]:
        """Each class with its share of the members, the largest first."""
        votes = vote_shares(predictions, np.ones(len(predictions)), len(task.class_names))
        texts = []
        for shares in votes:
            pairs = sorted(zip(shares, task.class_names, strict=True), reverse=True)
            texts.append(", ".join(f"{name} {share:.0%}" for share, name in pairs if share))
        return texts

    def disagreement(self, task: Task, predictions: np.ndarray) -> tuple[str, np.ndarray]:
        """Entropy of the votes."""
        votes = vote_shares(predictions, np.ones(len(predictions)), len(task.class_names))
        return "vote entropy (nats)", -(votes * np.log(np.maximum(votes, 1e-12))).sum(axis=1)

    def common_error(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> tuple[str, np.ndarray]:
        """Mean confidence where all are wrong, else 0."""
        assert probabilities is not None
        wrong = (predictions != labels).all(axis=0)
        return "mean confidence", np.where(wrong, probabilities.mean(axis=0).max(axis=1), 0.0)


def parse_number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def label_value(text: str) -> float | None:
    """The number that a label is; "true" and "false", in any case, are 1 and 0."""
    truth = {"true": 1.0, "false": 0.0}.get(text.lower())
    return parse_number(text) if truth is None else truth


def vote_shares(predictions: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Share of the votes that each class has, `(N, K)`, of predictions `(M, N)`."""
    of_each = weights / weights.sum()
    return np.stack([of_each @ (predictions == number) for number in range(classes)], axis=-1)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    entropy: np.ndarray = -(probabilities * np.log(np.maximum(probabilities, TINY))).sum(axis=-1)
    return entropy


def class_rows(
    names: Sequence[str], right: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """Support, predictions, precision (None where it is never predicted), recall (None where it has
    no example) and F1 of each class.

    Args:
        names: Of the K classes.
        right: `(K,)` examples that have the class and were predicted to.
        support: `(K,)` examples that have it.
        predicted: `(K,)` examples that were predicted to.
    """

    def share(part: float, whole: float) -> float | None:
        return float(part / whole) if whole else None

    return [
        {
            "label": name,
            "examples": int(support[k]),
            "predicted": int(predicted[k]),
            "precision": share(right[k], predicted[k]),
            "recall": share(right[k], support[k]),
            "f1": share(2 * right[k], support[k] + predicted[k]),
        }
        for k, name in enumerate(names)
    ]
