"""Parts of the labelled examples for cross-validation.

Equal texts, and examples of one group, are in one part: otherwise a member would be scored on texts
that it has seen.

Shape letters: N examples, K parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from loraens.data.splits import Split
from loraens.errors import InputError
from loraens.seeding import derive_seed
from loraens.tasks import Task

BINS = 10  # quantile bins of labels that are numbers
Key = TypeVar("Key")


@dataclass(frozen=True)
class Folds:
    """Parts of the labelled examples; fold k trains on all but part k.

    Args:
        count: K.
        parts: `(N,)` part of each example.
        groups: `(N,)` number of each example's group, from 0 in the order of the examples.
    """

    count: int
    parts: np.ndarray
    groups: np.ndarray

    @cached_property
    def inside(self) -> list[np.ndarray]:
        """Examples of each part, in order."""
        return [np.flatnonzero(self.parts == fold) for fold in range(self.count)]

    @cached_property
    def outside(self) -> list[np.ndarray]:
        """Examples that each fold trains on, in order."""
        return [np.flatnonzero(self.parts != fold) for fold in range(self.count)]

    @property
    def trained(self) -> int:
        """Examples of an epoch of every fold: those outside the largest part."""
        return min(map(len, self.outside))

    def report(self) -> str:
        """One line: the parts and how many groups they are made of."""
        sizes = [len(part) for part in self.inside]
        return (
            f"{self.count} folds: parts of {min(sizes)} to {max(sizes)} of {len(self.parts)}"
            f" records, in {self.groups.max() + 1} groups of equal texts"
        )


def pooled(train: Split, dev: Split) -> Split:
    """Train and dev as one split.

    An id may be in both, so each gets its split's name before it: `train/7`, `dev/7`.
    """
    both = (train, dev)
    assert train.labels is not None
    assert dev.labels is not None
    groups = None
    if train.groups is not None and dev.groups is not None:
        groups = [*train.groups, *dev.groups]
    weights = None
    if train.weights is not None and dev.weights is not None:
        weights = np.concatenate([train.weights, dev.weights])
    return replace(
        train,
        ids=[f"{split.name}/{identity}" for split in both for identity in split.ids],
        texts=[*train.texts, *dev.texts],
        labels=np.concatenate([train.labels, dev.labels]),
        origin=f"{train.origin} and {dev.origin}",
        dropped={
            **train.dropped,
            **{f"{dev.name}: {reason}": lines for reason, lines in dev.dropped.items()},
        },
        groups=groups,
        weights=weights,
    )


def text_key(texts: tuple[str, ...]) -> tuple[str, ...]:
    """What equal texts have in common: their words in lower case, a pair in either order.

    Examples:
        >>> text_key(("A  dog", "a cat")) == text_key(("a cat ", "a dog"))
        True
    """
    return tuple(sorted(" ".join(text.casefold().split()) for text in texts))


def group_numbers(split: Split) -> np.ndarray:
    """`(N,)` the group of each example, numbered from 0 in the order of the examples.

    Two examples are in one group if their texts are equal, their group is, or a chain of such
    examples connects them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(split)
    texts = _numbered([text_key(texts) for texts in split.texts])
    rows = [np.arange(size)]
    columns = [texts]
    if split.groups is not None:
        named = np.flatnonzero([bool(group) for group in split.groups])
        rows.append(named)
        columns.append(texts.max() + 1 + _numbered([split.groups[index] for index in named]))
    edges = np.concatenate(rows), size + np.concatenate(columns)
    nodes = int(edges[1].max()) + 1
    graph = coo_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    return _numbered(connected_components(graph, directed=False)[1][:size].tolist())


def _numbered(keys: Sequence[Key]) -> np.ndarray:
    """The number of each key, from 0 in the order in which they occur."""
    numbers: dict[Key, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def strata(task: Task, labels: np.ndarray, count: int) -> np.ndarray:
    """`(N,)` what the K parts have in like shares: the class, or the tenth of all labels that a
    number is in; larger shares where a tenth is less than K examples.

    Numbers are stratified too since the score is one of all parts together: parts of other mean
    labels would add the members' different offsets to it.
    """
    of_kind = task.label_kind.strata(labels)
    if of_kind is not None:
        return of_kind
    bins = max(1, min(BINS, len(labels) // count))
    inner = np.quantile(labels, np.arange(1, bins) / bins)
    return np.searchsorted(inner, labels, side="right")


def cut(task: Task, split: Split, count: int) -> Folds:
    """Cut a split into K parts, stratified and by groups, with scikit-learn's splitter.

    The parts depend on the split and K alone.

    Args:
        task: The task.
        split: A labelled split.
        count: K.

    Raises:
        InputError: There are not enough examples or groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    assert split.labels is not None
    groups = group_numbers(split)
    classes = strata(task, split.labels, count)
    distinct = int(groups.max()) + 1
    largest = np.unique(classes, return_counts=True)[1].max()
    if distinct < count or largest < count:
        raise InputError(
            f"folds {count} is too many for task {task.name}: {split.origin} has {len(split)}"
            f" records in {distinct} groups of equal texts, at most {largest} of a class: lower it",
            option="grid.folds",
        )
    seed = derive_seed(0, "parts", count) % 2**32
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    parts = np.empty(len(split), np.int64)
    with warnings.catch_warnings():  # a class of fewer than K examples is missing from some parts
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, inside) in enumerate(splitter.split(classes, classes, groups)):
            parts[inside] = fold
    if len(np.unique(parts)) < count:
        raise InputError(
            f"folds {count} leaves a part of task {task.name} empty, as groups of equal texts are"
            f" too large ({np.bincount(groups).max()} of {len(split)} records): lower it",
            option="grid.folds",
        )
    return Folds(count, parts, groups)
