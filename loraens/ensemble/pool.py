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

HANDED_ON = ("probabilities", "predictions")  # of each member and example alone


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
        """The same members on some of the examples."""
        whole = self.merged
        merged = None if whole is None else lambda weights: whole(weights)[indices]
        epochs = self.epochs and tuple(logits.take(indices, axis=1) for logits in self.epochs)
        part = replace(
            self,
            logits=self.logits.take(indices, axis=1),
            labels=self.labels[indices],
            merged=merged,
            epochs=epochs,
            groups=None if self.groups is None else self.groups[indices],
        )
        self._hand_on(part, indices, axis=1)
        return part

    def _hand_on(self, part: Pool, indices: np.ndarray, axis: int) -> None:
        """Give a part what was computed already."""
        for name in HANDED_ON:
            whole = self.__dict__.get(name)
            if whole is not None:
                part.__dict__[name] = whole.take(indices, axis=axis)

    def of(self, members: Sequence[int] | np.ndarray) -> Pool:
        """Some of the members on the same examples."""
        chosen = np.asarray(members)
        part = replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            ranks=self.ranks[chosen],
            logits=self.logits[chosen],
            merged=None,
            epochs=self.epochs and tuple(self.epochs[index] for index in chosen),
            epoch_names=self.epoch_names and tuple(self.epoch_names[index] for index in chosen),
            trained=None if self.trained is None else self.trained[chosen],
            planned=None if self.planned is None else self.planned[chosen],
        )
        self._hand_on(part, chosen, axis=0)
        return part

    @cached_property
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
        for name in HANDED_ON:
            getattr(whole, name)  # once for both parts, and for the parts of these
        return whole.at(chosen_on), whole.at(scored_on)

    def _at_best_epochs(self, chosen_on: np.ndarray) -> Pool:
        """Each member after the epoch that is its best on some of the examples."""
        assert self.epochs is not None
        labels = self.labels[chosen_on]
        logits = []
        for of_member, outcomes in zip(self.epochs, self._epoch_outcomes, strict=True):
            scores = [self.task.score(outcome.at(chosen_on), labels) for outcome in outcomes]
            best = int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))
            logits.append(of_member[best])
        return replace(self, logits=np.stack(logits), epochs=None, epoch_names=None)

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
        """Class numbers or values `(M, N)`, or zeros and ones `(M, N, K)`."""
        flat = self._outcomes.predictions
        return flat.reshape(*self.logits.shape[:2], *flat.shape[1:])

    @cached_property
    def errors(self) -> np.ndarray:
        """Errors of each member `(M, N)`: 0 or 1 for classes, differences for numbers; of several
        labels those of all decisions, `(M, N K)`.
        """
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
