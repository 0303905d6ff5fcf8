"""How fast members are trained, against PEFT with `transformers.Trainer`, one member after another.

    python benchmarks/train.py --data DIR [--quick] [--model minilm] [--model bert-base]

Arms, all on the same token ids, threads and steps (STS, batch 8, rank 8, query and value, dropout
on), in bfloat16 on a GPU and float32 on a CPU:

    A  PEFT + transformers.Trainer: dynamic padding, scaled dot product attention, fused AdamW
    B  PEFT in a bare loop
    C  loraens on the stock forward (the general path), eight members
    D  loraens with one member
    E  loraens with packs of members

A and B also with batches grouped by length (`train_sampling_strategy="group_by_length"`), which
changes the order of the examples that SGD sees, and then B under torch.compile, and on a CPU in two
processes of half the threads each, as E is too (`--sweep.engine ray --sweep.workers 2`). E also
with the pooling `mean`, which configs/minilm.yaml has.
On a CPU B grouped by length and E in bfloat16 too, by autocast and `bf16-mixed`; the best of A and
B is that of the arm's own precision.

First the equality gate: without dropout, the members of a pack must end with the weights that A
gives each. Then the arms are timed in turn, several rounds; the table has medians and quartiles.
Useful arithmetic counts real tokens only, and nothing whose result is not needed; the GEMM rate is
that of 2048 x 2048 x 2048 products, measured between the arms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from arms import BATCH, CUDA, LR, WARM_UP, Bench, now, ours_of
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging as hub_logging

from loraens.data import modules
from loraens.data.made_up import write_corpus
from loraens.model.packaged import locate
from loraens.train.cost import formula_bytes
from loraens.train.runs import quiet, quiet_trainers

READY = "ready"
Run = Callable[[np.ndarray], list[float]]  # rows (steps, M, B) to seconds of each step
PACKS = (2, 4, 8, 16, 32) + ((64, 186) if CUDA else ())
ARMS = {
    "A": "PEFT + Trainer",
    "A compiled": "PEFT + Trainer, torch.compile",
    "A grouped": "PEFT + Trainer, grouped by length",
    "B": "PEFT, bare loop",
    "B grouped": "PEFT, bare loop, grouped by length",
    "B compiled": "PEFT, bare loop, grouped by length, torch.compile",
    "B twice": "PEFT, bare loop, grouped by length, two processes",
    "B half": "PEFT, bare loop, grouped by length, bfloat16",
    "C": "stock forward, 8 members",
    "D": "one member",
    "E mean": "pack of 8, pooling mean",
    "E twice": "packs of 8, two processes",
    "E half": "pack of 8, bfloat16",
}
GROUPED = {name for name, what in ARMS.items() if "grouped" in what}
RIVALS = [name for name in ARMS if name[0] in "AB"]


def gate(bench: Bench, steps: int = 5) -> float:
    """Largest difference of a trained weight between a pack of two and arm A for each, without
    dropout.
    """
    rows = bench.rows(2, steps, 0)
    module = bench.population(2, dropout=False, decay=0.0)
    bench.loraens(rows, module=module)
    worst = 0.0
    moved = 0.0
    for index in range(2):
        model, _ = bench.hub_trainer(rows[:, index], dropout=False, seed=index, decay=0.0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                worst = max(
                    worst,
                    (parameter.cpu() - ours_of(module.model, name, index).cpu()).abs().max().item(),
                )
                moved = max(moved, parameter.abs().max().item() if "lora_B" in name else 0.0)
    if worst > (1e-2 if CUDA else 2e-4) or moved < LR:
        sys.exit(
            f"the arms do not train the same members: weights differ by {worst:.1e}, B moved by"
            f" {moved:.1e}"
        )
    return worst


def gemm_rate() -> float:
    """Floating point operations a second of large products."""
    dtype, device = (torch.bfloat16, "cuda") if CUDA else (torch.float32, "cpu")
    size = 8192 if CUDA else 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in "ab")
    times = []
    for _ in range(8):
        started = now()
        a @ b
        times.append(now() - started)
    return 2 * size**3 / float(np.median(times[2:]))


def arms_of(bench: Bench, sizes: list[int], twice: Run) -> dict[str, tuple[int, Run]]:
    """Members and run of each arm.

    Args:
        bench: The backbone and the texts.
        sizes: Of packs.
        twice: An arm in two processes.
    """
    arms: dict[str, tuple[int, Run]] = {
        "A": (1, lambda rows: bench.hub_trainer(rows[:, 0])[1]),
        "A grouped": (1, lambda rows: bench.hub_trainer(rows[:, 0])[1]),
        "B": (1, lambda rows: bench.bare_loop(rows[:, 0])),
        "B grouped": (1, lambda rows: bench.bare_loop(rows[:, 0])),
        "C": (8, lambda rows: bench.loraens(rows, fast=False)),
        "D": (1, bench.loraens),
        **{f"E{size}": (size, bench.loraens) for size in sizes},
        "E mean": (8, lambda rows: bench.loraens(rows, module=bench.population(8, pooling="mean"))),
    }
    if CUDA:
        arms["A compiled"] = (1, lambda rows: bench.hub_trainer(rows[:, 0], compiled=True)[1])
    else:
        arms["B twice"] = (2, twice)
        arms["E twice"] = (16, twice)
        arms["B half"] = (1, lambda rows: bench.bare_loop(rows[:, 0], half=True))
        arms["E half"] = (8, lambda rows: bench.loraens(rows, half=True))
    if CUDA or shutil.which("g++"):
        arms["B compiled"] = (1, lambda rows: bench.bare_loop(rows[:, 0], compiled=True))
    return arms


def in_two_processes(model: str, data: str | None) -> Run:
    """Arm B, or E, in two processes of half the threads each, whose timed steps begin together.

    Each has half of the members.
    """

    def run(rows: np.ndarray) -> list[float]:
        command = [sys.executable, __file__, "--model", model, "--half"]
        command += ["--data", data] if data else []
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        halves = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for half in halves:
            half.stdin.write(json.dumps(rows[:, : rows.shape[1] // 2].tolist()) + "\n")
            half.stdin.flush()
        for half in halves:
            while half.stdout.readline().strip() != READY:
                if half.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended with {half.returncode}")
        started = now()
        outputs = [half.communicate("\n") for half in halves]
        seconds = now() - started
        longest = max(json.loads(output.splitlines()[-1]) for output, _ in outputs)
        assert longest <= seconds
        return [0.0] * WARM_UP + [longest]

    return run


def half(bench: Bench) -> float:
    """Seconds of one of the two processes for the rows that it is given."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    rows = np.array(json.loads(sys.stdin.readline()))

    def warm() -> None:
        print(READY, flush=True)
        sys.stdin.readline()

    if rows.shape[1] == 1:
        return sum(bench.bare_loop(rows[:, 0], warm=warm)[WARM_UP:])
    steps = count()
    seconds = bench.loraens(rows, watch=lambda: next(steps) == WARM_UP and warm())
    return sum(seconds[WARM_UP:])


def timed(
    bench: Bench, sizes: list[int], rounds: int, member_steps: int, twice: Run
) -> tuple[list[dict[str, Any]], float]:
    """Rows of the table, and the GEMM rate."""
    config = AutoConfig.from_pretrained(locate(bench.backbone))
    arms = arms_of(bench, sizes, twice)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    rates = []
    for turn in range(rounds):
        rates.append(gemm_rate())
        for name, (members, run) in arms.items():
            if name in GROUPED:
                rows = np.repeat(bench.grouped_rows(turn), members, axis=1)
            else:
                steps = max(2, member_steps // members)
                rows = bench.rows(members, WARM_UP + 1 + steps, turn * (steps + WARM_UP + 1))
            counted = rows[WARM_UP + 1 :]
            seconds = sum(run(rows)[WARM_UP:])
            found[name].append(
                (
                    seconds / members / len(counted),
                    bench.tokens(counted) / seconds,
                    bench.useful(counted, config) / seconds,
                )
            )
            gc.collect()
            print(
                f"round {turn + 1} of {rounds}, {name}: {found[name][-1][0] * 1e3:.1f} ms a"
                " member-step",
                flush=True,
            )
    rate = float(np.median(rates))
    table = []
    reference = [entry[0] for entry in found["A"]]
    in_half = {name: name.endswith("half") for name in found}
    of_rivals = {name: [entry[0] for entry in found[name]] for name in RIVALS if name in found}
    best = {
        half: min((v for k, v in of_rivals.items() if in_half[k] == half), key=np.median)
        for half in set(in_half.values())
    }
    for name, entries in found.items():
        seconds, tokens, useful = (np.array(column) for column in zip(*entries, strict=True))
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        table.append(
            {
                "arm": name,
                "what": ARMS.get(name, f"pack of {arms[name][0]}"),
                "members": arms[name][0],
                "ms_per_member_step": [1e3 * middle, 1e3 * low, 1e3 * high],
                "member_steps_per_second": 1 / middle,
                "tokens_per_second": float(np.median(tokens)),
                "share_of_gemm_rate": float(np.median(useful)) / rate,
                "times_a": float(np.median(np.array(reference) / seconds)),
                "times_best": float(np.median(np.array(best[in_half[name]]) / seconds)),
            }
        )
    return table, rate


def memory(bench: Bench, members: int) -> dict[str, float]:
    """Bytes of a pack after the backward of each of a few steps, the most, and the formula's bytes
    of a member.
    """
    rows = bench.rows(members, 4, 0)
    module = bench.population(members)
    process = psutil.Process()
    before = process.memory_info().rss
    peaks = [0]
    bench.loraens(
        rows, module=module, watch=lambda: peaks.append(process.memory_info().rss - before)
    )
    lengths = bench.split.tokens.lengths[rows]
    formula = max(formula_bytes(module.model, one) for one in lengths.reshape(-1, BATCH))
    return {"peak": torch.cuda.max_memory_allocated() if CUDA else max(peaks), "formula": formula}


def memories(
    arguments: argparse.Namespace, model: str, sizes: list[int]
) -> dict[int, dict[str, float]]:
    """`memory` of several packs, each in a process of its own."""
    found = {}
    for size in sizes:
        command = [sys.executable, __file__, "--model", model, "--memory", str(size)]
        command += ["--data", arguments.data] if arguments.data else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[size] = json.loads(output.splitlines()[-1])
    return found


def prepare(model: str, data: str | None, scratch: Path, backbone: str = "minilm") -> Bench:
    """The backbone, made if it is BERT-base's shape, and the texts."""
    tokenizer = AutoTokenizer.from_pretrained(locate(backbone))
    if model == "bert-base":
        backbone = str(scratch / "bert-base")
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(backbone)
        tokenizer.save_pretrained(backbone)
    if data is None:
        write_corpus(scratch / "texts")
        data = str(scratch / "texts")
    texts = modules.STS(data, backbone=backbone, batch_size=BATCH)
    texts.setup("fit")
    return Bench(backbone, texts, data)


def as_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        (
            f"{result['model']}, {result['machine']}; GEMM rate {result['gemm_rate'] / 1e9:,.0f}"
            f" GFLOP/s; weights of the gate differ by {result['gate']:.0e}"
        ),
        "",
        (
            "| arm | ms a member-step (quartiles) | member-steps/s | tokens/s | times A | times the"
            " best of A and B | of GEMM rate | MiB a member (formula) |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["table"]:
        middle, low, high = row["ms_per_member_step"]
        memory_cell = ""
        if row.get("bytes_per_member"):
            memory_cell = f"{row['bytes_per_member'] / 2**20:,.0f} ({row['formula'] / 2**20:,.0f})"
        lines.append(
            f"| {row['arm'][0]}: {row['what']} | {middle:.1f} ({low:.1f} to"
            f" {high:.1f}) | {row['member_steps_per_second']:.1f} | {row['tokens_per_second']:,.0f}"
            f" | {row['times_a']:.2f} | {row['times_best']:.2f} |"
            f" {100 * row['share_of_gemm_rate']:.0f} % | {memory_cell} |"
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace, model: str, scratch: Path) -> dict[str, Any]:
    """All arms on one backbone."""
    bench = prepare(model, arguments.data, scratch)
    sizes = [
        size
        for size in PACKS
        if size <= (8 if arguments.quick or (model != "minilm" and not CUDA) else max(PACKS))
    ]
    rounds, member_steps = (3, 16) if arguments.quick else (5, 32)
    difference = gate(bench)
    steps = member_steps if model == "minilm" or CUDA else 8
    table, rate = timed(bench, sizes, rounds, steps, in_two_processes(model, arguments.data))
    used = memories(arguments, model, [1, *sizes])
    for row in table:
        size = row["members"]
        if row["arm"].startswith("E") and row["arm"] not in ARMS:
            row["bytes_per_member"] = (used[size]["peak"] - used[1]["peak"]) / (size - 1)
            row["formula"] = used[size]["formula"]
    cores = f"{torch.get_num_threads()} threads, {platform.machine()}"
    machine = torch.cuda.get_device_name() if CUDA else cores
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {
        "model": model,
        "machine": machine,
        "versions": versions,
        "gemm_rate": rate,
        "gate": difference,
        "table": table,
    }


def main() -> None:
    """Run the benchmark, and write its table and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("LORAENS_DATA"),
        help="the course's files; without them, made-up texts",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="MiniLM alone, fewer rounds and packs: under ten minutes",
    )
    parser.add_argument("--model", action="append", choices=["minilm", "bert-base"])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        help="where train.json and train.md go; what they have of other backbones stays",
    )
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    names = arguments.model or (["minilm"] if arguments.quick else ["minilm", "bert-base"])
    with tempfile.TemporaryDirectory() as scratch, quiet_trainers():
        if arguments.memory is not None:
            print(
                json.dumps(
                    memory(prepare(names[0], arguments.data, Path(scratch)), arguments.memory)
                )
            )
            return
        if arguments.half:
            print(json.dumps(half(prepare(names[0], arguments.data, Path(scratch)))))
            return
        arguments.out.mkdir(parents=True, exist_ok=True)
        file_of_all = arguments.out / "train.json"
        results: list[dict[str, Any]] = []
        if file_of_all.exists():
            results = [
                result
                for result in json.loads(file_of_all.read_text())
                if result["model"] not in names
            ]
        for name in names:
            results.append(run(arguments, name, Path(scratch)))
            results.sort(key=lambda result: result["model"], reverse=True)  # MiniLM first
            file_of_all.write_text(json.dumps(results, indent=2) + "\n")
            text = "\n\n".join(map(as_table, results))
            (arguments.out / "train.md").write_text(text + "\n")
            print(text, flush=True)
    table = next(result["table"] for result in results if result["model"] == names[0])
    best = max(
        (row for row in table if row["arm"][0] == "E" and row["arm"] not in ("E mean", "E half")),
        key=lambda row: row["times_a"],
    )
    print(
        f"best pack: {best['times_a']:.2f} times A, {best['times_best']:.2f} times the best of A"
        f" and B, {100 * best['share_of_gemm_rate']:.0f} % of the GEMM rate"
    )


if __name__ == "__main__":
    main()
