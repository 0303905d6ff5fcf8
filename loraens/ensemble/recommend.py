"""Which of the proved ensembles to use.

Shape letters: V candidates, N examples, B bags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.combine import MERGED
from loraens.ensemble.cross_validation import bags
from loraens.ensemble.methods import CONTROLS
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import Proof
from loraens.ensemble.significance import Interval, of_bags, standard_error
from loraens.errors import InputError
from loraens.records import Count, Record
from loraens.store import ENSEMBLE, write_atomically

RECOMMENDED = "recommended"
FORMAT = 1


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
    """

    ensemble: str
    members: Count
    candidates: Count
    estimate: Interval
    gain: Interval
    sentence: str


def cost(proof: Proof) -> int:
    """Members that run at prediction: one where they are merged."""
    return 1 if proof.candidate.rule == MERGED else proof.members


def pick(scores: np.ndarray, errors: np.ndarray, costs: np.ndarray) -> int:
    """Index of the cheapest candidate whose score is within one standard error of the best one's;
    of equally cheap ones the best.

    The rule of Breiman et al. (1984, section 3.4.3), with the standard error of the difference to
    the best: candidates are scored on the same examples, so that most of the error of each score is
    common to both.

    Args:
        scores: `(V,)` higher is better; minus infinity where not defined.
        errors: `(V, V)` standard error of the difference of each pair.
        costs: `(V,)` members that run.
    """
    top = int(np.argmax(scores))
    near = np.flatnonzero(scores >= scores[top] - errors[top])
    cheapest = near[costs[near] == costs[near].min()]
    return int(cheapest[np.argmax(scores[cheapest])])


def recommend(
    pool: Pool, proofs: Sequence[Proof], max_members: int | None = None, unit: int = 1
) -> tuple[int, Recommendation]:
    """The index of the recommended proof, and what it is worth.

    The best of many estimates is too good. So the pick is repeated in each bag, on the
    cross-validated outcomes of its examples: by how much its score is better there than out of the
    bag is subtracted (the optimism of Efron 1983; Tsamardinos et al. 2018 correct by such bags,
    too). The interval is that of `of_bags`, where each bag picks among the ensembles that were
    chosen in it.

    Args:
        pool: The pool that was proved.
        proofs: Of its candidates, the best member among them.
        max_members: Most members that run at prediction.
        unit: Members of a configuration.

    Raises:
        InputError: `max_members` is below the best member's.
    """
    costs = np.array([cost(proof) * unit for proof in proofs])
    best = next(i for i, proof in enumerate(proofs) if proof.candidate.method == "best")
    allowed = _allowed(proofs, costs, best, max_members, unit)
    rows = [proofs[index] for index in allowed]
    best = allowed.index(best)
    costs = costs[allowed]
    task = pool.task
    scores = np.array([task.utility(proof.interval.value) for proof in rows])
    scores = np.where(np.isnan(scores), -np.inf, scores)
    errors = np.array([[_error(one, other) for other in rows] for one in rows])
    picked = pick(scores, errors, costs)

    count = max(len(proof.bagged) for proof in rows)
    inside, outside = _in_and_out(pool, rows, count)
    picks = np.array([pick(of_bag, errors, costs) for of_bag in inside])
    each = np.arange(count)
    optimism = inside[each, picks] - outside[each, picks]
    of_best = inside[:, best] - outside[:, best]
    bagged = np.full((count, len(rows)), np.nan)  # a candidate may have fewer bags
    for column, proof in enumerate(rows):
        bagged[: len(proof.bagged), column] = proof.bagged
    again = bagged[each, picks]
    ratio = rows[picked].ratio
    value = scores[picked] - max(0.0, float(np.nanmean(optimism)))
    gain = 0.0
    differences = np.zeros(count)
    if picked != best:
        excess = max(0.0, float(np.nanmean(optimism - of_best)))
        gain = float(scores[picked] - scores[best]) - excess
        differences = again - bagged[:, best]
    sign = task.utility(1.0)
    estimate = of_bags(sign * value, sign * again, ratio)
    result = Recommendation(
        ensemble=rows[picked].candidate.name(task.name),
        members=int(costs[picked]),
        candidates=len(rows),
        estimate=estimate,
        gain=of_bags(gain, differences, ratio),
        sentence="",
    )
    sentence = _sentence(result, pool, rows[picked]) + _of_longest(pool, proofs, rows[picked], unit)
    return allowed[picked], replace(result, sentence=sentence)


def _allowed(
    proofs: Sequence[Proof], costs: np.ndarray, best: int, max_members: int | None, unit: int
) -> list[int]:
    """Indices of the candidates that may be recommended: not too large, and no control."""
    if max_members is not None and max_members < costs[best]:
        raise InputError(
            f"max_members {max_members}: at least {costs[best]} is expected, which the best"
            f" {'member' if unit == 1 else 'configuration'} runs",
            option="max_members",
        )
    return [
        index
        for index, proof in enumerate(proofs)
        if (max_members is None or costs[index] <= max_members)
        and proof.candidate.method not in CONTROLS
    ]


def _error(one: Proof, other: Proof) -> float:
    """Standard error of the difference of two scores; nought where it is not defined."""
    count = min(len(one.bagged), len(other.bagged))
    error = standard_error(one.bagged[:count] - other.bagged[:count], one.ratio)
    return 0.0 if np.isnan(error) else error


def _in_and_out(pool: Pool, rows: Sequence[Proof], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores `(B, V)` of cross-validated outcomes on the examples in each bag, and out of it."""
    drawn = bags(pool, count)
    scores = np.full((2, count, len(rows)), -np.inf)
    for column, proof in enumerate(rows):
        outcome = proof.outcomes.outcome(0)
        for number, parts in enumerate(drawn):
            for side, indices in enumerate(parts):
                score = pool.task.score(outcome.at(indices), pool.labels[indices])
                scores[side, number, column] = -np.inf if np.isnan(score) else score
    return scores[0], scores[1]


def _sentence(result: Recommendation, pool: Pool, proof: Proof) -> str:
    """What to use and what it is worth."""
    task = pool.task.name
    estimate = result.estimate
    worth = (
        f"{pool.task.main_metric.title} {estimate.value:.4f}"
        f" [{estimate.low:.4f}, {estimate.high:.4f}] on new texts"
    )
    if proof.candidate.method == "best":
        single = pool.names[int(np.argmax(proof.weights))]
        return (
            f"{task}: use the best member alone, {single}: {worth} (95 %); no ensemble among"
            f" {result.candidates} candidates is worth its cost."
        )
    runs = "1 model runs" if result.members == 1 else f"{result.members} models run"
    return (
        f"{task}: use {proof.candidate.method} ({proof.candidate.rule}), of which {runs}: {worth},"
        f" {result.gain.value:+.4f} [{result.gain.low:+.4f}, {result.gain.high:+.4f}] against the"
        f" best member (95 %), corrected for the pick among {result.candidates}."
    )


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
    interval = proof.interval
    return (
        f" One {'member' if unit == 1 else 'configuration'} trained for {longest} epochs,"
        f" {compared}, has {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}] held out."
    )


def write_recommended(folder: Path, recommended: dict[str, Recommendation]) -> Path:
    """Write `recommended` into the directory of the ensembles, by task; returns the file."""
    path = folder / RECOMMENDED
    tasks = {name: one.to_json() for name, one in recommended.items()}
    content = {"format": FORMAT, "tasks": tasks}
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def read_recommended(path: Path) -> dict[str, Recommendation]:
    """The recommendations in a file, by task.

    Raises:
        InputError: It is not such a file, or names an ensemble that is not there.
    """
    fix = "make it again with `loraens ensemble`"
    try:
        fields: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {fix}") from None
    tasks = fields.get("tasks") if isinstance(fields, dict) else None
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
