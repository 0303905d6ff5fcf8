"""Temperature scaling of an ensemble's probabilities (Guo et al. 2017).

Shape letters: N examples, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loraens.metrics import NLL, TINY, Outcome, softmax


def fit_temperature(outcome: Outcome, labels: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(log p / T), or of sigmoid(logit p / T) where an
    example has several labels, between 1/20 and 20.
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(outcome)

    def loss(log_t: float) -> float:
        return NLL(_at(outcome, logits / float(np.exp(log_t))), labels)

    fitted = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(fitted.x))


def scaled(outcome: Outcome, temperature: float) -> Outcome:
    """The outcome with its probabilities at a temperature; predictions stay."""
    return _at(outcome, _logits(outcome) / temperature)


def _logits(outcome: Outcome) -> np.ndarray:
    """Logits `(N, K)` that give the probabilities."""
    assert outcome.probabilities is not None
    logs: np.ndarray = np.log(np.maximum(outcome.probabilities, TINY))
    if outcome.predictions.ndim == 1:
        return logs
    logs -= np.log(np.maximum(1 - outcome.probabilities, TINY))
    return logs


def _at(outcome: Outcome, logits: np.ndarray) -> Outcome:
    """The outcome with the probabilities of other logits."""
    one_class = outcome.predictions.ndim == 1
    probabilities = softmax(logits) if one_class else np.exp(-np.logaddexp(0, -logits))
    return replace(outcome, probabilities=probabilities)
