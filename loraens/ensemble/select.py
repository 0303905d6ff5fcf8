"""Which members an ensemble has, and with which weights: one algorithm a function, one signature.

Each function reads the pool it is given and nothing else, so that a fold of a cross-validation is a
pool of its own.

Shape letters: M members, N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import numpy as np
from scipy.optimize import nnls

from loraens.ensemble.combine import combine, rules
from loraens.ensemble.diversity import similarity
from loraens.ensemble.pool import Outcome, Pool, score
from loraens.metrics import probabilities


@dataclass(frozen=True)
class Options:
    """What the algorithms can be told.

    Args:
        size: Members that `dicor`, `topk` and `random` choose; None for the best of `SIZES` by
            cross-validation on the pool.
        pool: Members that `dicor` looks at: a number from 1 on, a share below 1, or None for half
            of them, at least 11.
        within: Instead of `pool`: those whose score is at most this much below the best one's.
        measure: How alike two members are, for `dicor`: a key of `diversity.SIMILARITIES`; None for
            the paper's.
        bags: Bags of `greedy`, of half the members each; a single one has all.
        steps: Members that one bag of `greedy` joins at most.
        start: Best members that each bag of `greedy` starts with.
        draws: Draws of the Bayesian bootstrap of `pseudo_bma`.
        tried: Best members that `greedy_soup` tries to merge.
    """

    size: int | None = None
    pool: float | None = None
    within: float | None = None
    measure: str | None = None
    bags: int = 8
    steps: int = 16
    start: int = 2
    draws: int = 1000
    tried: int = 11


Select = Callable[[Pool, Options, np.random.Generator], np.ndarray]
SIZES = range(4, 12)  # as the paper's


def _equal(pool: Pool, members: np.ndarray | list[int]) -> np.ndarray:
    """Weights `(M,)`: equal for some members, zero for the others."""
    weights = np.zeros(len(pool))
    weights[members] = 1 / len(members)
    return weights


def best(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The best member."""
    return _equal(pool, pool.order[:1])


def omni(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """All members (Omni-LoRA)."""
    return _equal(pool, np.arange(len(pool)))


def _sized(select: Select) -> Select:
    """The algorithm with a size chosen by cross-validation where none is given: the smallest of the
    best.
    """

    @wraps(select)
    def choose(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
        if options.size is not None:
            return select(pool, options, rng)
        sizes = [size for size in SIZES if size <= len(pool)] or [len(pool)]
        place = rng.permutation(len(pool.labels)) % 5
        seed = int(rng.integers(2**32))
        predicted = np.empty((len(sizes), len(pool.labels)))
        for fold in range(5):
            inside = pool.at(np.flatnonzero(place != fold))
            outside = pool.at(np.flatnonzero(place == fold))
            for number, size in enumerate(sizes):
                weights = select(inside, replace(options, size=size), np.random.default_rng(seed))
                predicted[number, place == fold] = combine(
                    outside, weights, rules(pool.task)[0], inside.places
                ).predictions
        found = [_defined(score(pool.task, Outcome(row), pool.labels)) for row in predicted]
        return select(
            pool, replace(options, size=sizes[int(np.argmax(found))]), np.random.default_rng(seed)
        )

    return choose


def _defined(value: float) -> float:
    return -np.inf if np.isnan(value) else value


@_sized
def topk(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """The best `size` members."""
    return _equal(pool, pool.order[: options.size])


@_sized
def random(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Any `size` members: the control without which a claim for a choice means nothing."""
    return _equal(pool, rng.permutation(len(pool))[: options.size])


def accurate(pool: Pool, options: Options) -> np.ndarray:
    """The first step of `dicor`: the most accurate members, the best first."""
    if options.within is not None:
        found: np.ndarray = pool.order[
            pool.scores[pool.order] >= pool.scores.max() - options.within
        ]
        return found
    count = max(11, len(pool) / 2) if options.pool is None else options.pool
    kept = round(count * len(pool)) if count < 1 else int(count)
    found = pool.order[: max(1, kept)]
    return found


@_sized
def dicor(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """DiCor-LoRA (the paper): among the most accurate, one after another the member least like
    those already chosen.

    The first is the most accurate one. Likeness to several is the mean of the likeness to each; of
    members that are equally unlike, the more accurate one is taken. A member whose likeness is not
    defined, such as one that always says the same, counts as wholly alike.
    """
    kept = accurate(pool, options)
    name = options.measure or ("pearson" if pool.task.kind == "number" else "cosine")
    alike = similarity(pool, name)[np.ix_(kept, kept)]
    size = min(options.size or len(kept), len(kept))
    chosen = [0]
    while len(chosen) < size:
        left = [place for place in range(len(kept)) if place not in chosen]
        means = np.round(alike[np.ix_(left, chosen)].mean(axis=1), 12)
        chosen.append(left[int(means.argmin())])
    return _equal(pool, kept[chosen])


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
        bag = bag[np.argsort(pool.places[bag])]
        total += _forward(len(pool), scores, bag, options)
    weights: np.ndarray = total / total.sum()
    return weights


def _forward(
    size: int,
    scores: Callable[[list[int], np.ndarray], np.ndarray],
    bag: np.ndarray,
    options: Options,
) -> np.ndarray:
    """Share of each member in the best ensemble of one bag."""
    chosen = bag[: options.start].tolist()
    found = [(float(scores(chosen[1:], np.array(chosen[:1]))[0]), chosen)]
    for _ in range(options.steps):
        reached = scores(chosen, bag)
        place = int(np.argmax(reached))
        chosen = [*chosen, int(bag[place])]
        found.append((float(reached[place]), chosen))
    members = max(found, key=lambda entry: (entry[0], -len(entry[1])))[1]
    return np.bincount(members, minlength=size) / len(members)


def _scorer(pool: Pool) -> Callable[[list[int], np.ndarray], np.ndarray]:
    """Scores of the means of some members and each of others in turn; minus infinity where not
    defined.
    """
    if (
        pool.task.metric == "accuracy"
    ):  # by margins over every other class, all candidates at once; a tie is an error
        shares = pool.probabilities.astype(np.float32)
        size = pool.probabilities.shape[2]
        right = pool.labels.astype(np.int64)[:, None]
        others = np.arange(size - 1) + (np.arange(size - 1) >= right)  # (N, K - 1)
        margins = np.take_along_axis(shares, right[None], 2) - np.take_along_axis(
            shares, others[None], 2
        )
        return lambda chosen, bag: (
            (margins[chosen].sum(axis=0) + margins[bag] > 0).all(axis=2).mean(axis=1)
        )
    outputs = pool.probabilities if pool.task.kind == "classes" else pool.predictions[..., None]

    def scores(chosen: list[int], bag: np.ndarray) -> np.ndarray:
        running = outputs[chosen].sum(axis=0)
        means = ((running + outputs[member]) / (len(chosen) + 1) for member in bag)
        return np.array([_defined(_mean_score(pool, mean)) for mean in means])

    return scores


def _mean_score(pool: Pool, mean: np.ndarray) -> float:
    if pool.task.kind == "number":
        return score(pool.task, Outcome(mean[:, 0]), pool.labels)
    return score(pool.task, Outcome(mean.argmax(axis=1), mean), pool.labels)


def weighted(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Weights on the simplex that minimise the loss of the weighted mean logit: NLL for classes,
    MSE for numbers.

    Both are convex; accelerated projected gradient descent with a step that halves until the loss
    falls (Beck and Teboulle 2009).
    """
    if pool.task.kind == "number":
        errors = pool.predictions - pool.labels
        gram = errors @ errors.T / len(pool.labels)  # of weights that sum to one
        return _minimise(len(pool), lambda w: (float(w @ gram @ w), 2 * gram @ w))
    flat = pool.logits.reshape(len(pool), -1).astype(np.float64)
    labels = pool.labels.astype(np.int64)
    shape = pool.logits.shape[1:]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        shares = probabilities(pool.task, (weights @ flat).reshape(shape))
        picked = np.maximum(shares[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
        residual = shares.copy()
        residual[np.arange(len(labels)), labels] -= 1
        residual = residual[:, 1:] if shape[1] == 1 else residual  # one logit for two classes
        return float(-np.log(picked).mean()), flat @ residual.ravel() / len(labels)

    return _minimise(len(pool), loss)


def _minimise(
    size: int,
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
    steps: int = 60,
    tolerance: float = 1e-9,
) -> np.ndarray:
    weights = ahead = np.full(size, 1 / size)
    value = loss(weights)[0]
    step = 1.0
    momentum = 1.0
    for _ in range(steps):
        here, gradient = loss(ahead)
        while True:
            following = _on_simplex(ahead - step * gradient)
            move = following - ahead
            reached = loss(following)[0]
            if reached <= here + gradient @ move + move @ move / (2 * step) + 1e-15 or step < 1e-12:
                break
            step /= 2
        if reached > value:  # momentum went too far: start again from the best point
            if momentum == 1.0:
                break
            ahead = weights
            momentum = 1.0
            continue
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = _on_simplex(following + (momentum - 1) / grown * (following - weights))
        done = value - reached < tolerance * max(1.0, abs(value))
        weights = following
        value = reached
        momentum = grown
        step = step * 1.5
        if done:
            break
    return weights


def _on_simplex(x: np.ndarray) -> np.ndarray:
    """The nearest point whose entries are not negative and sum to one (Duchi et al. 2008)."""
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(x) + 1)
    nearest: np.ndarray = np.maximum(x - excess[np.flatnonzero(ordered > excess)[-1]], 0)
    return nearest


def stacking(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Stacking: of predictive distributions, maximal mean log score of the mixture (Yao et al.
    2018), by expectation maximisation; for numbers, non-negative least squares (Breiman 1996),
    whose weights need not sum to one.
    """
    if pool.task.kind == "number":
        found: np.ndarray = nnls(pool.predictions.T, pool.labels)[0]
        return found if found.any() else omni(pool, options, rng)
    density = np.exp(pool.log_likelihood)
    weights = np.full(len(pool), 1 / len(pool))
    for _ in range(200):
        following = weights * (density @ (1 / (weights @ density))) / density.shape[1]
        if np.abs(following - weights).max() < 1e-6:
            break
        weights = following
    found = weights / weights.sum()
    return found


def bma(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Bayesian model averaging with equal priors: posterior probability of each member, its weights
    taken as given.
    """
    return _softmax(pool.log_likelihood.sum(axis=1))


def pseudo_bma(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Pseudo-BMA+ (Yao et al. 2018): weights from the expected log density, averaged over the
    Bayesian bootstrap.
    """
    density = pool.log_likelihood
    drawn = rng.standard_exponential((options.draws, density.shape[1]), dtype=np.float32)
    shares = drawn / drawn.sum(axis=1, keepdims=True)  # Dirichlet(1, ..., 1)
    found: np.ndarray = _softmax(
        density.shape[1] * (shares @ density.T.astype(np.float32)).astype(np.float64)
    ).mean(axis=0)
    return found


def greedy_soup(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Greedy soup (Wortsman et al. 2022): the best member, then each next one that does not make
    the merged model worse.
    """
    chosen: list[int] = []
    reached = -np.inf
    for member in pool.order[: options.tried].tolist():
        weights = _equal(pool, [*chosen, member])
        found = _defined(
            score(pool.task, combine(pool, weights, "merged", pool.places), pool.labels)
        )
        if not chosen or found >= reached:
            chosen = [*chosen, member]
            reached = found
    return _equal(pool, chosen)


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


METHODS: dict[str, Select] = {
    "best": best,
    "omni": omni,
    "dicor": dicor,
    "topk": topk,
    "random": random,
    "greedy": greedy,
    "weighted": weighted,
    "stacking": stacking,
    "bma": bma,
    "pseudo_bma": pseudo_bma,
}
SOUPS: dict[str, Select] = {
    "soup": omni,
    "greedy_soup": greedy_soup,
}  # all members, or some, merged into one model
