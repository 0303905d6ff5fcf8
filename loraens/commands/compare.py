"""`loraens compare`: members, baselines and ensembles of any number of runs in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraens.commands.parser import Parser
from loraens.errors import InputError, say
from loraens.files import write_atomically
from loraens.report.comparison import (
    COLUMNS,
    FORMATS,
    OPERATORS,
    TEXTS,
    Row,
    cell,
    check_columns,
    condition,
    read_rows,
    sort,
)


def print_table(rows: Sequence[Row], columns: Sequence[str] | None) -> None:
    """Print the table; unless columns are given, without empty ones and paths, what all rows share
    in the caption.
    """
    from rich.table import Table

    from loraens.report.terminal import show

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
                name: cell(name, cells[0])
                for name, cells in values.items()
                if all(value == cells[0] for value in cells)
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
    show(table, keys=1 + list(columns).index("name") if "name" in columns else 1)


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
    check_columns("--columns", columns or ())
    check_columns("--sort", [order.removeprefix("-")] if order else [])
    conditions = [condition(text) for text in filters]
    all_rows = read_rows(directories)
    rows = [row for row in all_rows if all(matches(row) for matches in conditions)]
    if order:
        rows = sort(rows, order)
    if out is not None:
        write_atomically(out, FORMATS[out.suffix](rows, columns or COLUMNS).encode())
        say(f"rows in {out}: {len(rows)}")
    elif rows:
        print_table(rows, columns)
    if not rows:
        say(f"--filter leaves none of {len(all_rows)} rows")
    return rows


def main(args: list[str]) -> None:
    """Run `compare` with the options of the command line."""
    parser = Parser("compare", __doc__)
    several: dict[str, Any] = {"type": str, "action": "extend", "default": []}
    parser.add_argument(
        "directories", nargs="*", type=str, help="Directories of runs, at any depth."
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
    names = [*given.directories, *given.runs]
    directories = [Path(name) for name in names]
    if not all(names) or not directories:
        raise InputError("no directory is given: name one or more of runs, such as checkpoints")
    columns: list[str] = []
    for text in given.columns:
        columns += filter(None, text.split(","))
    compare(
        directories=directories,
        filters=given.filter,
        order=given.sort,
        columns=list(dict.fromkeys(columns)) or None,
        out=Path(given.out) if given.out else None,
    )
