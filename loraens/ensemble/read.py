"""Members of runs, read from the store into pools of members that may be compared.

Shape letters: M members, E epochs of a member, N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.pool import Pool
from loraens.errors import InputError
from loraens.records import Epoch, Manifest
from loraens.store import Logits, MemberStore, find_members, logits_file

StoredMember = tuple[Path, Manifest]


@dataclass
class PoolMembers:
    """Members that an ensemble may choose from, and their files.

    Args:
        dev: Their logits on dev; those of all epochs too, where these are stored and the best epoch
            was asked for.
        test: Their logits on test; None where there is none, labels NaN where there are none.
        test_ids: `(N,)` ids of test.
        directories: Directory of each member.
        manifests: Manifest of each member.
        epoch: The epoch of each member that was read.
    """

    dev: Pool
    test: Pool | None
    test_ids: np.ndarray
    directories: list[Path]
    manifests: list[Manifest]
    epoch: Epoch

    @property
    def labelled_test(self) -> Pool | None:
        """Test, where it has labels."""
        return None if self.test is None or np.isnan(self.test.labels[0]) else self.test


def read_runs(
    runs: Sequence[Path],
    tasks: Sequence[str] | None = None,
    epoch: Epoch = "best",
    report: Callable[[str], None] = print,
    mode: str | None = None,
) -> dict[str, PoolMembers]:
    """Read all members at or below some directories, by task; failed members are skipped and
    reported.

    Args:
        runs: Directories of runs, sweeps or members.
        tasks: Names of tasks; all that the members have by default.
        epoch: Epoch of each member.
        report: Called with a sentence for each member that is skipped, and where best epochs were
            asked for and the logits of all epochs are not stored.
        mode: Read members of this mode alone; of any by default.

    Raises:
        InputError: There is no member, a file is missing or altered, or members differ in what must
            be the same.
    """
    by_task: dict[str, list[StoredMember]] = {}
    for path in _directories(runs):
        manifest = MemberStore(path).manifest()
        if epoch not in manifest.epochs:
            report(f"{path} is skipped: it failed ({manifest.ended})")
        elif mode is None or manifest.settings.mode == mode:
            for task in manifest.settings.tasks:
                by_task.setdefault(task.name, []).append((path, manifest))
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


def _directories(runs: Sequence[Path]) -> list[Path]:
    """Directories of all members of some runs."""
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
    if len({path.resolve() for path in directories}) < len(directories):
        raise InputError("runs names a member twice: give each run once", option="runs")
    return directories


def _read(
    name: str, members: Sequence[StoredMember], epoch: Epoch, report: Callable[[str], None]
) -> PoolMembers:
    directories = [path for path, _ in members]
    manifests = [manifest for _, manifest in members]
    _check_comparable(members, name)
    task = manifests[0].settings.task(name)
    assert task is not None
    ranks = np.array([manifest.member.rank for manifest in manifests])
    epochs = [(manifest.epochs[epoch],) for manifest in manifests]
    pools = {}
    ids = np.array([])
    for split in ("dev", "test"):
        if split == "test" and not all(
            (path / logits_file(manifest, manifest.epochs[epoch], name, split)).is_file()
            for path, manifest in members
        ):
            continue
        logits, examples = _logits(members, epochs, name, split)
        ids = examples.example_id
        labels = np.full(len(ids), np.nan) if examples.labels is None else examples.labels
        pools[split] = Pool(
            task=task,
            names=_names(directories),
            ranks=ranks,
            logits=np.concatenate(logits),
            labels=labels,
        )
    if epoch == "best":
        pools["dev"] = _with_epochs(pools["dev"], members, report)
    return PoolMembers(
        dev=pools["dev"],
        test=pools.get("test"),
        test_ids=ids,
        directories=directories,
        manifests=manifests,
        epoch=epoch,
    )


def _logits(
    members: Sequence[StoredMember], epochs: Sequence[Sequence[str]], task: str, split: str
) -> tuple[list[np.ndarray], Logits]:
    """Logits `(E, N, C)` of some epochs of each member, and those of the first one with their
    examples.

    Args:
        members: M members.
        epochs: Names of E epochs of each.
        task: Name of the task.
        split: Name of the split.

    Raises:
        InputError: They are not all of the same examples.
    """
    stacked = []
    first: Logits | None = None
    for (path, manifest), names in zip(members, epochs, strict=True):
        of_member = [MemberStore(path).logits_of(manifest, e, task, split) for e in names]
        first = first or of_member[0]
        for logits in of_member:
            if not np.array_equal(logits.example_id, first.example_id):
                raise InputError(
                    f"{path} has logits of other {split} examples than {members[0][0]}: was it"
                    " validated on a part of them?"
                )
        stacked.append(np.stack([logits.logits for logits in of_member]))
    assert first is not None
    return stacked, first


def _with_epochs(dev: Pool, members: Sequence[StoredMember], report: Callable[[str], None]) -> Pool:
    """The pool with the logits of all epochs where every member has them; otherwise as it is, which
    is reported.
    """
    task = dev.task.name
    epochs = [tuple(entry.name for entry in manifest.history) for _, manifest in members]
    lacking = 0
    for (_, manifest), names in zip(members, epochs, strict=True):
        files = {logits_file(manifest, name, task, "dev") for name in names}
        lacking += not files or not files <= manifest.files.keys()
    if lacking:
        report(
            f"task {task}: {lacking} of {len(members)} members lack logits of some of their epochs,"
            " which older versions did not keep: so the epoch of each member is the one that was"
            " chosen on all of dev"
        )
        return dev
    logits, _ = _logits(members, epochs, task, "dev")
    return replace(dev, epochs=tuple(logits), epoch_names=tuple(epochs))


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
        "dev data": settings.data.get(f"{task}-dev"),
        "training data": settings.data.get(f"{task}-train"),
        "test data": settings.data.get(f"{task}-test"),
    }
