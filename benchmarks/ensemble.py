"""What it costs to choose and prove ensembles of many members on many examples.

    python benchmarks/ensemble.py [--members 186 --examples 40000 --classes 2] [--out FILE]
    python benchmarks/ensemble.py --members 1000 --examples 100000 --classes 5 --once

Members are made up: logits of 2 for the right class, and normal errors, of which a part is common.
Without `--once` every method and rule that merges nothing is proved, with intervals; with it, each
method only chooses its members once. One line a case is appended to FILE: wall and CPU time, and
the largest memory of the process beside the size of the logits.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from loraens.api.proofs import candidates
from loraens.ensemble.cross_validation import Choices
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.tasks import Task

HEADER = (
    f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}; the largest memory is"
    " that of the whole process.\n\n"
    "    python benchmarks/ensemble.py --out FILE\n"
    "    python benchmarks/ensemble.py --members 1000 --examples 100000 --classes 5 --once"
    " --out FILE\n\n"
    "| members x examples x classes | what | wall, s | CPU, s | memory, GiB | logits, GiB |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)


def made_up(members: int, examples: int, classes: int) -> Pool:
    """A pool of members whose errors are correlated."""
    rng = np.random.default_rng(0)
    task = Task(
        name="made-up",
        text_columns=("text",),
        label_column="label",
        kind="classes",
        loss="cross_entropy",
        metric="accuracy",
        class_names=tuple(f"class {number}" for number in range(classes)),
    )
    labels = rng.integers(0, classes, examples)
    common = 1.3 * rng.standard_normal((examples, classes), dtype=np.float32)
    common += 2 * np.eye(classes, dtype=np.float32)[labels]
    logits = np.empty((members, examples, classes), np.float32)
    for of_member in logits:
        of_member[:] = common + np.float32(0.7) * rng.standard_normal(common.shape, np.float32)
    names = tuple(f"m{number:04d}" for number in range(members))
    return Pool(task, names, np.arange(1, members + 1), logits, labels.astype(np.float64))


def main() -> None:
    """Time one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=186)
    parser.add_argument("--examples", type=int, default=40_000)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="choose once, and prove nothing")
    parser.add_argument("--out", type=Path, help="Markdown file that a line is appended to")
    arguments = parser.parse_args()
    pool = made_up(arguments.members, arguments.examples, arguments.classes)
    chosen = candidates(pool.task)
    started, cpu = time.monotonic(), time.process_time()
    if arguments.once:
        choices = Choices(pool)
        for candidate in tqdm(chosen, desc="choosing"):
            choices.weights(candidate)
    else:
        with tqdm(desc="folds and bags") as bar:
            prove(pool, chosen, bar.update)
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    case = f"{arguments.members:,} x {arguments.examples:,} x {arguments.classes}"
    what = "chosen once" if arguments.once else f"{len(chosen)} ensembles proved"
    line = (
        f"| {case} | {what} | {wall:.0f} | {cpu:.0f} | {largest:.1f} |"
        f" {pool.logits.nbytes / 2**30:.1f} |"
    )
    print(f"{HEADER}{line}")
    if arguments.out is not None:
        new = not arguments.out.exists()
        with arguments.out.open("a") as file:
            file.write((HEADER if new else "") + line + "\n")


if __name__ == "__main__":
    main()
