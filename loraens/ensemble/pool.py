"""The pool that an ensemble chooses from: logits of each member on one split of one task.

Shape letters: M members, E epochs of a member, N examples, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar, overload

import numpy as np

from loraens.labels import LabelKind
from loraens.labels.base import working_type
from loraens.metrics import Outcome, defined_or_lowest
from loraens.tasks import Task

T = TypeVar("T")


class Lazy(Generic[T]):
    """`functools.cached_property` without its lock, which up to Python 3.11 all instances share, so
    that threads would wait for each other's arrays.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Lazy[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Lazy[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


@dataclass(frozen=True)
class Pool:
    """Members' logits on one split, and its labels.

    Args:
        task: The task.
        names: Name of each member.
        ranks: `(M,)` rank of each member.
        logits: `(M, N, C)`.
        labels: `(N,)` class numbers or values, or `(N, K)` where an example has several labels;
            NaN where there are none.
        merged: From weights `(M,)` to the logits `(N, C)` of one model merged of the members, where
            the backbone is there.
        epochs: `(E, N, C)` of each member, its logits after every epoch in turn, so that its epoch
            can be chosen anew on some of the examples; E differs where training stopped early. The
            best and the last epoch are exact, others rounded to float16. None where `logits` are
            not of best epochs, or not all epochs are stored.
        epoch_names: E names of each member.
        groups: `(N,)` number of the group of each example: those of one group, such as equal texts
            or the copies of an example in a bag, are never divided between examples to choose on
            and examples to score. None where each is one of its own.
        trained: `(M,)` epochs that each member was trained, those of a configuration each; None
            where not known of all.
        planned: `(M,)` epochs that each was to be trained, had it not stopped early; None where not
            known of all.
    """

    task: Task
    names: tuple[str, ...]
    ranks: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    merged: Callable[[np.ndarray], np.ndarray] | None = None
    epochs: tuple[np.ndarray, ...] | None = None
    epoch_names: tuple[tuple[str, ...], ...] | None = None
    groups: np.ndarray | None = None
    trained: np.ndarray | None = None
    planned: np.ndarray | None = None
    similarities: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return not np.isnan(self.labels.flat[0])

    def at(self, indices: np.ndarray) -> Pool:
        """The same members on some of the examples, each of which may be there more than once."""
        return _Part(self, indices)

    def of(self, members: Sequence[int] | np.ndarray) -> Pool:
        """Some of the members on the same examples."""
        chosen = np.asarray(members)
        return self.changed(
            names=tuple(self.names[index] for index in chosen),
            ranks=self.ranks[chosen],
            logits=self.logits[chosen],
            merged=None,
            epochs=self.epochs and tuple(self.epochs[index] for index in chosen),
            epoch_names=self.epoch_names and tuple(self.epoch_names[index] for index in chosen),
            trained=None if self.trained is None else self.trained[chosen],
            planned=None if self.planned is None else self.planned[chosen],
        )

    def changed(self, **values: Any) -> Pool:
        """The pool with other values of some fields, and nothing computed yet; also of a part."""
        kept = [f.name for f in fields(self) if f.init and f.name not in values]
        return Pool(**{name: getattr(self, name) for name in kept}, **values)

    @Lazy
    def _epoch_outcomes(self) -> list[list[Outcome]]:
        """Outcome of each member after each epoch."""
        assert self.epochs is not None
        return [[self.task.outcome(logits) for logits in of_member] for of_member in self.epochs]

    def split(self, chosen_on: np.ndarray, scored_on: np.ndarray) -> tuple[Pool, Pool]:
        """The pool on the examples to choose on and on those to score, each member after the epoch
        that is its best on the first, where all epochs are there (the first one of equals).

        Args:
            chosen_on: Indices of examples; in a bag, some of them more than once.
            scored_on: Indices of examples.
        """
        whole = self if self.epochs is None else self._at_best_epochs(chosen_on)
        return whole.at(chosen_on), whole.at(scored_on)

    def _at_best_epochs(self, chosen_on: np.ndarray) -> Pool:
        """Each member after the epoch that is its best on some of the examples."""
        assert self.epochs is not None
        labels = self.labels[chosen_on]
        logits = []
        chosen = []
        for of_member, outcomes in zip(self.epochs, self._epoch_outcomes, strict=True):
            scores = [self.task.score(outcome.at(chosen_on), labels) for outcome in outcomes]
            best = int(np.argmax(defined_or_lowest(scores)))
            logits.append(of_member[best])
            chosen.append(outcomes[best])
        pool = self.changed(logits=np.stack(logits), epochs=None, epoch_names=None)
        pool.__dict__["_outcomes"] = _stacked(chosen, pool.logits)  # which are computed already
        return pool

    def distinct(self) -> tuple[Pool, np.ndarray]:
        """The pool with each example once, those with the most copies first, and the number of
        copies of each, `(n,)`.
        """
        return self, np.ones(len(self.labels), np.int64)

    @property
    def kind(self) -> LabelKind:
        """The task's label kind."""
        return self.task.label_kind

    @Lazy
    def _outcomes(self) -> Outcome:
        """Outcomes of all members: predictions `(M, N, ...)` and probabilities `(M, N, K)`; member
        by member, as intermediate results of all at once would be larger than both.
        """
        return _stacked(map(self.task.outcome, self.logits), self.logits)

    @Lazy
    def probabilities(self) -> np.ndarray | None:
        """Class probabilities `(M, N, K)`; None where there are no classes."""
        return self._outcomes.probabilities

    @Lazy
    def predictions(self) -> np.ndarray:
        """Class numbers or values `(M, N)`, or zeros and ones `(M, N, K)`."""
        return self._outcomes.predictions

    @Lazy
    def errors(self) -> np.ndarray:
        """Errors of each member `(M, N)`: 0 or 1 for classes, differences for numbers; of several
        labels those of all decisions, `(M, N K)`.
        """
        return self.kind.errors(self.predictions, self.labels)

    @Lazy
    def averaged(self) -> np.ndarray:
        """What members contribute to a mean `(M, N, K)`: probabilities, or else predictions."""
        return self.kind.averaged(self.predictions, self.probabilities)

    @Lazy
    def log_likelihood(self) -> np.ndarray:
        """Log density of each label under each member `(M, N)`."""
        return self.kind.log_likelihood(self.predictions, self.probabilities, self.labels)

    @Lazy
    def right(self) -> np.ndarray:
        """Whether each member is right on each example, `(M, N)` ones and zeros, where the task's
        metric is the share of those.
        """
        right = self.task.main_metric.right
        assert right is not None
        return right(self.predictions, self.labels).astype(np.float32)

    @Lazy
    def scores(self) -> np.ndarray:
        """The task's metric of each member `(M,)`, its sign turned where lower is better; minus
        infinity if not defined.
        """
        outcomes = Outcome(self.predictions, self.probabilities)
        return defined_or_lowest(self.task.scores_of(outcomes, self.labels))

    def outcome(self, member: int) -> Outcome:
        """Predictions of one member."""
        return Outcome(self.predictions, self.probabilities).of(member)

    @Lazy
    def order(self) -> np.ndarray:
        """Members by score, the best first; equal ones by name."""
        by_name = np.argsort(np.argsort(self.names))
        return np.lexsort((by_name, -self.scores))

    @property
    def standings(self) -> np.ndarray:
        """Standing of each member in that order, 0 the best."""
        standings: np.ndarray = np.argsort(self.order)
        return standings


def _stacked(outcomes: Iterable[Outcome], logits: np.ndarray) -> Outcome:
    """The outcomes of the members of logits `(M, N, C)` as one."""
    real = working_type(logits)
    stacks: list[np.ndarray | None] = []
    for index, outcome in enumerate(outcomes):
        arrays = (outcome.predictions, outcome.probabilities)
        if not stacks:
            stacks = [None if x is None else _empty(len(logits), x, real) for x in arrays]
        for stack, array in zip(stacks, arrays, strict=True):
            if stack is not None:
                stack[index] = array
    predictions, probabilities = stacks
    assert predictions is not None
    return Outcome(predictions, probabilities)


def _empty(count: int, like: np.ndarray, real: np.dtype) -> np.ndarray:
    """For so many arrays, real numbers of a type, and class numbers."""
    return np.empty((count, *like.shape), real if like.dtype.kind == "f" else np.int32)


class _Part(Pool):
    """A pool on some of the examples of another one, from which arrays are taken where they are
    used.

    Args:
        whole: The other one; of a part, that of which it is one.
        indices: `(n,)` of the examples in it.
    """

    _whole: Pool
    _indices: np.ndarray

    def __init__(self, whole: Pool, indices: np.ndarray) -> None:
        if isinstance(whole, _Part):
            indices = whole._indices[indices]
            whole = whole._whole
        given = {f.name: getattr(whole, f.name) for f in fields(whole) if f.name != "logits"}
        merged = whole.merged
        self.__dict__.update(
            given,
            _whole=whole,
            _indices=indices,
            labels=whole.labels[indices],
            merged=None if merged is None else lambda weights: merged(weights)[indices],
            epochs=whole.epochs and tuple(x.take(indices, axis=1) for x in whole.epochs),
            groups=None if whole.groups is None else whole.groups[indices],
            similarities={},
        )

    def _take(self, name: str) -> np.ndarray:
        """An array `(M, N, ...)` of the whole pool, `(M, n, ...)`."""
        taken: np.ndarray = getattr(self._whole, name).take(self._indices, axis=1)
        return taken

    def distinct(self) -> tuple[Pool, np.ndarray]:
        """As of a pool."""
        counts = np.bincount(self._indices)
        if counts.max() == 1:
            return self, np.ones(len(self.labels), np.int64)
        examples = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return self._whole.at(examples), counts[examples]

    @Lazy
    def logits(self) -> np.ndarray:
        """As of a pool."""
        return self._take("logits")

    @Lazy
    def probabilities(self) -> np.ndarray | None:
        """As of a pool."""
        return self._take("probabilities") if self.kind.categorical else None

    @Lazy
    def predictions(self) -> np.ndarray:
        """As of a pool."""
        return self._take("predictions")

    @Lazy
    def log_likelihood(self) -> np.ndarray:
        """As of a pool; that of numbers depends on all examples."""
        if self.kind.categorical:
            return self._take("log_likelihood")
        return Pool.log_likelihood.compute(self)

    @Lazy
    def scores(self) -> np.ndarray:
        """As of a pool; what is right is counted in the whole pool, without taking anything."""
        metric = self.task.main_metric
        if metric.right is None:
            return Pool.scores.compute(self)
        counts = np.bincount(self._indices, minlength=len(self._whole.labels))
        right = (self._whole.right @ counts.astype(np.float32)).astype(np.float64)  # exact
        return metric.utility(right / len(self.labels))
