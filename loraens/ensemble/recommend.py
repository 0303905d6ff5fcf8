"""Which of the proved ensembles to use.

Shape letters: V candidates, N examples, B bags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from loraens.ensemble.combine import MERGED
from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.methods import CONTROLS
from loraens.ensemble.optimism import Values
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import Proof
from loraens.ensemble.significance import Interval
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.metrics import NLL
from loraens.records import Count, Inside, Record, read_signed, signed
from loraens.store import ENSEMBLE
from loraens.tasks import Task

RECOMMENDED = "recommended"
FORMAT = 1
Goal = Literal["score", "calibration", "cost"]
GOALS: tuple[Goal, ...] = get_args(Goal)


@dataclass(frozen=True)
class Recommendation(Record):
    """The recommended ensemble of one task.

    Args:
        ensemble: Its directory, beside the file that recommends it.
        members: Members that run at prediction.
        candidates: Ensembles that it was picked from.
        estimate: The task's metric on new texts, corrected for the pick.
        gain: Difference of that to the best member, its sign turned where lower is better; nought
            where the best member is recommended.
        sentence: What to use and what it is worth, in words.
        goal: What it was picked by, as in `recommend`.
        nll: For the goal `calibration`, its NLL on new texts at the fitted temperature, corrected
            for the pick.
        refit: Whether it is made of configurations that were trained once more, on all labelled
            texts; estimate and gain are of the ensemble of their folds.
        nll_gain: Difference of that to the best member, as `gain`: positive where the NLL is lower.
    """

    ensemble: Inside
    members: Count
    candidates: Count
    estimate: Interval
    gain: Interval
    sentence: str
    goal: Goal = "score"
    nll: Interval | None = None
    nll_gain: Interval | None = None
    refit: bool = False

    @property
    def alone(self) -> bool:
        """Whether it is the best member, as no ensemble is proved to beat it."""
        return (self.nll_gain or self.gain).low <= 0

    def of_refit(self, ensemble: str, members: int) -> Recommendation:
        """The same ensemble, its configurations trained once more.

        Args:
            ensemble: Its directory.
            members: Members that run at prediction.
        """
        models = "1 model runs" if members == 1 else f"{members} models run"
        sentence = (
            f"{self.sentence} Refit on all labelled texts {models}: use {ensemble}; its worth is"
            f" estimated by the {self.members} members of the folds, which were trained on fewer."
        )
        return replace(self, ensemble=ensemble, members=members, sentence=sentence, refit=True)


def cost(proof: Proof) -> int:
    """Members that run at prediction: one where they are merged."""
    return 1 if proof.candidate.rule == MERGED else proof.members


def pick(scores: np.ndarray, margins: Mapping[int, np.ndarray], costs: np.ndarray) -> int:
    """Index of the cheapest candidate whose score is within a margin of the best one's; of equally
    cheap ones the best.

    With a margin of one standard error this is the rule of Breiman et al. (1984, section 3.4.3),
    the standard error that of the difference to the best: candidates are scored on the same
    examples, so that most of the error of each score is common to both.

    Args:
        scores: `(V,)` higher is better; minus infinity where not defined.
        margins: `(V,)` of each candidate, by the index of the best one.
        costs: `(V,)` members that run.
    """
    top = int(np.argmax(scores))
    near = np.flatnonzero(scores >= scores[top] - margins[top])
    cheapest = near[costs[near] == costs[near].min()]
    return int(cheapest[np.argmax(scores[cheapest])])


def check_bound(max_members: int | None, unit: int = 1) -> None:
    """Refuse a bound that not even the best member keeps.

    Args:
        max_members: Most members that run at prediction.
        unit: Members of a configuration.

    Raises:
        InputError: It is below the best member's.
    """
    if max_members is not None and max_members < unit:
        raise InputError(
            f"max_members {max_members}: at least {unit} is expected, which the best"
            f" {'member' if unit == 1 else 'configuration'} runs",
            option="max_members",
        )


def check_goal(goal: str, task: Task, candidates: Sequence[Candidate]) -> None:
    """Refuse a goal by which none of the candidates of a task can be recommended.

    Raises:
        InputError: It is unknown, or needs probabilities that are not there.
    """
    if goal not in GOALS:
        raise InputError(f"goal {goal} is unknown: give one of {', '.join(GOALS)}", option="goal")
    if goal != "calibration":
        return
    if not task.class_names:
        raise InputError(
            f"goal calibration is by the probabilities of classes, and task {task.name} has none:"
            " give score or cost, or other tasks",
            option="goal",
        )
    if not any(one.method == "best" and _eligible(one, goal) for one in candidates):
        raise InputError(
            "goal calibration is by probabilities, which votes do not give: have the best member"
            " among the ensembles by the rule logits or probs, too",
            option="goal",
        )


def _eligible(candidate: Candidate, goal: str) -> bool:
    """Whether it may be recommended: it is no control, and has probabilities where they count."""
    return candidate.method not in CONTROLS and (goal != "calibration" or candidate.rule != "vote")


def recommend(
    pool: Pool,
    proofs: Sequence[Proof],
    max_members: int | None = None,
    unit: int = 1,
    goal: Goal = "score",
) -> tuple[int, Recommendation]:
    """The index of the recommended proof, and what it is worth.

    By the goal `score` it is the cheapest candidate within one standard error of the best score; by
    `calibration` the same by the held-out NLL at fitted temperatures; by `cost` the cheapest that
    is not shown to be worse than the best score: the 95 % interval of their difference has zero.
    Where it is not proved to beat the best member, that is recommended: the 95 % interval of the
    difference to it, corrected for the pick, has zero.

    The best of many estimates is too good. So the pick is repeated in each bag, on the
    cross-validated outcomes of its examples: by how much its score is better there than out of the
    bag is subtracted (the optimism of Efron 1983; Tsamardinos et al. 2018 correct by such bags,
    too). The interval is of the same bags, each of which picks among the ensembles that were chosen
    in it.

    Args:
        pool: The pool that was proved.
        proofs: Of its candidates, the best member among them.
        max_members: Most members that run at prediction.
        unit: Members of a configuration.
        goal: What is picked by.

    Raises:
        InputError: `max_members` is below the best member's, or the goal does not apply.
    """
    check_bound(max_members, unit)
    check_goal(goal, pool.task, [proof.candidate for proof in proofs])
    allowed = [
        index
        for index, proof in enumerate(proofs)
        if (max_members is None or cost(proof) * unit <= max_members)
        and _eligible(proof.candidate, goal)
    ]
    # the best member's predictions are the same by every rule, but votes have no probabilities
    allowed.sort(key=lambda index: proofs[index].candidate.rule == "vote")
    rows = [proofs[index] for index in allowed]
    costs = np.array([cost(proof) * unit for proof in rows])
    metric = Values.of_metric(pool, rows)
    nll = Values.of_nll(pool, rows) if goal == "calibration" else None
    compared = nll or metric
    margins = compared.margins(of_interval=goal == "cost")
    picked = pick(compared.scores, margins, costs)
    picks = np.array([pick(of_bag, margins, costs) for of_bag in compared.inside])
    best = [proof.candidate.method for proof in rows].index("best")
    unproved = ""
    if rows[picked].candidate.method != "best":
        _, gain = compared.worth(picked, picks, best, 1.0)
        if gain.low <= 0:
            unproved = f"{_name(rows[picked])} by {_interval(gain, '+')}"
            picked = best
    against = None if rows[picked].candidate.method == "best" else best
    estimate, gain = metric.worth(picked, picks, against, pool.task.utility(1.0))
    of_nll = (None, None) if nll is None else nll.worth(picked, picks, against, NLL.utility(1.0))
    result = Recommendation(
        ensemble=rows[picked].candidate.name(pool.task.name),
        members=int(costs[picked]),
        candidates=len(rows),
        estimate=estimate,
        gain=gain,
        sentence="",
        goal=goal,
        nll=of_nll[0],
        nll_gain=of_nll[1],
    )
    sentence = _sentence(result, pool, rows[picked], unproved) + _of_longest(
        pool, proofs, rows[picked], unit
    )
    return allowed[picked], replace(result, sentence=sentence)


def _sentence(result: Recommendation, pool: Pool, proof: Proof, unproved: str) -> str:
    """What to use and what it is worth, and which ensemble is not proved to be worth more."""
    task = pool.task.name
    worth = f"{pool.task.main_metric.title} {_interval(result.estimate)} on new texts"
    gain = f"{_interval(result.gain, '+')} against the best member"
    if result.nll is not None and result.nll_gain is not None:
        worth = f"NLL {_interval(result.nll)} at the fitted temperature and {worth}"
        gain = f"better than the best member's by {_interval(result.nll_gain, '+')} and"
        gain += f" {_interval(result.gain, '+')}"
    goal = "" if result.goal == "score" else f" (goal {result.goal})"
    if proof.candidate.method == "best":
        single = pool.names[int(np.argmax(proof.weights))]
        reason = f"proved to beat it, not {unproved}" if unproved else "worth its cost"
        return (
            f"{task}: use the best member alone, {single}: {worth} (95 %); no ensemble among"
            f" {result.candidates} candidates is {reason}{goal}."
        )
    runs = "1 model runs" if result.members == 1 else f"{result.members} models run"
    return (
        f"{task}: use {_name(proof)}, of which {runs}: {worth},"
        f" {gain} (95 %), corrected for the pick among {result.candidates}{goal}."
    )


def _name(proof: Proof) -> str:
    return f"{proof.candidate.method} ({proof.candidate.rule})"


def _interval(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _of_longest(pool: Pool, proofs: Sequence[Proof], picked: Proof, unit: int) -> str:
    """What one member that was trained longer is worth beside what is recommended, where there is
    such a member, in a sentence that follows.
    """
    proof = next((proof for proof in proofs if proof.candidate.method == "longest"), None)
    if proof is None or pool.trained is None:
        return ""
    chosen = np.flatnonzero(picked.weights)
    single = int(np.argmax(proof.weights))
    if chosen.tolist() == [single]:
        return ""
    each = pool.trained[chosen]
    total, longest = int(each.sum()), int(pool.trained[single])
    same = len(chosen) > 1 and bool((each == each[0]).all())
    cost = f"{len(chosen)} x {each[0]}" if same else f"{total}"
    whose = "of the ensemble's members together" if len(chosen) > 1 else "of the recommended one"
    compared = f"as long as the {cost} {whose}"
    if longest != total:
        more = "more" if longest > total else "less"
        compared = f"{more} than the {cost} {whose}, so not at equal training"
    return (
        f" One {'member' if unit == 1 else 'configuration'} trained for {longest} epochs,"
        f" {compared}, has {_interval(proof.interval)} held out."
    )


def write_recommended(folder: Path, recommended: dict[str, Recommendation]) -> Path:
    """Write `recommended` into the directory of the ensembles, by task; returns the file."""
    path = folder / RECOMMENDED
    tasks = {name: one.to_json() for name, one in recommended.items()}
    write_atomically(path, signed({"format": FORMAT, "tasks": tasks}))
    return path


def read_recommended(path: Path) -> dict[str, Recommendation]:
    """The recommendations in a file, by task.

    Raises:
        InputError: It is not such a file, or names an ensemble that is not there.
    """
    fix = "make it again with `loraens ensemble`"
    fields = read_signed(path.read_bytes(), path, fix)
    tasks = fields.get("tasks")
    if not isinstance(tasks, dict) or not tasks or fields.get("format") != FORMAT:
        raise InputError(f"{path} recommends no ensemble that this version reads: {fix}")
    found = {
        name: Recommendation.from_json(entry, f"{path} (task {name})", fix)
        for name, entry in tasks.items()
    }
    for one in found.values():
        if not (path.parent / one.ensemble / ENSEMBLE).is_file():
            missing = path.parent / one.ensemble
            raise InputError(f"{path} recommends {missing}, which is not there: {fix}")
    return found


def resolved(path: Path) -> Path:
    """The directory of an ensemble; where the path is a file `recommended`, of what it recommends.

    Raises:
        InputError: It recommends ensembles of several tasks.
    """
    if not path.is_file():
        return path
    found = read_recommended(path)
    if len(found) > 1:
        names = ", ".join(str(path.parent / one.ensemble) for one in found.values())
        raise InputError(f"{path} recommends ensembles of several tasks: give one of {names}")
    return path.parent / next(iter(found.values())).ensemble
