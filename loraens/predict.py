"""`loraens predict`: a trained member's predictions for a file of any length, or for one text."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loraens.errors import InputError
from loraens.reading import SUFFIXES, Format, Row, RowWriter, Table, open_table, row_texts
from loraens.store import MemberStore, find_member
from loraens.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraens.model import MemberModel

CHUNK = 2048  # rows that are tokenised, ordered by length and predicted together


@dataclass
class Predictor:
    """A trained member, ready to predict.

    Args:
        model: The model with the member's weights, in evaluation mode.
        tasks: Its tasks, by name.
        tokenizer: The backbone's tokenizer.
        max_length: Longest sequence in tokens.
        batch_size: Texts in one batch.
    """

    model: MemberModel
    tasks: dict[str, Task]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int

    @classmethod
    def load(cls, path: str | Path, which: str = "best", batch_size: int = 64, device: str | None = None) -> Predictor:
        """Load a member of a run.

        Args:
            path: A member's directory, or a run's that holds one member.
            which: "best" or "last" epoch.
            batch_size: Texts in one batch.
            device: Where to compute; a GPU if there is one, by default.

        Raises:
            InputError: There is no such member, its files were altered, or its backbone cannot be had or is another.
        """
        import torch

        from loraens.adapters import load_member
        from loraens.backbone import fingerprint, load_encoder, load_tokenizer
        from loraens.grid import Member
        from loraens.model import MemberModel

        directory = find_member(Path(path))
        manifest = MemberStore(directory).manifest()
        settings = manifest["settings"]
        encoder = load_encoder(settings["backbone"], pooler=settings["pooling"] == "pooler")
        if fingerprint(encoder) != settings["backbone_fingerprint"]:
            raise InputError(
                f"backbone {settings['backbone']!r} has other weights than the one that {directory} was trained on: "
                "use the same version of it"
            )
        tasks = [Task.from_dict(fields) for fields in settings["tasks"]]
        options = {name: settings[name] for name in ("mode", "targets", "pooling")}
        model = MemberModel(encoder, tasks, [Member(**manifest["member"])], **options)
        load_member(model, 0, directory / manifest["epochs"][which])
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        by_name = {task.name: task for task in tasks}
        return cls(model, by_name, load_tokenizer(settings["backbone"]), settings["max_length"], batch_size)

    def task(self, name: str | None = None) -> Task:
        """The task of that name, or the only one.

        Raises:
            InputError: There is no such task, or there are several and none was named.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            raise InputError(f"--task {name or 'is missing'}: give one of the member's tasks {', '.join(self.tasks)}")
        return self.tasks[name]

    def logits(self, texts: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
        """Logits `(N, C)` of texts, in their order."""
        import torch

        from loraens.packing import pack
        from loraens.tokens import tokenise

        if not texts:
            return np.zeros((0, task.num_outputs), np.float32)
        tokens = tokenise(list(texts), self.tokenizer, self.max_length)
        order = np.argsort(tokens.lengths, kind="stable")
        found = np.zeros((len(texts), task.num_outputs), np.float32)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = pack(tokens.ids, tokens.types, tokens.offsets, rows[None], None, task.name, "predict")
                found[rows] = self.model(batch.to(device))[0].float().cpu().numpy()
        return found

    def columns(self, task: Task) -> list[str]:
        """Names of the columns that predictions have."""
        return ["prediction", *(f"probability_{name}" for name in task.class_names)]

    def rows(self, texts: Sequence[tuple[str, ...]], task: Task) -> list[Row]:
        """One row of prediction and, for classes, probabilities, a text.

        Raises:
            InputError: A logit is not finite.
        """
        from loraens.metrics import predictions, probabilities

        logits = self.logits(texts, task)
        if not np.isfinite(logits).all():
            raise InputError("the member predicts values that are not finite: train it again at a lower rate")
        if task.kind == "number":
            return [{"prediction": round(value, 6)} for value in predictions(task, logits).tolist()]
        shares = probabilities(task, logits)
        columns = self.columns(task)
        return [
            dict(zip(columns, (task.class_names[index], *(round(value, 6) for value in row))))
            for index, row in zip(predictions(task, logits).tolist(), shares.tolist())
        ]


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
    """Write a trained member's predictions for every row of a file, or print those of one text.

    Rows keep their order and their columns; rows without a text get an empty prediction and are counted. Memory does not
    grow with the file.

    Args:
        model: Directory of a member, or of a run with one member.
        input: CSV, TSV, JSON lines or Parquet file with the task's text columns; - is standard input.
        output: CSV, TSV or JSON lines file to write; - is standard output, in the format of the input.
        text: Predict this one text instead of a file.
        text2: The second text, where the task takes two.
        task: The task, where the member was trained on several.
        which: Weights of the member's best or last epoch.
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
        _print_one(predictor, predictor.task(task), [given for given in (text, text2) if given is not None])
        return
    if Path(input).exists() and Path(output).exists() and os.path.samefile(input, output):
        raise InputError(f"--output {output} is the input: choose another file")
    with open_table(input, format) as table:
        if table.format == "parquet" and out_format is None:
            raise InputError("--output is not given: a .csv, .tsv or .jsonl file is expected for Parquet input")
        predictor = Predictor.load(model, which, batch_size, device)
        chosen = predictor.task(task)
        table.require(chosen.text_columns, f"the text columns of task {chosen.name}")
        columns = predictor.columns(chosen)
        with _replacing(output) as stream, _bar(input, table) as bar:
            writer = RowWriter(stream, out_format or table.format, [*table.columns, *columns])
            skipped = _write_rows(predictor, chosen, table, writer, bar)
    if skipped:
        shown = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        print(f"{len(skipped)} rows have no text and got an empty prediction: line {shown}", file=sys.stderr)


def _output_format(output: str) -> Format | None:
    """Format of the output by its suffix; None where it is the input's."""
    if output == "-":
        return None
    format = SUFFIXES.get(Path(output).suffix.lower())
    if format is None or format == "parquet" or Path(output).is_dir():
        raise InputError(f"--output {output}: a file name that ends in .csv, .tsv or .jsonl is expected")
    if not Path(output).absolute().parent.is_dir():
        raise InputError(f"--output {output}: its directory does not exist, make it first")
    return format


def _print_one(predictor: Predictor, task: Task, texts: list[str]) -> None:
    """Print the prediction of one text as JSON."""
    import json

    if len(texts) != len(task.text_columns) or not all(text.strip() for text in texts):
        options = " and ".join(("--text", "--text2")[: len(task.text_columns)])
        raise InputError(f"task {task.name} takes {options}, not blank: {', '.join(task.text_columns)}")
    (row,) = predictor.rows([tuple(texts)], task)
    print(json.dumps(row, ensure_ascii=False))


def _bar(input: str, table: Table) -> Any:
    """A progress bar in rows, for terminals; a file's lines are counted first, so that it can tell the time left."""
    from tqdm import tqdm

    total = None
    if input != "-" and table.format != "parquet":
        with open(input, "rb") as file:
            total = sum(1 for _ in file) - (table.format != "jsonl")
    return tqdm(desc="predict", total=total, unit=" rows", file=sys.stderr, disable=None)


def _write_rows(predictor: Predictor, task: Task, table: Table, writer: RowWriter, bar: Any) -> list[int]:
    """Predict and write all rows, chunk by chunk; returns the line numbers of rows without a text."""
    skipped: list[int] = []
    blank = dict.fromkeys(predictor.columns(task))
    while chunk := list(islice(table.rows, CHUNK)):
        rows = [_whole(row, number, table) for number, row in chunk]
        texts = [row_texts(row, task.text_columns) for row in rows]
        found = iter(predictor.rows([text for text in texts if text is not None], task))
        for (number, _), row, text in zip(chunk, rows, texts):
            if text is None:
                skipped.append(number)
            if taken := row.keys() & blank.keys():
                raise InputError(
                    f"{table.name} line {number} already has a field {min(taken)!r}, as predictions have: rename it"
                )
            try:
                writer.write({**row, **(blank if text is None else next(found))})
            except ValueError as error:
                raise InputError(f"{table.name} line {number} does not fit the columns of the output: {error}") from None
        bar.update(len(chunk))
    return skipped


def _whole(row: Row | None, number: int, table: Table) -> Row:
    if row is None:
        raise InputError(
            f"{table.name} line {number} does not have {len(table.columns)} fields, as the header has: mend the line"
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
