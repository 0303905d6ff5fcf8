"""A trained member or an ensemble on labelled examples.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.data.splits import Split, read_split
from loraens.data.tables import Reading
from loraens.ensemble import evaluation
from loraens.ensemble.evaluation import Evaluation
from loraens.ensemble.pool import Pool
from loraens.errors import InputError
from loraens.inference.combination import Combination
from loraens.inference.predict_file import CHUNK
from loraens.inference.predictor import Predictor
from loraens.metrics import Outcome
from loraens.tasks import Task


def evaluate(
    model: str | Path | Predictor,
    data: Any,
    task: str | None = None,
    reading: Reading | None = None,
) -> Evaluation:
    """Score a member, a soup or an ensemble on labelled examples, with 95 % intervals.

    Records without a text or without a label are left out and counted.

    Args:
        model: A directory or file, as `Ensemble.load` takes, or what it gave.
        data: A file, a DataFrame, or what else `TextFiles` takes, with the task's text columns and
            label column.
        task: Name of the task, where there are several.
        reading: How files are read.

    Raises:
        InputError: The model or the data cannot be used, or there are no labels.
    """
    if isinstance(model, (str, Path)):
        model = Predictor.load(model)
    chosen = model.task(task)
    split = read_split(data, "test", chosen, reading=reading)
    if split.labels is None:
        raise InputError(
            f"{split.origin} has no labels in column {chosen.label_column!r}, which scores need:"
            " give a labelled file, or use `loraens predict`"
        )
    return replace(
        of_labels(model, chosen, all_logits(model, chosen, split.texts, "evaluate"), split.labels),
        origin=split.origin,
        dropped=dict(split.dropped),
        seen=_seen(model, chosen, split),
    )


def all_logits(
    model: Predictor, task: Task, texts: Sequence[tuple[str, ...]], purpose: str
) -> np.ndarray:
    """Logits `(M, N, C)`, computed in chunks, with a bar in terminals that names the purpose."""
    from tqdm import tqdm

    parts = []
    with tqdm(total=len(texts), desc=purpose, unit=" rows", disable=None, leave=False) as bar:
        for start in range(0, len(texts), CHUNK):
            parts.append(model.logits(texts[start : start + CHUNK], task))
            bar.update(parts[-1].shape[1])
    return np.concatenate(parts, axis=1)


def of_labels(model: Predictor, task: Task, logits: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Score the logits `(M, N, C)` of a model's members against labels `(N,)`."""
    combination = model.combined(task)
    pool = model.pool(logits, task)
    shown = combination.outcome(pool)
    voted = combination.temperature is None  # shares of votes are no probabilities
    conformal = None
    reason = "the members were not loaded from a run"
    try:
        conformal = model.conformal and model.conformal(task)
    except InputError as error:  # not in the record, or of a member without examples beside it
        reason = str(error)
    members = _members(combination, pool) if model.combination is not None else {}
    scored = evaluation.evaluate(
        task,
        Outcome(shown.predictions) if voted else shown,
        labels,
        members=members,
        standings=_first(combination.standings, combination.folds),
        spread=combination.spread(pool),
        conformal=conformal,
        regions_of=shown,
    )
    return scored if conformal else replace(scored, no_coverage=reason)


def _members(combination: Combination, pool: Pool) -> dict[str, Outcome]:
    """The outcome of each member alone; with folds of each configuration, the mean logit of its
    folds' members.
    """
    folds = combination.folds
    names = _first(combination.names, folds)
    if folds > 1:
        names = [name.rpartition("-f")[0] for name in names]
    means = pool.logits.reshape(len(names), folds, *pool.logits.shape[1:]).mean(axis=1)
    return {name: pool.task.outcome(logits) for name, logits in zip(names, means, strict=True)}


def _first(of_members: Sequence[Any] | np.ndarray, folds: int) -> list[Any]:
    """What belongs to the first member of each configuration."""
    return list(of_members[::folds])


def _seen(model: Predictor, task: Task, split: Split) -> str | None:
    """The split of the training that has exactly these examples."""
    from loraens.data.tokens import Tokens, TokenSplit  # imports torch, which takes seconds

    nothing = np.zeros(0, np.int64)
    fingerprint = TokenSplit(task, split, Tokens(nothing, nothing, nothing, 0)).fingerprint
    for name in ("train", "dev"):
        if model.data.get(f"{task.name}-{name}") == fingerprint:
            return name
    return None
