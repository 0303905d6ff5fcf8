"""Regions that hold the label with a promised probability, by conformal prediction.

Of classes, sets {k: 1 - p(k) <= q} with the predicted class always in, from the scores 1 - p(label)
(Sadinle, Lei and Wasserman 2019). Of numbers, intervals prediction +- q (spread + offset), from the
scores |label - prediction| / (spread + offset) (Papadopoulos et al. 2002; Lei et al. 2018): the
spread is the members' weighted standard deviation, and the offset, its mean over the held-out
examples, keeps intervals from vanishing where members agree by chance. Where nothing has a spread,
as with one member, the offset is 1 and all intervals are of one width.

q is the ceil((n + 1) level)-th smallest of the scores of n held-out examples. If these and the
score of a new example are exchangeable, its region holds its label with a probability of at least
the level. This is marginal: over new examples and over draws of the n, not for each class or text.

Held out are the outcomes of the cross-validation, of each example by an ensemble that was chosen
without it, while the ensemble in use was chosen on all. So exchangeability is approximate: coverage
is as promised where the choice is stable, in that it hardly depends on a fifth of the examples
(Barber et al. 2021). Without stability one quantile has no bound in the worst case; cross-conformal
prediction (Vovk 2015) and CV+ (Barber et al. 2021), which compare a new example with the ensemble
of each fold, have one of little less than 2 level - 1.

Shape letters: M members, N texts, T repetitions, n held-out examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from loraens.ensemble.combine import MERGED, with_vote_shares
from loraens.ensemble.pool import Pool
from loraens.errors import InputError
from loraens.members import OUT_OF_FOLD
from loraens.metrics import Outcome
from loraens.records import Count, Record
from loraens.store import MemberStore, logits_file
from loraens.tasks import Task

LEVELS = (*range(500, 1000, 10), *range(991, 1000))  # per mille, so that products are exact


@dataclass(frozen=True)
class Region:
    """The rule of one coverage.

    Args:
        quantile: q.
        offset: Added to the spread, in its unit.
    """

    quantile: float
    offset: float

    def radius(self, spread: np.ndarray) -> np.ndarray:
        """How far `(N,)` the region of a text reaches, of the members' spread `(N,)`."""
        return self.quantile * (spread + self.offset)


@dataclass(frozen=True)
class Conformal(Record):
    """Quantiles of the scores of held-out examples.

    Args:
        examples: n.
        offset: Added to the spread, in its unit.
        quantiles: q at each of `LEVELS`, as far as n examples give it.
    """

    examples: Count
    offset: Annotated[float, Field(gt=0)]
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, distances: np.ndarray, spreads: np.ndarray) -> Conformal:
        """The quantiles; of T repetitions the (T k)-th smallest score stands for the k-th.

        Args:
            distances: `(T, n)` of the labels from the predictions, as `LabelKind.distances`.
            spreads: `(T, n)` of the members.
        """
        repeats, count = distances.shape
        offset = float(spreads.mean()) or 1.0
        scores = np.sort((distances / (spreads + offset)).ravel())
        positions = [-(-(count + 1) * level // 1000) for level in LEVELS]
        return cls(
            examples=count,
            offset=offset,
            quantiles=tuple(float(scores[repeats * k - 1]) for k in positions if k <= count),
        )

    @property
    def highest(self) -> float | None:
        """The highest coverage that the examples give; None if they give none."""
        return LEVELS[len(self.quantiles) - 1] / 1000 if self.quantiles else None

    def at(self, coverage: float) -> Region:
        """The rule of the least of `LEVELS` that is not below a coverage.

        Raises:
            InputError: The coverage is no share, or more than the examples can give.
        """
        check_coverage(coverage)
        if coverage > LEVELS[-1] / 1000:
            raise InputError(
                f"coverage {coverage}: at most {LEVELS[-1] / 1000} is expected", option="coverage"
            )
        index = next(i for i, level in enumerate(LEVELS) if level / 1000 >= coverage)
        if index >= len(self.quantiles):
            needed = -(-LEVELS[index] // (1000 - LEVELS[index]))
            raise InputError(
                f"coverage {coverage}: at least {needed} held-out examples are expected, and there"
                f" are {self.examples}, so ask for less",
                option="coverage",
            )
        return Region(self.quantiles[index], self.offset)


def check_coverage(coverage: float) -> None:
    """Refuse a coverage that is not between 0 and 1."""
    if not 0 < coverage < 1:
        raise InputError(
            f"coverage {coverage}: a share between 0 and 1 is expected, such as 0.9",
            option="coverage",
        )


def distances_and_spreads(
    pool: Pool, weights: np.ndarray, rule: str, outcome: Outcome
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the labels from an ensemble's predictions, and the members' spread, `(N,)` each.

    Args:
        pool: The examples.
        weights: `(M,)`.
        rule: Combination rule.
        outcome: The ensemble's, as it predicts: at its temperature.
    """
    distances = pool.kind.distances(with_vote_shares(pool, weights, outcome), pool.labels)
    if rule == MERGED:  # one model
        return distances, np.zeros(len(pool.labels))
    return distances, pool.kind.spread(pool.predictions, weights)


def of_member(directory: Path, epoch: str, task: Task) -> Conformal:
    """The quantiles of a single member: on dev, or out of fold on its own part, which chose nothing
    but its epoch.

    Args:
        directory: The member's.
        epoch: Name of its epoch.
        task: One of its tasks.

    Raises:
        InputError: The member has no logits of these examples, or they have no labels.
    """
    store = MemberStore(directory)
    manifest = store.manifest()
    split = "dev" if manifest.member.fold is None else OUT_OF_FOLD
    if not (directory / logits_file(manifest, epoch, task.name, split)).is_file():
        raise InputError(
            f"{directory} has no held-out examples, which coverage needs: it was trained on all"
            " labelled texts, so predict with the ensemble that it is of"
        )
    logits = store.logits_of(manifest, epoch, task.name, split)
    if logits.labels is None:
        raise InputError(
            f"{directory} has no labels on dev, which coverage needs: train it with a dev set that"
            " has labels"
        )
    distances = task.label_kind.distances(task.outcome(logits.logits), logits.labels)
    return Conformal.of(distances[None], np.zeros((1, len(distances))))
