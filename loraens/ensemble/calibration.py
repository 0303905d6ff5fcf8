"""Temperature scaling of an ensemble's probabilities (Guo et al. 2017).

Shape letters: N examples, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loraens.metrics import NLL, TINY, Outcome


def fit_temperature(outcome: Outcome, labels: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(log p / T), or of sigmoid(logit p / T) where an
    example has several labels, between 1/20 and 20.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return NLL(scaled(outcome, float(np.exp(log_t))), labels)

    fitted = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(fitted.x))


def scaled(outcome: Outcome, temperature: float) -> Outcome:
    """The outcome with its probabilities at a temperature; predictions stay."""
    assert outcome.probabilities is not None
    if outcome.predictions.ndim == 2:
        there, not_there = (
            np.log(np.maximum(p, TINY)) for p in (outcome.probabilities, 1 - outcome.probabilities)
        )
        logits = (there - not_there) / temperature
        return replace(outcome, probabilities=np.exp(-np.logaddexp(0, -logits)))
    logits = np.log(np.maximum(outcome.probabilities, TINY)) / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return replace(outcome, probabilities=probabilities)
