"""Methods that choose some members of a pool: one algorithm a function, one signature.

Shape letters: M members, N examples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps

import numpy as np

from loraens.ensemble.combine import MERGED, combine, combine_apart
from loraens.ensemble.diversity import similarity
from loraens.ensemble.options import Options, Select, equal_weights
from loraens.ensemble.pool import Pool
from loraens.metrics import Outcome, defined_or_lowest

SIZES = range(4, 12)  # as the paper's
CACHED = 2**16  # margins of one class whose sums stay in the cache
BagScores = Callable[[list[int], np.ndarray], np.ndarray]


def best(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The best member."""
    return equal_weights(pool, pool.order[:1])


def longest(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The best of the members that were to be trained for the most epochs: the control that an
    ensemble is compared with at equal training.

    Raises:
        ValueError: It is not known for how many epochs.
    """
    if pool.planned is None:
        raise ValueError("the members' numbers of epochs are not known")
    members = pool.order[pool.planned[pool.order] == pool.planned.max()]
    return equal_weights(pool, members[:1])


def without_longest(pool: Pool) -> str | None:
    """Why `longest` does not apply to a pool; None if it does."""
    if pool.planned is None:
        return "it is not known of each member for how many epochs it was to be trained"
    if (pool.planned == pool.planned[0]).all():
        return f"all members were to be trained for {pool.planned[0]} epochs"
    return None


def omni(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """All members (Omni-LoRA)."""
    return equal_weights(pool, np.arange(len(pool)))


def _sizes(options: Options) -> range:
    """Sizes to try: those of `SIZES` up to the largest allowed, or where all are above it, that."""
    if options.max_size is None:
        return SIZES
    return range(min(SIZES[0], options.max_size), min(SIZES[-1], options.max_size) + 1)


def _sized(order: Select) -> Select:
    """The method that takes the first members of an order, with a size chosen by cross-validation
    where none is given: the smallest of the best.

    Args:
        order: The first `options.size` members, in an order that does not depend on the size.
    """

    @wraps(order)
    def choose(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
        if options.size is not None:
            return equal_weights(pool, order(pool, options, rng))
        sizes = [size for size in _sizes(options) if size <= len(pool)] or [len(pool)]
        rule = pool.kind.rules[0]
        seed = int(rng.spawn(1)[0].integers(2**32))  # the same for any number of examples
        fold_of = rng.permutation(len(pool.labels)) % 5
        if pool.groups is not None:
            _, first, group = np.unique(pool.groups, return_index=True, return_inverse=True)
            fold_of = fold_of[first][group]
        parts: list[list[Outcome]] = [[] for _ in sizes]
        for fold in np.unique(fold_of):
            inside = pool.at(np.flatnonzero(fold_of != fold))
            outside = pool.at(np.flatnonzero(fold_of == fold))
            largest = replace(options, size=sizes[-1])
            members = order(inside, largest, np.random.default_rng(seed))
            for of_size, size in zip(parts, sizes, strict=True):
                weights = equal_weights(inside, members[:size])
                of_size.append(combine_apart(inside, outside, weights, rule))
        order_of = np.argsort(np.argsort(fold_of, kind="stable"), kind="stable")
        outcomes = [Outcome.concatenated(of_size).at(order_of) for of_size in parts]
        scores = [pool.task.score(outcome, pool.labels) for outcome in outcomes]
        size = sizes[int(np.argmax(defined_or_lowest(scores)))]
        chosen = order(pool, replace(options, size=size), np.random.default_rng(seed))
        return equal_weights(pool, chosen)

    return choose


@_sized
def topk(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The best `size` members."""
    members: np.ndarray = pool.order[: options.size]
    return members


@_sized
def random(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Any `size` members: the control without which a claim for a choice means nothing."""
    return rng.permutation(len(pool))[: options.size]


def accurate(pool: Pool, options: Options) -> np.ndarray:
    """The first step of `dicor`: the most accurate members, the best first."""
    if options.within is not None:
        within = pool.scores[pool.order] >= pool.scores.max() - options.within
        members: np.ndarray = pool.order[within]
        return members
    count = max(11, len(pool) / 2) if options.pool is None else options.pool
    size = round(count * len(pool)) if count < 1 else int(count)
    members = pool.order[: max(1, size)]
    return members


@_sized
def dicor(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """DiCor-LoRA (the paper): among the most accurate, one after another the member least similar
    to those already chosen.

    The first is the most accurate one. Similarity to several is the mean of the similarity to
    each; of members that are equally dissimilar, the more accurate one is chosen. A member whose
    similarity is not defined, such as one with constant predictions, gets similarity 1.
    """
    candidates = accurate(pool, options)
    measure = options.measure or pool.kind.similarity
    similarities = similarity(pool, measure)[np.ix_(candidates, candidates)]
    size = min(options.size or len(candidates), len(candidates))
    chosen = [0]
    while len(chosen) < size:
        remaining = [index for index in range(len(candidates)) if index not in chosen]
        # rounded, so that the order of a sum does not decide between equal means
        means = np.round(similarities[np.ix_(remaining, chosen)].mean(axis=1), 12)
        chosen.append(remaining[int(means.argmin())])
    members: np.ndarray = candidates[chosen]
    return members


def greedy(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Forward selection with replacement (Caruana et al. 2004): sorted start, bags of half the
    members, mean of the bags.

    Each bag adds the member that gives the mean the best score, and keeps the best of the ensembles
    on its way.
    """
    scores = _scorer(pool)
    total = np.zeros(len(pool))
    for _ in range(options.bags):
        bag = rng.permutation(len(pool))[: len(pool) if options.bags == 1 else -(-len(pool) // 2)]
        bag = bag[np.argsort(pool.standings[bag])]
        total += _forward(len(pool), scores, bag, options)
    weights: np.ndarray = total / total.sum()
    return weights


def _forward(size: int, scores: BagScores, bag: np.ndarray, options: Options) -> np.ndarray:
    """Share of each member in the best ensemble of one bag."""
    chosen = bag[: options.start].tolist()
    first = float(scores(chosen[1:], np.array(chosen[:1]))[0])
    ensembles = [(first, chosen)]
    for _ in range(options.steps):
        extended = scores(chosen, bag)
        index = int(np.argmax(extended))
        chosen = [*chosen, int(bag[index])]
        ensembles.append((float(extended[index]), chosen))
    members = max(ensembles, key=lambda entry: (entry[0], -len(entry[1])))[1]
    return np.bincount(members, minlength=size) / len(members)


def forward_order(pools: Sequence[Pool], combined: Callable[[Sequence[float]], float]) -> list[int]:
    """All members in the order of a forward selection without replacement (Caruana et al. 2004):
    one after another the one that gives the mean of the chosen the best score.

    The first is the best one; of equal scores the better single member is chosen, then the first by
    name. So the order does not depend on the members' order in the pools.

    Args:
        pools: Of each task, with the same members.
        combined: From the scores of the tasks, in the order of the pools, to the one that counts;
            higher is better.
    """
    scorers = [_scorer(pool) for pool in pools]

    def scores(chosen: list[int], bag: np.ndarray) -> np.ndarray:
        by_task = [scorer(chosen, bag).tolist() for scorer in scorers]
        return np.array([combined(of_tasks) for of_tasks in zip(*by_task, strict=True)])

    by_name = np.argsort(np.argsort(pools[0].names))
    remaining = np.lexsort((by_name, -scores([], np.arange(len(pools[0])))))
    chosen: list[int] = []
    while len(remaining):
        index = int(np.argmax(scores(chosen, remaining)))
        chosen.append(int(remaining[index]))
        remaining = np.delete(remaining, index)
    return chosen


def _scorer(pool: Pool) -> BagScores:
    """Scores of the means of some members and each member of a bag in turn; minus infinity where
    not defined.
    """
    if pool.kind.most_probable and pool.task.metric == "accuracy":
        return _accuracy_scorer(*pool.distinct())
    averaged = pool.averaged
    K = averaged.shape[2]

    def scores(chosen: list[int], bag: np.ndarray) -> np.ndarray:
        means = (averaged[chosen].sum(axis=0) + averaged[bag]) / (len(chosen) + 1)
        outcome = pool.kind.outcome_of_mean(means.reshape(-1, K))
        of_each = pool.task.scores_of(outcome.reshaped(len(bag)), pool.labels)
        return defined_or_lowest(of_each)

    return scores


def _accuracy_scorer(pool: Pool, copies: np.ndarray) -> BagScores:
    """By margins over every other class, for a whole bag at once; a tie counts as an error.

    Args:
        pool: The members on each example once.
        copies: `(N,)` of each example, falling.
    """
    probabilities = pool.probabilities
    assert probabilities is not None
    members, examples, K = probabilities.shape
    first = [np.count_nonzero(copies > number) for number in range(int(copies[0]))]
    label = pool.labels.astype(np.int64)[:, None]
    example = np.arange(examples)[:, None]
    others = np.arange(K - 1) + (np.arange(K - 1) >= label)  # (N, K - 1)
    margins = np.empty((K - 1, members, examples), np.float32)  # in this order faster to reduce
    for member, of_member in enumerate(probabilities):
        of_member = of_member.astype(np.float32)
        margins[:, member] = (of_member[example, label] - of_member[example, others]).T
    together = max(1, CACHED // examples)  # members
    nothing = np.zeros_like(margins[:, 0])
    summed: tuple[list[int], np.ndarray] = [], nothing  # of the call before, mostly one less

    def scores(chosen: list[int], bag: np.ndarray) -> np.ndarray:
        nonlocal summed
        members, total = summed if summed[0] == chosen[: len(summed[0])] else ([], nothing)
        for member in chosen[len(members) :]:
            total = total + margins[:, member]
        summed = list(chosen), total
        least = -total[:, None]
        correct = np.empty((len(bag), examples), dtype=bool)
        for start in range(0, len(bag), together):
            part = slice(start, start + together)
            np.logical_and.reduce(margins[:, bag[part]] > least, axis=0, out=correct[part])
        counts = sum(np.count_nonzero(correct[:, :size], axis=1) for size in first)
        accuracies: np.ndarray = counts / copies.sum()
        return accuracies

    return scores


def greedy_soup(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Greedy soup (Wortsman et al. 2022): the best member, then each next one that does not make
    the merged model worse.
    """
    chosen: list[int] = []
    best_score = -np.inf
    for member in pool.order[: options.tried].tolist():
        weights = equal_weights(pool, [*chosen, member])
        outcome = combine(pool, weights, MERGED, pool.standings)
        score = float(defined_or_lowest(pool.task.score(outcome, pool.labels)))
        if not chosen or score >= best_score:
            chosen = [*chosen, member]
            best_score = score
    return equal_weights(pool, chosen)
