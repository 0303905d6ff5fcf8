"""Labels that are one of several ordered classes.

Shape letters: M members, B examples of a member in a batch, N examples, C outputs of the head, K
classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loraens.labels.base import WeightLoss, of_mean_logit
from loraens.labels.classes import Classes, parse_number
from loraens.metrics import (
    ACCURACY,
    BRIER,
    CALIBRATION_ERROR,
    MACRO_F1,
    MAE,
    NLL,
    QUADRATIC_KAPPA,
    Outcome,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loraens.tasks import Task


class Levels(Classes):
    """Ordered classes 0 to K - 1, by CORN (Shi, Cao and Raschka 2021): logit k of K - 1 is that of
    P(label > k | label >= k).

    Every vector of logits gives probabilities P(label > k) that fall with k, with the plain linear
    head of the other kinds. It is the sequential model of Tutz (1991), without its restriction that
    all steps share one direction of the features.

    The loss is its negative log likelihood, the sum of the binary cross-entropies of the steps that
    an example takes part in. CORN divides the sum over a batch by their number; here it is divided
    by that of the examples, so that a step's weight does not depend on the other examples.

    The prediction is the median level, which has the least expected absolute error.
    """

    losses = ("corn",)
    metrics = (QUADRATIC_KAPPA, MAE, ACCURACY, MACRO_F1, NLL, BRIER, CALIBRATION_ERROR)
    rules = ("probs", "logits", "vote")
    similarity = "pearson"
    similarities = ("agreement", "pearson", "errors")
    options = ("class_weights",)
    most_probable = False

    def check(self, task: Task) -> None:
        """Two or more different class names, whose order is known: they were given, or are
        numbers.
        """
        super().check(task)
        if not task.numbered and None in [parse_number(name) for name in task.class_names]:
            raise ValueError(
                f"the order of the levels {', '.join(task.class_names)} is not known: give"
                " class_names, the lowest first"
            )

    def num_outputs(self, task: Task) -> int:
        """One logit a step."""
        return len(task.class_names) - 1

    def losses_of(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood, in nats, times the weight of the class."""
        import torch
        from torch.nn import functional as F

        steps = torch.arange(logits.shape[-1], device=logits.device)
        passed = (labels[..., None] > steps).to(logits.dtype)  # (M, B, C)
        of_steps = F.binary_cross_entropy_with_logits(logits, passed, reduction="none")
        losses = (of_steps * (labels[..., None] >= steps)).sum(-1)
        if task.class_weights:
            losses = losses * losses.new_tensor(task.class_weights)[labels.long()]
        return losses

    def log_probability_tensor(self, task: Task, logits: Tensor) -> Tensor:
        """Log P(label = k), the sum of those of the steps up to it."""
        from torch.nn import functional as F

        reached = F.pad(F.logsigmoid(logits).cumsum(-1), (1, 0))
        return reached + F.pad(F.logsigmoid(-logits), (0, 1))

    def probabilities(self, task: Task, logits: np.ndarray) -> np.ndarray:
        """P(label = k) = P(label >= k) - P(label > k)."""
        steps = np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))
        ones = np.ones((len(logits), 1))
        reached = np.concatenate([ones, np.cumprod(steps, axis=1)], axis=1)
        probabilities: np.ndarray = reached * np.concatenate([1 - steps, ones], axis=1)
        return probabilities

    def outcome_of_mean(self, mean: np.ndarray) -> Outcome:
        """The median level of mean probabilities; the lower of two."""
        below = np.cumsum(mean, axis=1)[:, :-1]
        return Outcome((below < 0.5 - 1e-12).sum(axis=1), mean)  # 1e-12: sums are rounded

    def probability_tensor(self, task: Task, logits: Tensor) -> Tensor:
        """P(label = k) = P(label >= k) - P(label > k)."""
        import torch

        # ONNX has sums along an axis, and no products
        reached = torch.exp(-torch.cumsum(torch.log1p(torch.exp(-logits.clamp_min(-700))), -1))
        reached = torch.cat([torch.ones_like(reached[..., :1]), reached], -1)
        return reached - torch.cat([reached[..., 1:], torch.zeros_like(reached[..., :1])], -1)

    def prediction_tensor(self, mean: Tensor) -> Tensor:
        """The median level."""
        return (mean.cumsum(-1)[..., :-1] < 0.5 - 1e-12).sum(-1)

    def weight_loss(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> WeightLoss:
        """Negative log likelihood of the weighted mean logit: convex, as each step's is."""
        steps = np.arange(logits.shape[2])
        taken = (labels[:, None] >= steps).ravel()
        signs = np.where((labels[:, None] > steps).ravel(), -1.0, 1.0)

        def loss(mean: np.ndarray) -> tuple[float, np.ndarray]:
            margins = signs * mean
            losses = np.logaddexp(0, margins)
            residual = taken * signs * np.exp(margins - losses)  # sigmoid
            return float((taken * losses).sum() / len(labels)), residual

        return of_mean_logit(logits, len(labels), loss)
