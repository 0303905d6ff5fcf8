"""Whether the 95 % intervals of a proof hold the truth, on pools whose truth is known.

    python benchmarks/coverage.py --out DIR [--draws D] [--cells 0,3] [--minutes T]
    python benchmarks/coverage.py --out DIR --table

Each draw makes a dev pool with planted errors of the members, proves every method that merges
nothing with `loraens.ensemble.prove.prove`, and has one of them recommended. The truth is the score
of the same weights, and the difference to the same best member, on many fresh rows. A cell is one
setting of the pools; its draws are lines of one file under DIR, so that a run that was cut off goes
on where it ended.

Shape letters: M members, N examples, K classes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from loraens.api.proofs import candidates
from loraens.ensemble.combine import combine
from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.ensemble.recommend import recommend
from loraens.ensemble.significance import Interval
from loraens.seeding import derive_seed
from loraens.tasks import Task

RESULTS = Path(__file__).parent / "results"
RECOMMENDED = "recommended"  # among the methods
TOLERANCE = 1e-12  # of differences that are zero but for rounding
TASKS = {
    "number": Task(
        name="planted-numbers",
        text_columns=("text",),
        label_column="label",
        kind="number",
        loss="mse",
        metric="pearson",
    ),
    "classes": Task(
        name="planted-classes",
        text_columns=("text",),
        label_column="label",
        kind="classes",
        loss="cross_entropy",
        metric="accuracy",
        class_names=("a", "b", "c"),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One setting of the pools.

    Args:
        kind: Key of `TASKS`.
        members: M.
        examples: N.
        correlation: Of the errors of any two members.
        unequal: The errors' sizes go from 0.8 to 1.2 times the usual one, instead of being equal.
    """

    kind: str
    members: int
    examples: int
    correlation: float
    unequal: bool

    @property
    def name(self) -> str:
        """Name of its file, and in its seeds."""
        sizes = "unequal" if self.unequal else "equal"
        return f"{self.kind}-M{self.members}-N{self.examples}-{self.correlation}-{sizes}"

    @property
    def task(self) -> Task:
        """Its task."""
        return TASKS[self.kind]

    @property
    def rule(self) -> str:
        """The combination rule: `logits` of numbers, `probs` of classes."""
        return self.task.label_kind.rules[-1]

    def pool(self, examples: int, *purpose: str | int) -> Pool:
        """A pool of this cell, drawn anew for each purpose.

        Numbers: standard normal, and normal errors of 0.6 standard deviations. Classes: three of
        equal probability, logits of 2 for the right one, and normal errors of 1.5.
        """
        rng = np.random.default_rng(derive_seed(0, "coverage", self.name, *purpose))
        M, N, classes = self.members, examples, len(self.task.class_names)
        outputs = classes or 1
        if classes:
            labels = rng.integers(0, classes, N).astype(np.float64)
            signal = 2 * np.eye(classes, dtype=np.float32)[labels.astype(int)]
        else:
            labels = rng.standard_normal(N)
            signal = labels[:, None].astype(np.float32)
        sizes = np.linspace(0.8, 1.2, M) if self.unequal else np.ones(M)
        scale = ((1.5 if classes else 0.6) * sizes).astype(np.float32)
        shared = rng.standard_normal((N, outputs), dtype=np.float32)
        logits = rng.standard_normal((M, N, outputs), dtype=np.float32)
        logits *= np.float32(math.sqrt(1 - self.correlation))
        logits += np.float32(math.sqrt(self.correlation)) * shared
        logits *= scale[:, None, None]
        logits += signal
        names = tuple(f"m{number:02d}" for number in range(M))
        return Pool(self.task, names, np.arange(1, M + 1), logits, labels)


CELLS = (
    Cell("number", 4, 300, 0.9, False),
    Cell("classes", 4, 300, 0.9, True),
    Cell("number", 4, 1000, 0.5, True),
    Cell("classes", 4, 1000, 0.98, False),
    Cell("number", 16, 300, 0.98, True),
    Cell("classes", 16, 300, 0.5, False),
    Cell("number", 16, 1000, 0.9, False),
    Cell("classes", 16, 1000, 0.9, True),
    Cell("number", 64, 300, 0.5, False),
    Cell("classes", 64, 300, 0.98, True),
    Cell("number", 4, 10_000, 0.9, True),
    Cell("classes", 4, 10_000, 0.5, False),
)


class Truth:
    """True scores of weights, on fresh rows that all draws of a cell share."""

    def __init__(self, cell: Cell, rows: int | None = None) -> None:
        self.cell = cell
        self.rows = rows or (100_000 if cell.members >= 64 else 200_000)  # for memory
        self._scores: dict[bytes, float] = {}

    @cached_property
    def pool(self) -> Pool:
        """The fresh rows."""
        return self.cell.pool(self.rows, "truth")

    def score(self, weights: np.ndarray) -> float:
        """Score of weights `(M,)`, the task's metric."""
        key = weights.tobytes()
        if key not in self._scores:
            standings = np.arange(len(weights))  # only ties of votes need them
            outcome = combine(self.pool, weights, self.cell.rule, standings)
            self._scores[key] = self.cell.task.score(outcome, self.pool.labels)
        return self._scores[key]


def against(interval: Interval, true: float) -> dict[str, Any]:
    """Error of an estimate, half the width of its interval, and whether that holds the truth."""
    covered = interval.low - TOLERANCE <= true <= interval.high + TOLERANCE
    half = (interval.high - interval.low) / 2
    return {"error": interval.value - true, "half_width": half, "covered": bool(covered)}


def measure(cell: Cell, number: int, chosen: Sequence[Candidate], truth: Truth) -> dict[str, Any]:
    """One draw: by method, and of what is recommended, `score` and `difference` (to the best
    member) against the truth.
    """
    pool = cell.pool(cell.examples, "draw", number)
    # `best` and `omni` are there with the paper's rule too
    proofs = [proof for proof in prove(pool, chosen) if proof.candidate.rule == cell.rule]
    true = {proof.candidate.method: truth.score(proof.weights) for proof in proofs}
    methods = {}
    for proof in proofs:
        method = proof.candidate.method
        methods[method] = {
            "score": against(proof.interval, true[method]),
            "difference": against(proof.to_best, true[method] - true["best"]),
        }
    index, found = recommend(pool, proofs)
    method = proofs[index].candidate.method
    methods[RECOMMENDED] = {
        "score": against(found.estimate, true[method]),
        "difference": against(found.gain, true[method] - true["best"]),
    }
    return {"draw": number, "methods": methods}


def read(path: Path) -> list[dict[str, Any]]:
    """The draws in a file; a last line that is half written is cut off."""
    if not path.exists():
        return []
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def run(
    cells: Sequence[Cell], draws: int, out: Path, minutes: float, methods: Sequence[str]
) -> None:
    """Append the draws that are missing, the cells in turn, and start none after the time."""
    end = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    paths = {cell: out / f"{cell.name}.jsonl" for cell in cells}
    done = {cell: {line["draw"] for line in read(path)} for cell, path in paths.items()}
    truths = {cell: Truth(cell) for cell in cells}
    for number in range(draws):
        for cell in cells:
            if number in done[cell]:
                continue
            started = time.monotonic()
            if started >= end:
                return
            chosen = candidates(cell.task, methods, [cell.rule])
            line = json.dumps(measure(cell, number, chosen, truths[cell]))
            with paths[cell].open("a") as file:
                file.write(line + "\n")
            seconds = time.monotonic() - started
            print(f"{cell.name}: draw {number + 1} of {draws}, {seconds:.1f} s", flush=True)


def share(covered: Sequence[bool]) -> str:
    """Coverage in %, and its Monte Carlo standard error."""
    p = float(np.mean(covered))
    return f"{100 * p:.1f} ({100 * math.sqrt(p * (1 - p) / len(covered)):.1f})"


def rows_of(draws: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of the table of one cell, one a method."""
    rows = []
    for method in draws[0]["methods"]:
        columns = [method]
        for what in ("score", "difference"):
            values = [draw["methods"][method][what] for draw in draws]
            if method == RECOMMENDED and what == "difference":  # not where it is the best member
                values = [value for value in values if value["half_width"] > 0]
                columns[0] += f" (an ensemble in {len(values)})"
            if (method, what) == ("best", "difference") or not values:  # to itself
                columns += ["", "", ""]
                continue
            bias = np.mean([value["error"] for value in values])
            half = np.mean([value["half_width"] for value in values])
            covered = share([value["covered"] for value in values])
            columns += [covered, f"{bias:+.4f}", f"{half:.4f}"]
        rows.append(f"| {' | '.join(columns)} |")
    return rows


def machine() -> str:
    """Model and number of the processor's cores."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores"


def as_table(out: Path) -> str:
    """All draws of a directory as Markdown, a table for each cell."""
    draws_of = {number: read(out / f"{cell.name}.jsonl") for number, cell in enumerate(CELLS)}
    there = ",".join(str(number) for number, draws in draws_of.items() if draws)
    text = [
        (
            f"Coverage of the 95 % intervals; {machine()}. In brackets the Monte Carlo standard"
            " error, sqrt(p (1 - p) / draws), which is 0 where p is 100 %. Bias: mean of estimate"
            " minus truth. The truth is of 200,000 fresh rows (100,000 where M is 64)."
        ),
        "",
        f"    python benchmarks/coverage.py --out DIR --cells {there} --draws 200 --minutes T",
        "    python benchmarks/coverage.py --out DIR --table",
    ]
    for number, draws in draws_of.items():
        if not draws:
            continue
        cell = CELLS[number]
        sizes = "unequal" if cell.unequal else "equal"
        text += [
            "",
            (
                f"Cell {number}: {cell.kind} ({cell.task.metric}), M = {cell.members},"
                f" N = {cell.examples:,}, correlation {cell.correlation}, {sizes} members,"
                f" {len(draws)} draws"
            ),
            "",
            (
                "| method | score: covered, % | bias | half-width |"
                " difference to best: covered, % | bias | half-width |"
            ),
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows_of(draws),
        ]
    return "\n".join(text)


def main() -> None:
    """Run draws, or write the table of those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the draws go, a file a cell")
    parser.add_argument("--draws", type=int, default=200, help="draws of each cell")
    parser.add_argument("--cells", help="numbers of cells, such as 0,3; all by default")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no draw after this time"
    )
    parser.add_argument(
        "--methods", default="all", help="some of them, such as omni, in a DIR of their own"
    )
    parser.add_argument(
        "--table", action="store_true", help="only write benchmarks/results/coverage.md"
    )
    arguments = parser.parse_args()
    if arguments.table:
        table = as_table(arguments.out)
        (RESULTS / "coverage.md").write_text(table + "\n")
        print(table)
        return
    known = [str(number) for number in range(len(CELLS))]
    numbers = known if arguments.cells is None else arguments.cells.split(",")
    if not set(numbers) <= set(known):
        parser.error(f"--cells {arguments.cells}: give numbers from 0 to {len(CELLS) - 1}")
    cells = [CELLS[int(number)] for number in dict.fromkeys(numbers)]
    run(cells, arguments.draws, arguments.out, arguments.minutes, arguments.methods.split(","))


if __name__ == "__main__":
    main()
