"""Scores of logits against labels, by torchmetrics; all on the whole split at once, never averaged
over batches.

Shape letters: N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loraens.tasks import Task

CALIBRATION_BINS = 15


def probabilities(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class probabilities `(N, classes)` of logits `(N, C)`: softmax, or sigmoid where a task of
    two classes has one logit.
    """
    logits = np.asarray(logits, np.float64)
    if task.loss == "binary_cross_entropy":
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class numbers `(N,)`, or values `(N,)`, of logits `(N, C)`. The lower class wins a tie."""
    if task.kind == "number":
        return np.asarray(logits, np.float64)[:, 0]
    classes: np.ndarray = probabilities(task, logits).argmax(axis=1)
    return classes


def scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task's kind, by name.

    Accuracy, macro F1, Pearson, Spearman and MSE are torchmetrics'; nll is the mean negative log
    probability of the label (nats); brier the mean squared distance of the probabilities from the
    one-hot label, in [0, 2] (Brier 1950); calibration_error the expected calibration error in 15
    equal bins (Guo et al. 2017). Correlations of constant predictions are not defined: NaN.

    Raises:
        ValueError: A logit is not finite, or lengths differ.
    """
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} logits for {len(labels)} labels")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    return (
        _class_scores(task, logits, labels)
        if task.kind == "classes"
        else _number_scores(task, logits, labels)
    )


def _class_scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics.functional import classification

    probability = torch.from_numpy(probabilities(task, logits))
    target = torch.from_numpy(labels.astype(np.int64))
    classes = probability.shape[1]
    chosen = torch.from_numpy(predictions(task, logits))
    one_hot = torch.nn.functional.one_hot(target, classes)
    picked = probability.gather(1, target[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    calibration = classification.multiclass_calibration_error(
        probability, target, classes, n_bins=CALIBRATION_BINS
    )
    return {
        "accuracy": float(
            classification.multiclass_accuracy(chosen, target, classes, average="micro")
        ),
        "macro_f1": float(
            classification.multiclass_f1_score(chosen, target, classes, average="macro")
        ),
        "nll": float(-picked.log().mean()),
        "brier": float((probability - one_hot).square().sum(1).mean()),
        "calibration_error": float(calibration),
    }


def _number_scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics import functional

    value = torch.from_numpy(predictions(task, logits))
    target = torch.from_numpy(np.asarray(labels, np.float64))
    varies = len(value) > 1 and bool(value.std() > 0) and bool(target.std() > 0)
    return {
        "pearson": float(functional.pearson_corrcoef(value, target)) if varies else float("nan"),
        "spearman": float(functional.spearman_corrcoef(value, target)) if varies else float("nan"),
        "mse": float(functional.mean_squared_error(value, target)),
    }


def overall(by_task: Mapping[str, float]) -> float | None:
    """The paper's overall score (SST accuracy + Quora accuracy + (1 + STS Pearson) / 2) / 3; None
    unless all are there.
    """
    if not {"sst", "quora", "sts"} <= set(by_task):
        return None
    return (by_task["sst"] + by_task["quora"] + (1 + by_task["sts"]) / 2) / 3
