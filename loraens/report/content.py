"""What a report is about: one task's members, baselines and ensembles, read from the store.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.combine import rules
from loraens.ensemble.pool import metric
from loraens.ensemble.prove import Candidate, HeldOut, cross_validate
from loraens.ensemble.read import Candidates, read_runs
from loraens.ensemble.select import SOUPS, Options
from loraens.errors import InputError
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, checksum, find_members, read_ensemble
from loraens.tasks import LOWER_IS_BETTER, Task

METRIC_NAMES = {
    "pearson": "Pearson's r",
    "spearman": "Spearman's rho",
    "mse": "mean squared error",
    "nll": "NLL",
    "macro_f1": "macro F1",
}
MODES = {"frozen": "frozen backbone, heads alone", "full": "all weights trained"}


@dataclass
class Content:
    """One task.

    Args:
        task: The task.
        found: Its LoRA members.
        baselines: Scores of the modes `frozen` and `full`: mode -> the task's metric on dev, of the
            best such member.
        entries: Its ensembles, as `ensemble.json` holds them.
        backbone: Name of the backbone.
        which: "best" or "last" epoch of each member.
    """

    task: Task
    found: Candidates
    baselines: dict[str, float]
    entries: list[dict[str, Any]]
    backbone: str
    which: str

    @property
    def metric(self) -> str:
        """The task's metric in words."""
        return METRIC_NAMES.get(self.task.metric, self.task.metric.replace("_", " "))

    @property
    def members(self) -> list[dict[str, Any]]:
        """Settings of each member."""
        return [manifest["member"] for manifest in self.found.manifests]

    @property
    def dev(self) -> np.ndarray:
        """The task's metric of each member on dev `(M,)`; NaN where it is not defined."""
        pool = self.found.dev
        return np.array(
            [
                metric(self.task, self.task.metric, pool.outcome(m), pool.labels)
                for m in range(len(pool))
            ]
        )

    @property
    def test(self) -> float | None:
        """The best member's score on test, where labels are there."""
        pool = self.found.test
        if pool is None or np.isnan(pool.labels[0]):
            return None
        return metric(
            self.task, self.task.metric, pool.outcome(int(self.found.dev.order[0])), pool.labels
        )

    def paper(self) -> list[dict[str, Any]]:
        """The ensembles joined by the paper's rule, and the soups."""
        return [entry for entry in self.entries if entry["rule"] in (rules(self.task)[0], "merged")]

    def winner(self) -> dict[str, Any] | None:
        """The ensemble with the best cross-validated score; None without ensembles. One member, or
        any, is not one.
        """
        sign = -1 if self.task.metric in LOWER_IS_BETTER else 1
        several = [entry for entry in self.paper() if entry["method"] not in ("best", "random")]
        return max(several, key=lambda entry: sign * entry["interval"]["value"], default=None)

    def chosen(self, entry: dict[str, Any]) -> list[int]:
        """Places of an ensemble's members."""
        return [self.found.dev.names.index(member["name"]) for member in entry["members"]]

    def held_out(self, entry: dict[str, Any], rule: Any = None) -> HeldOut:
        """An ensemble's cross-validated outcomes on dev, by its own rule or another one."""
        candidate = Candidate(entry["method"], rule or entry["rule"], Options(**entry["options"]))
        return cross_validate(self.found.dev, [candidate])[0]


def read(
    runs: Sequence[Path],
    tasks: Sequence[str] | None = None,
    which: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Content]:
    """Everything of some runs, by task.

    Args:
        runs: Directories of runs, sweeps or members; ensembles are those in `RUN/ensembles`.
        tasks: Names of tasks; all by default.
        which: "best" or "last" epoch of each member; by default that of the ensembles, or the best.
        say: Is told what was left out.

    Raises:
        InputError: As `read_runs`; or an ensemble is older than its members.
    """
    folders = sorted(
        path.parent for run in runs for path in Path(run).glob(f"ensembles/*/{ENSEMBLE}")
    )
    records = [(folder, read_ensemble(folder)) for folder in folders]
    kinds = {record["which"] for _, record in records}
    which = which or (kinds.pop() if len(kinds) == 1 else "best")
    found = {}
    for name, candidates in read_runs(runs, tasks, which, say, mode="lora").items():
        if np.isnan(candidates.dev.labels[0]):
            raise InputError(f"task {name} has no labels on dev: there is nothing to report")
        places = {path.resolve(): index for index, path in enumerate(candidates.directories)}
        entries = []
        for folder, entry in records:
            if entry["task"]["name"] != name:
                continue
            if entry["which"] != which:
                say(
                    f"{folder} is left out: it joins the members' {entry['which']} epochs, the"
                    f" report is of the {which} ones"
                )
            elif _is_of(folder, entry, places, candidates, say):
                entries.append(entry)
        task = candidates.dev.task
        backbone = candidates.manifests[0]["settings"]["backbone"]
        order = {method: place for place, method in enumerate(("best", "omni", "dicor"))}
        entries.sort(
            key=lambda entry: (
                order.get(entry["method"], 3),
                entry["method"] in SOUPS,
                entry["method"],
                entry["rule"],
            )
        )
        found[name] = Content(
            task,
            candidates,
            _baselines(runs, task, which),
            entries,
            Path(str(backbone)).name,
            which,
        )
    return found


def _is_of(
    folder: Path,
    entry: dict[str, Any],
    places: dict[Path, int],
    candidates: Candidates,
    say: Callable[[str], None],
) -> bool:
    """Whether an ensemble's members are all here; they get the names that they have here."""
    for member in entry["members"]:
        directory = (folder / member["directory"]).resolve()
        if directory not in places:
            say(f"{folder} is left out: its member {directory} is not among the runs")
            return False
        if checksum(directory / MANIFEST) != member["manifest_sha256"]:
            raise InputError(
                f"{directory} has changed since ensemble {folder} was made: make it again with"
                " `loraens ensemble`"
            )
        member["name"] = candidates.dev.names[places[directory]]
    return True


def _baselines(runs: Sequence[Path], task: Task, which: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in [path for run in runs for path in find_members(Path(run))]:
        manifest = MemberStore(path).read()  # `read_runs` has verified its files
        mode = manifest["settings"]["mode"]
        scores = manifest["dev"].get(which, {}).get(task.name)
        if mode in MODES and scores and scores[task.metric] is not None:
            sign = -1 if task.metric in LOWER_IS_BETTER else 1
            if mode not in found or sign * scores[task.metric] > sign * found[mode]:
                found[mode] = scores[task.metric]
    return found
