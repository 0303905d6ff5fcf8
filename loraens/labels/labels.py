"""Labels of which an example has any number: none, one or several.

Shape letters: M members, B examples of a member in a batch, N examples, K labels. Labels and
predictions are zeros and ones, `(N, K)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.labels.base import LabelKind, WeightLoss, of_mean_logit
from loraens.labels.classes import class_rows, parse_number
from loraens.metrics import (
    AVERAGE_PRECISION,
    BRIER,
    CALIBRATION_ERROR,
    EXACT_MATCH,
    LABELS_MACRO_F1,
    LABELS_MICRO_F1,
    NLL,
    TINY,
    Outcome,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loraens.tasks import Task


class Labels(LabelKind):
    """Sigmoid of one logit a label; labels are taken as independent given the text.

    A label is predicted where its probability is above a threshold: 0.5 for a member alone. Those
    of an ensemble are part of its choice, and so are chosen again in every fold and bag of its
    proof.
    """

    losses = ("binary_cross_entropy",)
    metrics = (
        AVERAGE_PRECISION,
        LABELS_MACRO_F1,
        LABELS_MICRO_F1,
        EXACT_MATCH,
        NLL,
        BRIER,
        CALIBRATION_ERROR,
    )
    rules = ("probs", "logits")
    similarity = "probabilities"
    similarities = ("agreement", "probabilities", "errors")
    categorical = True
    options = ("delimiter", "class_weights", "label_smoothing", "focal_gamma")
    not_rules = {"vote": "votes have no probabilities, which thresholds and average precision need"}
    uncertainties = ("entropy", "mutual_information")
    regions = ("certain", "possible")

    def check(self, task: Task) -> None:
        """Two or more different label names, that the delimiter does not occur in."""
        names = task.class_names
        if len(names) < 2:
            raise ValueError(
                f"two label names or more are expected, got {list(names)}: for one, give kind"
                " classes"
            )
        if len(set(names)) != len(names):
            raise ValueError(f"label names repeat in {list(names)}")
        if task.delimiter == "" or any(task.delimiter in name for name in names if task.delimiter):
            raise ValueError(f"delimiter {task.delimiter!r} is empty or in the name of a label")

    def names_in(self, text: str, delimiter: str | None) -> list[str]:
        """The names in a JSON list, or between delimiters; "[]", or a delimiter alone, is none of
        them.
        """
        if text.startswith("[") and (names := _json_names(text)) is not None:
            return names
        if delimiter is None:
            raise ValueError(
                f"label {text!r} is no JSON list of names: write one, or give the delimiter between"
                " names (--data.delimiter), such as '|'"
            )
        return [name for part in text.split(delimiter) if (name := part.strip())]

    def parse(self, task: Task, text: str) -> tuple[float, ...]:
        """For each label whether its name, or with names that were given its number, is there."""
        numbered = task.numbered and all(parse_number(name) is None for name in task.class_names)
        of_number = {str(k): name for k, name in enumerate(task.class_names)} if numbered else {}
        there = {of_number.get(name, name) for name in self.names_in(text, task.delimiter)}
        if unknown := there - set(task.class_names):
            known = ", ".join(task.class_names)
            raise ValueError(f"label {min(unknown)!r} is not one of the labels {known}")
        return tuple(float(name in there) for name in task.class_names)

    def are_labels(self, task: Task, labels: np.ndarray) -> bool:
        """Whether an array `(N, K)` has zeros and ones alone."""
        whole = labels.shape[1:] == (len(task.class_names),)
        return whole and bool(np.isin(labels, (0, 1)).all())

    def format(self, task: Task, value: Any) -> list[str]:
        """The names of the labels that are there."""
        return [name for name, there in zip(task.class_names, value, strict=True) if there]

    def counts(self, task: Task, labels: np.ndarray) -> np.ndarray:
        """Number of examples with each label."""
        counts: np.ndarray = labels.sum(axis=0).astype(np.int64)
        return counts

    def balanced_weights(self, task: Task, labels: np.ndarray) -> np.ndarray:
        """Examples without the label for each with it."""
        counts = self.counts(task, labels)
        if not counts.all():
            raise ValueError(
                f"class_weights: label {task.class_names[int(counts.argmin())]!r} has no example"
            )
        if (counts == len(labels)).any():
            raise ValueError(
                f"class_weights: label {task.class_names[int(counts.argmax())]!r} is everywhere"
            )
        weights: np.ndarray = (len(labels) - counts) / counts
        return weights

    def strata(self, labels: np.ndarray) -> np.ndarray | None:
        """The rarest label of each example, K where it has none: folds then have like shares of
        the labels that they could lack.
        """
        counts = np.append(labels.sum(axis=0), np.inf)
        with_none = np.column_stack([labels == 1, np.ones(len(labels), bool)])
        strata: np.ndarray = np.where(with_none, counts, np.inf).argmin(axis=1)
        strata[~labels.any(axis=1)] = labels.shape[1]
        return strata

    def num_outputs(self, task: Task) -> int:
        """One logit a label."""
        return len(task.class_names)

    def losses_of(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross-entropy of the labels, in nats.

        `class_weights` are those of a label's presence (`pos_weight` of PyTorch); with
        `label_smoothing` e targets are e / 2 and 1 - e / 2; with `focal_gamma` the loss of each is
        times (1 - p) ** gamma, p the probability of what is so (Lin et al. 2017).
        """
        from torch.nn import functional as F

        there = labels.to(logits.dtype)
        targets = there
        if task.label_smoothing:
            targets = there * (1 - task.label_smoothing) + task.label_smoothing / 2
        weights = logits.new_tensor(task.class_weights) if task.class_weights else None
        losses = F.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=weights
        )
        if task.focal_gamma:
            losses = losses * ((1 - 2 * there) * logits).sigmoid() ** task.focal_gamma
        return losses.mean(-1)

    def soft_losses_of(
        self, task: Task, logits: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Mean binary cross-entropy of the labels against the teacher's probabilities, in nats, at
        a temperature as that of classes.
        """
        import torch
        from torch.nn import functional as F

        theirs = torch.logit(targets.to(logits.dtype), eps=1e-6)
        softened = (theirs / temperature).sigmoid()
        own = logits / temperature
        losses = F.binary_cross_entropy_with_logits(own, softened, reduction="none")
        return losses.mean(-1) * temperature**2

    def probabilities(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """Sigmoid."""
        probabilities: np.ndarray = np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))
        return probabilities

    def predictions(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """The labels whose probability is above 0.5."""
        return self.outcome(task, logits).predictions

    def outcome(self, task: Task, logits: np.ndarray) -> Outcome:
        """Probabilities, and the labels for which they are above 0.5."""
        return self.outcome_of_mean(self.probabilities(task, logits))

    def outcome_of_mean(self, mean: np.ndarray) -> Outcome:
        """The labels whose mean probability is above 0.5."""
        return Outcome((mean > 0.5).astype(np.int64), mean)

    def thresholds(self, outcome: Callable[[], Outcome], labels: np.ndarray) -> np.ndarray:
        """Of each label, the threshold of the best F1 on these examples (Yang 2001, SCut): halfway
        between two probabilities; 0.5 for a label that is nowhere.
        """
        probabilities = outcome().probabilities
        assert probabilities is not None
        columns = zip(probabilities.T, labels.T, strict=True)
        return np.array([_best_threshold(*column) for column in columns])

    def breakdown(
        self, task: Task, outcome: Outcome, labels: np.ndarray
    ) -> dict[str, list[dict[str, Any]]]:
        """`classes`: of each label, as of classes."""
        right = (outcome.predictions * labels).sum(axis=0)
        support, predicted = labels.sum(axis=0), outcome.predictions.sum(axis=0)
        return {"classes": class_rows(task.class_names, right, support, predicted)}

    def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """1 where a decision on a label is wrong."""
        errors: np.ndarray = (predictions != labels).astype(np.float64)
        return errors.reshape(len(predictions), -1)

    def log_likelihood(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> np.ndarray:
        """Log probability of all labels of an example together, cut as that of classes."""
        assert probabilities is not None
        of_values = np.where(labels == 1, probabilities, 1 - probabilities)
        density: np.ndarray = np.log(np.maximum(of_values, TINY)).sum(axis=2)
        density = np.maximum(density, np.log(TINY))
        return density

    def weight_loss(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> WeightLoss:
        """NLL of the weighted mean logit, mean of the labels."""
        signs = 1 - 2 * labels.ravel()

        def loss(mean: np.ndarray) -> tuple[float, np.ndarray]:
            margins = signs * mean
            losses = np.logaddexp(0, margins)
            return float(losses.mean()), signs * np.exp(margins - losses)

        return of_mean_logit(logits, len(signs), loss)

    def uncertainty(
        self,
        predictions: np.ndarray,
        probabilities: np.ndarray | None,
        weights: np.ndarray,
        outcome: Outcome,
    ) -> dict[str, np.ndarray]:
        """In nats, sums over the labels: `entropy` of the members' mean probability, and
        `mutual_information`, the part of it that comes from their disagreement.
        """
        assert probabilities is not None
        shares = weights / weights.sum()
        total = _entropy(np.tensordot(shares, probabilities, 1))
        own = shares @ _entropy(probabilities)
        return {"entropy": total, "mutual_information": np.maximum(total - own, 0)}

    def distances(self, outcome: Outcome, labels: np.ndarray) -> np.ndarray:
        """The largest 1 - p over the labels, p the probability of what is so."""
        assert outcome.probabilities is not None
        distances: np.ndarray = np.abs(labels - outcome.probabilities).max(axis=1)
        return distances

    def held(self, outcome: Outcome, labels: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Whether all that is certain is there, and all that is there is possible."""
        assert outcome.probabilities is not None
        near = np.abs(labels - outcome.probabilities) <= radius[:, None] + 1e-9
        held: np.ndarray = (near | (outcome.predictions == labels)).all(axis=1)
        return held

    def region(self, task: Task, outcome: Outcome, radius: np.ndarray) -> list[list[Any]]:
        """All sets of labels within the distance, as two: their common part `certain`, and
        `possible`, all that is in one of them; what is predicted always is.
        """
        assert outcome.probabilities is not None
        absent = (outcome.probabilities <= radius[:, None]) | (outcome.predictions == 0)
        present = (1 - outcome.probabilities <= radius[:, None]) | (outcome.predictions == 1)
        both = (present & ~absent, present)
        return [[self.format(task, row) for row in of_region] for of_region in both]

    def probability_tensor(self, task: Task, logits: Tensor) -> Tensor:
        """Sigmoid."""
        return logits.sigmoid()

    def prediction_tensor(self, mean: Tensor) -> Tensor:
        """The labels whose probability is above 0.5."""
        return (mean > 0.5).long()

    def region_tensors(
        self, predictions: Tensor, probabilities: Tensor | None, radius: Tensor
    ) -> dict[str, Tensor]:
        """`certain` and `possible`: whether each label is."""
        assert probabilities is not None
        absent = (probabilities <= radius[:, None]) | (predictions == 0)
        possible = (1 - probabilities <= radius[:, None]) | (predictions == 1)
        return {"certain": possible & ~absent, "possible": possible}

    def describe(self, task: Task, predictions: np.ndarray) -> list[str]:
        """Each label with the share of the members that predict it, the largest first."""
        texts = []
        for shares in predictions.mean(axis=0):
            pairs = sorted(zip(shares, task.class_names, strict=True), reverse=True)
            texts.append(", ".join(f"{name} {share:.0%}" for share, name in pairs if share))
        return [text or "none" for text in texts]

    def disagreement(self, task: Task, predictions: np.ndarray) -> tuple[str, np.ndarray]:
        """Entropy of the members' decisions, sum over the labels."""
        return "entropy of decisions (nats)", _entropy(predictions.mean(axis=0))

    def common_error(
        self, predictions: np.ndarray, probabilities: np.ndarray | None, labels: np.ndarray
    ) -> tuple[str, np.ndarray]:
        """Number of labels that all members are wrong about."""
        return "labels", (predictions != labels).all(axis=0).sum(axis=1).astype(np.float64)


def _json_names(text: str) -> list[str] | None:
    """The names in a JSON list; None if it is none."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        return None
    return [str(name).strip() for name in names]


def _best_threshold(probabilities: np.ndarray, there: np.ndarray) -> float:
    """The threshold of the best F1 of one label `(N,)`; of equals the highest."""
    if not there.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    hits = np.cumsum(there[order])
    counts = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (counts + there.sum())
    f1[np.append(falling[:-1] == falling[1:], False)] = -1.0  # no threshold is between equals
    best = int(np.argmax(f1))
    following = falling[best + 1] if best + 1 < len(falling) else 0.0
    return float((falling[best] + following) / 2)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of K independent labels, of the last axis."""
    entropies: np.ndarray = -sum(
        (p * np.log(np.maximum(p, TINY)) for p in (probabilities, 1 - probabilities)), np.zeros(1)
    ).sum(axis=-1)
    return entropies
