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
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine, combine_apart
from loraens.ensemble.conformal import distances_and_spreads
from loraens.ensemble.methods import METHODS, REPEATS
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.significance import OutOfBag
from loraens.metrics import NLL, Metric, Outcome
from loraens.seeding import derive_seed

FOLDS = 5
FEWEST = 10  # examples of a fold that a metric which compares them is computed on
Advance = Callable[[], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A way to make an ensemble: a method with its options, and a combination rule."""

    method: str
    rule: str
    options: Options

    def weights(self, pool: Pool) -> np.ndarray:
        """Weights `(M,)` on a pool. Random choices are the same on every pool of as many members:
        they are no property of the examples, and what is proved is the ensemble that they lead to.
        """
        rng = np.random.default_rng(derive_seed(0, self.method, str(self.options.size), "dev"))
        return METHODS[self.method].select(pool, self.options, rng)

    def name(self, task: str, refit: bool = False) -> str:
        """Name of the ensemble's directory by default: task, method and rule."""
        return f"{task}-{self.method}-{self.rule}" + ("-refit" if refit else "")

    @property
    def repeats(self) -> int:
        """Repetitions of the cross-validation."""
        return METHODS[self.method].repeats

    @property
    def bags(self) -> int:
        """Bags in which the choice is repeated."""
        return METHODS[self.method].bags


class Choices:
    """Weights `(M,)` of candidates, chosen on one pool; the rules of one method share them."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._weights: dict[tuple[str, Options], np.ndarray] = {}

    def weights(self, candidate: Candidate) -> np.ndarray:
        """Those of a candidate."""
        key = candidate.method, candidate.options
        if key not in self._weights:
            self._weights[key] = candidate.weights(self.pool)
        return self._weights[key]


@dataclass
class HeldOut:
    """Held-out outcomes of one candidate on every example, by repetition.

    Args:
        predictions: `(T, N)`, or `(T, N, K)` where an example has several labels.
        probabilities: `(T, N, K)`; None for numbers and votes.
        calibrated: `(T, N, K)` at the temperatures that were fitted in the folds.
        folds: `(T, N)` number of the fold that each example was scored in.
        distances: `(T, N)` of the labels from these outcomes, as `LabelKind.distances`: of
            calibrated probabilities, and for votes of shares.
        spreads: `(T, N)` of the members, as `LabelKind.spread`.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None
    calibrated: np.ndarray | None
    folds: np.ndarray
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
            predictions=np.full((*shape, *pool.labels.shape[1:]), np.nan),
            probabilities=probabilities,
            calibrated=None if probabilities is None else probabilities.copy(),
            folds=np.zeros(shape, np.int64),
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
            folds=self.folds[:repeats],
            distances=self.distances[:repeats],
            spreads=self.spreads[:repeats],
        )

    def outcome(self, repeat: int, calibrated: bool = False) -> Outcome:
        """The outcome of one repetition."""
        probabilities = self.calibrated if calibrated else self.probabilities
        of_repeat = None if probabilities is None else probabilities[repeat]
        return Outcome(self.predictions[repeat], of_repeat)

    def outcomes(self, indices: np.ndarray) -> Outcome:
        """The outcomes of all repetitions on some of the examples, one along their first axis."""
        probabilities = None if self.probabilities is None else self.probabilities[:, indices]
        return Outcome(self.predictions[:, indices], probabilities)

    def score(self, metric: Metric, labels: np.ndarray, calibrated: bool = False) -> float:
        """A metric, mean of the repetitions; NaN where it is not defined."""
        scores = []
        for repeat, fold_of in enumerate(self.folds):
            outcome = self.outcome(repeat, calibrated)
            if not metric.compares or len(labels) < FEWEST * FOLDS:
                scores.append(metric(outcome, labels))
                continue
            by_fold = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of)]
            scores += [metric(outcome.at(fold), labels[fold]) for fold in by_fold]
        return float(np.mean(scores))


def folds(pool: Pool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Repetition, indices of the examples to choose on, and of those to score.

    Classes are stratified where each has enough examples (of several labels, the rarest of each
    example); groups are not divided.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    strata = pool.kind.strata(pool.labels)
    stratified = strata is not None and np.unique(strata, return_counts=True)[1].min() >= FOLDS
    classes = np.zeros(len(pool.labels)) if strata is None else strata
    groups = pool.groups
    if groups is None or len(np.unique(groups)) == len(groups):
        groups = None
        splitter_class = StratifiedKFold if stratified else KFold
    else:
        splitter_class = StratifiedGroupKFold if stratified else GroupKFold
    for repeat in range(REPEATS):
        seed = derive_seed(0, "folds", repeat) % 2**32
        splitter = splitter_class(FOLDS, shuffle=True, random_state=seed)
        for chosen_on, scored_on in splitter.split(classes, classes, groups):
            yield repeat, chosen_on, scored_on


def cross_validate(
    pool: Pool, candidates: Sequence[Candidate], advance: Advance = lambda: None
) -> list[HeldOut]:
    """Held-out outcomes of every candidate; `advance` is called after each fold."""
    results = [HeldOut.empty(pool, candidate) for candidate in candidates]
    parts = list(folds(pool))

    def score(number: int) -> None:
        repeat, chosen_on, scored_on = parts[number]
        inside, outside = pool.split(chosen_on, scored_on)
        choices = Choices(inside)
        for candidate, held_out in zip(candidates, results, strict=True):
            if repeat >= candidate.repeats:
                continue
            weights = choices.weights(candidate)
            outcome = combine_apart(inside, outside, weights, candidate.rule)
            held_out.predictions[repeat, scored_on] = outcome.predictions
            held_out.folds[repeat, scored_on] = number
            if held_out.probabilities is not None and held_out.calibrated is not None:
                held_out.probabilities[repeat, scored_on] = outcome.probabilities
                fitted_on = combine(inside, weights, candidate.rule, inside.standings)
                outcome = scaled(outcome, fit_temperature(fitted_on, inside.labels))
                held_out.calibrated[repeat, scored_on] = outcome.probabilities
            distances, spreads = distances_and_spreads(outside, weights, candidate.rule, outcome)
            held_out.distances[repeat, scored_on] = distances
            held_out.spreads[repeat, scored_on] = spreads

    for _ in _of_each(pool, score, len(parts)):
        advance()
    return results


def bags(pool: Pool, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of the examples in each bag, whose groups are drawn with replacement, and of those
    out of it.
    """
    examples = np.arange(len(pool.labels))
    names = examples if pool.groups is None else np.unique(pool.groups, return_inverse=True)[1]
    by_group = np.argsort(names, kind="stable")
    sizes = np.bincount(names)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(derive_seed(0, "bags"))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    while len(drawn) < count:
        groups = np.sort(rng.integers(0, len(sizes), len(sizes)))
        counts = sizes[groups]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        inside = by_group[np.repeat(starts[groups], counts) + within]
        outside = np.flatnonzero(~np.isin(examples, inside))
        if len(outside):  # with a handful of groups a bag may have all of them
            drawn.append((inside, outside))
    return drawn


@dataclass
class Bagged:
    """What became of candidates in bags, which are the same for all, so that scores are paired.

    Args:
        scores: The task's metric of each candidate, its sign turned where lower is better.
        weights: `(M,)` that were chosen in each bag, of each candidate.
        drawn: The bags, as `bags` gives them.
    """

    scores: list[OutOfBag]
    weights: list[list[np.ndarray]]
    drawn: list[tuple[np.ndarray, np.ndarray]]


def score_bags(
    pool: Pool,
    candidates: Sequence[Candidate],
    held_out: Sequence[HeldOut],
    advance: Advance = lambda: None,
) -> Bagged:
    """Every candidate chosen in each bag and scored out of it.

    Args:
        pool: The pool.
        candidates: The candidates.
        held_out: Their cross-validated outcomes.
        advance: Called after each bag.
    """
    drawn = bags(pool, max(candidate.bags for candidate in candidates))
    each = np.arange(len(pool.labels))  # copies of an example in a bag are a group
    grouped = pool if pool.groups is not None else pool.changed(groups=each)

    def scores_of(number: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
        inside, outside = grouped.split(*drawn[number])
        choices = Choices(inside)
        scores = []
        for candidate, of_candidate in zip(candidates, held_out, strict=True):
            if number >= candidate.bags:
                continue
            weights = choices.weights(candidate)
            outcome = combine_apart(inside, outside, weights, candidate.rule)
            chosen = pool.task.score(outcome, outside.labels)
            fixed = pool.task.scores_of(of_candidate.outcomes(drawn[number][1]), outside.labels)
            scores.append((chosen, fixed, weights))
        return scores

    rows: list[list[tuple[float, np.ndarray, np.ndarray]]] = [[] for _ in candidates]
    for number, row in enumerate(_of_each(pool, scores_of, len(drawn))):
        of_bag = [of for of, c in zip(rows, candidates, strict=True) if number < c.bags]
        for of_candidate, entry in zip(of_bag, row, strict=True):
            of_candidate.append(entry)
        advance()
    out = float(np.mean([len(outside) for _, outside in drawn])) / len(pool.labels)
    ratio = out / (1 - out)
    scores = []
    weights = []
    for of_candidate in rows:
        chosen, fixed, of_bags = zip(*of_candidate, strict=True)
        scores.append(OutOfBag(np.array(chosen), np.array(fixed).T, ratio))
        weights.append(list(of_bags))
    return Bagged(scores, weights, drawn)


def nll_of_bags(
    pool: Pool,
    rules: Sequence[str],
    chosen: Sequence[Sequence[np.ndarray]],
    drawn: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """NLL `(B, V)` out of each bag of what was chosen in it, at the temperature that is fitted in
    it; NaN where a candidate has fewer bags.

    Args:
        pool: The pool.
        rules: Combination rule of each of V candidates.
        chosen: Weights `(M,)` of each, in each of its bags.
        drawn: The bags, as `bags` gives them.
    """

    def of_bag(number: int) -> list[float]:
        inside, outside = pool.split(*drawn[number])
        scores = []
        for rule, of_candidate in zip(rules, chosen, strict=True):
            if number >= len(of_candidate):
                scores.append(np.nan)
                continue
            weights = of_candidate[number]
            fitted_on = combine(inside, weights, rule, inside.standings)
            outcome = combine(outside, weights, rule, inside.standings)
            calibrated = scaled(outcome, fit_temperature(fitted_on, inside.labels))
            scores.append(NLL(calibrated, outside.labels))
        return scores

    return np.array(list(_of_each(pool, of_bag, len(drawn))))


def _of_each(pool: Pool, compute: Callable[[int], T], count: int) -> Iterator[T]:
    """What is computed of each fold or bag, in turn, by as many threads as there are cores, in each
    of which BLAS has one: with more they would wait for each other.

    A merged model is computed by the backbone, which has threads of its own.
    """
    if pool.merged is not None:
        yield from map(compute, range(count))
        return
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(os.cpu_count()) as executor,
    ):
        yield compute(0)  # alone: it fills the arrays of the pool that all of them share
        yield from executor.map(compute, range(1, count))
