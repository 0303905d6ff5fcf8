"""What the quick start prints of its members and ensembles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from loraens.ensemble.recommend import Recommendation
from loraens.ensemble.record import EnsembleRecord
from loraens.metrics import overall
from loraens.records import Manifest

LABELS = {
    "best": "best member",
    "omni": "all (Omni)",
    "dicor": "DiCor",
    "greedy": "greedy selection",
    "weighted": "weighted",
}


def score_table(
    members: Mapping[str, Mapping[str, Manifest]],
    records: Mapping[str, Sequence[EnsembleRecord]],
    recommended: Mapping[str, Recommendation],
    made_up: bool,
) -> Table:
    """Members and ensembles as rows, tasks as columns, and the paper's overall score.

    Args:
        members: Manifests of each task's members, by name.
        records: Each task's ensembles.
        recommended: What is recommended, by task.
        made_up: Whether the texts are.
    """
    table = Table(
        title="Held-out scores" + (" on made-up texts" if made_up else ""),
        caption=(
            "Accuracy; for sts Pearson's r; overall: the paper's mean of the three.\n"
            "Members: on dev, after the last epoch. Ensembles: cross-validated, 95 %\n"
            "intervals; best member: chosen as they are. *: recommended."
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("", *records, "overall"):
        table.add_column(column, justify="right" if column else "left")
    for index, name in enumerate(next(iter(members.values()))):
        scores = {}
        for task, manifests in members.items():
            score = manifests[name].score(records[task][0].task, "last")
            scores[task] = float("nan") if score is None else score
        member = next(iter(members.values()))[name].member
        label = f"rank {member.rank}, seed {member.seed}"
        last = index + 1 == len(next(iter(members.values())))
        cells = [f"{score:.3f}" for score in scores.values()]
        table.add_row(label, *cells, f"{overall(scores):.3f}", end_section=last)
    for method, rule in _rows(records):
        found = {
            task: record
            for task, of_task in records.items()
            for record in of_task
            if (record.method, record.rule) == (method, rule)
        }
        total = overall({task: record.interval.value for task, record in found.items()})
        cells = [_cell(found[task], recommended[task]) if task in found else "" for task in records]
        label = LABELS.get(method, method) + (f", {rule}" if rule != "logits" else "")
        table.add_row(label, *cells, "" if total is None else f"{total:.3f}")
    return table


def _rows(records: Mapping[str, Sequence[EnsembleRecord]]) -> list[tuple[str, str]]:
    """Methods and rules of any task; the best member by one rule only, as it is the same by all."""
    rows = dict.fromkeys(
        (record.method, record.rule) for of_task in records.values() for record in of_task
    )
    return [row for row in rows if row[0] != "best" or row[1] == "logits"]


def _cell(record: EnsembleRecord, recommended: Recommendation) -> str:
    rules = record.task.label_kind.rules if record.method == "best" else (record.rule,)
    names = [replace(record.candidate, rule=rule).name(record.task.name) for rule in rules]
    marked = "*" if recommended.ensemble in names else ""
    interval = record.interval
    return f"{marked}{interval.value:.3f}\n[{interval.low:.3f}, {interval.high:.3f}]"


def advice(recommended: Mapping[str, Recommendation]) -> str:
    """What the recommendations come to, in one sentence for who sees them for the first time.

    Args:
        recommended: By task.
    """
    alone = [task for task, one in recommended.items() if one.alone]
    parts = []
    if alone:
        parts.append(f"{', '.join(alone)}: deploy one model, no ensemble is proved better")
    for task, one in recommended.items():
        if not one.alone:
            gain = f"{one.gain.value:+.3f} [{one.gain.low:+.3f}, {one.gain.high:+.3f}]"
            parts.append(f"{task}: combine {one.members} models, a proved {gain} over the best one")
    return f"In short: {'; '.join(parts)}."
