"""Members, baselines and ensembles of any number of runs as rows of one table, read from their JSON
files alone.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraens.ensemble.recommend import RECOMMENDED, read_recommended
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.table import missing_ensembles
from loraens.errors import InputError, say
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, missing_members

Row = dict[str, Any]  # a value for each of COLUMNS; None where there is none
COLUMNS = (
    *(
        "kind",
        "run",
        "name",
        "task",
        "status",
        "mode",
        "backbone",
        "rank",
        "scale",
        "seed",
        "lr",
        "loraplus_lr_ratio",
        "adapter",
        "targets",
        "members",
        "method",
        "rule",
        "recommended",
        "goal",
    ),
    *(
        "metric",
        "dev",
        "held_out",
        "low",
        "high",
        "test",
        "best_epoch",
        "trainable_parameters",
        "seconds",
        "path",
    ),
)
MEMBER_COLUMNS = ("rank", "scale", "seed", "lr", "loraplus_lr_ratio")
TEXTS = frozenset(
    {
        "kind",
        "run",
        "name",
        "task",
        "status",
        "mode",
        "backbone",
        "adapter",
        "targets",
        "method",
        "rule",
        "recommended",
        "goal",
        "metric",
        "path",
    }
)
SCORES = frozenset({"dev", "held_out", "low", "high", "test"})
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def read_rows(directories: Sequence[Path], report: Callable[[str], None] = say) -> list[Row]:
    """A row for every ensemble, and for every task of every member, at or anywhere below some
    directories.

    Args:
        directories: The directories.
        report: Called with a sentence for each sweep that lacks members, and each directory that
            lacks ensembles.

    Raises:
        InputError: A directory is missing or has none, or a file is not of the store's format.
    """
    paths: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory: give directories that contain runs")
        below: set[Path] = set()
        for name in (MANIFEST, ENSEMBLE):
            below |= {file.parent for file in directory.rglob(name)}
        if not below:
            raise InputError(
                f"{directory} has no member and no ensemble: give a directory of `loraens fit` or"
                " `sweep`"
            )
        for path in sorted(below):
            paths.setdefault(path.resolve(), path)
    for run in dict.fromkeys(path.parent for path in paths.values()):
        if (sentence := missing_members(run)) is not None:
            report(sentence)
    goals: dict[Path, dict[str, str]] = {}  # of each directory of ensembles
    rows: list[Row] = []
    for resolved, path in paths.items():
        if not (path / ENSEMBLE).is_file():  # a soup is both, and counts as an ensemble
            rows.extend(_of_member(path))
            continue
        folder = resolved.parent
        if folder not in goals:
            if (sentence := missing_ensembles(folder)) is not None:
                report(sentence)
            goals[folder] = _goals(folder / RECOMMENDED)
        rows.append(_of_ensemble(path, goals[folder].get(resolved.name)))
    return rows


def _goals(file: Path) -> dict[str, str]:
    """What the ensembles that a file recommends were picked by, by name."""
    recommended = read_recommended(file).values() if file.is_file() else ()
    return {one.ensemble: one.goal for one in recommended}


def _of_member(path: Path) -> list[Row]:
    manifest = MemberStore(path).read()
    mode = manifest.settings.mode
    epoch = manifest.epochs.get("best") if manifest.imported is None else None
    known = ("rank", "scale") if manifest.imported else MEMBER_COLUMNS
    shared = {
        **dict.fromkeys(COLUMNS),
        "kind": "baseline" if mode in ("frozen", "full") else "member",
        "run": path.resolve().parent.name,
        "name": path.resolve().name,
        "status": manifest.status,
        "mode": mode,
        "backbone": manifest.settings.backbone,
        **{name: getattr(manifest.member, name) for name in known},
        "adapter": manifest.settings.adapter if mode == "lora" else None,
        "targets": "+".join(manifest.settings.targets) if mode == "lora" else None,
        "members": 1,
        "best_epoch": None if epoch is None else int(epoch.split("-")[1]),
        "trainable_parameters": manifest.trainable_parameters,
        "seconds": manifest.seconds,
        "path": str(path),
    }
    return [
        {**shared, "task": task.name, "metric": task.metric, "dev": manifest.score(task)}
        for task in manifest.settings.tasks
    ]


def _of_ensemble(path: Path, goal: str | None) -> Row:
    record = EnsembleRecord.read(path)
    folder = path.resolve().parent
    scores = {
        "dev": record.score,
        "held_out": record.interval.value,
        "low": record.interval.low,
        "high": record.interval.high,
        "test": record.test,
    }
    return {
        **dict.fromkeys(COLUMNS),
        "kind": "ensemble",
        "recommended": None if goal is None else "yes",
        "goal": goal,
        "run": folder.parent.name if folder.name == "ensembles" else folder.name,
        "name": path.resolve().name,
        "task": record.task.name,
        "members": len(record.members),
        "backbone": record.backbone,
        "method": record.method,
        "rule": record.rule,
        "metric": record.task.metric,
        **{name: None if value != value else value for name, value in scores.items()},  # NaN
        "path": str(path),
    }


def check_columns(option: str, columns: Sequence[str]) -> None:
    """Refuse names that are no columns."""
    for column in columns:
        if column not in COLUMNS:
            raise InputError(
                f"{option}: {column!r} is not a column: give one of {', '.join(COLUMNS)}"
            )


def condition(text: str) -> Callable[[Row], bool]:
    """The condition of a filter such as `rank>=8`; where the value is missing, only `!=` matches.

    Raises:
        InputError: It is no column, operator and value, or a number is expected.
    """
    match = re.fullmatch(r"([^=!<>~]+)([=!<>~]+)(.*)", text)
    if match is None or match[2] not in OPERATORS:
        signs = " ".join(OPERATORS)
        raise InputError(
            f"--filter {text!r}: a column, one of {signs} and a value are expected, such as"
            " 'rank>=8'"
        )
    column, sign, given = (part.strip() for part in match.groups())
    check_columns(f"--filter {text!r}", [column])
    value: str | float = given
    if column not in TEXTS:
        try:
            value = float(given)
        except ValueError:
            raise InputError(
                f"--filter {text!r}: {column} is a number, so a number is expected after {sign}"
            ) from None

    def matches(row: Row) -> bool:
        return sign == "!=" if row[column] is None else OPERATORS[sign](row[column], value)

    return matches


def sort(rows: Sequence[Row], given: str) -> list[Row]:
    """Rows by a column, descending after `-`; equal ones in their old order, missing values last.

    Raises:
        InputError: There is no such column.
    """
    column = given.removeprefix("-")
    check_columns("--sort", [column])
    present = [row for row in rows if row[column] is not None]
    present.sort(key=lambda row: row[column], reverse=given.startswith("-"))
    return [*present, *(row for row in rows if row[column] is None)]


def cell(column: str, value: Any) -> str:
    """A value as text for people."""
    if value is None:
        return ""
    if column in SCORES:
        return f"{value:.4f}"
    if column == "seconds":
        return f"{value:.1f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Full precision, empty where a value is missing."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [columns, *([row[name] for name in columns] for row in rows)]
    )
    return text.getvalue()


def to_json(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A list of objects, full precision, null where a value is missing."""
    return json.dumps([{name: row[name] for name in columns} for row in rows], indent=2) + "\n"


def to_markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table, rounded as on the terminal."""
    rules = ["---" if name in TEXTS else "---:" for name in columns]
    cells = [[cell(name, row[name]).replace("|", r"\|") for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [columns, rules, *cells])


FORMATS: dict[str, Callable[[Sequence[Row], Sequence[str]], str]] = {
    ".csv": to_csv,
    ".json": to_json,
    ".md": to_markdown,
}
