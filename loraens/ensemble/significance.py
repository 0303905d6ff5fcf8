"""Uncertainty of scores: bootstrap intervals, paired differences, McNemar's test.

Shape letters: N examples, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from loraens.records import Score

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds at the level of 95 %."""

    value: Score
    low: Score
    high: Score


def resamples(examples: int, rng: np.random.Generator, count: int = RESAMPLES) -> np.ndarray:
    """Indices `(R, N)` drawn with replacement; the same ones for all that is compared make the
    comparison paired.
    """
    return rng.integers(0, examples, (count, examples), dtype=np.int32)


def of_resamples(value: float, statistics: np.ndarray) -> Interval:
    """Percentile interval (Efron 1979) of a statistic's values on resamples `(R,)`; where it is
    NaN, one is left out.
    """
    defined = statistics[~np.isnan(statistics)]
    if len(defined) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mcnemar(left: np.ndarray, right: np.ndarray) -> float:
    """McNemar's exact test: p of two classifiers being right `(N,)` equally often, two-sided, by
    the binomial distribution.

    Only the examples on which one of them is right count; without any, p is 1.
    """
    first = int((left & ~right).sum())
    second = int((~left & right).sum())
    if first + second == 0:
        return 1.0
    return float(binomtest(first, first + second, 0.5).pvalue)


def means_of_resamples(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Mean of per-example values `(V, N)` on each resample, `(V, R)`: one product with how often
    each example was drawn.
    """
    examples = values.shape[1]
    means = []
    for part in np.array_split(indices, -(-indices.size // 2**23)):  # bounds the counts' memory
        counts = np.stack([np.bincount(sample, minlength=examples) for sample in part])
        means.append(values @ counts.T.astype(np.float64) / examples)
    return np.concatenate(means, axis=1)


def pearson_of_resamples(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Pearson's r of each of `(V, N)` with y `(N,)` on each resample, `(V, R)`; NaN where one side
    is constant.
    """
    a = x - x.mean(axis=1, keepdims=True)
    b = y - y.mean()
    moments = means_of_resamples(np.concatenate([a, a * a, a * b, b[None], (b * b)[None]]), indices)
    mean = moments[: len(a)]
    square = moments[len(a) : 2 * len(a)]
    product = moments[2 * len(a) : 3 * len(a)]
    spread = np.maximum(square - mean**2, 0) * np.maximum(moments[-1] - moments[-2] ** 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = product - mean * moments[-2]
        r: np.ndarray = np.where(spread > 1e-24, covariance / np.sqrt(spread), np.nan)
    return r
