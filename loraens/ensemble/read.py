"""Members of runs, read from the store into pools that may be compared.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.pool import Pool
from loraens.errors import InputError
from loraens.store import MemberStore, find_members, read_logits
from loraens.tasks import Task


@dataclass
class Candidates:
    """Members that an ensemble may choose from.

    Args:
        dev: What they say of dev.
        test: What they say of test; None where there is none, labels NaN where there are none.
        test_ids: `(N,)` ids of test.
        directories: Directory of each member.
        manifests: Manifest of each member.
    """

    dev: Pool
    test: Pool | None
    test_ids: np.ndarray
    directories: list[Path]
    manifests: list[dict[str, Any]]


def read_runs(
    runs: Sequence[Path],
    tasks: Sequence[str] | None = None,
    which: str = "best",
    say: Callable[[str], None] = print,
    mode: str | None = None,
) -> dict[str, Candidates]:
    """Read all members at or below some directories, by task; those that failed are left out,
    aloud.

    Args:
        runs: Directories of runs, sweeps or members.
        tasks: Names of tasks; all that the members have by default.
        which: "best" or "last" epoch.
        say: Is told what was left out.
        mode: Read members of this mode alone; of any by default.

    Raises:
        InputError: There is no member, a file is missing or altered, or members differ in what must
            be the same.
    """
    directories: list[Path] = []
    for run in runs:
        if not (found := find_members(Path(run))):
            raise InputError(
                f"--runs {run} holds no member of a run: give a directory of `loraens sweep` or"
                " `loraens fit`"
            )
        directories.extend(found)
    if len({path.resolve() for path in directories}) < len(directories):
        raise InputError("--runs names a member twice: give each run once")
    by_task: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in directories:
        manifest = MemberStore(path).manifest()
        if which not in manifest["epochs"]:
            say(f"{path} is left out: it failed ({manifest['ended']})")
            continue
        if mode and manifest["settings"]["mode"] != mode:
            continue
        for fields in manifest["settings"]["tasks"]:
            by_task.setdefault(fields["name"], []).append((path, manifest))
    if tasks and (unknown := set(tasks) - set(by_task)):
        raise InputError(
            f"--task {sorted(unknown)[0]}: the members have"
            f" {', '.join(by_task) or 'none, all failed'}"
        )
    if not by_task:
        kind = f"{mode} member" if mode else "member"
        raise InputError(f"--runs {', '.join(map(str, runs))} holds no {kind} that did not fail")
    return {
        name: _read(name, members, which)
        for name, members in by_task.items()
        if not tasks or name in tasks
    }


def _read(task: str, members: Sequence[tuple[Path, dict[str, Any]]], which: str) -> Candidates:
    directories = [path for path, _ in members]
    manifests = [manifest for _, manifest in members]
    _check(directories, manifests, task)
    fields = next(fields for fields in manifests[0]["settings"]["tasks"] if fields["name"] == task)
    ranks = np.array([manifest["member"]["rank"] for manifest in manifests])
    pools = {}
    ids = np.array([])
    for split in ("dev", "test"):
        files = [
            path / manifest["epochs"][which] / f"{task}-{split}.npz" for path, manifest in members
        ]
        if split == "test" and not all(file.is_file() for file in files):
            continue
        logits = [read_logits(file) for file in files]
        ids = logits[0].example_id
        for path, other in zip(directories, logits, strict=True):
            if not np.array_equal(other.example_id, ids):
                raise InputError(
                    f"{path} has logits of other {split} examples than {directories[0]}: was it"
                    " validated on a part of them?"
                )
        labels = np.full(len(ids), np.nan) if logits[0].labels is None else logits[0].labels
        stacked = np.stack([one.logits for one in logits])
        pools[split] = Pool(Task.from_dict(fields), _names(directories), ranks, stacked, labels)
    return Candidates(pools["dev"], pools.get("test"), ids, directories, manifests)


def _names(directories: Sequence[Path]) -> tuple[str, ...]:
    """Names of members; with their run's where two runs have a member of one name."""
    short = [path.name for path in directories]
    return tuple(
        name if short.count(name) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(directories, short, strict=True)
    )


def _check(directories: Sequence[Path], manifests: Sequence[dict[str, Any]], task: str) -> None:
    """Refuse members of other data, labels or backbones than the first one's."""

    def facts(manifest: dict[str, Any]) -> dict[str, Any]:
        settings = manifest["settings"]
        fields = next((fields for fields in settings["tasks"] if fields["name"] == task), None)
        return {
            "task": fields,
            "backbone": settings["backbone_fingerprint"],
            "dev data": settings["data"].get(f"{task}-dev"),
            "training data": settings["data"].get(f"{task}-train"),
            "test data": settings["data"].get(f"{task}-test"),
        }

    first = facts(manifests[0])
    for path, manifest in zip(directories[1:], manifests[1:], strict=True):
        for what, value in facts(manifest).items():
            if value != first[what]:
                raise InputError(
                    f"{path} and {directories[0]} differ in their {what}: members of one ensemble"
                    " must share it"
                )
