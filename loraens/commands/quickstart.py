"""`loraens quickstart`: a few members for each of three tasks, combined and proved, in minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraens.commands.parser import call
from loraens.errors import InputError, say

PACKAGED = "minilm"  # in `loraens.model.packaged`
METHODS = ("best", "omni", "dicor", "greedy", "weighted")
TEXTS = {  # of the command that predicts
    "sst": "--text 'a charming , clever film'",
    "quora": "--text 'How can I keep bees?' --text2 'What is the best way to keep bees?'",
    "sts": "--text 'A man painted a boat.' --text2 'A guy put paint on a boat.'",
}


@dataclass
class Data:
    """Where the texts come from.

    Args:
        root: Directory of the course's files; without it, a made-up corpus is written and used.
        limit: At most this many records of each split, drawn by a fixed seed.
    """

    root: str | None = None
    limit: int = 1280


@dataclass
class Store:
    """Where the runs are kept.

    Args:
        root: Directory of all runs.
    """

    root: str = "checkpoints"


def quickstart(
    data: Data = Data(),  # noqa: B008
    store: Store = Store(),  # noqa: B008
    backbone: str = PACKAGED,
    minutes: float = 3.0,
) -> None:
    """Train a few members for each of three tasks, combine them, prove what that is worth, and say
    what to use.

    Training steps are timed first, and as many members, epochs and texts are taken as fit.
    Interrupted, the same command resumes.

    Args:
        data: Where the texts come from.
        store: Where the runs are kept.
        backbone: Hub name or directory of an encoder or decoder, or the packaged "minilm" or
            "mpnet".
        minutes: About how long it may take on this machine.

    Raises:
        InputError: An option or the data cannot be used.
    """
    started = time.monotonic()
    if not 0 < minutes < float("inf"):
        raise InputError(f"minutes {minutes:g}: a number above 0 is expected", option="minutes")
    if data.limit < 1:
        raise InputError(f"limit {data.limit}: at least 1 is expected", option="data.limit")
    from loraens.api.ensembles import write_ensembles
    from loraens.api.quick import KINDS, Asked, QuickStart
    from loraens.model.tokenizer import load_tokenizer
    from loraens.report.quick import advice, score_table
    from loraens.report.terminal import show
    from loraens.train.runs import quiet

    quiet()
    load_tokenizer(backbone)  # a backbone that is missing is noticed before anything is written
    root = None if data.root is None else str(Path(data.root).resolve())
    asked = Asked(root, data.limit, backbone, minutes)
    quick = QuickStart(Path(store.root), asked, report=say)
    quick.prepare(minutes * 60 - (time.monotonic() - started))
    members, records = {}, {}
    recommended: dict[str, Any] = {}
    for name in KINDS:
        sweep = quick.sweep(name).fit()
        members[name] = sweep.manifests
        records[name], of_task = write_ensembles(
            runs=[sweep.directory],
            methods=METHODS,
            rules=["logits"],
            epoch="last",  # of each member, so that its dev score is held out, too
            folder=sweep.directory / "ensembles",
        )
        recommended |= of_task
    show(score_table(members, records, recommended, made_up=root is None))
    _print_commands(quick.directory, recommended)
    minutes_taken = (time.monotonic() - started) / 60
    say(f"Everything is in {quick.directory}; this took {minutes_taken:.1f} min.")
    say(advice(recommended))


def _print_commands(directory: Path, recommended: Mapping[str, Any]) -> None:
    """Print what is recommended for each task, and the commands to go on with."""
    for name, one in recommended.items():
        say(f"\n{one.sentence}")
        path = directory / name / "ensembles" / "recommended"
        say(f"  loraens predict --model {path} {TEXTS[name]}")
    runs = " ".join(str(directory / name) for name in recommended)
    say(f"\nAll on one page: loraens report --runs {runs}")


def main(args: list[str]) -> None:
    """Run `quickstart` with the options of the command line."""
    call(quickstart, "quickstart", args)
