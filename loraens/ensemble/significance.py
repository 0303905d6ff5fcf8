"""Uncertainty of scores, from bags: the choice made again in each, scored out of it.

Shape letters: B bags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loraens.records import Score

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds at the level of 95 %."""

    value: Score
    low: Score
    high: Score


def standard_error(scores: np.ndarray, ratio: float) -> float:
    """Standard error of an estimate from its values out of bag; NaN where fewer than two are
    defined.

    The values of two bags are not independent: both the examples that are chosen on and those that
    are scored overlap. Nadeau and Bengio (2003) correct the variance of the mean of B such values
    from S^2 / B to (1 / B + n2 / n1) S^2, where n1 examples are chosen on and n2 are scored. Where
    there is nothing to choose this is the delete-d jackknife (Shao and Wu 1989), exact for a mean:
    values out of bag are of n2 of N examples drawn without replacement, so that their variance is
    (n1 / n2) sigma^2 / N. The variance of the choice comes on top.

    Args:
        scores: `(B,)` values out of bag; NaN where not defined.
        ratio: n2 / n1, examples out of bag for each different one in it.
    """
    defined = scores[~np.isnan(scores)]
    if len(defined) < 2:
        return float("nan")
    return float(np.sqrt((1 / len(defined) + ratio) * defined.var(ddof=1)))


def of_bags(value: float, scores: np.ndarray, ratio: float) -> Interval:
    """Interval about an estimate by Student's t with B - 1 degrees of freedom (Nadeau and Bengio
    2003).

    The estimand is the score (or the difference) on new texts of *the* ensemble that was chosen on
    all examples. The variance out of bag contains both reasons for which the estimate misses it:
    the examples that happened to be there to score, and the choice that they happened to lead to.

    Args:
        value: The estimate, cross-validated.
        scores: `(B,)` the same out of bag.
        ratio: As in `standard_error`.
    """
    half = standard_error(scores, ratio) * _quantile(scores)
    return Interval(value, value - half, value + half)


def p_value(value: float, scores: np.ndarray, ratio: float) -> float:
    """Two-sided p of an estimate being zero, of the same t as `of_bags`; 1 where all is zero."""
    from scipy.stats import t as student

    error = standard_error(scores, ratio)
    if value == 0:
        return 1.0
    if error == 0:
        return 0.0
    degrees = np.count_nonzero(~np.isnan(scores)) - 1
    return float(2 * student.sf(abs(value) / error, max(1, degrees)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values `(V,)` adjusted for their number (Holm 1979); NaN stay and are not counted."""
    adjusted = np.asarray(p_values, np.float64).copy()
    order = np.argsort(adjusted)
    order = order[: np.count_nonzero(~np.isnan(adjusted))]  # NaN are last
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * adjusted[order]))
    return adjusted


def _quantile(scores: np.ndarray) -> float:
    from scipy.stats import t as student

    degrees = max(1, np.count_nonzero(~np.isnan(scores)) - 1)
    return float(student.ppf((1 + LEVEL) / 2, degrees))
