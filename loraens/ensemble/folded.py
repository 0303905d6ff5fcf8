"""Configurations of a sweep with folds: K members each, read as one by their out-of-fold logits.

Shape letters: N examples, K folds, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from loraens.errors import InputError
from loraens.records import Epoch, Manifest
from loraens.store import Logits

StoredMember = tuple[Path, Manifest]
Unit = list[StoredMember]  # one member, or those of the folds of a configuration, by fold


def units_of(stored: Sequence[StoredMember]) -> list[Unit]:
    """Members one by one; those of the folds of one configuration of a run together."""
    units: dict[Path, Unit] = {}
    for path, manifest in stored:
        key = path if manifest.member.fold is None else _configuration(path, manifest)
        units.setdefault(key.resolve(), []).append((path, manifest))
    return [sorted(unit, key=lambda entry: entry[1].member.fold or 0) for unit in units.values()]


def _configuration(path: Path, manifest: Manifest) -> Path:
    return path.with_name(manifest.member.configuration)


def problem_of(unit: Unit, epoch: Epoch) -> str | None:
    """Why a member or a configuration cannot be in a pool, in a sentence; None if it can."""
    path, manifest = unit[0]
    folds = manifest.settings.folds
    if manifest.member.fold is None and folds is not None:
        return f"{path} is skipped: it was trained on all labelled texts, and has no scores"
    if manifest.member.fold is None or folds is None:
        skipped = f"{path} is skipped: it failed ({manifest.ended})"
        return None if epoch in manifest.epochs else skipped
    skipped = f"{_configuration(path, manifest)} is skipped: "
    for member, of_member in unit:
        if of_member.status == "failed" or epoch not in of_member.epochs:
            return f"{skipped}its member {member.name} failed ({of_member.ended})"
    missing = set(range(folds)) - {of_member.member.fold for _, of_member in unit}
    if missing:
        return f"{skipped}it has no member of fold {min(missing)} of {folds}"
    return None


def out_of_fold(units: Sequence[Unit], logits: Sequence[Logits]) -> list[Logits]:
    """The out-of-fold logits `(N, C)` of each configuration: of each example those of the one
    member that was not trained on it, in the order of the examples.

    Args:
        units: The configurations.
        logits: Of each member of each configuration, one after another.

    Raises:
        InputError: A member lacks examples of its part, or a configuration has not every example
            once.
    """
    folds = len(units[0])
    by_unit = [logits[start : start + folds] for start in range(0, len(logits), folds)]
    parts = [
        reduce(np.union1d, [_there(of_unit[fold].indices) for of_unit in by_unit])
        for fold in range(folds)
    ]
    wholes = []
    for unit, of_unit in zip(units, by_unit, strict=True):
        for (path, _), part, one in zip(unit, parts, of_unit, strict=True):
            if lacking := len(np.setdiff1d(part, _there(one.indices))):
                raise InputError(
                    f"{path} lacks out-of-fold logits of {lacking} of the {len(part)} examples of"
                    " its part: restore it or train its configuration again"
                )
        indices = np.concatenate([_there(one.indices) for one in of_unit])
        order = indices.argsort(kind="stable")
        if not np.array_equal(indices[order], np.arange(len(indices))):
            raise InputError(
                f"{_configuration(*unit[0])} has not every labelled example once in the"
                " out-of-fold logits of its members: restore it or train it again"
            )
        wholes.append(
            Logits(
                logits=np.concatenate([one.logits for one in of_unit])[order],
                example_id=np.concatenate([one.example_id for one in of_unit])[order],
                labels=np.concatenate([_there(one.labels) for one in of_unit])[order],
                groups=np.concatenate([_there(one.groups) for one in of_unit])[order],
            )
        )
    return wholes


def _there(array: np.ndarray | None) -> np.ndarray:
    """An array that out-of-fold logits always have."""
    assert array is not None
    return array
