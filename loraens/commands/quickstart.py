"""`loraens quickstart`: a few members for each of the three tasks, combined, in minutes on two
cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraens.commands.parser import call
from loraens.members import Grid, Member
from loraens.tasks import Task

TASKS = ("sst", "quora", "sts")
EPOCHS = {"sst": 3, "quora": 4, "sts": 2}
PACKAGED = "minilm"  # `backbone.PACKAGED`, which takes seconds to import
GRID = Grid(rank=[4, 16], scale=[1.0, 3.0])
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
    """Where the runs are kept.

    Args:
        root: Directory of all runs.
    """

    root: str = "checkpoints"


@dataclass
class Result:
    """Dev scores of one task's members, and of all of them combined."""

    task: Task
    members: list[tuple[Member, float]]
    omni: float
    directory: Path


def quickstart(data: Data = Data(), store: Store = Store(), backbone: str = PACKAGED) -> None:  # noqa: B008
    """Train four members (two ranks by two scales) for each of three tasks and combine them
    (Omni-LoRA).

    Prints dev scores of every member's last epoch and of their ensemble, in which nothing was
    chosen on dev.

    Args:
        data: Where the texts come from.
        store: Where the runs are kept.
        backbone: Hub name or directory of a BERT-family encoder, or "minilm", the packaged one.
    """
    from loraens.data import modules
    from loraens.model.tokenizer import load_tokenizer
    from loraens.train.runs import quiet, run_directory

    quiet()
    load_tokenizer(backbone)  # a backbone that is missing is noticed before anything is written
    directory = run_directory(store.root, None, "quickstart", None)
    root = data.root
    if root is None:
        from loraens.data.made_up import write_corpus

        root = str(directory / "data")
        write_corpus(Path(root))
        print(f"The texts are made up, by a seeded grammar: they are in {root}.")
        print("Real ones: --data.root DIR")
    results = []
    for name, kind in zip(TASKS, (modules.SST, modules.Quora, modules.STS), strict=True):
        texts = kind(root, backbone=backbone, limit=data.limit)
        results.append(train_task(texts, EPOCHS[name], directory / name, backbone))
    print_table(results, made_up=data.root is None)
    member = results[0].directory / results[0].members[0][0].name
    print(f"\nEverything is in {directory}; try")
    print(f"  loraens predict --model {member} --text 'a charming , clever film'")


def train_task(data: Any, epochs: int, directory: Path, backbone: str) -> Result:
    """Train members side by side on one backbone and combine them.

    Args:
        data: The texts, a `TextData`; the parser would import that type, which takes seconds.
        epochs: Epochs of each member.
        directory: The sweep's directory.
        backbone: Hub name or directory of the backbone.
    """
    from loraens.api.proofs import prove
    from loraens.api.sweep import Sweep
    from loraens.train.options import SweepOptions

    sweep = Sweep(
        data,
        GRID,
        directory,
        backbone=backbone,
        epochs=epochs,
        lr=LR,
        pooling="mean",
        options=SweepOptions(pack_size=4),
    )
    (task,) = data.tasks
    members = sweep.members
    print(
        f"{task.name}: {len(members)} members of {', '.join(map(_in_words, members))}", flush=True
    )
    manifests = sweep.fit().manifests
    scores = [manifests[member.name].dev["last"][task.name][task.metric] for member in members]
    omni = prove(sweep, methods=["omni"], epoch="last")["omni"].proof.dev[task.metric]
    return Result(task, list(zip(members, scores, strict=True)), omni, directory)


def _in_words(member: Member) -> str:
    return f"rank {member.rank} and scale {member.scale:g}"


def print_table(results: Sequence[Result], made_up: bool) -> None:
    """Print members and ensembles as rows, tasks as columns, and the paper's overall score."""
    from rich.table import Table

    from loraens.metrics import overall
    from loraens.report.terminal import show

    table = Table(
        title="Dev scores" + (" on made-up texts" if made_up else ""),
        caption="accuracy; for sts Pearson's r. Last epoch: nothing was chosen on dev.",
    )
    for column in ("member", *(result.task.name for result in results), "overall"):
        table.add_column(column, justify="left" if column == "member" else "right")
    rows = [
        (_in_words(member), [result.members[index][1] for result in results])
        for index, (member, _) in enumerate(results[0].members)
    ]
    rows.append(("Omni-LoRA: all combined", [result.omni for result in results]))
    for name, scores in rows:
        by_task = zip((result.task.name for result in results), scores, strict=True)
        total = overall(dict(by_task))
        cells = [f"{score:.3f}" for score in scores]
        table.add_row(name, *cells, "" if total is None else f"{total:.3f}")
    show(table)


def main(args: list[str]) -> None:
    """Run `quickstart` with the options of the command line."""
    call(quickstart, "quickstart", args)
