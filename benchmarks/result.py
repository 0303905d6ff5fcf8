"""Time to the same score on texts that nothing was chosen on: our sweeps against PEFT in a loop.

    python benchmarks/result.py --data DIR --work DIR [--out DIR] [--arms whole,patience] [--quick]

The task is STS on MiniLM, 16 configurations (ranks, scales, rates), 3 epochs. A seventh of the
training pairs is put aside as a labelled test. Each arm is a sweep and `ensemble --method all` from
nothing, as commands, imports included:

    whole       the whole grid
    halving     successive halving by the members' own scores
    ensemble    successive halving by what a member adds to the ensemble of all
    patience    early stopping

The score is Pearson's r on the pairs that were put aside, of the members that `greedy` joins. The
loop of PEFT is not run: its steps (a bare loop with batches grouped by length, and transformers'
Trainer) and its evaluation are measured, and multiplied by the steps and pairs of the whole grid.
An arm that is in result.json is not run again; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import BATCH, WARM_UP, Bench, collate
from train import prepare

from loraens.ensemble.recommend import resolved
from loraens.ensemble.record import EnsembleRecord
from loraens.store import MemberStore, find_members
from loraens.train.runs import quiet

ROOT = Path(__file__).parent.parent
ASIDE = 7  # every seventh training pair is put aside
EVALUATED = 64  # pairs of a batch of PEFT's evaluation
ARMS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "halving": ("--sweep.halving_factor", "2"),
    "ensemble": ("--sweep.halving_factor", "2", "--sweep.halving_by", "ensemble"),
    "patience": ("--sweep.patience", "1"),
}
GRID = {"rank": [4, 8, 16, 32], "scale": [1, 3], "lr": [3e-4, 1e-3]}
QUICK = {"rank": [2, 4], "scale": [1], "lr": [1e-3]}


def put_aside(data: Path, target: Path, quick: bool) -> None:
    """Files of STS in which a part of train is test, with labels."""
    target.mkdir(parents=True, exist_ok=True)
    with (data / "sts-train.csv").open(encoding="utf-8", newline="") as file:
        # in these files each line is one record
        header, *lines = file.read().splitlines(keepends=True)
    lines = lines[:350] if quick else lines
    parts = {
        "train": [line for number, line in enumerate(lines) if number % ASIDE],
        "test-student": [line for number, line in enumerate(lines) if not number % ASIDE],
    }
    for name, part in parts.items():
        (target / f"sts-{name}.csv").write_text(header + "".join(part), encoding="utf-8")
    shutil.copyfile(data / "sts-dev.csv", target / "sts-dev.csv")


def run_arm(options: tuple[str, ...], data: Path, run: Path, quick: bool) -> dict[str, Any]:
    """Seconds of an arm from nothing, and the scores that it ends with."""
    shutil.rmtree(run, ignore_errors=True)  # what was interrupted begins again, as it is timed
    grid = QUICK if quick else GRID
    sweep = [
        *("sweep", "--config", "configs/sts.yaml", "--config", "configs/minilm.yaml"),
        *("--data.root", str(data), "--data.eval_batch_size", "512"),
        *("--trainer.max_epochs", "2" if quick else "3", "--trainer.logger", "false"),
        *(item for name, values in grid.items() for item in (f"--grid.{name}", json.dumps(values))),
        *("--store.root", str(run.parent), "--store.run", run.name, *options),
    ]
    ensemble = ["ensemble", "--runs", str(run), "--method", "all", "--logger", "false"]
    started = time.monotonic()
    seconds = []
    for arguments in (sweep, ensemble):
        command = [sys.executable, "-m", "loraens", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        seconds.append(time.monotonic() - started)
    greedy = EnsembleRecord.read(run / "ensembles" / "sts-greedy-logits")
    best = EnsembleRecord.read(run / "ensembles" / "sts-best-logits")
    recommended = EnsembleRecord.read(resolved(run / "ensembles" / "recommended"))
    epochs = sum(MemberStore(path).read().trained_epochs or 0 for path in find_members(run))
    return {
        "sweep": seconds[0],
        "seconds": seconds[1],
        "member_epochs": epochs,
        "best": best.test,
        "greedy": greedy.test,
        "members": len(greedy.members),
        "recommended": recommended.test,
    }


def of_peft(bench: Bench, configurations: int, epochs: int) -> dict[str, dict[str, float]]:
    """Seconds that loops of PEFT over the grid would take, from measured steps and evaluations."""
    rows = bench.grouped_rows(0)
    steps = len(bench.split) // BATCH
    each = {
        "PEFT, bare loop, grouped by length": sum(bench.bare_loop(rows[:, 0])[WARM_UP:]),
        "PEFT + Trainer": sum(bench.hub_trainer(rows[:, 0])[1][WARM_UP:]),
    }
    (dev,) = bench.texts.of("dev")
    order = np.argsort(dev.tokens.lengths)
    model = bench.peft_model(False, 0).eval()
    started = time.monotonic()
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATED):
            chosen = order[start : start + EVALUATED]
            model(**collate(Bench.records_of(dev, chosen)))
    evaluation = time.monotonic() - started
    times = configurations * epochs
    return {
        name: {
            "step": seconds / (len(rows) - WARM_UP - 1),
            "evaluation": evaluation,
            "seconds": times * (steps * seconds / (len(rows) - WARM_UP - 1) + evaluation),
        }
        for name, seconds in each.items()
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The arms as a table."""
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; STS, MiniLM,"
        f" {result['configurations']} configurations, {result['epochs']} epochs;"
        f" {result['aside']} pairs put aside",
        "",
        "| arm | minutes in all | of them the sweep | times the whole grid | member-epochs |"
        " r of greedy | points below the whole grid | its members | r of the best member |"
        " r of what is recommended |",
        f"|{' --- |' * 10}",
    ]
    arms = result["arms"]
    whole = arms.get("whole")
    for name, arm in arms.items():
        faster = f"{whole['seconds'] / arm['seconds']:.2f}" if whole else ""
        below = f"{100 * (whole['greedy'] - arm['greedy']):+.2f}" if whole else ""
        lines.append(
            f"| {name} | {arm['seconds'] / 60:.1f} | {arm['sweep'] / 60:.1f} | {faster} |"
            f" {arm['member_epochs']} | {arm['greedy']:.4f} | {below} | {arm['members']} |"
            f" {arm['best']:.4f} | {arm['recommended']:.4f} |"
        )
    for name, loop in result["peft"].items():
        faster = f"{whole['seconds'] / loop['seconds']:.2f}" if whole else ""
        steps = f"{1e3 * loop['step']:.0f} ms a step, {loop['evaluation']:.1f} s an evaluation"
        lines.append(
            f"| {name}, computed from {steps} | {loop['seconds'] / 60:.1f} | | {faster} |"
            f" {result['configurations'] * result['epochs']} | | | | | |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the arms that are missing, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the course's files")
    parser.add_argument("--work", type=Path, required=True, help="where the sweeps go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--arms", default=",".join(ARMS), help="all by default")
    parser.add_argument("--quick", action="store_true", help="2 members on 300 pairs")
    arguments = parser.parse_args()
    names = arguments.arms.split(",")
    if unknown := set(names) - set(ARMS):
        parser.error(f"--arms {sorted(unknown)[0]}: one of {', '.join(ARMS)} is expected")
    quiet()
    data = arguments.work.resolve() / "data"
    put_aside(arguments.data, data, arguments.quick)
    with (data / "sts-test-student.csv").open(encoding="utf-8") as file:
        aside = sum(1 for _ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) - 1
    grid = QUICK if arguments.quick else GRID
    arguments.out.mkdir(parents=True, exist_ok=True)
    file_of_all = arguments.out / "result.json"
    result: dict[str, Any] = {
        "configurations": int(np.prod([len(values) for values in grid.values()])),
        "epochs": 2 if arguments.quick else 3,
        "aside": aside,
        "arms": {},
        "peft": {},
    }
    if file_of_all.exists():
        result = json.loads(file_of_all.read_text())
    if not result["peft"]:
        with tempfile.TemporaryDirectory() as scratch:
            bench = prepare("minilm", str(data), Path(scratch))
            result["peft"] = of_peft(bench, result["configurations"], result["epochs"])
    for name in names:
        if name not in result["arms"]:
            run = arguments.work.resolve() / name
            result["arms"][name] = run_arm(ARMS[name], data, run, arguments.quick)
        file_of_all.write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "result.md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
