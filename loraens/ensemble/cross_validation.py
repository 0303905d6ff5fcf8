"""The whole choice of an ensemble repeated on parts of the examples, and scored on the others.

By repeated cross-validation: in each fold the epochs, the members, their weights and the
temperature are chosen on the other folds, and scored on this one. So every example is scored by an
ensemble that did not see it, once in each repetition. This gives the estimate.

By bags (bootstrap samples): chosen in the bag, scored out of it (Tsamardinos et al. 2018). This
gives the estimate's uncertainty, which comes from the choice too.

Shape letters: M members, N examples, K classes, T repetitions, B bags.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine
from loraens.ensemble.conformal import distances_and_spreads
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

    def name(self, task: str) -> str:
        """Name of the ensemble's directory by default: task, method and rule."""
        return f"{task}-{self.method}-{self.rule}"

    @property
    def repeats(self) -> int:
        """Repetitions of the cross-validation."""
        return METHODS[self.method].repeats

    @property
    def bags(self) -> int:
        """Bags in which the choice is repeated."""
        return METHODS[self.method].bags


@dataclass
class HeldOut:
    """Held-out outcomes of one candidate on every example, by repetition.

    Args:
        predictions: `(T, N)`.
        probabilities: `(T, N, K)`; None for numbers and votes.
        calibrated: `(T, N, K)` at the temperatures that were fitted in the folds.
        distances: `(T, N)` of the labels from these outcomes, as `LabelKind.distances`: of
            calibrated probabilities, and for votes of shares.
        spreads: `(T, N)` of the members, as `LabelKind.spread`.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None
    calibrated: np.ndarray | None
    distances: np.ndarray
    spreads: np.ndarray

    @classmethod
    def empty(cls, pool: Pool, candidate: Candidate) -> HeldOut:
        """Of NaN, to be filled fold by fold."""
        shape = (candidate.repeats, len(pool.labels))
        classes = len(pool.task.class_names)
        probabilities = None
        if classes and candidate.rule != "vote":
            probabilities = np.full((*shape, classes), np.nan)
        return cls(
            predictions=np.full(shape, np.nan),
            probabilities=probabilities,
            calibrated=None if probabilities is None else probabilities.copy(),
            distances=np.full(shape, np.nan),
            spreads=np.full(shape, np.nan),
        )

    def first(self, repeats: int) -> HeldOut:
        """The first repetitions."""
        probabilities = None if self.probabilities is None else self.probabilities[:repeats]
        calibrated = None if self.calibrated is None else self.calibrated[:repeats]
        return HeldOut(
            predictions=self.predictions[:repeats],
            probabilities=probabilities,
            calibrated=calibrated,
            distances=self.distances[:repeats],
            spreads=self.spreads[:repeats],
        )

    def outcome(self, repeat: int, calibrated: bool = False) -> Outcome:
        """The outcome of one repetition."""
        probabilities = self.calibrated if calibrated else self.probabilities
        of_repeat = None if probabilities is None else probabilities[repeat]
        return Outcome(self.predictions[repeat], of_repeat)


def folds(pool: Pool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Repetition, indices of the examples to choose on, and of those to score.

    Classes are stratified where each has enough examples; groups are not divided.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    counts = np.unique(pool.labels, return_counts=True)[1]
    stratified = pool.kind.categorical and counts.min() >= FOLDS
    groups = pool.groups
    if groups is None or len(np.unique(groups)) == len(groups):
        groups = None
        splitter_class = StratifiedKFold if stratified else KFold
    else:
        splitter_class = StratifiedGroupKFold if stratified else GroupKFold
    for repeat in range(REPEATS):
        seed = derive_seed(0, "folds", repeat) % 2**32
        splitter = splitter_class(FOLDS, shuffle=True, random_state=seed)
        for chosen_on, scored_on in splitter.split(np.zeros(len(pool.labels)), pool.labels, groups):
            yield repeat, chosen_on, scored_on


def cross_validate(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> list[HeldOut]:
    """Held-out outcomes of every candidate; `advance` is called after each fold."""
    results = [HeldOut.empty(pool, candidate) for candidate in candidates]
    for number, (repeat, chosen_on, scored_on) in enumerate(folds(pool)):
        inside, outside = pool.split(chosen_on, scored_on)
        weights: dict[tuple[str, Options], np.ndarray] = {}  # the rules of one method share them
        for candidate, held_out in zip(candidates, results, strict=True):
            if repeat >= candidate.repeats:
                continue
            key = candidate.method, candidate.options
            if key not in weights:
                weights[key] = candidate.weights(inside, number)
            outcome = combine(outside, weights[key], candidate.rule, inside.standings)
            held_out.predictions[repeat, scored_on] = outcome.predictions
            if held_out.probabilities is not None and held_out.calibrated is not None:
                held_out.probabilities[repeat, scored_on] = outcome.probabilities
                fitted_on = combine(inside, weights[key], candidate.rule, inside.standings)
                outcome = scaled(outcome, fit_temperature(fitted_on, inside.labels))
                held_out.calibrated[repeat, scored_on] = outcome.probabilities
            distances, spreads = distances_and_spreads(
                outside, weights[key], candidate.rule, outcome
            )
            held_out.distances[repeat, scored_on] = distances
            held_out.spreads[repeat, scored_on] = spreads
        advance()
    return results


@dataclass
class Bagged:
    """Scores of candidates out of bag.

    Args:
        scores: `(B,)` of each candidate, the task's metric, its sign turned where lower is better;
            NaN where it is not defined. Bags are the same for all, so that scores are paired.
        ratio: Examples out of bag for each different one in it, mean of the bags.
    """

    scores: list[np.ndarray]
    ratio: float


def bags(pool: Pool, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of the examples in each bag, whose groups are drawn with replacement, and of those
    out of it.
    """
    examples = np.arange(len(pool.labels))
    names = examples if pool.groups is None else np.unique(pool.groups, return_inverse=True)[1]
    by_group = np.argsort(names, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(names))])
    rng = np.random.default_rng(derive_seed(0, "bags"))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    while len(drawn) < count:
        groups = rng.integers(0, len(starts) - 1, len(starts) - 1)
        inside = np.concatenate([by_group[starts[g] : starts[g + 1]] for g in np.sort(groups)])
        outside = np.setdiff1d(examples, inside)
        if len(outside):  # with a handful of groups a bag may have all of them
            drawn.append((inside, outside))
    return drawn


def score_bags(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> Bagged:
    """Every candidate chosen in each bag and scored out of it; `advance` is called after each."""
    drawn = bags(pool, max(candidate.bags for candidate in candidates))
    each = np.arange(len(pool.labels))  # copies of an example in a bag are a group
    grouped = pool if pool.groups is not None else replace(pool, groups=each)

    def scores_of(number: int) -> list[float]:
        inside, outside = grouped.split(*drawn[number])
        weights: dict[tuple[str, Options], np.ndarray] = {}
        scores = []
        for candidate in candidates:
            if number >= candidate.bags:
                continue
            key = candidate.method, candidate.options
            if key not in weights:
                weights[key] = candidate.weights(inside, "bag", number)
            outcome = combine(outside, weights[key], candidate.rule, inside.standings)
            scores.append(pool.task.score(outcome, outside.labels))
        return scores

    # a merged model is computed by the backbone, which has threads of its own
    workers = 1 if pool.merged is not None else os.cpu_count()
    scores: list[list[float]] = [[] for _ in candidates]
    with ThreadPoolExecutor(workers) as executor:
        for number, row in enumerate(executor.map(scores_of, range(len(drawn)))):
            of_bag = [of for of, c in zip(scores, candidates, strict=True) if number < c.bags]
            for of_candidate, score in zip(of_bag, row, strict=True):
                of_candidate.append(score)
            advance()
    out = float(np.mean([len(outside) for _, outside in drawn])) / len(pool.labels)
    return Bagged([np.array(of_candidate) for of_candidate in scores], out / (1 - out))
