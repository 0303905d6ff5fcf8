"""Tables of JSON, Parquet, Arrow and Excel files, and of rows in memory. Rows are streamed."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraens.data.streams import Lines
from loraens.data.tables import MAX_RECORD, Row, Table, check_distinct, too_long
from loraens.errors import InputError

if TYPE_CHECKING:
    import pyarrow

CHUNK = 2**16  # characters of a JSON array that are read at once
BATCH_BYTES = 2**25
BATCH_ROWS = 4096


def open_json_lines(first: tuple[int, str], lines: Iterator[tuple[int, str]], name: str) -> Table:
    """The table of a file with one JSON object a line."""

    def rows() -> Iterator[tuple[int, Row]]:
        for number, line in lines:
            if line.strip():
                yield number, _object(line, f"{name} line {number}")

    number, line = first
    row = _object(line, f"{name} line {number}")
    return Table(name, "jsonl", list(row), chain([(number, row)], rows()))


def _object(text: str, where: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not JSON ({error}): one object a line, or an array of objects, is expected"
        ) from None
    return _checked_object(row, where)


def _checked_object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is not a JSON object: one object a line, or an array of objects, is expected"
        )
    return row


def open_json_array(first: tuple[int, str], lines: Lines) -> Table:
    """The table of a file that is one JSON array of objects; `first` is its begin."""
    rows = _array_rows(first, lines)
    start = next(rows, None)
    if start is None:
        raise InputError(f"{lines.name} is an empty array: objects are expected")
    return Table(lines.name, "json", list(start[1]), chain([start], rows))


def _array_rows(first: tuple[int, str], lines: Lines) -> Iterator[tuple[int, Row]]:
    number, text = first
    position = text.index("[") + 1
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    while True:
        gap = between.match(text, position)
        assert gap is not None
        number += text.count("\n", position, gap.end())
        position = gap.end()
        where = f"{lines.name} line {number}"
        if text.startswith("]", position):
            return
        try:
            row, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            if len(text) - position > MAX_RECORD:
                raise too_long(where) from None
            more = lines.read(max(CHUNK, len(text) - position))
            if not more:
                raise InputError(
                    f"{where} is not JSON ({error}): an array of objects is expected"
                ) from None
            text = text[position:] + more
            position = 0
            continue
        if end - position > MAX_RECORD:
            raise too_long(where)
        yield number, _checked_object(row, where)
        number += text.count("\n", position, end)
        position = end


@contextmanager
def _arrow_errors(name: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"{name} is damaged, or not {kind} ({reason}): make it again, or rename it"
        ) from None


def open_parquet(path: Path, name: str) -> Table:
    """The table of a Parquet file.

    Texts are read as dictionaries, so that one that repeats is in memory once.
    """
    import pyarrow
    import pyarrow.parquet

    with _arrow_errors(name, "a Parquet file"):
        schema = pyarrow.parquet.read_schema(path)
        texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
        file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
    widest = 1.0
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if group.num_rows:
            widest = max(widest, group.total_byte_size / group.num_rows)
    if widest > MAX_RECORD:
        raise too_long(f"a row of {name}, on average,")
    size = min(BATCH_ROWS, max(1, math.floor(BATCH_BYTES / widest)))

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with file:
            yield from file.iter_batches(batch_size=size)

    return Table(name, "parquet", schema.names, _arrow_rows(batches(), name, "a Parquet file"))


def open_arrow(path: Path, name: str) -> Table:
    """The table of an Arrow file or stream, such as `datasets` keeps on disk."""
    import pyarrow
    import pyarrow.ipc

    kind = "an Arrow file"
    with _arrow_errors(name, kind):
        mapped = pyarrow.memory_map(str(path))
        try:
            reader = pyarrow.ipc.open_file(mapped)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader = pyarrow.ipc.open_stream(mapped)

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with mapped:
            if isinstance(reader, pyarrow.ipc.RecordBatchFileReader):
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                yield from reader

    return Table(name, "arrow", reader.schema.names, _arrow_rows(batches(), name, kind))


def _arrow_rows(
    batches: Iterator[pyarrow.RecordBatch], name: str, kind: str
) -> Iterator[tuple[int, Row]]:
    number = 1
    while True:
        with _arrow_errors(name, kind):
            batch = next(batches, None)
            if batch is None:
                return
            columns = [_values(column, f"{name} after row {number - 1}") for column in batch]
        names = batch.schema.names
        for row in zip(*columns, strict=True):
            yield number, dict(zip(names, row, strict=True))
            number += 1


def _values(column: pyarrow.Array, where: str) -> list[Any]:
    """The values of a column; equal texts of a dictionary are one object."""
    import pyarrow
    import pyarrow.compute

    texts = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
    kind = texts.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        longest = pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py()
        if longest is not None and longest > MAX_RECORD:
            raise too_long(f"a text of {where}")
    if texts is column:
        values: list[Any] = column.to_pylist()
        return values
    entries = texts.to_pylist()
    return [None if index is None else entries[index] for index in column.indices.to_pylist()]


def open_excel(path: Path, name: str) -> Table:
    """The table of the only sheet of an Excel workbook that is not empty."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise InputError(
            f"{name} needs the package openpyxl: pip install 'loraens[excel]', or save it as CSV"
        ) from None
    with _workbook_errors(name):
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: sheet for sheet in book.worksheets}
        filled = [title for title, sheet in sheets.items() if any(map(_filled, sheet.values))]
    if len(filled) != 1:
        raise InputError(
            f"{name} has {len(filled)} sheets with cells ({', '.join(filled)}): one is expected,"
            " so save the one that you mean as a file of its own"
        )
    rows = enumerate(_cells(sheets[filled[0]], name), start=1)
    header = next(cells for _, cells in rows if _filled(cells))
    width = max(index for index, cell in enumerate(header, start=1) if cell is not None)
    columns = ["" if cell is None else str(cell) for cell in header[:width]]
    check_distinct(name, columns)

    def records() -> Iterator[tuple[int, Row | None]]:
        for number, cells in rows:
            if _filled(cells):
                padded = (*cells, *[None] * (width - len(cells)))
                whole = not _filled(padded[width:])
                row = dict(zip(columns, padded[:width], strict=True))
                yield number, row if whole else None
        book.close()

    return Table(name, "excel", columns, records())


@contextmanager
def _workbook_errors(name: str) -> Iterator[None]:
    """The errors of openpyxl, whose parsers raise those of archives, XML and Python's types."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, SyntaxError),
        *(LookupError, ValueError, TypeError, AttributeError),
    ) as error:
        raise InputError(
            f"{name} is not an Excel workbook ({error}): save it as .xlsx or CSV"
        ) from None


def _cells(sheet: Any, name: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a sheet."""
    rows = iter(sheet.values)
    while True:
        with _workbook_errors(name):
            cells = next(rows, None)
        if cells is None:
            return
        yield cells


def _filled(cells: Sequence[Any]) -> bool:
    return any(cell is not None for cell in cells)


def open_memory(records: Any, name: str) -> Table:
    """The table of a pandas DataFrame, or of a list of dicts.

    Raises:
        InputError: It is something else, or empty.
    """
    if hasattr(records, "itertuples"):
        columns = [str(column) for column in records.columns]
        tuples = records.itertuples(index=False, name=None)
        rows: Iterator[Row] = (dict(zip(columns, cells, strict=True)) for cells in tuples)
    elif isinstance(records, Sequence) and all(isinstance(row, Mapping) for row in records):
        columns = list(dict.fromkeys(str(column) for row in records for column in row))
        rows = map(dict, records)
    else:
        raise InputError(
            f"{name} is {type(records).__name__}: a path, a DataFrame or a list of dicts is"
            " expected"
        )
    return Table(name, "memory", columns, enumerate(rows, start=1))
