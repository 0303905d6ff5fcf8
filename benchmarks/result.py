"""Time to the same score on texts that nothing was chosen on: our sweeps against PEFT in a loop.

    python benchmarks/result.py --data DIR --work DIR [--out DIR] [--arms whole,patience] [--quick]

The task is STS on MiniLM, 16 configurations (ranks, scales, rates), 3 epochs. A seventh of the
training pairs is put aside as a labelled test. Each arm is a sweep and `ensemble --method all` from
nothing, as commands, imports included:

    whole       the whole grid
    ensemble    successive halving by what a member adds to the ensemble of all
    bfloat16    the same in bfloat16
    quarter     so, and a quarter goes on at each rung
    workers     so, by two workers of Ray
    score       in bfloat16, successive halving by the members' own scores
    patience    early stopping

The score is Pearson's r on the pairs that were put aside, of the members that `greedy` joins. The
loops of PEFT are not run: their steps (a bare loop with batches grouped by length, in float32 and
in bfloat16; transformers' Trainer with such batches, and without) and an evaluation of dev are
measured before each arm, and their medians are multiplied by the steps and evaluations of the whole
grid. Their start, logits of test, and ensembles are counted as nothing.
An arm's output is beside its sweep; the time of training is that of Lightning's profiler.
An arm that is in result.json is not run again; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
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
BY_GAIN = ("--sweep.halving_by", "ensemble", "--sweep.halving_factor")
HALF_LOOP = "PEFT, bare loop, grouped by length, bfloat16"
HALF = ("--trainer.precision", "bf16-mixed")
ARMS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "ensemble": (*BY_GAIN, "2"),
    "bfloat16": (*BY_GAIN, "2", *HALF),
    "quarter": (*BY_GAIN, "4", *HALF),
    "workers": (*BY_GAIN, "4", *HALF, "--sweep.engine", "ray", "--sweep.workers", "2"),
    "score": ("--sweep.halving_factor", "2", *HALF),
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
        *("--trainer.profiler", "simple"),
        *(item for name, values in grid.items() for item in (f"--grid.{name}", json.dumps(values))),
        *("--store.root", str(run.parent), "--store.run", run.name, *options),
    ]
    ensemble = ["ensemble", "--runs", str(run), "--method", "all", "--logger", "false"]
    started = time.monotonic()
    seconds = []
    log = run.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        for arguments in (sweep, ensemble):
            command = [sys.executable, "-m", "loraens", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
            subprocess.run(
                command, check=True, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            seconds.append(time.monotonic() - started)
    # Lightning's profiler: | action | mean | calls | total seconds | share |
    totals = re.findall(
        r"run_training_batch(?:\s*\|\s*\S+){2}\s*\|\s*(\S+)", log.read_text("utf-8")
    )
    greedy = EnsembleRecord.read(run / "ensembles" / "sts-greedy-logits")
    best = EnsembleRecord.read(run / "ensembles" / "sts-best-logits")
    recommended = EnsembleRecord.read(resolved(run / "ensembles" / "recommended"))
    epochs = sum(MemberStore(path).read().trained_epochs or 0 for path in find_members(run))
    return {
        "sweep": seconds[0],
        # several workers train at a time
        "training": None if "ray" in options else sum(float(total) for total in totals),
        "seconds": seconds[1],
        "member_epochs": epochs,
        "best": best.test,
        "greedy": greedy.test,
        "members": len(greedy.members),
        "recommended": recommended.test,
    }


def of_peft(bench: Bench, turn: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Append the seconds of a step of each loop of PEFT, and of an evaluation."""
    grouped = bench.grouped_rows(turn)[:, 0]
    steps = len(grouped) - WARM_UP - 1
    plain = bench.rows(1, len(grouped), turn * len(grouped))[:, 0]
    each = {
        "PEFT, bare loop, grouped by length": bench.bare_loop(grouped),
        HALF_LOOP: bench.bare_loop(grouped, half=True),
        "PEFT + Trainer, grouped by length": bench.hub_trainer(grouped)[1],
        "PEFT + Trainer": bench.hub_trainer(plain)[1],
    }
    (dev,) = bench.texts.of("dev")
    order = np.argsort(dev.tokens.lengths)
    model = bench.peft_model(False, 0).eval()
    for name, seconds in each.items():
        started = time.monotonic()
        with torch.inference_mode(), torch.autocast("cpu", enabled=name == HALF_LOOP):
            for start in range(0, len(order), EVALUATED):
                chosen = order[start : start + EVALUATED]
                model(**collate(Bench.records_of(dev, chosen)))
        times = found.setdefault(name, {"step": [], "evaluation": []})
        times["step"].append(sum(seconds[WARM_UP:]) / steps)
        times["evaluation"].append(time.monotonic() - started)


def as_markdown(result: dict[str, Any]) -> str:
    """The arms as a table."""
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; STS, MiniLM,"
        f" {result['configurations']} configurations, {result['epochs']} epochs;"
        f" {result['aside']} pairs put aside",
        "",
        "    python benchmarks/result.py --data DIR --work DIR",
        "",
        "| arm | minutes in all | of them the sweep | of the sweep, training |"
        " times the whole grid | member-epochs |"
        " r of greedy | points below the whole grid | its members | r of the best member |"
        " r of what is recommended |",
        f"|{' --- |' * 11}",
    ]
    arms = result["arms"]
    whole = arms.get("whole")
    for name, arm in arms.items():
        faster = f"{whole['seconds'] / arm['seconds']:.2f}" if whole else ""
        share = f"{arm['training'] / arm['sweep']:.0%}" if arm["training"] else ""
        below = f"{100 * (whole['greedy'] - arm['greedy']):+.2f}" if whole else ""
        lines.append(
            f"| {name} | {arm['seconds'] / 60:.1f} | {arm['sweep'] / 60:.1f} |"
            f" {share} | {faster} | {arm['member_epochs']} |"
            f" {arm['greedy']:.4f} | {below} | {arm['members']} |"
            f" {arm['best']:.4f} | {arm['recommended']:.4f} |"
        )
    epochs = result["configurations"] * result["epochs"]
    for name, loop in result["peft"].items():
        step, evaluation = (1e3 * np.array(loop[what]) for what in ("step", "evaluation"))
        seconds = epochs * (result["steps"] * np.median(step) + np.median(evaluation)) / 1e3
        faster = f"{whole['seconds'] / seconds:.2f}" if whole else ""
        lines.append(
            f"| {name}, computed from {np.median(step):.0f} ms a step ({step.min():.0f} to"
            f" {step.max():.0f} in {len(step)} turns) and {np.median(evaluation) / 1e3:.1f} s an"
            f" evaluation | {seconds / 60:.1f} | | | {faster} | {epochs} | | | | | |"
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
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare("minilm", str(data), Path(scratch))
        result["steps"] = len(bench.split) // BATCH
        for turn, name in enumerate(names):
            if name not in result["arms"]:
                of_peft(bench, turn, result["peft"])
                run = arguments.work.resolve() / name
                result["arms"][name] = run_arm(ARMS[name], data, run, arguments.quick)
            file_of_all.write_text(json.dumps(result, indent=1) + "\n")
            (arguments.out / "result.md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
