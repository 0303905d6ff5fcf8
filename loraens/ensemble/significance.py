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


@dataclass(frozen=True)
class OutOfBag:
    """An estimate out of bag, from which its uncertainty is computed. The estimand is the score, or
    the difference of two, on new texts of *the* ensemble that was chosen on all examples.

    The estimate misses it for two reasons: which examples there were to score, and which choice
    they led to.

    - Sampling: the variance of `fixed` times n2 / n1, where n1 different examples are in a bag and
      n2 out of it. Values of n2 of N examples that are drawn without replacement have the variance
      (n1 / n2) sigma^2 / N: this is the delete-d jackknife (Shao and Wu 1989), exact for a mean.
    - Choice: by how much the variance of `chosen` is above that of `fixed`. A bag stands for a
      sample of N examples (Efron 1979), and so its choice varies as a choice on N examples does.
    - Monte Carlo: the variance of the mean of B values.

    The formula of Nadeau and Bengio (2003), (1 / B + n2 / n1) times the variance of `chosen`, is
    the same where nothing is chosen, and otherwise counts n2 / n1 of the choice.

    Args:
        chosen: `(B,)` the value out of each bag, chosen in it; NaN where it is not defined.
        fixed: `(T, B)` the value of the cross-validated predictions on the same examples, by
            repetition; what counts is their mean.
        ratio: n2 / n1, mean of the bags.
    """

    chosen: np.ndarray
    fixed: np.ndarray
    ratio: float

    def __sub__(self, other: OutOfBag) -> OutOfBag:
        """The difference of two estimates, in the bags and repetitions that both have."""
        count = min(len(self), len(other))
        repeats = min(len(self.fixed), len(other.fixed))
        return OutOfBag(
            chosen=self.chosen[:count] - other.chosen[:count],
            fixed=self.fixed[:repeats, :count] - other.fixed[:repeats, :count],
            ratio=self.ratio,
        )

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def _defined(self) -> np.ndarray:
        defined: np.ndarray = ~(np.isnan(self.chosen) | np.isnan(self.fixed).any(axis=0))
        return defined

    def standard_error(self) -> float:
        """Of the estimate; NaN where fewer than two values are defined."""
        count = int(np.count_nonzero(self._defined))
        if count < 2:
            return float("nan")
        whole = self.chosen[self._defined].var(ddof=1)
        sampling = self.fixed.mean(axis=0)[self._defined].var(ddof=1)
        choice = max(0.0, whole - sampling)
        return float(np.sqrt(self.ratio * sampling + choice + max(whole, sampling) / count))

    def interval(self, value: float) -> Interval:
        """Interval about the cross-validated value, by Student's t with B - 1 degrees."""
        from scipy.stats import t as student

        quantile = float(student.ppf((1 + LEVEL) / 2, self._degrees))
        half = self.standard_error() * quantile
        return Interval(value, value - half, value + half)

    def p_value(self, value: float) -> float:
        """Two-sided p of the value being zero, of the same t; 1 where the value is zero, 0 where
        only the error is.
        """
        from scipy.stats import t as student

        error = self.standard_error()
        if value == 0:
            return 1.0
        if error == 0:
            return 0.0
        return float(2 * student.sf(abs(value) / error, self._degrees))

    @property
    def _degrees(self) -> int:
        return max(1, int(np.count_nonzero(self._defined)) - 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values `(V,)` adjusted for their number (Holm 1979); NaN stay and are not counted."""
    adjusted = np.asarray(p_values, np.float64).copy()
    order = np.argsort(adjusted)
    order = order[: np.count_nonzero(~np.isnan(adjusted))]  # NaN are last
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * adjusted[order]))
    return adjusted
