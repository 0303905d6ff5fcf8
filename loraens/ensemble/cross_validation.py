"""Repeated cross-validation of the whole choice of an ensemble.

In each fold the members are chosen, weighted and calibrated on the other folds, and scored on this
one. So every example is scored by an ensemble that did not see it, once in each repetition.

Shape letters: M members, N examples, K classes, T repetitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine
from loraens.ensemble.methods import METHODS, REPEATS
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.metrics import Outcome
from loraens.seeding import derive_seed

FOLDS = 5
Advance = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """A way to make an ensemble: a method with its options, and a combination rule."""

    method: str
    rule: str
    options: Options

    def weights(self, pool: Pool, *seed: str | int) -> np.ndarray:
        """Weights `(M,)` on a pool; random choices are named by the method, its size and the
        seed.
        """
        rng = np.random.default_rng(derive_seed(0, self.method, str(self.options.size), *seed))
        return METHODS[self.method].select(pool, self.options, rng)

    @property
    def repeats(self) -> int:
        """Repetitions of the cross-validation."""
        return METHODS[self.method].repeats


@dataclass
class HeldOut:
    """Held-out outcomes of one candidate on every example, by repetition.

    Args:
        predictions: `(T, N)`.
        probabilities: `(T, N, K)`; None for numbers and votes.
        calibrated: `(T, N, K)` at the temperatures that were fitted in the folds.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None
    calibrated: np.ndarray | None

    @classmethod
    def empty(cls, pool: Pool, candidate: Candidate) -> HeldOut:
        """Of NaN, to be filled fold by fold."""
        shape = (candidate.repeats, len(pool.labels))
        classes = len(pool.task.class_names)
        if not classes or candidate.rule == "vote":
            return cls(np.full(shape, np.nan), None, None)
        probabilities = np.full((*shape, classes), np.nan)
        return cls(np.full(shape, np.nan), probabilities, probabilities.copy())

    def first(self, repeats: int) -> HeldOut:
        """The first repetitions."""
        probabilities = None if self.probabilities is None else self.probabilities[:repeats]
        calibrated = None if self.calibrated is None else self.calibrated[:repeats]
        return HeldOut(self.predictions[:repeats], probabilities, calibrated)

    def outcome(self, repeat: int, calibrated: bool = False) -> Outcome:
        """The outcome of one repetition."""
        probabilities = self.calibrated if calibrated else self.probabilities
        of_repeat = None if probabilities is None else probabilities[repeat]
        return Outcome(self.predictions[repeat], of_repeat)


def folds(pool: Pool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Repetition, indices of the examples to choose on, and of those to score.

    Classes are stratified where each has enough examples.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.unique(pool.labels, return_counts=True)[1]
    stratified = pool.kind.categorical and counts.min() >= FOLDS
    splitter_class = StratifiedKFold if stratified else KFold
    for repeat in range(REPEATS):
        seed = derive_seed(0, "folds", repeat) % 2**32
        splitter = splitter_class(FOLDS, shuffle=True, random_state=seed)
        for chosen_on, scored_on in splitter.split(np.zeros(len(pool.labels)), pool.labels):
            yield repeat, chosen_on, scored_on


def cross_validate(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> list[HeldOut]:
    """Held-out outcomes of every candidate; `advance` is called after each fold."""
    results = [HeldOut.empty(pool, candidate) for candidate in candidates]
    for number, (repeat, chosen_on, scored_on) in enumerate(folds(pool)):
        inside = pool.at(chosen_on)
        outside = pool.at(scored_on)
        weights: dict[tuple[str, Options], np.ndarray] = {}  # the rules of one method share them
        for candidate, held_out in zip(candidates, results, strict=True):
            if repeat >= candidate.repeats:
                continue
            key = candidate.method, candidate.options
            if key not in weights:
                weights[key] = candidate.weights(inside, number)
            outcome = combine(outside, weights[key], candidate.rule, inside.standings)
            held_out.predictions[repeat, scored_on] = outcome.predictions
            if held_out.probabilities is None or held_out.calibrated is None:
                continue
            fitted_on = combine(inside, weights[key], candidate.rule, inside.standings)
            calibrated = scaled(outcome, fit_temperature(fitted_on, inside.labels))
            held_out.probabilities[repeat, scored_on] = outcome.probabilities
            held_out.calibrated[repeat, scored_on] = calibrated.probabilities
        advance()
    return results
