"""Predictions for every row of a file of any length.

Rows keep their order and their columns; memory does not grow with the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from loraens.data.files import SUFFIXES, Format, Row, RowWriter, Table, open_table
from loraens.data.splits import row_texts
from loraens.ensemble.conformal import Region
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.tasks import Task

CHUNK = 2048  # rows that are tokenised, ordered by length and predicted together


def check_output(input: str, output: str) -> Format | None:
    """Format of the output by its suffix; None where it is the input's.

    Raises:
        InputError: The output is the input, or its name, directory or format cannot be used.
    """
    if output == "-":
        return None
    path = Path(output)
    format = SUFFIXES.get(path.suffix.lower())
    if format is None or format == "parquet" or path.is_dir():
        raise InputError(
            f"output {output}: a file name that ends in .csv, .tsv or .jsonl is expected",
            option="output",
        )
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"output {output}: its directory does not exist, make it first", option="output"
        )
    if Path(input).exists() and path.exists() and os.path.samefile(input, output):
        raise InputError(f"output {output} is the input: choose another file", option="output")
    return format


def predict_file(
    load: Callable[[], Predictor],
    input: str,
    output: str,
    task: str | None = None,
    format: Format | None = None,
    coverage: float | None = None,
) -> list[int]:
    """Write predictions for every row of a file.

    Args:
        load: Loads the predictor, once the input could be opened.
        input: CSV, TSV, JSON lines or Parquet file; - is standard input.
        output: CSV, TSV or JSON lines file; - is standard output, in the format of the input.
        task: The task, where there are several.
        format: Format of the input, where its name does not tell.
        coverage: Share of texts whose label is in the set or interval that rows then have.

    Returns:
        Line numbers of rows without a text, whose prediction is empty.

    Raises:
        InputError: A file or row cannot be used; then no output is left.
    """
    out_format = check_output(input, output)
    with open_table(input, format) as table:
        if table.format == "parquet" and out_format is None:
            raise InputError(
                "output is not given: a .csv, .tsv or .jsonl file is expected for Parquet input",
                option="output",
            )
        predictor = load()
        chosen = predictor.task(task)
        table.require(chosen.text_columns, f"the text columns of task {chosen.name}")
        region = predictor.region(chosen, coverage)
        columns = [*table.columns, *predictor.columns(chosen, region)]
        with _replacing(output) as stream, _bar(input, table) as bar:
            writer = RowWriter(stream, out_format or table.format, columns)
            return _write_rows(
                predictor=predictor,
                task=chosen,
                table=table,
                writer=writer,
                bar=bar,
                region=region,
            )


def _bar(input: str, table: Table) -> Any:
    """A progress bar in rows, for terminals; a file's lines are counted first, so that it can tell
    the time left.
    """
    from tqdm import tqdm

    total = None
    if input != "-" and table.format != "parquet":
        with open(input, "rb") as file:
            total = sum(1 for _ in file) - (table.format != "jsonl")
    return tqdm(desc="predict", total=total, unit=" rows", file=sys.stderr, disable=None)


def _write_rows(
    predictor: Predictor,
    task: Task,
    table: Table,
    writer: RowWriter,
    bar: Any,
    region: Region | None,
) -> list[int]:
    """Predict and write all rows, chunk by chunk; returns the line numbers of rows without a
    text.
    """
    skipped: list[int] = []
    blank = dict.fromkeys(predictor.columns(task, region))
    while chunk := list(islice(table.rows, CHUNK)):
        rows = [_whole(row, number, table) for number, row in chunk]
        texts = [row_texts(row, task.text_columns) for row in rows]
        given = [text for text in texts if text is not None]
        predictions = iter(predictor.rows(given, task, region))
        for (number, _), row, text in zip(chunk, rows, texts, strict=True):
            if text is None:
                skipped.append(number)
            if taken := row.keys() & blank.keys():
                raise InputError(
                    f"{table.name} line {number} already has a field {min(taken)!r}, as predictions"
                    " have: rename it"
                )
            try:
                writer.write({**row, **(blank if text is None else next(predictions))})
            except ValueError as error:
                raise InputError(
                    f"{table.name} line {number} does not fit the columns of the output: {error}"
                ) from None
        bar.update(len(chunk))
    return skipped


def _whole(row: Row | None, number: int, table: Table) -> Row:
    if row is None:
        raise InputError(
            f"{table.name} line {number} does not have {len(table.columns)} fields, as the header"
            " has: fix the line"
        )
    return row


@contextmanager
def _replacing(output: str) -> Iterator[Any]:
    """A text stream that becomes the output file when all went well; "-" is standard output."""
    if output == "-":
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")
        yield sys.stdout
        return
    path = Path(output)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            yield stream
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
