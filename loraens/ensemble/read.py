"""Members of runs, read from the store into pools of members that may be compared.

Shape letters: M members, E epochs of a member, N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.combine import combine
from loraens.ensemble.folded import StoredMember, Unit, out_of_fold, problem_of, units_of
from loraens.ensemble.pool import Pool
from loraens.errors import InputError, say
from loraens.members import OUT_OF_FOLD
from loraens.metrics import Outcome
from loraens.records import ENDED, Epoch, Manifest
from loraens.store import (
    Logits,
    MemberStore,
    find_members,
    logits_file,
    missing_members,
)


@dataclass
class PoolMembers:
    """Members that an ensemble may choose from, and their files.

    Where a sweep has folds, what may be chosen are M configurations, and each is K members, one a
    fold. Their out-of-fold logits together are the configuration's on `dev`. On test all K predict
    each example: so there the pool has M K members, and each has a K-th of its configuration's
    weight. Without folds K is 1.

    Args:
        dev: Their logits on dev; of configurations out of fold, every labelled example once. Those
            of all epochs too, where these are stored and the best epoch was asked for.
        test: Their logits on test; None where there is none, labels NaN where there are none.
        test_ids: `(N,)` ids of test.
        directories: Directory of each member; of a configuration that of its first.
        manifests: Manifest of each member; of a configuration that of its first.
        epoch: The epoch of each member that was read.
        units: For each of the M, its members' directories and manifests.
        apart: Logits on a dev set that was kept apart from the folds, as `test`; None where there
            is none.
        chosen_from: Of refit configurations, how many they were chosen from.
    """

    dev: Pool
    test: Pool | None
    test_ids: np.ndarray
    directories: list[Path]
    manifests: list[Manifest]
    epoch: Epoch
    units: list[Unit]
    apart: Pool | None = None
    chosen_from: int | None = None

    @property
    def labelled_test(self) -> Pool | None:
        """Test, where it has labels."""
        return self.test if self.test is not None and self.test.labelled else None

    @property
    def folds(self) -> int:
        """K; 1 of refit configurations."""
        return len(self.units[0])

    def refitted(self, chosen: Sequence[int], directories: Sequence[Path]) -> PoolMembers:
        """The chosen configurations, each as the one member that was trained on all labelled texts:
        out of fold they have the logits of their folds.

        Args:
            chosen: Their indices.
            directories: Of their members.
        """
        stored = [(path, MemberStore(path).manifest()) for path in directories]
        name = self.dev.task.name
        test = _evaluated(name, "test", stored, self.epoch)
        apart = _evaluated(name, "dev", stored, self.epoch)
        return replace(
            self,
            dev=self.dev.of(chosen),
            test=test and test[0],
            directories=list(directories),
            manifests=[manifest for _, manifest in stored],
            units=[[member] for member in stored],
            apart=apart and apart[0],
            chosen_from=len(self.dev),
        )

    def combined(self, pool: Pool, weights: np.ndarray, rule: str) -> Outcome:
        """Predictions for a split whose examples no member was chosen on: `test` or `apart`.

        Args:
            pool: The split's pool.
            weights: `(M,)`.
            rule: Combination rule.
        """
        each = np.repeat(weights / self.folds, self.folds)
        return combine(pool, each, rule, np.repeat(self.dev.standings, self.folds))


def read_runs(
    runs: Sequence[Path],
    tasks: Sequence[str] | None = None,
    epoch: Epoch = "best",
    report: Callable[[str], None] = say,
    mode: str | None = None,
    backbone: str | None = None,
    unfinished: bool = False,
) -> dict[str, PoolMembers]:
    """Read all members at or below some directories, by task; failed and unfinished members, and
    configurations of which a fold failed, is unfinished or missing, are skipped and reported, as
    are members of a sweep that are not there.

    Args:
        runs: Directories of runs, sweeps or members.
        tasks: Names of tasks; all that the members have by default.
        epoch: Epoch of each member.
        report: Called with a sentence for each member that is skipped, and where best epochs were
            asked for and the logits of all epochs are not stored.
        mode: Read members of this mode alone; of any by default.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.
        unfinished: Whether to read members whose training goes on, or was interrupted, too.

    Raises:
        InputError: There is no member, a file is missing or altered, or members differ in what must
            be the same.
    """
    by_task: dict[str, list[Unit]] = {}
    stored = [
        (path, (store := MemberStore(path)).located(store.manifest(), backbone))
        for path in _directories(runs, report)
    ]
    stored = _in_state(stored, unfinished, report)
    for unit in units_of(stored):
        settings = unit[0][1].settings
        if (problem := problem_of(unit, epoch)) is not None:
            report(problem)
        elif mode is None or settings.mode == mode:
            for task in settings.tasks:
                by_task.setdefault(task.name, []).append(unit)
    if tasks and (unknown := set(tasks) - set(by_task)):
        raise InputError(
            f"task {sorted(unknown)[0]}: the members have"
            f" {', '.join(by_task) or 'none, all failed'}",
            option="task",
        )
    if not by_task:
        kind = f"{mode} member" if mode else "member"
        raise InputError(
            f"runs {', '.join(map(str, runs))} has no {kind} that did not fail", option="runs"
        )
    wanted = tasks or by_task
    return {name: _read(name, by_task[name], epoch, report) for name in by_task if name in wanted}


def _in_state(
    stored: Sequence[StoredMember], unfinished: bool, report: Callable[[str], None]
) -> list[StoredMember]:
    """The members that have ended, or all; those that have not are counted.

    Raises:
        InputError: None has ended.
    """
    ended = [entry for entry in stored if entry[1].status in ENDED]
    count = f"{len(stored) - len(ended)} of {len(stored)} members are unfinished"
    if len(ended) == len(stored) or unfinished:
        if len(ended) < len(stored):
            report(f"{count}: their epochs so far are used")
        return list(stored)
    if not ended:
        raise InputError(f"{count}: wait until they end, resume their training, or --unfinished")
    report(f"{count}, and left out: --unfinished uses their epochs so far")
    return ended


def _directories(runs: Sequence[Path], report: Callable[[str], None]) -> list[Path]:
    """Directories of all members of some runs; those that a sweep should have, too, are reported.

    Raises:
        InputError: A run has none, or one is named twice.
    """
    directories: list[Path] = []
    for run in runs:
        members = find_members(Path(run))
        if not members:
            raise InputError(
                f"runs {run} has no member of a run: give a directory of `loraens sweep` or"
                " `loraens fit`",
                option="runs",
            )
        directories.extend(members)
        if (sentence := missing_members(Path(run))) is not None:
            report(sentence)
    if len({path.resolve() for path in directories}) < len(directories):
        raise InputError("runs names a member twice: give each run once", option="runs")
    return directories


def _read(
    name: str, units: Sequence[Unit], epoch: Epoch, report: Callable[[str], None]
) -> PoolMembers:
    members = [entry for unit in units for entry in unit]
    _check_comparable(members, name)
    first = [unit[0] for unit in units]
    folds = first[0][1].settings.folds

    scored = "dev" if folds is None else OUT_OF_FOLD
    logits = [MemberStore(p).logits_of(m, m.epochs[epoch], name, scored) for p, m in members]
    named = members
    if scored == OUT_OF_FOLD:
        logits = out_of_fold(units, logits)
        named = [(path.with_name(m.member.configuration), m) for path, m in first]
    chosen_on = _pool(name, scored, named, logits)
    ids = logits[0].example_id
    test = _evaluated(name, "test", members, epoch)
    apart = None if folds is None else _evaluated(name, "dev", members, epoch)
    if epoch == "best":
        chosen_on = _with_epochs(chosen_on, ids, units, scored, report)
    manifests = [manifest for _, manifest in first]
    chosen_on = replace(
        chosen_on,
        trained=_where_known([manifest.trained_epochs for manifest in manifests]),
        planned=_where_known([manifest.planned_epochs for manifest in manifests]),
    )
    return PoolMembers(
        dev=chosen_on,
        test=test and test[0],
        test_ids=test[1] if test else ids,
        directories=[path for path, _ in first],
        manifests=manifests,
        epoch=epoch,
        units=list(units),
        apart=apart and apart[0],
    )


def _where_known(numbers: Sequence[int | None]) -> np.ndarray | None:
    """The numbers as an array; None where one is not known."""
    return None if None in numbers else np.array(numbers)


def _evaluated(
    task: str, split: str, members: Sequence[StoredMember], epoch: Epoch
) -> tuple[Pool, np.ndarray] | None:
    """The pool of a split and the ids `(N,)` of its examples; None where logits are not stored."""
    files = [path / logits_file(m, m.epochs[epoch], task, split) for path, m in members]
    if not all(file.is_file() for file in files):
        return None
    logits = [MemberStore(p).logits_of(m, m.epochs[epoch], task, split) for p, m in members]
    return _pool(task, split, members, logits), logits[0].example_id


def _pool(task: str, split: str, members: Sequence[StoredMember], logits: Sequence[Logits]) -> Pool:
    """The pool of members or configurations on one split.

    Raises:
        InputError: They have logits of different examples.
    """
    directories = [path for path, _ in members]
    ids = logits[0].example_id
    for path, other in zip(directories, logits, strict=True):
        _check_examples(path, other, ids, split, f"than {directories[0]}")
    of_settings = members[0][1].settings.task(task)
    assert of_settings is not None
    return Pool(
        task=of_settings,
        names=_names(directories),
        ranks=np.array([manifest.member.rank for _, manifest in members]),
        logits=np.stack([one.logits for one in logits]),
        labels=np.full(len(ids), np.nan) if logits[0].labels is None else logits[0].labels,
        groups=logits[0].groups,
    )


def _check_examples(path: Path, logits: Logits, ids: np.ndarray, split: str, other: str) -> None:
    """Refuse a member that has logits of other examples."""
    if not np.array_equal(logits.example_id, ids):
        raise InputError(
            f"{path} has logits of other {split} examples {other}: was it validated on a part of"
            " them?"
        )


def _with_epochs(
    dev: Pool,
    ids: np.ndarray,
    units: Sequence[Unit],
    split: str,
    report: Callable[[str], None],
) -> Pool:
    """The pool with the logits of all epochs where every member has them; otherwise as it is, which
    is reported.

    Args:
        dev: The pool.
        ids: `(N,)` ids of its examples.
        units: Its members or configurations.
        split: The split that their epochs were chosen on.
        report: Called with a sentence.

    Raises:
        InputError: An epoch has logits of other examples.
    """
    task = dev.task.name
    names = [tuple(dict.fromkeys(name for _, m in unit for name in _epochs(m))) for unit in units]
    lacking = 0
    for unit, of_unit in zip(units, names, strict=True):
        for _, manifest in unit:
            files = {logits_file(manifest, name, task, split) for name in of_unit}
            lacking += not files or not files <= manifest.files.keys()
    if lacking:
        report(
            f"task {task}: {lacking} of {sum(map(len, units))} members lack logits of some of their"
            " epochs (older versions did not keep them): so the epoch of each member is the one"
            " that was chosen on all examples"
        )
        return dev
    epochs = []
    for unit, of_unit in zip(units, names, strict=True):
        logits = [_of_epoch(unit, name, task, split) for name in of_unit]
        for one in logits:
            _check_examples(unit[0][0], one, ids, split, "after some epochs than the pool")
        epochs.append(np.stack([one.logits for one in logits]))
    return replace(dev, epochs=tuple(epochs), epoch_names=tuple(names))


def _epochs(manifest: Manifest) -> list[str]:
    """Names of a member's epochs; the only one of a member that was imported."""
    if manifest.imported is not None:
        return [manifest.epochs["best"]]
    return [entry.name for entry in manifest.history]


def _of_epoch(unit: Unit, epoch: str, task: str, split: str) -> Logits:
    """Logits of a member, or of a configuration out of fold, after an epoch."""
    logits = [MemberStore(path).logits_of(m, epoch, task, split) for path, m in unit]
    return out_of_fold([unit], logits)[0] if split == OUT_OF_FOLD else logits[0]


def _names(directories: Sequence[Path]) -> tuple[str, ...]:
    """Names of members; with their run's where two runs have a member of one name."""
    short = [path.name for path in directories]
    return tuple(
        name if short.count(name) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(directories, short, strict=True)
    )


def _check_comparable(members: Sequence[StoredMember], task: str) -> None:
    """Refuse members of other data, labels or backbones than the first one's."""
    first, *others = members
    expected = _facts(first[1], task)
    for path, manifest in others:
        for name, value in _facts(manifest, task).items():
            if value != expected[name]:
                raise InputError(
                    f"{path} and {first[0]} differ in their {name}: members of one ensemble must"
                    " share it"
                )


def _facts(manifest: Manifest, task: str) -> dict[str, Any]:
    settings = manifest.settings
    return {
        "task": settings.task(task),
        "backbone": settings.backbone_fingerprint,
        "number of folds": settings.folds,
        "parts": settings.data.get(f"{task}-{OUT_OF_FOLD}"),
        "dev data": settings.data.get(f"{task}-dev"),
        "training data": settings.data.get(f"{task}-train"),
        "test data": settings.data.get(f"{task}-test"),
    }
