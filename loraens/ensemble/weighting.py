"""Methods that weight all members of a pool, by their likelihood or by a convex loss.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from loraens.ensemble.options import Options, equal_weights
from loraens.ensemble.pool import Pool
from loraens.labels.base import WeightLoss, working_type
from loraens.metrics import softmax


def weighted(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Weights on the simplex that minimise the loss of the weighted mean logit: NLL for classes,
    MSE for numbers.
    """
    return _minimise(len(pool), pool.kind.weight_loss(pool.task, pool.logits, pool.labels))


def _minimise(
    size: int,
    loss: WeightLoss,
    steps: int = 60,
    tolerance: float = 1e-9,
) -> np.ndarray:
    """Accelerated projected gradient descent with a step that halves until the loss falls below
    its quadratic bound (Beck and Teboulle 2009), from equal weights.
    """
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
    linear = pool.kind.stacking_weights(pool.predictions, pool.labels)
    if linear is not None:
        return linear if linear.any() else equal_weights(pool, np.arange(len(pool)))
    distinct, copies = pool.distinct()
    # weights do not depend on the scale of an example, and no ratio underflows for all members
    ratio = np.exp(distinct.log_likelihood - distinct.log_likelihood.max(axis=0))
    density = ratio.astype(working_type(pool.logits), copy=False)
    counts = copies.astype(density.dtype)
    weights = np.full(len(pool), 1 / len(pool))
    for _ in range(200):
        mixture = weights.astype(density.dtype) @ density
        following = weights * (density @ (counts / mixture)) / len(pool.labels)
        if np.abs(following - weights).max() < 1e-6:
            break
        weights = following
    normalised: np.ndarray = weights / weights.sum()
    return normalised


def bma(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Bayesian model averaging with equal priors: posterior probability of each member, its weights
    taken as given.
    """
    return softmax(pool.log_likelihood.sum(axis=1))


def pseudo_bma(pool: Pool, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Pseudo-BMA+ (Yao et al. 2018): weights from the expected log density, averaged over the
    Bayesian bootstrap.
    """
    density = pool.log_likelihood
    drawn = _drawn(rng, options.draws, density.shape[1])
    sums = (drawn @ density.T.astype(np.float32)).astype(np.float64)
    means = sums / drawn.sum(axis=1, keepdims=True)  # by shares of Dirichlet(1, ..., 1)
    weights: np.ndarray = softmax(density.shape[1] * means).mean(axis=0)
    return weights


def _drawn(rng: np.random.Generator, draws: int, examples: int) -> np.ndarray:
    """Standard exponential numbers `(draws, examples)` of a generator of `default_rng`."""
    state = rng.bit_generator.state["state"]
    return _exponentials(state["state"], state["inc"], draws, examples)


@lru_cache(maxsize=2)
def _exponentials(state: int, inc: int, draws: int, examples: int) -> np.ndarray:
    """Those of a state of PCG64. All bags ask for the same, and to draw them takes longer than the
    products that they are for.
    """
    bits = np.random.PCG64()
    bits.state = {**bits.state, "state": {"state": state, "inc": inc}}
    return np.random.Generator(bits).standard_exponential((draws, examples), dtype=np.float32)
