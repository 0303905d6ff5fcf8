"""The pool that an ensemble chooses from: logits of each member on one split of one task.

Shape letters: M members, E epochs of a member, N examples, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from loraens.labels import LabelKind
from loraens.metrics import Outcome
from loraens.tasks import Task


@dataclass(frozen=True)
class Pool:
    """Members' logits on one split, and its labels.

    Args:
        task: The task.
        names: Name of each member.
        ranks: `(M,)` rank of each member.
        logits: `(M, N, C)`.
        labels: `(N,)` class numbers or values.
        merged: From weights `(M,)` to the logits `(N, C)` of one model merged of the members, where
            the backbone is there.
        groups: `(N,)` number of each example's group; equal texts are in one group. None where
            they are not known.
        epochs: `(E, N, C)` of each member, its logits after every epoch in turn, so that its epoch
            can be chosen anew on some of the examples; E differs where training stopped early. The
            best and the last epoch are exact, others rounded to float16. None where `logits` are
            not of best epochs, or not all epochs are stored.
        epoch_names: E names of each member.
    """

    task: Task
    names: tuple[str, ...]
    ranks: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    merged: Callable[[np.ndarray], np.ndarray] | None = None
    groups: np.ndarray | None = None
    epochs: tuple[np.ndarray, ...] | None = None
    epoch_names: tuple[tuple[str, ...], ...] | None = None
    similarities: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.names)

    def at(self, indices: np.ndarray) -> Pool:
        """The same members on some of the examples."""
        whole = self.merged
        merged = None if whole is None else lambda weights: whole(weights)[indices]
        epochs = self.epochs and tuple(logits[:, indices] for logits in self.epochs)
        return replace(
            self,
            logits=self.logits[:, indices],
            labels=self.labels[indices],
            merged=merged,
            groups=None if self.groups is None else self.groups[indices],
            epochs=epochs,
        )

    def of(self, members: Sequence[int] | np.ndarray) -> Pool:
        """Some of the members on the same examples."""
        chosen = np.asarray(members)
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            ranks=self.ranks[chosen],
            logits=self.logits[chosen],
            merged=None,
            epochs=self.epochs and tuple(self.epochs[index] for index in chosen),
            epoch_names=self.epoch_names and tuple(self.epoch_names[index] for index in chosen),
        )

    @property
    def kind(self) -> LabelKind:
        """The task's label kind."""
        return self.task.label_kind

    @cached_property
    def _outcomes(self) -> Outcome:
        """Outcome of all members' examples, one member after another."""
        return self.task.outcome(self.logits.reshape(-1, self.logits.shape[-1]))

    @cached_property
    def probabilities(self) -> np.ndarray | None:
        """Class probabilities `(M, N, K)`; None where there are no classes."""
        flat = self._outcomes.probabilities
        return None if flat is None else flat.reshape(*self.logits.shape[:2], -1)

    @cached_property
    def predictions(self) -> np.ndarray:
        """Class numbers or values `(M, N)`."""
        return self._outcomes.predictions.reshape(self.logits.shape[:2])

    @cached_property
    def errors(self) -> np.ndarray:
        """Errors of each member `(M, N)`: 0 or 1 for classes, differences for numbers."""
        return self.kind.errors(self.predictions, self.labels)

    @cached_property
    def averaged(self) -> np.ndarray:
        """What members contribute to a mean `(M, N, K)`: probabilities, or else predictions."""
        return self.kind.averaged(self.predictions, self.probabilities)

    @cached_property
    def log_likelihood(self) -> np.ndarray:
        """Log density of each label under each member `(M, N)`."""
        return self.kind.log_likelihood(self.predictions, self.probabilities, self.labels)

    @cached_property
    def scores(self) -> np.ndarray:
        """The task's metric of each member `(M,)`, its sign turned where lower is better; minus
        infinity if not defined.
        """
        outcomes = map(self.outcome, range(len(self)))
        scores = np.array([self.task.score(outcome, self.labels) for outcome in outcomes])
        return np.where(np.isnan(scores), -np.inf, scores)

    def outcome(self, member: int) -> Outcome:
        """Predictions of one member."""
        probabilities = None if self.probabilities is None else self.probabilities[member]
        return Outcome(self.predictions[member], probabilities)

    @cached_property
    def order(self) -> np.ndarray:
        """Members by score, the best first; equal ones by name."""
        by_name = np.argsort(np.argsort(self.names))
        return np.lexsort((by_name, -self.scores))

    @property
    def standings(self) -> np.ndarray:
        """Standing of each member in that order, 0 the best."""
        standings: np.ndarray = np.argsort(self.order)
        return standings
