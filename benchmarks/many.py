"""What the engine ray gains and costs on the cores of one machine.

    python benchmarks/many.py [--quick] [--rounds N]

Two tables. First, a sweep of MiniLM on made-up STS pairs in packs of 4: one worker with all cores,
in process and by Ray, against one worker a core. Then 64 packs of one tiny member, each of one
step, which are all overhead: in process and by Ray.

The arms are timed in turn. "start" is the time until the first pack begins to be trained: of Ray,
of its workers' imports, and of reading the texts there; "training" is from then to the last result.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BertConfig, BertModel

from loraens.cluster import cores
from loraens.data.made_up import write_corpus
from loraens.data.modules import STS
from loraens.members import Member
from loraens.model.backbone import locate
from loraens.train.config import SweepConfig
from loraens.train.coordinator import Coordinator
from loraens.train.executors import entered, executor_of
from loraens.train.options import SweepOptions
from loraens.train.packs import Pack, PackResult, Report
from loraens.train.worker import Worker


class Arm(NamedTuple):
    """A way to train the same packs."""

    name: str
    engine: str
    workers: int
    threads: int


Times = dict[Arm, list[tuple[float, float]]]  # seconds of the start and of the training


class Timed:
    """An executor, with the times at which its first pack began and its last one was there."""

    def __init__(self, options: SweepOptions) -> None:
        self.executor = executor_of(options)

    def __enter__(self) -> Timed:
        self.begun = time.monotonic()
        self.context = entered(self.executor)
        self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def run(self, worker: Worker, packs: Iterator[Pack], report: Report) -> Iterator[PackResult]:
        """Train packs, and note the times."""
        starts = []
        for result in self.executor.run(worker, packs, report):
            now = time.monotonic()
            starts.append(now - result.seconds)
            self.start, self.training = min(starts) - self.begun, now - min(starts)
            yield result


def sweep(
    directory: Path, data: Path, backbone: Path, members: int, size: int, steps: int, arm: Arm
) -> tuple[float, float]:
    """Train members once; returns the seconds of the start and of the training."""
    torch.set_num_threads(arm.threads)
    ray = {"workers": arm.workers, "cpus": arm.threads} if arm.engine == "ray" else {}
    options = SweepOptions(pack_size=size, engine=arm.engine, **ray)
    texts = STS(str(data))
    config = SweepConfig.from_objects(
        texts,
        [Member(8, 1.0, seed) for seed in range(members)],
        directory,
        backbone=str(backbone),
        epochs=1,
        options=options,
        model={"pooling": "mean"},
        trainer={"enable_progress_bar": False, "limit_train_batches": steps, "accelerator": "cpu"},
    )
    executor = Timed(options)
    Coordinator(config, texts, executor).run()
    return executor.start, executor.training


def tiny(directory: Path, tokenizer: Path) -> Path:
    """A BERT of one layer, 16 wide, with another's tokenizer."""
    shutil.copytree(tokenizer, directory, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    words = BertConfig.from_pretrained(tokenizer).vocab_size
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=words, intermediate_size=32, **sizes)).save_pretrained(
        directory
    )
    return directory


def table(title: str, arms: list[Arm], times: Times) -> str:
    """The medians of the arms, in Markdown."""
    lines = [title, "", "| arm | start, s | training, s | times the first |", "|---|---|---|---|"]
    first = np.median([training for _, training in times[arms[0]]])
    for arm in arms:
        start, training = np.median(np.array(times[arm]), axis=0)
        lines.append(f"| {arm.name} | {start:.1f} | {training:.1f} | {training / first:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Time all arms, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps and packs")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray gives workers as many as their cores
    n = cores()
    whole = [
        Arm(f"in process, {n} threads", "in_process", 1, n),
        Arm(f"ray, 1 worker of {n} threads", "ray", 1, n),
        Arm(f"ray, {n} workers of 1 thread", "ray", n, 1),
    ]
    small = [
        Arm("in process, 1 thread", "in_process", 1, 1),
        Arm("ray, 1 worker of 1 thread", "ray", 1, 1),
        Arm(f"ray, {n} workers of 1 thread", "ray", n, 1),
    ]
    packs, steps = (4, 4) if args.quick else (64, 20)
    minilm = Path(locate("minilm"))
    of_whole: Times = {arm: [] for arm in whole}
    of_small: Times = {arm: [] for arm in small}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_corpus(root / "data", {"train": 8 * steps, "dev": 64, "test": 16})
        toy = tiny(root / "tiny", minilm)
        for number in range(args.rounds):
            for arm in whole:
                run = root / f"whole-{number}-{whole.index(arm)}"
                of_whole[arm].append(sweep(run, root / "data", minilm, 4 * n, 4, steps, arm))
            for arm in small:
                run = root / f"small-{number}-{small.index(arm)}"
                of_small[arm].append(sweep(run, root / "data", toy, packs, 1, 1, arm))
    print(f"\n{platform.machine()}, {n} cores, {args.rounds} rounds, medians\n")
    print(table(f"{n} packs of 4 MiniLM members, {steps} steps of 8 pairs", whole, of_whole))
    print()
    print(table(f"{packs} packs of one tiny member, one step each", small, of_small))


if __name__ == "__main__":
    main()
