"""How alike members are, and what joining them must give by the paper's formulas.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from loraens.ensemble.combine import majority_vote
from loraens.ensemble.pool import Pool


def _correlations(x: np.ndarray) -> np.ndarray:
    """Pearson's r of each pair of rows `(M, N)`; rows that are constant are wholly alike to all:
    1.
    """
    centred = x - x.mean(axis=1, keepdims=True)
    return _cosines(np.where(np.abs(centred) < 1e-12, 0.0, centred))


def _cosines(x: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows `(M, N)`; rows of zeros are wholly alike to all: 1."""
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1)
    unit = x / np.where(norms > 0, norms, 1)[:, None]
    found = np.clip(unit @ unit.T, -1, 1)
    found[norms == 0] = 1.0
    found[:, norms == 0] = 1.0
    np.fill_diagonal(found, 1.0)
    return found


def errors(pool: Pool) -> np.ndarray:
    """What each member gets wrong `(M, N)`: 0 or 1 for classes, the error for numbers."""
    if pool.task.kind == "classes":
        found: np.ndarray = (pool.predictions != pool.labels).astype(np.float64)
        return found
    found = pool.predictions - pool.labels
    return found


def agreement(pool: Pool) -> np.ndarray:
    """Share of the examples on which two members say the same class, `(M, M)`."""
    found = np.zeros((len(pool), len(pool)))
    for number in range(len(pool.task.class_names)):
        said = (pool.predictions == number).astype(np.float32)
        found += said @ said.T
    return found / len(pool.labels)


SIMILARITIES: dict[str, Callable[[Pool], np.ndarray]] = {
    "pearson": lambda pool: _correlations(pool.predictions),
    "cosine": lambda pool: _cosines(pool.predictions),
    "agreement": agreement,
    "errors": lambda pool: _correlations(errors(pool)),
}


def similarity(pool: Pool, name: str) -> np.ndarray:
    """How alike each pair of members is `(M, M)`, 1 on the diagonal.

    Args:
        pool: The members.
        name: "pearson" of values or class numbers, "cosine" of them, "agreement" of classes, or
            Pearson's r of the "errors".
    """
    if name not in pool.similarities:
        pool.similarities[name] = SIMILARITIES[name](pool)
    return pool.similarities[name]


def pairwise_mean(matrix: np.ndarray) -> float:
    """Mean over the pairs of different members of a matrix `(M, M)`; NaN for one member."""
    size = len(matrix)
    return (
        float((matrix.sum() - np.trace(matrix)) / (size * (size - 1))) if size > 1 else float("nan")
    )


def pair_counts(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the examples, for each pair of members `(M, M)`: both right, one right, both wrong;
    of classes.
    """
    wrong = errors(pool)
    size = wrong.shape[1]
    both_wrong = wrong @ wrong.T
    both_right = (1 - wrong) @ (1 - wrong).T
    return both_right / size, (size - both_right - both_wrong) / size, both_wrong / size


def q_statistic(pool: Pool) -> np.ndarray:
    """Yule's Q of each pair of members `(M, M)` (Kuncheva and Whitaker 2003); 1 where it is not
    defined.
    """
    wrong = errors(pool)
    size = len(pool.labels)
    both_right, _, both_wrong = pair_counts(pool)
    first_alone = (1 - wrong) @ wrong.T / size
    like = both_right * both_wrong
    unlike = first_alone * first_alone.T
    return np.where(
        like + unlike > 0, (like - unlike) / np.where(like + unlike > 0, like + unlike, 1), 1.0
    )


def variance_formula(members: int, variance: float, correlation: float) -> float:
    """Variance of the mean of N predictions of equal variance s2 and common correlation rho: s2/N +
    (N-1)/N rho s2 (paper).
    """
    return variance / members + (members - 1) / members * correlation * variance


def vote_formula(members: int, error: float, correlation: float) -> float:
    """The paper's probability that a majority vote is wrong.

    With the error p of one member and the correlation rho of errors, p_eff = rho p + (1 - rho) p^2,
    and the sum over k from floor(N / 2) to N of C(N, k) p_eff^k (1 - p_eff)^(N - k).
    """
    effective = correlation * error + (1 - correlation) * error**2
    return sum(
        comb(members, k) * effective**k * (1 - effective) ** (members - k)
        for k in range(members // 2, members + 1)
    )


def summary(pool: Pool) -> dict[str, float]:
    """What is known of a set of members joined with equal weights: likeness, and the paper's
    formula beside what is observed.

    For classes: mean pairwise agreement, cosine, disagreement (one of two is right), double fault
    (both wrong) and Q; error of the vote, predicted and observed. For numbers: mean pairwise
    Pearson's r; mean squared error of a member, the ambiguity by which the mean is better (Krogh
    and Vedelsby 1995), and the mean's; variance of the mean's error, predicted and observed.
    """
    names = (
        ("agreement", "cosine", "errors") if pool.task.kind == "classes" else ("pearson", "errors")
    )
    found = {f"mean_{name}": pairwise_mean(similarity(pool, name)) for name in names}
    wrong = errors(pool)
    size = len(pool)
    alike = found["mean_errors"] if size > 1 else 1.0
    if pool.task.kind == "classes":
        _, one, both = pair_counts(pool)
        vote = majority_vote(pool.predictions, pool.ranks, places=pool.places)
        return {
            **found,
            "disagreement": pairwise_mean(one),
            "double_fault": pairwise_mean(both),
            "q_statistic": pairwise_mean(q_statistic(pool)),
            "vote_error_predicted": vote_formula(size, float(wrong.mean()), alike),
            "vote_error_observed": float((vote != pool.labels).mean()),
        }
    mean = pool.predictions.mean(axis=0)
    spread = float(((pool.predictions - mean) ** 2).mean())
    return {
        **found,
        "member_mse": float((wrong**2).mean()),
        "ambiguity": spread,
        "mean_mse": float(((mean - pool.labels) ** 2).mean()),
        "error_variance_predicted": variance_formula(size, float(wrong.var(axis=1).mean()), alike),
        "error_variance_observed": float((mean - pool.labels).var()),
    }
