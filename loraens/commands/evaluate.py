"""`loraens evaluate`: scores of a member or an ensemble on a labelled file, with intervals."""

from __future__ import annotations

from pathlib import Path

from loraens.commands.parser import call
from loraens.data.tables import Quoting, Reading
from loraens.errors import InputError, say
from loraens.records import Epoch


def evaluate(
    model: str,
    input: str,
    output: str | None = None,
    task: str | None = None,
    epoch: Epoch = "best",
    batch_size: int | None = None,
    encoding: str = "utf-8",
    quoting: Quoting = "auto",
    device: str | None = None,
    backbone: str | None = None,
) -> None:
    """Score a member or an ensemble on a labelled file: every metric with a 95 % interval, errors
    by class or by size, calibration, and coverage of prediction sets; of an ensemble its members
    and the difference to the best of them too.

    Rows without a text or a label are left out and counted.

    Args:
        model: Directory of a member, of a run with one member, or of an ensemble; or the file
            RUN/ensembles/recommended.
        input: File with the task's text columns and its label column; - is standard input.
        output: A .json file to write, whole, or a .csv file, a row a number; beside the tables that
            are printed.
        task: The task, where the member was trained on several.
        epoch: Best or last epoch of a member; an ensemble names its members' epochs itself.
        batch_size: Rows computed at once, those of all members together; by default 64 on a CPU,
            and what an eighth of its memory holds on a GPU.
        encoding: Encoding of the input, where it is text.
        quoting: What quotes mean in CSV and TSV, as of `predict`.
        device: Where to compute, such as cpu or cuda:0; a GPU if there is one, by default.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.

    Raises:
        InputError: An option or a file cannot be used, or the file has no labels.
    """
    from loraens.files import write_atomically
    from loraens.inference.evaluate import evaluate as evaluate_model
    from loraens.inference.predict_file import check_place
    from loraens.inference.predictor import Predictor
    from loraens.report.evaluation import FORMATS, sentences, tables
    from loraens.report.terminal import show

    if output is not None:
        if Path(output).suffix not in FORMATS:
            raise InputError(
                f"output {output}: a file that ends in {' or '.join(FORMATS)} is expected",
                option="output",
            )
        check_place(input, output)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size}: at least 1 is expected", option="batch_size")
    reading = Reading(encoding, quoting, flag="")
    predictor = Predictor.load(model, epoch, batch_size, device, backbone)
    evaluation = evaluate_model(predictor, input, task, reading)
    for table in tables(evaluation, predictor.task(task)):
        show(table)
    for sentence in sentences(evaluation):
        say(sentence)
    if output is not None:
        path = Path(output)
        write_atomically(path, FORMATS[path.suffix](evaluation).encode())
        say(f"the numbers are in {path}")


def main(args: list[str]) -> None:
    """Run `evaluate` with the options of the command line."""
    call(evaluate, "evaluate", args)
