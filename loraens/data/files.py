"""Tables of files: what a path means, and which reader its format has."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from loraens.data.delimited import DelimitedWriter, open_delimited
from loraens.data.formats import (
    open_arrow,
    open_excel,
    open_json_array,
    open_json_lines,
    open_memory,
    open_parquet,
)
from loraens.data.streams import COMPRESSIONS, Lines
from loraens.data.tables import (
    MAX_RECORD,
    Format,
    Position,
    Reading,
    Row,
    Table,
    listed,
    too_long,
)
from loraens.errors import InputError

SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".xlsx": "excel",
}
BINARY = {"parquet": open_parquet, "arrow": open_arrow, "excel": open_excel}


@contextmanager
def open_table(
    source: Any, format: Format | None = None, reading: Reading | None = None
) -> Iterator[Table]:
    """Open records for the length of a `with` block.

    The format is taken from the suffix unless given, and of standard input and pipes, which are
    read once, from the first line; a delimited file whose header has a tab is tab-separated
    whatever its suffix (as the course's .csv files are).

    Args:
        source: A file, compressed or not; a directory of files, or a pattern such as
            "data/*.csv", in the order of their names; "-", standard input; a DataFrame or a list of
            dicts.
        format: Format of text files, where names do not tell it.
        reading: Encoding and quotes of text files.

    Raises:
        InputError: It is missing, empty, cannot be decoded, or is of unknown format; or files of a
            directory differ in their columns.
    """
    reading = reading or Reading()
    if not isinstance(source, (str, os.PathLike)):
        yield open_memory(source, "the table in memory")
        return
    paths = None if str(source) == "-" else files_of(Path(source))
    with ExitStack() as stack:
        if paths is None or len(paths) == 1:
            yield _open_file(None if paths is None else paths[0], format, reading, stack)
        else:
            yield _open_files(str(source), paths, format, reading, stack)


def files_of(path: Path) -> list[Path]:
    """The files that a path names: one, those of a directory, or those of a pattern.

    Raises:
        InputError: There are none.
    """
    if path.is_dir():
        splits = [state.parent.name for state in path.glob("*/state.json")]
        if splits := sorted(splits, key=lambda name: (name != "train", name)):
            raise InputError(
                f"{path} holds the splits {', '.join(splits)}: give one of them, such as"
                f" {path / splits[0]}"
            )
        saved = (path / "state.json").is_file()  # by `datasets`
        names = [".arrow"] if saved else [*SUFFIXES]
        files = [file for file in sorted(path.iterdir()) if _suffix(file) in names]
    elif path.exists():
        files = [path]
    else:
        files = [Path(name) for name in sorted(glob(str(path), recursive=True))]
        files = [file for file in files if not file.is_dir()]
        if not files:
            raise InputError(f"{path} does not exist or is not a file: check the path")
    if not files:
        raise InputError(f"{path} has no file with a suffix {', '.join(SUFFIXES)}: check the path")
    return files


def _suffix(path: Path) -> str:
    """The suffix that tells the format: the one before that of a compression."""
    packed = path.suffix.lower() in COMPRESSIONS
    return (path.with_suffix("") if packed else path).suffix.lower()


def _open_files(
    name: str, paths: list[Path], format: Format | None, reading: Reading, stack: ExitStack
) -> Table:
    """Several files as one table; each is opened in its turn."""
    first = _open_file(paths[0], format, reading, stack)

    def rows() -> Iterator[tuple[Position, Row | None]]:
        for path in paths:
            with ExitStack() as inner:
                table = first if path == paths[0] else _open_file(path, format, reading, inner)
                if table.format not in ("jsonl", "json") and set(table.columns) != set(
                    first.columns
                ):
                    raise InputError(
                        f"{table.name} has the columns {listed(table.columns)}, and {first.name}"
                        f" has {listed(first.columns)}: the files of {name} must have the same"
                    )
                for position, row in table.rows:
                    yield f"{path.name}:{position}", row

    return Table(name, first.format, first.columns, rows())


def _open_file(
    path: Path | None, format: Format | None, reading: Reading, stack: ExitStack
) -> Table:
    """The table of a file, or of standard input; the stack closes it."""
    if path is None:
        if format in BINARY:
            raise InputError(f"standard input cannot be read as {format}: give a file")
        return _open_text(sys.stdin.buffer, "standard input", format, reading, stack)
    name = str(path)
    packed = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else None
    format = format or SUFFIXES.get(_suffix(path))
    if format is None and path.is_file():
        known = ", ".join([*SUFFIXES, *(f".csv{suffix}" for suffix in COMPRESSIONS)])
        raise InputError(f"{name} has none of the known suffixes {known}: rename or convert it")
    if format in BINARY:
        if packed:
            raise InputError(
                f"{name} is compressed twice: unpack it, {format} is compressed itself"
            )
        return BINARY[format](path, name)
    stream = COMPRESSIONS[packed](path) if packed else path.open("rb")
    return _open_text(stack.enter_context(stream), name, format, reading, stack)


def _open_text(
    stream: BinaryIO, name: str, format: Format | None, reading: Reading, stack: ExitStack
) -> Table:
    lines = Lines(stream, name, reading)
    stack.callback(lines.detach)
    first = lines.first()
    if first is None:
        raise InputError(f"{name} is empty: a header line and records are expected")
    number, line = first
    if "\0" in line:
        raise InputError(
            f"{name} is no text, or not {reading.encoding.upper()}: give its encoding, such as"
            f" --{reading.flag}encoding utf-16"
        )
    start = line.lstrip()
    if format in ("json", None) and start.startswith("["):
        return open_json_array(first, lines)
    if len(line) > MAX_RECORD:
        raise too_long(f"{name} line {number}")
    if format in ("json", "jsonl") or (format is None and start.startswith("{")):
        return open_json_lines(first, iter(lines), name)
    return open_delimited(chain([first], lines), line, name, format, reading)


class RowWriter:
    """Writes rows as CSV, TSV or JSON lines to an open text stream; the header comes before the
    first row. A list in a cell of CSV or TSV is JSON; `spreadsheet` is of these, as
    `DelimitedWriter` has it.
    """

    def __init__(
        self,
        stream: io.TextIOBase,
        format: Format,
        columns: list[str],
        spreadsheet: bool = False,
    ) -> None:
        self._stream = stream
        self._delimited: DelimitedWriter | None = None
        if format in ("csv", "tsv"):
            delimiter = "\t" if format == "tsv" else ","
            self._delimited = DelimitedWriter(stream, delimiter, columns, spreadsheet)

    def write(self, row: Row) -> None:
        """Write one row."""
        if self._delimited is not None:
            self._delimited.write(row)
        else:
            self._stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
