"""Tables of an evaluation: for the terminal, and for files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from loraens.ensemble.evaluation import Evaluation, Row
from loraens.ensemble.significance import Interval
from loraens.tasks import Task

MATRIX = 10  # classes; of more, the most frequent confusions are listed
TITLES = {"classes": "By class", "errors": "Absolute errors", "labels": "Errors by label"}
SEEN = {
    "train": "The members were trained on these very texts: the scores are not of new ones.",
    "dev": "Epochs or ensemble were chosen on these very texts: the scores are too good for new"
    " ones.",
}


def tables(evaluation: Evaluation, task: Task) -> Iterator[Table]:
    """The tables of an evaluation, in the order in which they are read."""
    yield _scores(evaluation, task)
    if evaluation.members:
        yield _members(evaluation)
    for name, rows in evaluation.parts.items():
        if name == "confusion":
            yield confusion(rows, task)
        else:
            yield _of_rows(TITLES.get(name, _words(name)), rows)
    if evaluation.calibration:
        certainty = "confidence" if task.label_kind.categorical else "spread"
        caption = f"Fifths of the examples, from the least {certainty} to the most."
        yield _of_rows("Calibration", evaluation.calibration, caption)
    if evaluation.coverage:
        yield _of_rows(
            "Coverage of prediction sets" if task.label_kind.categorical else "Coverage",
            evaluation.coverage,
            "size: mean number of classes in a set (of several labels, of possible ones), or mean"
            " width of an interval.",
        )


def sentences(evaluation: Evaluation) -> Iterable[str]:
    """What was scored, what was left out, and what the numbers are not."""
    yield f"{evaluation.examples} examples of {evaluation.origin}"
    for reason, lines in evaluation.dropped.items():
        shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
        yield f"{len(lines)} rows left out ({reason}): line {shown}"
    if evaluation.no_coverage is not None:
        yield f"coverage of prediction sets is left out: {evaluation.no_coverage}"
    if evaluation.seen is not None:
        yield SEEN[evaluation.seen]


def _scores(evaluation: Evaluation, task: Task) -> Table:
    best = evaluation.best
    columns = ["metric", "score", "95 %", *(["minus best member", "95 %"] if best else [])]
    table = _table(
        f"{evaluation.task}: scores",
        columns,
        "Intervals are of this model, as it is, on new examples like these: exact for shares of"
        " examples, else the bootstrap over examples."
        + (f" Best member, by the score that it was chosen by: {best}." if best else ""),
    )
    for metric in task.label_kind.metrics:
        if math.isnan(evaluation.scores[metric.name].value):
            continue  # such as the NLL of votes
        cells = [metric.title, *_interval(evaluation.scores[metric.name])]
        if best:
            cells += _interval(evaluation.to_best[metric.name], "+")
        table.add_row(*cells)
    return table


def _members(evaluation: Evaluation) -> Table:
    others = [name for name in evaluation.members[0].scores if name != evaluation.metric]
    columns = ["member", "standing", evaluation.metric, "95 %", *others]
    table = _table("Members, each alone", list(map(_words, columns)), "standing: 1 was the best.")
    for member in evaluation.members:
        score = _interval(member.interval)
        cells = [_number(member.scores[name]) for name in others]
        table.add_row(member.name, str(member.standing + 1), *score, *cells)
    return table


def confusion(rows: Sequence[Row], task: Task) -> Table:
    """The matrix of labels and predictions; of many classes, the most frequent errors."""
    names = task.class_names
    if len(names) > MATRIX:
        wrong = [row for row in rows if row["label"] != row["prediction"]]
        wrong.sort(key=lambda row: -row["count"])
        caption = f"The {min(MATRIX, len(wrong))} most frequent of {len(wrong)} pairs."
        return _of_rows("Confusion", wrong[:MATRIX], caption)
    counts = {(row["label"], row["prediction"]): row["count"] for row in rows}
    table = _table("Confusion", ["label", *names], "A row a label, a column a prediction.")
    for label in names:
        table.add_row(label, *(str(counts.get((label, name), 0)) for name in names))
    return table


def _of_rows(title: str, rows: Sequence[Row], caption: str | None = None) -> Table:
    columns = list(rows[0]) if rows else ["none"]
    table = _table(title, list(map(_words, columns)), caption)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _table(title: str, columns: Sequence[str], caption: str | None) -> Table:
    table = Table(title=title, caption=caption)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Any) -> str:
    return _number(value) if value is None or isinstance(value, float) else str(value)


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None or value != value else f"{value:{sign}.4f}"


def _interval(score: Interval, sign: str = "") -> list[str]:
    bounds = f"[{score.low:{sign}.3f}, {score.high:{sign}.3f}]" if score.low == score.low else ""
    return [_number(score.value, sign), bounds]


def to_csv(evaluation: Evaluation) -> str:
    """All numbers as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["part", "name", "measure", "value", "low", "high"])
    writer.writeheader()
    writer.writerows(evaluation.rows())
    return text.getvalue()


def to_json(evaluation: Evaluation) -> str:
    """The evaluation as JSON; null for what is not defined."""
    return json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Evaluation], str]] = {".json": to_json, ".csv": to_csv}
