"""How similar members are, and the gain of combining them by the paper's formulas.

Shape letters: M members, N examples, or decisions where an example has several labels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from loraens.ensemble.combine import majority_vote
from loraens.ensemble.pool import Pool


def _correlations(x: np.ndarray) -> np.ndarray:
    """Pearson's r of each pair of rows `(M, N)`; constant rows get similarity 1 with every row."""
    centred = x - x.mean(axis=1, keepdims=True)
    return _cosines(np.where(np.abs(centred) < 1e-12, 0.0, centred))


def _cosines(x: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows `(M, N)`; rows of zeros get similarity 1 with every row."""
    # whole numbers of float32 are exact up to 2 ** 24
    exact = x.dtype.kind == "i" and float(np.abs(x).max()) ** 2 * x.shape[1] < 2**24
    x = np.asarray(x, np.float32 if exact else np.float64)
    products = (x @ x.T).astype(np.float64)
    norms = np.sqrt(products.diagonal())
    positive = np.where(norms > 0, norms, 1)
    cosines: np.ndarray = np.clip(products / positive[:, None] / positive, -1, 1)
    cosines[norms == 0] = 1.0
    cosines[:, norms == 0] = 1.0
    np.fill_diagonal(cosines, 1.0)
    return cosines


def agreement(pool: Pool) -> np.ndarray:
    """Share of the examples on which two members predict the same class, `(M, M)`."""
    shares = np.zeros((len(pool), len(pool)))
    predictions = _flat(pool.predictions)
    for number in range(len(pool.task.class_names)):
        predicted = (predictions == number).astype(np.float32)
        shares += predicted @ predicted.T
    shares /= predictions.shape[1]
    return shares


def _flat(values: np.ndarray) -> np.ndarray:
    """Values `(M, N)` of values `(M, ...)`."""
    return values.reshape(len(values), -1)


SIMILARITIES: dict[str, Callable[[Pool], np.ndarray]] = {
    "pearson": lambda pool: _correlations(_flat(pool.predictions)),
    "cosine": lambda pool: _cosines(_flat(pool.predictions)),
    "probabilities": lambda pool: _correlations(_flat(pool.averaged)),
    "agreement": agreement,
    "errors": lambda pool: _correlations(pool.errors),
}


def similarity(pool: Pool, name: str) -> np.ndarray:
    """Similarity of each pair of members `(M, M)`, 1 on the diagonal.

    Args:
        pool: The members.
        name: "pearson" of values or class numbers, "cosine" of them, "agreement" of classes, or
            Pearson's r of the "probabilities" or the "errors".
    """
    if name not in pool.similarities:
        pool.similarities[name] = SIMILARITIES[name](pool)
    return pool.similarities[name]


def pairwise_mean(matrix: np.ndarray) -> float:
    """Mean over the pairs of different members of a matrix `(M, M)`; NaN for one member."""
    size = len(matrix)
    if size < 2:
        return float("nan")
    return float((matrix.sum() - np.trace(matrix)) / (size * (size - 1)))


def pair_counts(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the examples, for each pair of members `(M, M)`: both right, one right, both wrong;
    of classes.
    """
    wrong = pool.errors
    size = wrong.shape[1]
    both_wrong = wrong @ wrong.T
    both_right = (1 - wrong) @ (1 - wrong).T
    return both_right / size, (size - both_right - both_wrong) / size, both_wrong / size


def q_statistic(pool: Pool) -> np.ndarray:
    """Yule's Q of each pair of members `(M, M)` (Kuncheva and Whitaker 2003); 1 where it is not
    defined.
    """
    wrong = pool.errors
    size = wrong.shape[1]
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
    """Diversity of members combined with equal weights, and the paper's formula beside what is
    observed.

    For classes: mean pairwise agreement, cosine, disagreement (one of two is right), double fault
    (both wrong) and Q; error of the vote, predicted and observed; the same of the decisions on
    several labels. For numbers: mean pairwise
    Pearson's r; mean squared error of a member, the ambiguity by which the mean is better (Krogh
    and Vedelsby 1995), and the mean's; variance of the mean's error, predicted and observed.
    """
    names = pool.kind.similarities
    measures = {f"mean_{name}": pairwise_mean(similarity(pool, name)) for name in names}
    correlation = measures["mean_errors"] if len(pool) > 1 else 1.0
    details = _of_votes if pool.kind.categorical else _of_means
    return {**measures, **details(pool, correlation)}


def _of_votes(pool: Pool, correlation: float) -> dict[str, float]:
    _, one_wrong, both_wrong = pair_counts(pool)
    votes = majority_vote(_flat(pool.predictions), pool.ranks, standings=pool.standings)
    error = float(pool.errors.mean())
    return {
        "disagreement": pairwise_mean(one_wrong),
        "double_fault": pairwise_mean(both_wrong),
        "q_statistic": pairwise_mean(q_statistic(pool)),
        "vote_error_predicted": vote_formula(len(pool), error, correlation),
        "vote_error_observed": float((votes != pool.labels.ravel()).mean()),
    }


def _of_means(pool: Pool, correlation: float) -> dict[str, float]:
    mean = pool.predictions.mean(axis=0)
    variance = float(pool.errors.var(axis=1).mean())
    return {
        "member_mse": float((pool.errors**2).mean()),
        "ambiguity": float(((pool.predictions - mean) ** 2).mean()),
        "mean_mse": float(((mean - pool.labels) ** 2).mean()),
        "error_variance_predicted": variance_formula(len(pool), variance, correlation),
        "error_variance_observed": float((mean - pool.labels).var()),
    }
