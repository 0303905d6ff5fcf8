"""Rows of CSV, TSV, JSON lines and Parquet files: each line is one record, and what is dropped is
counted.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from loraens.errors import InputError

Format = Literal["csv", "tsv", "jsonl", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
Row = dict[str, Any]
csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some texts


@dataclass
class Table:
    """A file being read: its format, its columns in order and its rows.

    Args:
        name: The file's name, for messages.
        format: What it was read as.
        columns: Column names, in order; those of the first record for JSON lines.
        rows: Pairs of line number (from 1, the header counted) and row; None for a line with the
            wrong number of fields.
    """

    name: str
    format: Format
    columns: list[str]
    rows: Iterator[tuple[int, Row | None]]

    def require(self, columns: Iterable[str], option: str) -> None:
        """Refuse a file that lacks a column.

        Raises:
            InputError: It names the column, the option that names it and the columns that are
                there.
        """
        for column in columns:
            if column not in self.columns:
                raise InputError(
                    f"{self.name} has no column {column!r} ({option}); its columns are"
                    f" {', '.join(map(repr, self.columns))}"
                )


@contextmanager
def open_table(path: str | Path, format: Format | None = None) -> Iterator[Table]:
    """Open a file of records for the length of a `with` block; "-" is standard input.

    The format is taken from the suffix unless given; a delimited file whose header has a tab is
    tab-separated whatever its suffix (as the course's .csv files are).

    Raises:
        InputError: It is missing, empty, not UTF-8, or of unknown format.
    """
    name = "standard input" if str(path) == "-" else str(path)
    if str(path) == "-":
        if format == "parquet":
            raise InputError("standard input cannot be read as parquet: give a file")
        yield _open_lines(sys.stdin.buffer, name, format)
        return
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{name} does not exist or is not a file: check the path")
    format = format or SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise InputError(f"{name} has none of the known suffixes {', '.join(SUFFIXES)}: rename it")
    with path.open("rb") as stream:
        yield (
            _open_parquet(stream, name)
            if format == "parquet"
            else _open_lines(stream, name, format)
        )


def _open_parquet(stream: BinaryIO, name: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"{name} is not a Parquet file ({error}): check the file or rename it"
        ) from None

    def rows() -> Iterator[Row]:
        try:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{name} is damaged ({error}): make it again") from None

    return Table(name, "parquet", list(file.schema_arrow.names), enumerate(rows(), start=1))


def _open_lines(stream: BinaryIO, name: str, format: Format | None) -> Table:
    lines = _decoded(stream, name)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if not number:
        raise InputError(f"{name} is empty: a header line and records are expected")
    if format == "jsonl" or (format is None and first.lstrip().startswith("{")):
        parsed = _json_row(first, name, number)
        return Table(name, "jsonl", list(parsed), _json_rows(parsed, number, lines, name))
    delimiter = (
        "\t"
        if format == "tsv" or "\t" in first
        else ";"
        if first.count(";") > first.count(",")
        else ","
    )
    columns = split_fields(first, delimiter, None)
    repeated = {column for column in columns if columns.count(column) > 1}
    if repeated:
        raise InputError(f"{name} has two columns named {repeated.pop()!r}: rename one")
    return Table(
        name,
        "tsv" if delimiter == "\t" else "csv",
        columns,
        _delimited_rows(columns, delimiter, lines),
    )


def _decoded(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, without their ends."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} line {number} is not UTF-8 (byte 0x{raw[error.start]:02x} at"
                f" {error.start}): save it as UTF-8"
            ) from None
        yield number, line


def _json_row(line: str, name: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name} line {number} is not JSON ({error}): one object a line is expected"
        ) from None
    if not isinstance(row, dict):
        raise InputError(
            f"{name} line {number} is not a JSON object: one object a line is expected"
        )
    return row


def _json_rows(
    first: Row, number: int, lines: Iterator[tuple[int, str]], name: str
) -> Iterator[tuple[int, Row | None]]:
    yield number, first
    for number, line in lines:
        if line.strip():
            yield number, _json_row(line, name, number)


def _delimited_rows(
    columns: list[str], delimiter: str, lines: Iterator[tuple[int, str]]
) -> Iterator[tuple[int, Row | None]]:
    for number, line in lines:
        if not line and len(columns) > 1:
            continue  # an empty line is a record only where there is one column
        fields = split_fields(line, delimiter, len(columns))
        yield (
            number,
            (dict(zip(columns, fields, strict=True)) if len(fields) == len(columns) else None),
        )


def split_fields(line: str, delimiter: str, expected: int | None) -> list[str]:
    """Fields of one line: by the rules of CSV if they apply to it, else split at every delimiter.

    A quote that opens a field and is not closed, or is closed before the field ends, is an ordinary
    character.
    """
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        fields = []
    if fields and expected in (None, len(fields)):
        return fields
    return [_unquoted(text) for text in line.split(delimiter)]


def _unquoted(text: str) -> str:
    inner = text[1:-1].replace('""', "")
    if len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in inner:
        return text[1:-1].replace('""', '"')
    return text


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list) else value


class RowWriter:
    """Writes rows as CSV, TSV or JSON lines to an open text stream; the header comes before the
    first row. A list in a cell of CSV or TSV is JSON.
    """

    def __init__(self, stream: io.TextIOBase, format: Format, columns: list[str]) -> None:
        self._stream = stream
        self._csv: csv.DictWriter[str] | None = None
        if format != "jsonl":
            delimiter = "\t" if format == "tsv" else ","
            self._csv = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
            self._csv.writeheader()

    def write(self, row: Row) -> None:
        """Write one row."""
        if self._csv is not None:
            self._csv.writerow({name: _cell(value) for name, value in row.items()})
        else:
            self._stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
