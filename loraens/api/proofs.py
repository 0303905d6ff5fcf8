"""Choose and combine members of runs, and prove the worth of each ensemble."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from loraens.ensemble.combine import MERGED
from loraens.ensemble.cross_validation import FOLDS, Candidate
from loraens.ensemble.diversity import SIMILARITIES
from loraens.ensemble.methods import METHODS, REPEATS, names
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import Proof
from loraens.ensemble.prove import prove as prove_pool
from loraens.ensemble.read import PoolMembers, read_runs
from loraens.ensemble.recommend import Goal, Recommendation, recommend
from loraens.ensemble.record import EnsembleRecord, make_record
from loraens.errors import InputError
from loraens.records import Epoch
from loraens.report import ensembles as tables
from loraens.report.terminal import show
from loraens.tasks import Task

if TYPE_CHECKING:
    import pandas

    from loraens.data.modules import TextData
    from loraens.inference.soup import Soup

Progress = Callable[[str, int], Callable[[], Any]]


class HasDirectory(Protocol):
    """What was trained into a directory, such as a `Sweep`."""

    @property
    def directory(self) -> Path:
        """The run's directory."""


Runs = str | Path | HasDirectory


@dataclass(frozen=True)
class ProvedEnsemble:
    """One ensemble with its scores.

    Args:
        proof: Its scores, and the members' weights.
        members: The pool that it was chosen from.
        soup: What merges the members, for soups.
    """

    proof: Proof
    members: PoolMembers
    soup: Soup | None = None

    @property
    def name(self) -> str:
        """Its directory's name by default: task, method and rule."""
        refit = self.members.chosen_from is not None
        return self.proof.candidate.name(self.members.dev.task.name, refit)

    def refit(self, data: TextData | None = None) -> ProvedEnsemble:
        """The same ensemble of configurations that are each trained once more on all labelled
        texts, in the sweep's directory `refit`, for the epochs that their folds chose: one member
        in place of one a fold. Its scores are those of the ensemble of folds.

        Args:
            data: The texts, where the sweep was made of ones in memory.

        Raises:
            InputError: There are no folds, or the sweep's settings or data cannot be used.
        """
        from loraens.train.refit import refit

        check_refit(self.members)
        chosen = np.flatnonzero(self.proof.weights).tolist()
        by_run: dict[Path, list[int]] = {}
        for index in chosen:
            by_run.setdefault(self.members.directories[index].parent, []).append(index)
        directories: dict[int, Path] = {}
        for run, indices in by_run.items():
            manifests = [self.members.manifests[index] for index in indices]
            trained = refit(run, manifests, self.members.epoch, data)
            directories.update(zip(indices, trained, strict=True))
        members = self.members.refitted(chosen, [directories[index] for index in chosen])
        return ProvedEnsemble(replace(self.proof, weights=self.proof.weights[chosen]), members)

    def record(self, directory: str | Path) -> EnsembleRecord:
        """The record as it would be saved in a directory."""
        return make_record(self.members, self.proof, Path(directory))

    def save(self, directory: str | Path) -> Path:
        """Save the ensemble, for `Ensemble.load` and the commands; returns the directory.

        The members stay where they are: the record names them by relative paths.
        """
        directory = Path(directory)
        record = self.record(directory)
        if self.soup is not None:
            self.soup.write(directory, self.proof.weights, self.proof.dev)
        record.write(directory)
        return directory


class Proofs(Mapping[str, ProvedEnsemble]):
    """Ensembles of one task with their scores, by method, or by method and rule.

    `proofs["dicor"]` is the ensemble of that method with the paper's rule, `proofs["dicor-probs"]`
    that with another one. A `Proofs` prints as a table.
    """

    def __init__(self, task: Task, ensembles: Sequence[ProvedEnsemble]) -> None:
        self.task = task
        self.ensembles = tuple(ensembles)
        self._by_name: dict[str, ProvedEnsemble] = {}
        for ensemble in ensembles:
            candidate = ensemble.proof.candidate
            self._by_name[f"{candidate.method}-{candidate.rule}"] = ensemble
        for ensemble in ensembles:
            self._by_name.setdefault(ensemble.proof.candidate.method, ensemble)

    def __getitem__(self, name: str) -> ProvedEnsemble:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """Names with rules, each ensemble once."""
        return iter(
            [f"{e.proof.candidate.method}-{e.proof.candidate.rule}" for e in self.ensembles]
        )

    def __len__(self) -> int:
        return len(self.ensembles)

    def recommended(
        self, max_members: int | None = None, goal: Goal = "score"
    ) -> tuple[ProvedEnsemble, Recommendation]:
        """The cheapest ensemble near the best, and what it is worth on new texts, corrected for the
        pick.

        Args:
            max_members: Most members that run at prediction; `Options.max_size` has small ensembles
                among those to pick from.
            goal: "score": within one standard error of the best score; "calibration": of the best
                NLL at fitted temperatures, which are then fitted in each bag; "cost": any that is
                not shown to be worse than the best score, as the 95 % interval of the difference
                has zero.

        Raises:
            InputError: `max_members` is below the best member's, or the goal does not apply.
        """
        members = self.ensembles[0].members
        index, recommendation = recommend(
            pool=members.dev,
            proofs=[ensemble.proof for ensemble in self.ensembles],
            max_members=max_members,
            unit=members.folds,
            goal=goal,
        )
        return self.ensembles[index], recommendation

    def records(self, directory: str | Path = ".") -> list[EnsembleRecord]:
        """The records of all ensembles, as if each were saved in a directory."""
        return [ensemble.record(directory) for ensemble in self.ensembles]

    def to_frame(self) -> pandas.DataFrame:
        """One row an ensemble."""
        import pandas

        return pandas.DataFrame([tables.row(record) for record in self.records()])

    def __str__(self) -> str:
        text = io.StringIO()
        show(tables.score_table(self.records()), keys=2, file=text, width=120)
        return text.getvalue()

    __repr__ = __str__


def check_refit(members: PoolMembers) -> None:
    """Refuse to refit what has been trained on all of its texts.

    Raises:
        InputError: The pool's members have no folds.
    """
    if members.folds == 1:
        raise InputError(
            f"refit is of configurations with folds, and the members of task"
            f" {members.dev.task.name} have none: sweep with --grid.folds K, or leave it out",
            "refit",
        )


def candidates(
    task: Task,
    methods: Sequence[str] = ("all",),
    rules: Sequence[str] | None = None,
    options: Options | None = None,
    pool: Pool | None = None,
) -> list[Candidate]:
    """Every method with every rule that applies; `best` and `omni` are always there, to compare
    with.

    Args:
        task: The task.
        methods: Names of `METHODS`, "all" for all that merge no members, or "soup" for all that do,
            as far as they apply to the pool.
        rules: Combination rules; all that apply to the task by default.
        options: Options of the methods.
        pool: The pool, for methods that do not apply to every one, such as `longest`.

    Raises:
        InputError: A method, rule or option is unknown, or does not apply to the task or the pool.
    """
    options = options or Options()
    if options.measure is not None and options.measure not in SIMILARITIES:
        measures = ", ".join(SIMILARITIES)
        raise InputError(f"measure {options.measure} is unknown: give one of {measures}", "measure")
    if options.size and options.max_size and options.size > options.max_size:
        raise InputError(
            f"size {options.size}: at most {options.max_size} is expected, which max_size or"
            " max_members allows",
            "size",
        )
    groups = {"all": names(merges=False, pool=pool), "soup": names(merges=True, pool=pool)}
    chosen: list[str] = []
    for given in methods:
        chosen += groups.get(given, [given])
    for name in chosen:
        if name not in METHODS:
            raise InputError(
                f"method {name} is unknown: give all, or some of {', '.join(METHODS)}", "method"
            )
        problem = METHODS[name].problem
        if pool is not None and problem is not None and (reason := problem(pool)) is not None:
            raise InputError(
                f"method {name} does not apply to task {task.name}: {reason}, so leave it out",
                "method",
            )
    apply = task.label_kind.rules
    for rule in rules or ():
        if rule not in apply:
            reason = task.label_kind.not_rules.get(rule)
            why = f", as {reason}" if reason else ""
            raise InputError(
                f"rule {rule} does not apply to task {task.name}{why}: give one of"
                f" {', '.join(apply)}",
                "rule",
            )
    wanted = []
    for name in dict.fromkeys(chosen):
        of_method = [MERGED] if METHODS[name].merges else rules or apply
        wanted += [Candidate(name, rule, options) for rule in of_method]
    wanted.sort(key=lambda candidate: METHODS[candidate.method].merges)
    needed = [Candidate(name, apply[0], options) for name in ("best", "omni")]
    return [*(candidate for candidate in needed if candidate not in wanted), *wanted]


def prove_members(
    members: PoolMembers, chosen: Sequence[Candidate], progress: Progress | None = None
) -> Proofs:
    """Prove candidates on one pool.

    Args:
        members: The pool.
        chosen: The candidates.
        progress: Given what is counted and its total (0 if unknown), returns what advances it.

    Raises:
        InputError: Dev has no labels, or the members cannot be merged.
    """
    task = members.dev.task
    if not members.dev.labelled:
        raise InputError(f"task {task.name} has no labels on dev: ensembles cannot be chosen")
    if len(members.dev.labels) < FOLDS:
        raise InputError(
            f"task {task.name} has {len(members.dev.labels)} examples on dev: at least {FOLDS} are"
            " expected, one a fold"
        )
    start = progress or (lambda description, total: lambda: None)
    soup = None
    if any(METHODS[candidate.method].merges for candidate in chosen):
        from loraens.inference.soup import Soup

        soup = Soup(members, start(f"{task.name}: merged models", 0))
        members = soup.pools()
    steps = FOLDS * REPEATS + max(candidate.bags for candidate in chosen)
    proofs = prove_pool(members.dev, chosen, start(f"{task.name}: folds and bags", steps))
    return Proofs(
        task,
        [
            ProvedEnsemble(proof, members, soup if proof.candidate.rule == MERGED else None)
            for proof in proofs
        ],
    )


def prove(
    runs: Runs | Sequence[Runs],
    methods: Sequence[str] = ("best", "omni", "dicor"),
    rules: Sequence[str] | None = None,
    task: str | None = None,
    epoch: Epoch = "best",
    options: Options | None = None,
) -> Proofs:
    """Choose ensembles from the members of runs, and prove what each is worth by repeated
    cross-validation of the whole choice.

    Args:
        runs: A `Sweep` that was fitted, a directory of runs or members, or several of these.
        methods: Names of `loraens.METHODS`, "all", or "soup".
        rules: Combination rules; the paper's by default.
        task: The task, where the members were trained on several.
        epoch: Epoch of each member.
        options: Options of the methods.

    Returns:
        The ensembles with their scores; `best` and `omni` are always among them.

    Raises:
        InputError: There are no members, they differ in what must be the same, or an argument is
            unknown.
    """
    several = [runs] if isinstance(runs, (str, Path)) or hasattr(runs, "directory") else runs
    paths = [Path(getattr(run, "directory", run)) for run in several]  # type: ignore[arg-type]
    pools = read_runs(paths, None if task is None else [task], epoch)
    if len(pools) > 1:
        raise InputError(f"task is missing: give one of {', '.join(pools)}", option="task")
    (members,) = pools.values()
    of_task = members.dev.task
    paper = rules or [of_task.label_kind.rules[0]]
    return prove_members(members, candidates(of_task, methods, paper, options, members.dev))
