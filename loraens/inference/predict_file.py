"""Predictions for every row of a file of any length.

Rows keep their order and their columns; memory does not grow with the file.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from loraens.cluster import Cluster, fetched
from loraens.data.files import SUFFIXES, RowWriter, open_table
from loraens.data.splits import row_texts
from loraens.data.tables import Format, Position, Reading, Row, Table
from loraens.data.values import cell_text
from loraens.errors import InputError
from loraens.files import replacing
from loraens.inference.predictor import Predictor
from loraens.tasks import Task

WRITTEN: dict[Format, Format] = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "json": "jsonl"}
CHUNK = 2048  # rows that are tokenised, ordered by length and predicted together
MAX_CHARACTERS = 2**24  # of the rows of a chunk
Texts = list[tuple[str, ...]]  # of a chunk


def check_output(input: str, output: str) -> Format | None:
    """Format of the output by its suffix; None where it is the input's.

    Raises:
        InputError: The output is the input, or its name, directory or format cannot be used.
    """
    if output == "-":
        return None
    path = Path(output)
    format = SUFFIXES.get(path.suffix.lower())
    if format not in WRITTEN or path.is_dir():
        raise InputError(
            f"output {output}: a file name that ends in .csv, .tsv or .jsonl is expected",
            option="output",
        )
    check_place(input, output)
    return format


def check_place(input: str, output: str) -> None:
    """Refuse an output that would be written over the input or into a directory that is not there.

    Raises:
        InputError: It would.
    """
    if not Path(output).absolute().parent.is_dir():
        raise InputError(
            f"output {output}: its directory does not exist, make it first", option="output"
        )
    if Path(input).exists() and Path(output).exists() and os.path.samefile(input, output):
        raise InputError(f"output {output} is the input: choose another file", option="output")


def predict_file(
    load: Callable[[], Predictor],
    input: str,
    output: str,
    task: str | None = None,
    format: Format | None = None,
    coverage: float | None = None,
    reading: Reading | None = None,
    missing: Sequence[str | int | float] = (),
    columns: Sequence[str] | None = None,
    cluster: Cluster | None = None,
    spreadsheet: bool = False,
    cascade: float | None = None,
) -> list[Position]:
    """Write predictions for every row of a file.

    Args:
        load: Loads the predictor, once the input could be opened.
        input: As `open_table` takes it; - is standard input.
        output: CSV, TSV or JSON lines file; - is standard output, in the format of the input.
        task: The task, where there are several.
        format: Format of the input, where its name does not tell.
        coverage: Share of texts whose label is in the set or interval that rows then have.
        reading: Encoding and quotes of the input.
        missing: Further cells that are missing texts.
        columns: Names of the predictions' columns to write; all by default.
        cluster: Predicts several chunks at a time, if given, and is entered for that; its workers
            load the predictor, too.
        spreadsheet: Whether cells of CSV or TSV that a spreadsheet would take for formulas are
            written as text.
        cascade: As of `Predictor.keep`; not with a cluster.

    Returns:
        Positions of rows without a text, whose prediction is empty.

    Raises:
        InputError: A file or row cannot be used; then no output is left.
    """
    out_format = check_output(input, output)
    with open_table(input, format, reading) as table:
        written = out_format or table.format
        if written not in WRITTEN:
            raise InputError(
                f"output is not given: a .csv, .tsv or .jsonl file is expected for {written} input",
                option="output",
            )
        if spreadsheet and written not in ("csv", "tsv"):
            raise InputError(
                f"spreadsheet is for CSV and TSV, and {written} would be written: leave it out",
                option="spreadsheet",
            )
        predictor = load()
        chosen = predictor.task(task)
        table.require(chosen.text_columns, f"the text columns of task {chosen.name}")
        region = predictor.region(chosen, coverage)
        if columns:
            predictor.keep(columns, chosen, region, cascade)
        own = predictor.columns(chosen, region)

        def predict(chunks: Iterator[Texts]) -> Iterator[list[Row]]:
            if cluster is None:
                return (predictor.rows(texts, chosen, region) for texts in chunks)
            return cluster.in_order(_predict_chunk, (load, chosen.name, region, columns), chunks)

        with _stream(output) as stream, _bar(input) as bar, cluster or nullcontext():
            return _write_rows(
                predict=predict,
                columns=own,
                task=chosen,
                table=table,
                missing=frozenset(map(cell_text, missing)),
                writer=RowWriter(stream, WRITTEN[written], [*table.columns, *own], spreadsheet),
                bar=bar,
            )


def _predict_chunk(shared: list[Any], texts: Texts) -> list[Row]:
    """Predictions of a chunk, of whose predictor the process keeps one; a task of Ray."""
    load, name, region, columns = fetched(shared[0])
    predictor = _loaded(load)
    task = predictor.task(name)
    if columns and predictor.kept is None:
        predictor.keep(columns, task, region)
    return predictor.rows(texts, task, region)


@lru_cache(maxsize=1)
def _loaded(load: Callable[[], Predictor]) -> Predictor:
    return load()


def _bar(input: str) -> Any:
    """A progress bar in rows, for terminals; of a plain file it is in lines, which are counted
    first, so that it can tell the time left.
    """
    from tqdm import tqdm

    path = Path(input)
    total = None
    if path.is_file() and SUFFIXES.get(path.suffix.lower()) in ("csv", "tsv", "jsonl"):
        with path.open("rb") as file:
            total = sum(1 for _ in file)
    unit = " rows" if total is None else " lines"
    return tqdm(desc="predict", total=total, unit=unit, file=sys.stderr, disable=None)


def _write_rows(
    predict: Callable[[Iterator[Texts]], Iterator[list[Row]]],
    columns: Sequence[str],
    task: Task,
    table: Table,
    missing: frozenset[str],
    writer: RowWriter,
    bar: Any,
) -> list[Position]:
    """Predict and write all rows, chunk by chunk; returns the positions of rows without a text."""
    skipped: list[Position] = []
    blank = dict.fromkeys(columns)
    read: deque[list[tuple[Position, Row, tuple[str, ...] | None]]] = deque()

    def chunks() -> Iterator[Texts]:
        for chunk in iter(lambda: _chunk(table.rows), []):
            rows = [(position, _whole(row, position, table)) for position, row in chunk]
            read.append([(at, row, _texts(row, at, table, task, missing)) for at, row in rows])
            yield [text for _, _, text in read[-1] if text is not None]

    for predicted in predict(chunks()):
        chunk = read.popleft()
        predictions = iter(predicted)
        for position, row, text in chunk:
            if text is None:
                skipped.append(position)
            if taken := row.keys() & blank.keys():
                raise InputError(
                    f"{table.at(position)} already has a field {min(taken)!r}, as predictions have:"
                    " rename it"
                )
            try:
                writer.write({**row, **(blank if text is None else next(predictions))})
            except ValueError as error:
                raise InputError(
                    f"{table.at(position)} does not fit the columns of the output: {error}"
                ) from None
        last = chunk[-1][0]
        bar.update(len(chunk) if bar.total is None or isinstance(last, str) else last - bar.n)
    return skipped


def _chunk(rows: Iterator[tuple[Position, Row | None]]) -> list[tuple[Position, Row | None]]:
    """The next rows: at most `CHUNK`, and of few characters where they are long."""
    chunk: list[tuple[Position, Row | None]] = []
    size = 0
    for position, row in rows:
        chunk.append((position, row))
        size += 0 if row is None else sum(len(cell) for cell in row.values() if type(cell) is str)
        if len(chunk) == CHUNK or size > MAX_CHARACTERS:
            break
    return chunk


def _texts(
    row: Row, position: Position, table: Table, task: Task, missing: frozenset[str]
) -> tuple[str, ...] | None:
    try:
        return row_texts(row, task.text_columns, missing)
    except ValueError as error:
        raise InputError(f"{table.at(position)}: {error}") from None


def _whole(row: Row | None, position: Position, table: Table) -> Row:
    if row is None:
        raise InputError(
            f"{table.at(position)} does not have {len(table.columns)} fields, as the header has:"
            " fix the line"
        )
    return row


@contextmanager
def _stream(output: str) -> Iterator[Any]:
    """A text stream that becomes the output file when all went well; "-" is standard output."""
    if output == "-":
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
        yield sys.stdout
        return
    with replacing(Path(output)) as file:
        stream = TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        yield stream
        stream.detach()
