"""`loraens compare`: members, baselines and ensembles of any number of runs in one table, read from
their JSON files alone.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loraens.errors import InputError
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, read_ensemble, write_atomically

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
        "members",
        "method",
        "rule",
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
TEXTS = frozenset(
    {
        "kind",
        "run",
        "name",
        "task",
        "status",
        "mode",
        "backbone",
        "method",
        "rule",
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


def read_rows(directories: Sequence[Path]) -> list[Row]:
    """A row for every ensemble, and for every task of every member, at or anywhere below some
    directories.

    Raises:
        InputError: A directory is missing or holds none, or a file is not of the store's format.
    """
    found: dict[Path, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory: give directories that hold runs")
        below = sorted(
            {file.parent for name in (MANIFEST, ENSEMBLE) for file in directory.rglob(name)}
        )
        if not below:
            raise InputError(
                f"{directory} holds no member and no ensemble: give a directory of `loraens fit` or"
                " `sweep`"
            )
        for path in below:
            found.setdefault(path.resolve(), path)
    rows: list[Row] = []
    for path in found.values():  # a soup is both, and counts as an ensemble
        rows.extend([_of_ensemble(path)] if (path / ENSEMBLE).is_file() else _of_member(path))
    return rows


def _of_member(path: Path) -> list[Row]:
    manifest = MemberStore(path).read()
    settings = manifest["settings"]
    best = manifest["dev"].get("best", {})
    mode = settings.get("mode")
    epoch = manifest["epochs"].get("best")
    shared = {
        **dict.fromkeys(COLUMNS),
        "kind": "baseline" if mode in ("frozen", "full") else "member",
        "run": path.resolve().parent.name,
        "name": path.resolve().name,
        "status": manifest.get("status"),
        "mode": mode,
        "backbone": settings["backbone"],
        **{name: manifest["member"].get(name) for name in ("rank", "scale", "seed", "lr")},
        "members": 1,
        "best_epoch": None if epoch is None else int(epoch.split("-")[1]),
        **{name: manifest.get(name) for name in ("trainable_parameters", "seconds")},
        "path": str(path),
    }
    return [
        {
            **shared,
            "task": task["name"],
            "metric": task["metric"],
            "dev": best.get(task["name"], {}).get(task["metric"]),
        }
        for task in settings["tasks"]
    ]


def _of_ensemble(path: Path) -> Row:
    entry = read_ensemble(path)
    folder = path.resolve().parent
    metric = entry["task"]["metric"]
    interval = entry["interval"]
    return {
        **dict.fromkeys(COLUMNS),
        "kind": "ensemble",
        "run": folder.parent.name if folder.name == "ensembles" else folder.name,
        "name": path.resolve().name,
        "task": entry["task"]["name"],
        "members": len(entry["members"]),
        **{name: entry[name] for name in ("backbone", "method", "rule", "test")},
        "metric": metric,
        "dev": entry["dev"][metric],
        "held_out": interval["value"],
        "low": interval["low"],
        "high": interval["high"],
        "path": str(path),
    }


def _check(option: str, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise InputError(
                f"{option}: {column!r} is not a column: give one of {', '.join(COLUMNS)}"
            )


def condition(text: str) -> Callable[[Row], bool]:
    """What a filter such as `rank>=8` asks of a row; where the value is missing, only `!=` holds.

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
    _check(f"--filter {text!r}", [column])
    value: str | float = given
    if column not in TEXTS:
        try:
            value = float(given)
        except ValueError:
            raise InputError(
                f"--filter {text!r}: {column} is a number, so a number is expected after {sign}"
            ) from None

    def holds(row: Row) -> bool:
        return sign == "!=" if row[column] is None else OPERATORS[sign](row[column], value)

    return holds


def sort(rows: Sequence[Row], given: str) -> list[Row]:
    """Rows by a column, descending after `-`; equal ones in their old order, missing values last.

    Raises:
        InputError: There is no such column.
    """
    column = given.removeprefix("-")
    _check("--sort", [column])
    known = [row for row in rows if row[column] is not None]
    known.sort(key=lambda row: row[column], reverse=given.startswith("-"))
    return [*known, *(row for row in rows if row[column] is None)]


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


def print_table(rows: Sequence[Row], columns: Sequence[str] | None) -> None:
    """Print the table; unless columns are given, without empty ones and paths, what all rows share
    in the caption.
    """
    from rich.console import Console
    from rich.table import Table

    shared: dict[str, str] = {}
    if columns is None:
        columns = [
            name
            for name in COLUMNS
            if name != "path" and any(row[name] is not None for row in rows)
        ]
        if len(rows) > 1:
            values = {name: [row[name] for row in rows] for name in columns}
            shared = {
                name: cell(name, found[0])
                for name, found in values.items()
                if all(v == found[0] for v in found)
            }
        columns = [name for name in columns if name not in shared]
    caption = (
        f"The same in all rows: {', '.join(f'{name} {value}' for name, value in shared.items())}. "
        if shared
        else ""
    )
    table = Table(caption=f"{caption}Epochs and ensembles were chosen on dev.")
    for name in columns:
        table.add_column(
            name.replace("_", " "), justify="left" if name in TEXTS else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell(name, row[name]) for name in columns))
    Console(width=None if sys.stdout.isatty() else 1000, markup=False).print(
        table
    )  # in a file or pipe, a row is a line


def compare(
    directories: Sequence[Path],
    filters: Sequence[str],
    order: str | None,
    columns: Sequence[str] | None,
    out: Path | None,
) -> list[Row]:
    """Read, filter and sort rows, and print or write them; returns them."""
    if out is not None and out.suffix not in FORMATS:
        raise InputError(
            f"--out {out}: the suffix picks the format, give a file that ends in"
            f" {', '.join(FORMATS)}"
        )
    _check("--columns", columns or ())
    _check("--sort", [order.removeprefix("-")] if order else [])
    conditions = [condition(text) for text in filters]
    found = read_rows(directories)
    rows = [row for row in found if all(holds(row) for holds in conditions)]
    if order:
        rows = sort(rows, order)
    if out is not None:
        write_atomically(out, FORMATS[out.suffix](rows, columns or COLUMNS).encode())
        print(f"rows in {out}: {len(rows)}")
    elif rows:
        print_table(rows, columns)
    if not rows:
        print(f"--filter leaves none of {len(found)} rows")
    return rows


def main(args: list[str]) -> None:
    """Run `compare` with the options of the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="loraens compare", description=__doc__, exit_on_error=False)
    several: dict[str, Any] = {"type": str, "action": "extend", "default": []}
    parser.add_argument(
        "directories", nargs="*", type=str, help="Directories that hold runs, at any depth."
    )
    parser.add_argument("--runs", nargs="+", **several, help="The same as an option.")
    parser.add_argument(
        "--filter",
        nargs="+",
        **several,
        help=f"Conditions that must all hold: a column, one of {' '.join(OPERATORS)}, a value.",
    )
    parser.add_argument(
        "--sort", type=str | None, default=None, help="A column; --sort=-dev is descending."
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        **several,
        help=f"Some of {', '.join(COLUMNS)}; commas may part them.",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="A .csv, .json or .md file; the terminal by default.",
    )
    given = parser.parse_args(args)
    directories = [Path(path) for path in [*given.directories, *given.runs]]
    if not directories:
        raise InputError(
            "no directory is given: name one or more that hold runs, such as checkpoints"
        )
    columns = [name for text in given.columns for name in text.split(",") if name]
    compare(
        directories,
        given.filter,
        given.sort,
        list(dict.fromkeys(columns)) or None,
        Path(given.out) if given.out else None,
    )
