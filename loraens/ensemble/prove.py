"""What an ensemble is worth on examples that it was not chosen on: repeated cross-validation of the
whole choice.

In each fold the members are chosen, weighted and calibrated on the other folds, and score on this
one. So every example is scored by an ensemble that did not see it, once in each repetition.

Shape letters: M members, N examples, R resamples, T repetitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from loraens.ensemble.combine import Rule, combine, rules
from loraens.ensemble.pool import Outcome, Pool, metric
from loraens.ensemble.select import METHODS, SOUPS, Options
from loraens.ensemble.significance import (
    Interval,
    mcnemar,
    means_of_resamples,
    of_resamples,
    pearson_of_resamples,
    resamples,
)
from loraens.seeding import derive_seed
from loraens.tasks import LOWER_IS_BETTER, METRICS

FOLDS = 5
REPEATS = 5
Advance = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """A way to make an ensemble: an algorithm with its options, and a rule."""

    method: str
    rule: Rule
    options: Options

    def weights(self, pool: Pool, *seed: str | int) -> np.ndarray:
        """Weights `(M,)` on a pool; random choices are named by the method, its size and the
        seed.
        """
        rng = np.random.default_rng(derive_seed(0, self.method, str(self.options.size), *seed))
        return {**METHODS, **SOUPS}[self.method](pool, self.options, rng)

    @property
    def repeats(self) -> int:
        """Repetitions of the cross-validation: one for greedy soups, which run the backbone for
        every choice.
        """
        return 1 if self.method == "greedy_soup" else REPEATS


@dataclass
class Proof:
    """Scores of one candidate.

    Args:
        candidate: The candidate.
        members: How many members it has on all of dev.
        weights: Their weights `(M,)`.
        dev: Every metric on dev, on which it was chosen.
        held_out: Every metric, cross-validated.
        interval: The task's metric, cross-validated.
        to_best: Difference of that to the best member, chosen in the same folds.
        to_omni: Difference to all members.
        p_best: McNemar's p against the best member, for classes; NaN for numbers.
        temperature: Divides logits; fitted on dev. None for numbers and votes.
        calibrated: NLL, Brier score and calibration error, cross-validated, the temperature fitted
            in the folds.
    """

    candidate: Candidate
    members: int
    weights: np.ndarray
    dev: dict[str, float]
    held_out: dict[str, float]
    interval: Interval
    to_best: Interval
    to_omni: Interval
    p_best: float
    temperature: float | None
    calibrated: dict[str, float]


def folds(pool: Pool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Repetition, rows to choose on and rows to score; classes are stratified where each has enough
    examples.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.unique(pool.labels, return_counts=True)[1]
    stratified = pool.task.kind == "classes" and counts.min() >= FOLDS
    for repeat in range(REPEATS):
        kind = StratifiedKFold if stratified else KFold
        splitter = kind(FOLDS, shuffle=True, random_state=derive_seed(0, "folds", repeat) % 2**32)
        for chosen_on, scored_on in splitter.split(np.zeros(len(pool.labels)), pool.labels):
            yield repeat, chosen_on, scored_on


def temperature(outcome: Outcome, labels: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(log p / T) (Guo et al. 2017), between 1/20 and 20."""
    assert outcome.probabilities is not None

    def loss(log_t: float) -> float:
        cooled = scaled(outcome, float(np.exp(log_t)))
        picked = cooled.probabilities[np.arange(len(labels)), labels.astype(np.int64)]  # type: ignore[index]
        return float(-np.log(np.maximum(picked, np.finfo(np.float64).tiny)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def scaled(outcome: Outcome, by: float) -> Outcome:
    """Probabilities at a temperature; predictions stay."""
    assert outcome.probabilities is not None
    logits = np.log(np.maximum(outcome.probabilities, np.finfo(np.float64).tiny)) / by
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return replace(outcome, probabilities=shares / shares.sum(axis=1, keepdims=True))


@dataclass
class HeldOut:
    """Outcomes of one candidate on every example, by repetition: raw, and at the folds'
    temperatures.
    """

    predictions: np.ndarray  # (T, N)
    probabilities: np.ndarray | None  # (T, N, K)
    cooled: np.ndarray | None

    def first(self, repeats: int) -> HeldOut:
        """Some of the repetitions."""
        parts = (self.predictions, self.probabilities, self.cooled)
        return HeldOut(*(None if part is None else part[:repeats] for part in parts))  # type: ignore[arg-type]

    def outcome(self, repeat: int, cooled: bool = False) -> Outcome:
        """Of one repetition."""
        shares = self.cooled if cooled else self.probabilities
        return Outcome(self.predictions[repeat], None if shares is None else shares[repeat])


def cross_validate(
    pool: Pool, candidates: list[Candidate], advance: Advance = lambda: None
) -> list[HeldOut]:
    """Held-out outcomes of every candidate; `advance` is called after each fold."""
    size = len(pool.labels)
    classes = len(pool.task.class_names)
    found = []
    for candidate in candidates:
        shares = classes and candidate.rule != "vote"
        empty = np.full((candidate.repeats, size, classes), np.nan) if shares else None
        found.append(
            HeldOut(
                np.full((candidate.repeats, size), np.nan),
                empty,
                None if empty is None else empty.copy(),
            )
        )
    for number, (repeat, chosen_on, scored_on) in enumerate(folds(pool)):
        inside = pool.at(chosen_on)
        outside = pool.at(scored_on)
        known: dict[tuple[str, Options], np.ndarray] = {}
        for candidate, held in zip(candidates, found, strict=True):
            if repeat >= candidate.repeats:
                continue
            key = candidate.method, candidate.options
            if key not in known:
                known[key] = candidate.weights(inside, number)
            outcome = combine(outside, known[key], candidate.rule, inside.places)
            held.predictions[repeat, scored_on] = outcome.predictions
            if held.probabilities is not None and held.cooled is not None:
                t = temperature(
                    combine(inside, known[key], candidate.rule, inside.places), inside.labels
                )
                held.probabilities[repeat, scored_on] = outcome.probabilities
                held.cooled[repeat, scored_on] = scaled(outcome, t).probabilities
        advance()
    return found


def on_resamples(pool: Pool, held: HeldOut, rows: np.ndarray) -> np.ndarray:
    """The task's metric on each resample `(R,)`, mean of the repetitions."""
    task = pool.task
    if task.metric == "accuracy":
        found: np.ndarray = means_of_resamples(
            (held.predictions == pool.labels).astype(np.float64), rows
        ).mean(axis=0)
        return found
    if task.metric == "pearson":
        found = pearson_of_resamples(held.predictions, pool.labels, rows).mean(axis=0)
        return found
    outcomes = [held.outcome(repeat) for repeat in range(len(held.predictions))]
    return np.array(
        [
            np.mean([metric(task, task.metric, one.at(row), pool.labels[row]) for one in outcomes])
            for row in rows
        ]
    )


def _mean_metrics(pool: Pool, held: HeldOut, cooled: bool = False) -> dict[str, float]:
    repeats = range(len(held.predictions))
    return {
        name: float(
            np.mean(
                [
                    metric(pool.task, name, held.outcome(repeat, cooled), pool.labels)
                    for repeat in repeats
                ]
            )
        )
        for name in METRICS[pool.task.kind]
    }


def prove(pool: Pool, candidates: list[Candidate], advance: Advance = lambda: None) -> list[Proof]:
    """Every candidate's scores on dev, and cross-validated with intervals that compare on the same
    resamples.

    The candidates must contain the methods `best` and `omni`.
    """
    held = cross_validate(pool, candidates, advance)
    rows = resamples(len(pool.labels), np.random.default_rng(derive_seed(0, "resamples")))
    name = pool.task.metric
    sign = -1 if name in LOWER_IS_BETTER else 1

    @cache
    def known(which: int, repeats: int) -> tuple[dict[str, float], np.ndarray]:
        """Every metric in the first repetitions, and the task's on each resample: what is compared
        is of the same folds.
        """
        part = held[which].first(repeats)
        return _mean_metrics(pool, part), on_resamples(pool, part, rows)

    @cache
    def chosen(method: str, options: Options) -> np.ndarray:
        """Weights on all of dev; the rules of one method share them."""
        return Candidate(method, paper, options).weights(pool, "dev")

    def difference(index: int, other: int) -> Interval:
        (value, sampled), (others, theirs) = (
            known(which, candidates[index].repeats) for which in (index, other)
        )
        return of_resamples(sign * (value[name] - others[name]), sign * (sampled - theirs))

    paper = rules(pool.task)[0]
    place = {
        c.method: index
        for index, c in enumerate(candidates)
        if c.method in ("best", "omni") and c.rule == paper
    }
    proofs = []
    for index, candidate in enumerate(candidates):
        weights = chosen(candidate.method, candidate.options)
        outcome = combine(pool, weights, candidate.rule, pool.places)
        value, sampled = known(index, candidate.repeats)
        p_best = float("nan")
        if pool.task.kind == "classes":
            p_best = mcnemar(
                *(held[which].predictions[0] == pool.labels for which in (index, place["best"]))
            )
        calibrated = {}
        if held[index].cooled is not None:
            cooled = _mean_metrics(pool, held[index], cooled=True)
            calibrated = {key: cooled[key] for key in ("nll", "brier", "calibration_error")}
        proofs.append(
            Proof(
                candidate,
                int(np.count_nonzero(weights)),
                weights,
                {
                    key: metric(pool.task, key, outcome, pool.labels)
                    for key in METRICS[pool.task.kind]
                },
                value,
                of_resamples(value[name], sampled),
                difference(index, place["best"]),
                difference(index, place["omni"]),
                p_best,
                temperature(outcome, pool.labels) if outcome.probabilities is not None else None,
                calibrated,
            )
        )
    return proofs
