"""Tables as text: whole in a file, and in a terminal of any width, where no number is cut."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from loraens.errors import escaped

UNBOUNDED = 10_000


def show(
    table: Table, keys: int = 1, file: IO[str] | None = None, width: int | None = None
) -> None:
    """Print a table of texts; where it is wider than the terminal, its columns part by part.

    Args:
        table: The table.
        keys: How many of its first columns are in every part.
        file: Where it goes; standard output by default.
        width: Characters of a line; those of the terminal by default, and in a file or pipe, where
            a row is a line, as many as it takes.
    """
    _escape(table)
    console = Console(file=file, markup=False, emoji=False, width=width)
    if width is None and not console.is_terminal:
        console = Console(file=file, markup=False, emoji=False, width=UNBOUNDED)
    for part in _parts(table, console, keys):
        console.print(part)


def _escape(table: Table) -> None:
    """Escape the texts of a table: names may be a stranger's."""
    for part in ("title", "caption"):
        if isinstance(text := getattr(table, part), str):
            setattr(table, part, escaped(text))
    for column in table.columns:
        column.header = escaped(str(column.header))
        column._cells = [escaped(cell) if isinstance(cell, str) else cell for cell in column.cells]


def _parts(table: Table, console: Console, keys: int) -> Iterator[Table]:
    """The table, or tables of some of its columns that fit the console."""
    if Measurement.get(console, console.options, table).maximum <= console.width - 1:
        yield table
        return
    columns = [_narrow(column, console.width // (2 * keys)) for column in table.columns[:keys]]
    columns += [_narrow(column) for column in table.columns[keys:]]
    chosen: list[list[Column]] = [[]]
    for column in columns[keys:]:
        if chosen[-1] and _width([*columns[:keys], *chosen[-1], column]) > console.width:
            chosen.append([])
        chosen[-1].append(column)
    for number, others in enumerate(chosen):
        part = copy(table)
        part.columns = [copy(column) for column in [*columns[:keys], *others]]
        for index, column in enumerate(part.columns):
            column._index = index
        part.title = table.title if number == 0 else None
        part.caption = table.caption if number == len(chosen) - 1 else None
        yield part


def _narrow(column: Column, most: int | None = None) -> Column:
    """The column at the width of its cells, the words of its heading below each other."""
    words = str(column.header).split()
    width = max(cell_len(text) for text in [*words, *map(str, column.cells), ""])
    narrow = copy(column)
    narrow.width = width if most is None else min(width, most)
    narrow.overflow = "fold"
    narrow.no_wrap = False
    return narrow


def _width(columns: list[Column]) -> int:
    """Characters of a row: the cells, a space at both their sides, and the lines between them."""
    return 1 + sum((column.width or 0) + 3 for column in columns)
