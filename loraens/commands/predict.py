"""`loraens predict`: predictions of a member or an ensemble for a file of any length, or for one
text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from loraens.data.files import SUFFIXES, Format, Row, RowWriter, Table, open_table
from loraens.data.splits import row_texts
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.tasks import Task

CHUNK = 2048  # rows that are tokenised, ordered by length and predicted together


def predict(
    model: str,
    input: str | None = None,
    output: str = "-",
    text: str | None = None,
    text2: str | None = None,
    task: str | None = None,
    which: Literal["best", "last"] = "best",
    batch_size: int = 64,
    format: Format | None = None,
    device: str | None = None,
) -> None:
    """Write predictions of a member or an ensemble for every row of a file, or print those of one
    text.

    Rows keep their order and their columns; rows without a text get an empty prediction and are
    counted. Memory does not grow with the file.

    Args:
        model: Directory of a member, of a run with one member, or of an ensemble.
        input: CSV, TSV, JSON lines or Parquet file with the task's text columns; - is standard
            input.
        output: CSV, TSV or JSON lines file to write; - is standard output, in the format of the
            input.
        text: Predict this one text instead of a file.
        text2: The second text, where the task takes two.
        task: The task, where the member was trained on several.
        which: Weights of the member's best or last epoch; an ensemble says so itself.
        batch_size: Rows computed at once.
        format: Format of the input, where its name does not tell.
        device: Where to compute, such as cpu or cuda:0; a GPU if there is one, by default.

    Raises:
        InputError: An option or a file cannot be used.
    """
    if (input is None) == (text is None):
        raise InputError("give either --input FILE or --text TEXT")
    if input is not None and text2 is not None:
        raise InputError("--text2 goes with --text, not with --input")
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: at least 1 is expected")
    out_format = _output_format(output)
    if input is None:
        predictor = Predictor.load(model, which, batch_size, device)
        _print_one(
            predictor, predictor.task(task), [given for given in (text, text2) if given is not None]
        )
        return
    if Path(input).exists() and Path(output).exists() and os.path.samefile(input, output):
        raise InputError(f"--output {output} is the input: choose another file")
    with open_table(input, format) as table:
        if table.format == "parquet" and out_format is None:
            raise InputError(
                "--output is not given: a .csv, .tsv or .jsonl file is expected for Parquet input"
            )
        predictor = Predictor.load(model, which, batch_size, device)
        chosen = predictor.task(task)
        table.require(chosen.text_columns, f"the text columns of task {chosen.name}")
        columns = predictor.columns(chosen)
        with _replacing(output) as stream, _bar(input, table) as bar:
            writer = RowWriter(stream, out_format or table.format, [*table.columns, *columns])
            skipped = _write_rows(predictor, chosen, table, writer, bar)
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        print(
            f"{len(skipped)} rows have no text and got an empty prediction: line {shown}",
            file=sys.stderr,
        )


def _output_format(output: str) -> Format | None:
    """Format of the output by its suffix; None where it is the input's."""
    if output == "-":
        return None
    format = SUFFIXES.get(Path(output).suffix.lower())
    if format is None or format == "parquet" or Path(output).is_dir():
        raise InputError(
            f"--output {output}: a file name that ends in .csv, .tsv or .jsonl is expected"
        )
    if not Path(output).absolute().parent.is_dir():
        raise InputError(f"--output {output}: its directory does not exist, make it first")
    return format


def _print_one(predictor: Predictor, task: Task, texts: list[str]) -> None:
    """Print the prediction of one text as JSON."""
    import json

    if len(texts) != len(task.text_columns) or not all(text.strip() for text in texts):
        options = " and ".join(("--text", "--text2")[: len(task.text_columns)])
        raise InputError(
            f"task {task.name} takes {options}, not blank: {', '.join(task.text_columns)}"
        )
    (row,) = predictor.rows([tuple(texts)], task)
    print(json.dumps(row, ensure_ascii=False))


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
    predictor: Predictor, task: Task, table: Table, writer: RowWriter, bar: Any
) -> list[int]:
    """Predict and write all rows, chunk by chunk; returns the line numbers of rows without a
    text.
    """
    skipped: list[int] = []
    blank = dict.fromkeys(predictor.columns(task))
    while chunk := list(islice(table.rows, CHUNK)):
        rows = [_whole(row, number, table) for number, row in chunk]
        texts = [row_texts(row, task.text_columns) for row in rows]
        found = iter(predictor.rows([text for text in texts if text is not None], task))
        for (number, _), row, text in zip(chunk, rows, texts, strict=True):
            if text is None:
                skipped.append(number)
            if taken := row.keys() & blank.keys():
                raise InputError(
                    f"{table.name} line {number} already has a field {min(taken)!r}, as predictions"
                    " have: rename it"
                )
            try:
                writer.write({**row, **(blank if text is None else next(found))})
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
            " has: mend the line"
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


def main(args: list[str]) -> None:
    """Run `predict` with the options of the command line."""
    from jsonargparse import auto_cli

    auto_cli(predict, args=args, as_positional=False, prog="loraens predict", exit_on_error=False)
