"""`loraens quickstart`: a few members for each of the three tasks, joined, in minutes on two
cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraens.members import Member, cross

if TYPE_CHECKING:
    from loraens.data.modules import TextData
    from loraens.tasks import Task

TASKS = ("sst", "quora", "sts")
EPOCHS = {"sst": 3, "quora": 4, "sts": 2}
PACKAGED = "minilm"  # `backbone.PACKAGED`, which takes seconds to import
RANKS = (4, 16)
SCALES = (1.0, 3.0)
LR = 5e-4


@dataclass
class Data:
    """Where the texts come from.

    Args:
        root: Directory of the course's files; without it, a made-up corpus is written and used.
        limit: At most this many records of each split, drawn by a fixed seed.
    """

    root: str | None = None
    limit: int = 640


@dataclass
class Store:
    """Where the runs lie.

    Args:
        root: Directory of all runs.
    """

    root: str = "checkpoints"


@dataclass
class Result:
    """Dev scores of one task's members and of all of them joined."""

    task: Task
    members: list[tuple[Member, float]]
    omni: float
    directory: Path


def quickstart(data: Data = Data(), store: Store = Store(), backbone: str = PACKAGED) -> None:  # noqa: B008
    """Train four members (two ranks by two scales) for each of three tasks and join them
    (Omni-LoRA).

    Prints dev scores of every member's last epoch and of their ensemble, in which nothing was
    chosen on dev.

    Args:
        data: Where the texts come from.
        store: Where the runs lie.
        backbone: Hub name or directory of a BERT-family encoder, or "minilm", the packaged one.
    """
    from loraens.data import modules
    from loraens.model.backbone import load_tokenizer
    from loraens.train.runs import quiet, run_directory

    quiet()
    load_tokenizer(backbone)  # a backbone that is not there is noticed before anything is written
    directory = run_directory(store.root, None, "quickstart", None)
    root = data.root
    if root is None:
        from loraens.data.made_up import write_corpus

        root = str(directory / "data")
        write_corpus(Path(root))
        print(
            f"The texts are made up, by a seeded grammar: they lie in {root}. Real ones:"
            " --data.root DIR"
        )
    results = []
    for name, kind in zip(TASKS, (modules.SST, modules.Quora, modules.STS), strict=True):
        texts = kind(root, backbone=backbone, limit=data.limit)
        results.append(
            train_task(
                texts, EPOCHS[name], cross(RANKS, SCALES, lrs=[LR]), directory / name, backbone
            )
        )
    print_table(results, made_up=data.root is None)
    member = results[0].directory / results[0].members[0][0].name
    print(
        f"\nEverything lies in {directory}; try\n  loraens predict --model {member} --text 'a"
        " charming , clever film'"
    )


def train_task(
    data: TextData, epochs: int, members: Sequence[Member], directory: Path, backbone: str
) -> Result:
    """Train members side by side on one backbone and join them."""
    from loraens.ensemble.combine import combine, rules
    from loraens.ensemble.pool import score
    from loraens.ensemble.read import read_runs
    from loraens.train.config import SweepConfig
    from loraens.train.coordinator import Coordinator
    from loraens.train.options import SweepOptions

    (task,) = data.tasks
    data.setup("fit")
    print(
        f"{task.name}: {len(members)} members of {', '.join(map(_in_words, members))}", flush=True
    )
    config = SweepConfig.from_objects(
        data,
        members,
        directory,
        backbone=backbone,
        epochs=epochs,
        options=SweepOptions(pack_size=len(members)),
        model={"pooling": "mean"},
    )
    manifests = Coordinator(config, data).run()
    pool = read_runs([directory], which="last")[task.name].dev
    joined = combine(pool, np.full(len(pool), 1 / len(pool)), rules(task)[0], pool.places)
    scores = [manifests[member.name]["dev"]["last"][task.name][task.metric] for member in members]
    return Result(
        task, list(zip(members, scores, strict=True)), score(task, joined, pool.labels), directory
    )


def _in_words(member: Member) -> str:
    return f"rank {member.rank} and scale {member.scale:g}"


def print_table(results: Sequence[Result], made_up: bool) -> None:
    """Print members and ensembles as rows, tasks as columns, and the paper's overall score."""
    from rich.console import Console
    from rich.table import Table

    from loraens.metrics import overall

    title = "Dev scores" + (" on made-up texts" if made_up else "")
    table = Table(
        title=title, caption="accuracy; for sts Pearson's r. Last epoch: nothing was chosen on dev."
    )
    for column in ("member", *(result.task.name for result in results), "overall"):
        table.add_column(column, justify="left" if column == "member" else "right")
    rows = [
        (_in_words(member), [result.members[index][1] for result in results])
        for index, (member, _) in enumerate(results[0].members)
    ]
    for name, scores in [*rows, ("Omni (all joined)", [result.omni for result in results])]:
        together = overall(
            {result.task.name: score for result, score in zip(results, scores, strict=True)}
        )
        table.add_row(
            name,
            *(f"{score:.3f}" for score in scores),
            "" if together is None else f"{together:.3f}",
        )
    Console().print(table)


def main(args: list[str]) -> None:
    """Run `quickstart` with the options of the command line."""
    from jsonargparse import auto_cli

    auto_cli(
        quickstart, args=args, as_positional=False, prog="loraens quickstart", exit_on_error=False
    )
