"""What a report is about: one task's members, baselines and ensembles, read from the store.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loraens.ensemble.cross_validation import HeldOut, cross_validate
from loraens.ensemble.methods import CONTROLS, METHODS
from loraens.ensemble.read import PoolMembers, read_runs
from loraens.ensemble.recommend import RECOMMENDED, Recommendation, read_recommended
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.table import missing_ensembles
from loraens.errors import InputError, say
from loraens.files import checksum
from loraens.members import Member
from loraens.records import Epoch
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, find_members
from loraens.tasks import Task

MODES = {"frozen": "frozen backbone, heads alone", "full": "all weights trained"}


@dataclass
class Content:
    """One task.

    Args:
        task: The task.
        members: Its LoRA members.
        baselines: Scores of the modes `frozen` and `full`: mode -> the task's metric on dev, of the
            best such member.
        ensembles: Its ensembles.
        backbone: Name of the backbone.
        recommended: What `loraens ensemble` recommends, if it did.
    """

    task: Task
    members: PoolMembers
    baselines: dict[str, float]
    ensembles: list[EnsembleRecord]
    backbone: str
    recommended: Recommendation | None = None

    @property
    def metric(self) -> str:
        """The task's metric in prose."""
        return self.task.main_metric.title

    @property
    def settings(self) -> list[Member]:
        """Settings of each member."""
        return [manifest.member for manifest in self.members.manifests]

    @property
    def dev(self) -> np.ndarray:
        """The task's metric of each member on dev `(M,)`; NaN where it is not defined."""
        pool = self.members.dev
        metric = self.task.main_metric
        return np.array([metric(pool.outcome(m), pool.labels) for m in range(len(pool))])

    @property
    def test(self) -> float | None:
        """The best member's score on test, where labels are there."""
        pool = self.members.labelled_test
        if pool is None:
            return None
        best = np.zeros(len(self.members.dev))
        best[self.members.dev.order[0]] = 1
        outcome = self.members.combined(pool, best, "logits")
        return self.task.main_metric(outcome, pool.labels)

    def paper(self) -> list[EnsembleRecord]:
        """The ensembles combined by the paper's rule, and the soups."""
        rules = (self.task.label_kind.rules[0], "merged")
        return [record for record in self.ensembles if record.rule in rules]

    def several(self) -> list[EnsembleRecord]:
        """The ensembles of `paper` that are of several members, and no controls."""
        left_out = ("best", *CONTROLS)
        return [record for record in self.paper() if record.method not in left_out]

    def winner(self) -> EnsembleRecord | None:
        """The one of `several` with the best cross-validated score; None where there is none."""
        return max(self.several(), key=lambda r: self.task.utility(r.interval.value), default=None)

    def indices(self, record: EnsembleRecord) -> list[int]:
        """Indices of an ensemble's members, or their configurations, in the pool."""
        names = dict.fromkeys(member.name for member in record.members)
        return [self.members.dev.names.index(name) for name in names]

    def held_out(self, record: EnsembleRecord) -> HeldOut:
        """An ensemble's cross-validated outcomes on dev."""
        return cross_validate(self.members.dev, [record.candidate])[0]


def read(
    runs: Sequence[Path],
    tasks: Sequence[str] | None = None,
    epoch: Epoch | None = None,
    report: Callable[[str], None] = say,
    backbone: str | None = None,
    unfinished: bool = False,
) -> dict[str, Content]:
    """Everything of some runs, by task.

    Args:
        runs: Directories of runs, sweeps or members; ensembles are those in `RUN/ensembles`.
        tasks: Names of tasks; all by default.
        epoch: Epoch of each member; by default that of the ensembles, or the best.
        report: Called with a sentence for each thing that is skipped.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.
        unfinished: Whether to read members whose training has not ended, too.

    Raises:
        InputError: As `read_runs`; or an ensemble is older than its members.
    """
    folders: list[Path] = []
    for run in runs:
        if (sentence := missing_ensembles(Path(run) / "ensembles")) is not None:
            report(sentence)
        folders += (path.parent for path in Path(run).glob(f"ensembles/*/{ENSEMBLE}"))
    records = {folder: EnsembleRecord.read(folder) for folder in sorted(folders)}
    # their scores are those of the ensembles of folds, which are there too
    records = {folder: record for folder, record in records.items() if not record.refit}
    epochs = {record.epoch for record in records.values()}
    if epoch is None:
        epoch = epochs.pop() if len(epochs) == 1 else "best"
    contents = {}
    pools = read_runs(runs, tasks, epoch, report, "lora", backbone, unfinished)
    for name, members in pools.items():
        if not members.dev.labelled:
            raise InputError(f"task {name} has no labels on dev: there is nothing to report")
        of_task = {folder: r for folder, r in records.items() if r.task.name == name}
        task = members.dev.task
        contents[name] = Content(
            task=task,
            members=members,
            baselines=_baselines(runs, task, epoch),
            ensembles=_ensembles(of_task, members, report),
            backbone=Path(members.manifests[0].settings.backbone).name,
            recommended=_recommended(runs, of_task, epoch),
        )
    return contents


def _recommended(
    runs: Sequence[Path], records: Mapping[Path, EnsembleRecord], epoch: Epoch
) -> Recommendation | None:
    """The first recommendation of one task's ensembles of these epochs."""
    for run in runs:
        path = Path(run) / "ensembles" / RECOMMENDED
        for one in read_recommended(path).values() if path.is_file() else ():
            record = records.get(path.parent / one.ensemble)
            if record is not None and record.epoch == epoch:
                return one
    return None


def _ensembles(
    records: Mapping[Path, EnsembleRecord],
    members: PoolMembers,
    report: Callable[[str], None],
) -> list[EnsembleRecord]:
    """The ensembles of the members that were read, in the order in which they are shown."""
    indices = {
        path.resolve(): index for index, unit in enumerate(members.units) for path, _ in unit
    }
    shown = []
    for folder, record in records.items():
        if record.epoch != members.epoch:
            report(
                f"{folder} is skipped: it combines the members' {record.epoch} epochs, the report"
                f" is of the {members.epoch} ones"
            )
            continue
        renamed = _with_names(
            folder=folder,
            record=record,
            indices=indices,
            members=members,
            report=report,
        )
        if renamed is not None:
            shown.append(renamed)
    order = {method: number for number, method in enumerate(("best", "omni", "dicor"))}
    return sorted(
        shown,
        key=lambda r: (order.get(r.method, 3), METHODS[r.method].merges, r.method, r.rule),
    )


def _with_names(
    folder: Path,
    record: EnsembleRecord,
    indices: Mapping[Path, int],
    members: PoolMembers,
    report: Callable[[str], None],
) -> EnsembleRecord | None:
    """An ensemble whose members have the names that they have here; None where one is missing."""
    renamed = []
    for member in record.members:
        directory = (folder / member.directory).resolve()
        if directory not in indices:
            report(f"{folder} is skipped: its member {directory} is not among the runs")
            return None
        if checksum(directory / MANIFEST) != member.manifest_sha256:
            raise InputError(
                f"{directory} has changed since ensemble {folder} was made: make it again with"
                " `loraens ensemble`"
            )
        renamed.append(replace(member, name=members.dev.names[indices[directory]]))
    return replace(record, members=tuple(renamed))


def _baselines(runs: Sequence[Path], task: Task, epoch: Epoch) -> dict[str, float]:
    baselines: dict[str, float] = {}
    directories: list[Path] = []
    for run in runs:
        directories += find_members(Path(run))
    for path in directories:
        manifest = MemberStore(path).read()  # `read_runs` has verified its files
        mode = manifest.settings.mode
        score = manifest.score(task, epoch)
        if mode not in MODES or score is None:
            continue
        if mode not in baselines or task.utility(score) > task.utility(baselines[mode]):
            baselines[mode] = score
    return baselines
