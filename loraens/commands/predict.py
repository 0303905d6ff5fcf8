"""`loraens predict`: predictions of a member or an ensemble for a file of any length, or for one
text.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from loraens.cluster import RAY, Cluster, check_workers
from loraens.commands.parser import call
from loraens.data.tables import Quoting, Reading, line_of
from loraens.ensemble.conformal import check_coverage
from loraens.errors import InputError, in_json
from loraens.inference.predict_file import predict_file
from loraens.inference.predictor import Predictor
from loraens.records import Epoch


def predict(
    model: str,
    input: str | None = None,
    output: str = "-",
    text: str | None = None,
    text2: str | None = None,
    task: str | None = None,
    epoch: Epoch = "best",
    batch_size: int | None = None,
    format: Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "excel"] | None = None,
    encoding: str = "utf-8",
    quoting: Quoting = "auto",
    missing: list[str | int | float] | None = None,
    device: str | None = None,
    coverage: float | None = None,
    backbone: str | None = None,
    columns: list[str] | None = None,
    engine: Literal["in_process", "ray"] = "in_process",
    workers: int = 1,
    address: str | None = None,
    cpus: int | None = None,
    spreadsheet: bool = False,
    cascade: float | None = None,
) -> None:
    """Write predictions of a member or an ensemble for every row of a file, or print those of one
    text.

    Rows keep their order and their columns; rows without a text get an empty prediction and are
    counted. Memory does not grow with the file.

    Args:
        model: Directory of a member, of a run with one member, or of an ensemble; or the file
            RUN/ensembles/recommended.
        input: File with the task's text columns (.csv, .tsv, .jsonl or .json, also with .gz, .bz2,
            .xz or .zst; .parquet, .arrow or .xlsx), a directory of such files or a pattern such as
            "data/*.csv"; - is standard input.
        output: CSV, TSV or JSON lines file to write; - is standard output, in the format of the
            input.
        text: Predict this one text instead of a file.
        text2: The second text, where the task takes two.
        task: The task, where the member was trained on several.
        epoch: Best or last epoch of a member; an ensemble names its members' epochs itself.
        batch_size: Rows computed at once, those of all members together; by default 64 on a CPU,
            and what an eighth of its memory holds on a GPU.
        format: Format of the input, where its name does not tell.
        encoding: Encoding of the input, where it is text.
        quoting: What a quote means that opens a field of CSV or TSV and is not closed in its line:
            "standard" (the field has line breaks), "lines" (an ordinary character: each line is a
            record), "none" (as all quotes: an ordinary character), or "auto" (decided by what
            follows, an error where that is not certain).
        missing: Further cells that are missing texts, such as [NA]; blank ones, null and NaN are.
        device: Where to compute, such as cpu or cuda:0; a GPU if there is one, by default.
        coverage: Share of new texts, such as 0.9, whose label is in the prediction set (column set,
            a JSON list of class names) or interval (columns low and high) that each row then has.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.
        columns: Columns of predictions to write, such as [prediction]; all by default. Where it is
            the prediction alone, members of a vote or of mean probabilities run one after another
            on a CPU, and none on a text whose class is certain.
        engine: Where the parts of a file are predicted: in this process, or by "ray", several at
            a time, on several GPUs or machines.
        workers: Parts of the file that Ray has predicted at a time, each on one GPU, or on some
            cores of a CPU.
        address: Address of a running Ray cluster, such as auto or HOST:6379; by default Ray is
            started on this machine.
        cpus: Cores of each worker; by default its part of those of this machine.
        spreadsheet: Whether cells of CSV or TSV that begin as formulas do, with = + - @ and no
            number, get an apostrophe before them, so that spreadsheets show and do not run them.
        cascade: Share of new texts, such as 0.99, whose predicted class is that of all members:
            members run one after another, and none on a text whose class is clear enough; how clear
            is chosen on held-out texts, where the share is proved. Predictions alone are written.

    Raises:
        InputError: An option or a file cannot be used.
    """
    if (input is None) == (text is None):
        raise InputError("give either --input FILE or --text TEXT")
    if input is not None and text2 is not None:
        raise InputError("--text2 goes with --text, not with --input")
    if spreadsheet and input is None:
        raise InputError("--spreadsheet goes with --input, not with --text")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size}: at least 1 is expected", option="batch_size")
    if coverage is not None:
        check_coverage(coverage)
    check_workers(engine, workers, address, cpus)
    if cascade is not None:
        from loraens.inference.cascade import check_level  # imports torch

        check_level(cascade)
        if coverage is not None or columns not in (None, ["prediction"]) or engine == RAY:
            raise InputError(
                f"cascade {cascade:g} is for the column prediction alone, in this process: leave"
                " out columns, coverage and engine",
                option="cascade",
            )
        columns = ["prediction"]
    if engine == RAY:
        if input is None:
            raise InputError("engine ray is for --input, not for --text", option="engine")
        # workers on other machines have other working directories
        model = str(Path(model).absolute())
        if backbone is not None and Path(backbone).exists():
            backbone = str(Path(backbone).absolute())
    load = partial(Predictor.load, model, epoch, batch_size, device, backbone)
    if input is None:
        texts = tuple(given for given in (text, text2) if given is not None)
        _print_one(load(), task, texts, coverage, columns, cascade)
        return
    loaded: list[Predictor] = []

    def load_once() -> Predictor:
        loaded.append(load())
        return loaded[0]

    cluster = None if engine != RAY else _cluster(workers, address, cpus, device)
    skipped = predict_file(
        load=load_once if cluster is None else load,
        input=input,
        output=output,
        task=task,
        format=format,
        coverage=coverage,
        reading=Reading(encoding, quoting, flag=""),
        missing=missing or (),
        columns=columns,
        cluster=cluster,
        spreadsheet=spreadsheet,
        cascade=cascade,
    )
    in_turn = loaded[0].in_turn if loaded else None
    if in_turn is not None and in_turn.texts:
        print(in_turn.sentence, file=sys.stderr)
    if skipped:
        shown = line_of(*skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        print(
            f"{len(skipped)} rows have no text and got an empty prediction: {shown}",
            file=sys.stderr,
        )


def _cluster(workers: int, address: str | None, cpus: int | None, device: str | None) -> Cluster:
    """Ray, which is not started yet."""
    import torch

    gpus = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    return Cluster(workers, address, cpus, int(gpus))


def _print_one(
    predictor: Predictor,
    task: str | None,
    texts: tuple[str, ...],
    coverage: float | None,
    kept: list[str] | None,
    cascade: float | None,
) -> None:
    """Print the prediction of one text as JSON."""
    chosen = predictor.task(task)
    if len(texts) != len(chosen.text_columns) or not all(text.strip() for text in texts):
        options = " and ".join(("--text", "--text2")[: len(chosen.text_columns)])
        columns = ", ".join(chosen.text_columns)
        raise InputError(f"task {chosen.name} takes {options}, not blank: {columns}")
    region = predictor.region(chosen, coverage)
    if kept:
        predictor.keep(kept, chosen, region, cascade)
    (row,) = predictor.rows([texts], chosen, region)
    print(in_json(json.dumps(row, ensure_ascii=False)))


def main(args: list[str]) -> None:
    """Run `predict` with the options of the command line."""
    call(predict, "predict", args)
