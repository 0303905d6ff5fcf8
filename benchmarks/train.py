"""How fast members are trained, against PEFT with `transformers.Trainer`, one member after another.

    python benchmarks/train.py --data DIR [--quick] [--model minilm] [--model bert-base]

Arms, all on the same token ids, threads, precision and steps (STS, batch 8, rank 8, query and value, dropout on):

    A  PEFT + transformers.Trainer: dynamic padding, scaled dot product attention, fused AdamW
    B  PEFT in a bare loop; on a GPU, A compiled by torch.compile too
    C  loraens on the stock forward (the general path), eight members
    D  loraens with one member
    E  loraens with packs of members

First the equality gate: without dropout, the members of a pack must end with the weights that A gives each. Then the arms are
timed in turn, several rounds; the table has medians and quartiles. Useful arithmetic counts real tokens only, and nothing whose
result is not needed; the GEMM rate is that of 2048 x 2048 x 2048 products, measured between the arms.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HubTrainer
from transformers.utils import logging as hub_logging

from loraens import data as modules
from loraens.backbone import load_tokenizer, locate
from loraens.data import TextData
from loraens.estimate import bytes_of_formula
from loraens.grid import Member
from loraens.made_up import write_corpus
from loraens.module import Population
from loraens.training import quiet, quiet_trainers

RANK, SCALE, LR, BATCH = 8, 1.0, 1e-4, 8
CUDA = torch.cuda.is_available()
PACKS = (2, 4, 8, 16, 32) + ((64, 186) if CUDA else ())
WARM_UP = 2  # steps that are not timed
ARMS = {
    "A": "PEFT + Trainer",
    "A compiled": "PEFT + Trainer, torch.compile",
    "B": "PEFT, bare loop",
    "C": "stock forward, 8 members",
    "D": "one member",
}


class Bench:
    """One backbone and the training texts.

    Args:
        backbone: Name or directory.
        texts: The texts, set up.
    """

    def __init__(self, backbone: str, texts: TextData) -> None:
        self.backbone, self.texts = backbone, texts
        (self.split,) = texts.of("train")

    def rows(self, members: int, steps: int, start: int) -> np.ndarray:
        """Rows `(steps, M, B)` of the members' own orders, from a step on."""
        size = len(self.split) // BATCH * BATCH
        orders = [np.random.default_rng(seed).permutation(len(self.split))[:size] for seed in range(members)]
        steps_of = np.stack(orders).reshape(members, -1, BATCH).transpose(1, 0, 2)
        return steps_of[(start + np.arange(steps)) % len(steps_of)]

    def tokens(self, rows: np.ndarray) -> int:
        """Real tokens of rows."""
        return int(self.split.tokens.lengths[rows].sum())

    # Arms A and B

    def peft_model(self, dropout: bool, seed: int) -> Any:
        """PEFT's model, its start that of our member."""
        rates = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = AutoConfig.from_pretrained(
            locate(self.backbone), num_labels=1, classifier_dropout=0.3 if dropout else 0.0, **rates
        )
        model = AutoModelForSequenceClassification.from_pretrained(
            locate(self.backbone), config=config, attn_implementation="sdpa"
        )
        lora = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=RANK * SCALE, target_modules=["query", "value"])
        model = get_peft_model(model, lora)
        ours = self.population(1, dropout, first=seed).model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(_ours(ours, name, 0))
        return model.train()

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Tokenised records of `(steps, B)` rows, in order."""
        tokens, labels = self.split.tokens, self.split.split.labels
        assert labels is not None
        found = []
        for row in rows.flatten():
            part = slice(tokens.offsets[row], tokens.offsets[row + 1])
            found.append(
                {
                    "input_ids": torch.from_numpy(tokens.ids[part].astype(np.int64)),
                    "token_type_ids": torch.from_numpy(tokens.types[part].astype(np.int64)),
                    "labels": torch.tensor(labels[row], dtype=torch.float32),
                }
            )
        return found

    def hub_trainer(
        self, rows: np.ndarray, dropout: bool = True, seed: int = 0, decay: float = 0.01, compiled: bool = False
    ) -> tuple[Any, list[float]]:
        """Arm A: the trained model, and the seconds of each step."""
        clock = _HubClock()
        with tempfile.TemporaryDirectory() as directory:
            arguments = TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=BATCH,
                max_steps=len(rows),
                learning_rate=LR,
                lr_scheduler_type="constant",
                weight_decay=decay,
                max_grad_norm=0.0,
                optim="adamw_torch_fused",
                bf16=CUDA,
                torch_compile=compiled,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=not CUDA,
            )
            trainer = _InOrder(
                self.peft_model(dropout, seed),
                arguments,
                train_dataset=self.records(rows),
                data_collator=collate,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer.model, np.diff(clock.times).tolist()

    def bare_loop(self, rows: np.ndarray) -> list[float]:
        """Arm B: the seconds of each step."""
        device = torch.device("cuda" if CUDA else "cpu")
        model, records, times = self.peft_model(True, 0).to(device), self.records(rows), []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)
        for start in range(0, len(records), BATCH):
            batch = {key: value.to(device) for key, value in collate(records[start : start + BATCH]).items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(_now())
        return np.diff(times).tolist()

    # Arms C, D and E

    def population(self, members: int, dropout: bool = True, first: int = 0, decay: float = 0.01) -> Population:
        """Our members, built."""
        rate = 0.3 if dropout else 0.0
        chosen = [Member(RANK, SCALE, seed, LR, decay, rate) for seed in range(first, first + members)]
        module = Population(chosen, self.texts.tasks, backbone=self.backbone, pooling="pooler", encoder_dropout=dropout)
        module.build(self.texts.max_length)
        return module

    def loraens(
        self, rows: np.ndarray, fast: bool = True, module: Population | None = None, watch: Callable[[], Any] = lambda: None
    ) -> list[float]:
        """The seconds of each step of a pack, through Lightning's Trainer, as a sweep trains it."""
        module = module or self.population(rows.shape[1])
        if not fast:
            module.model.fast = None
        clock = _Clock(watch)
        trainer = Trainer(
            max_steps=len(rows),
            limit_val_batches=0,
            precision="bf16-mixed" if CUDA else "32-true",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        batches = torch.utils.data.DataLoader(_Batches(self.split, rows), batch_size=None)
        trainer.datamodule = self.texts  # type: ignore[attr-defined]
        trainer.fit(module, batches)
        return np.diff(clock.times).tolist()

    # Arithmetic

    def useful(self, rows: np.ndarray, config: Any) -> float:
        """Floating point operations that one pass over `(steps, M, B)` rows needs."""
        lengths = self.split.tokens.lengths[rows].astype(float)
        n, s, squares = lengths.sum(), lengths.size, (lengths**2).sum()
        width, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        total = 0.0
        for layer in range(layers):
            last, first = layer == layers - 1, layer == 0
            q = s if last else n  # the last layer is asked for the first token of each sequence alone
            inputs, rest = 2 * q * width**2 + 4 * n * width**2, 2 * q * width**2 + 4 * q * width * wide
            attention = 4 * width * (n if last else squares)
            adapters = 4 * (q + n) * width * RANK
            total += inputs * (1 if first else 2) + 2 * rest + 3 * attention + adapters * (2.5 if first else 3)
        return total


def _ours(model: Any, name: str, index: int) -> torch.Tensor:
    """The tensor of our member that PEFT calls by this name."""
    if "lora_" in name:
        key = name.split("bert.", 1)[1].rsplit(".lora_", 1)[0]
        layer = model.adapters[key]
        return layer.lora_A[index] if "lora_A" in name else layer.lora_B[index]
    head = model.heads["sts"]
    return head.weight[index] if name.endswith("weight") else head.bias[index]


def collate(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest record."""
    batch = {name: pad_sequence([r[name] for r in records], batch_first=True) for name in ("input_ids", "token_type_ids")}
    mask = pad_sequence([torch.ones_like(record["input_ids"]) for record in records], batch_first=True)
    return {**batch, "attention_mask": mask, "labels": torch.stack([record["labels"] for record in records])}


def _now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class _InOrder(HubTrainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _HubClock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(_now())


class _Clock(Callback):
    def __init__(self, watch: Callable[[], Any]) -> None:
        self.times: list[float] = []
        self.watch = watch

    def on_after_backward(self, *args: Any) -> None:
        self.watch()

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(_now())


class _Batches(torch.utils.data.Dataset[Any]):
    def __init__(self, split: Any, rows: np.ndarray) -> None:
        self.split, self.rows = split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.split.batch(self.rows[index])


def gate(bench: Bench, steps: int = 5) -> float:
    """Largest difference of a trained weight between a pack of two and arm A for each, without dropout."""
    rows = bench.rows(2, steps, 0)
    module = bench.population(2, dropout=False, decay=0.0)
    bench.loraens(rows, module=module)
    worst, moved = 0.0, 0.0
    for index in range(2):
        model, _ = bench.hub_trainer(rows[:, index], dropout=False, seed=index, decay=0.0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                worst = max(worst, (parameter.cpu() - _ours(module.model, name, index).cpu()).abs().max().item())
                moved = max(moved, parameter.abs().max().item() if "lora_B" in name else 0.0)
    if worst > (1e-2 if CUDA else 2e-4) or moved < LR:
        sys.exit(f"the arms do not train the same members: weights differ by {worst:.1e}, B moved by {moved:.1e}")
    return worst


def gemm_rate() -> float:
    """Floating point operations a second of large products."""
    dtype, device = (torch.bfloat16, "cuda") if CUDA else (torch.float32, "cpu")
    size = 8192 if CUDA else 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in "ab")
    times = []
    for _ in range(8):
        started = _now()
        a @ b
        times.append(_now() - started)
    return 2 * size**3 / float(np.median(times[2:]))


def timed(bench: Bench, sizes: list[int], rounds: int, member_steps: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of the table, and the GEMM rate."""
    config = AutoConfig.from_pretrained(locate(bench.backbone))
    arms: dict[str, tuple[int, Callable[[np.ndarray], list[float]]]] = {
        "A": (1, lambda rows: bench.hub_trainer(rows[:, 0])[1]),
        "B": (1, lambda rows: bench.bare_loop(rows[:, 0])),
        "C": (8, lambda rows: bench.loraens(rows, fast=False)),
        "D": (1, bench.loraens),
        **({"A compiled": (1, lambda rows: bench.hub_trainer(rows[:, 0], compiled=True)[1])} if CUDA else {}),
        **{f"E{size}": (size, bench.loraens) for size in sizes},
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    rates = []
    for turn in range(rounds):
        rates.append(gemm_rate())
        for name, (members, run) in arms.items():
            steps = max(2, member_steps // members)
            rows = bench.rows(members, WARM_UP + 1 + steps, turn * (steps + WARM_UP + 1))
            seconds = sum(run(rows)[WARM_UP:])
            counted = rows[WARM_UP + 1 :]
            found[name].append(
                (seconds / members / steps, bench.tokens(counted) / seconds, bench.useful(counted, config) / seconds)
            )
            gc.collect()
            print(f"round {turn + 1} of {rounds}, {name}: {found[name][-1][0] * 1e3:.1f} ms a member-step", flush=True)
    rate = float(np.median(rates))
    table = []
    reference = [entry[0] for entry in found["A"]]
    for name, entries in found.items():
        seconds, tokens, useful = (np.array(column) for column in zip(*entries))
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
            }
        )
    return table, rate


def memory(bench: Bench, members: int) -> dict[str, float]:
    """Bytes of a pack after the backward of each of a few steps, the most, and the formula's bytes of a member."""
    rows = bench.rows(members, 4, 0)
    module, process = bench.population(members), psutil.Process()
    before, peaks = process.memory_info().rss, [0]
    bench.loraens(rows, module=module, watch=lambda: peaks.append(process.memory_info().rss - before))
    lengths = bench.split.tokens.lengths[rows]
    formula = max(bytes_of_formula(module.model, one) for one in lengths.reshape(-1, BATCH))
    return {"peak": torch.cuda.max_memory_allocated() if CUDA else max(peaks), "formula": formula}


def memories(arguments: argparse.Namespace, model: str, sizes: list[int]) -> dict[int, dict[str, float]]:
    """`memory` of several packs, each in a process of its own."""
    found = {}
    for size in sizes:
        command = [sys.executable, __file__, "--model", model, "--memory", str(size)]
        command += ["--data", arguments.data] if arguments.data else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[size] = json.loads(output.splitlines()[-1])
    return found


def prepare(model: str, data: str | None, scratch: Path) -> Bench:
    """The backbone, made if it is BERT-base's shape, and the texts."""
    backbone = "minilm"
    if model == "bert-base":
        backbone = str(scratch / "bert-base")
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(backbone)
        load_tokenizer("minilm").save_pretrained(backbone)
    if data is None:
        write_corpus(scratch / "texts")
        data = str(scratch / "texts")
    texts = modules.STS(data, backbone=backbone, batch_size=BATCH)
    texts.setup("fit")
    return Bench(backbone, texts)


def as_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"{result['model']}, {result['machine']}; GEMM rate {result['gemm_rate'] / 1e9:,.0f} GFLOP/s; "
        f"weights of the gate differ by {result['gate']:.0e}",
        "",
        "| arm | ms a member-step (quartiles) | member-steps/s | tokens/s | times A | of GEMM rate | MiB a member (formula) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["table"]:
        middle, low, high = row["ms_per_member_step"]
        memory_cell = ""
        if row.get("bytes_per_member"):
            memory_cell = f"{row['bytes_per_member'] / 2**20:,.0f} ({row['formula'] / 2**20:,.0f})"
        lines.append(
            f"| {row['arm'].rstrip('0123456789')}: {row['what']} | {middle:.1f} ({low:.1f} to {high:.1f}) | "
            f"{row['member_steps_per_second']:.1f} | {row['tokens_per_second']:,.0f} | {row['times_a']:.2f} | "
            f"{100 * row['share_of_gemm_rate']:.0f} % | {memory_cell} |"
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace, model: str, scratch: Path) -> dict[str, Any]:
    """All arms on one backbone."""
    bench = prepare(model, arguments.data, scratch)
    sizes = [size for size in PACKS if size <= (8 if arguments.quick or (model != "minilm" and not CUDA) else max(PACKS))]
    rounds, member_steps = (3, 16) if arguments.quick else (5, 32)
    difference = gate(bench)
    table, rate = timed(bench, sizes, rounds, member_steps if model == "minilm" or CUDA else 8)
    used = memories(arguments, model, [1, *sizes])
    for row in table:
        size = row["members"]
        if row["arm"].startswith("E"):
            row["bytes_per_member"] = (used[size]["peak"] - used[1]["peak"]) / (size - 1)
            row["formula"] = used[size]["formula"]
    cores = f"{torch.get_num_threads()} threads, {platform.machine()}"
    machine = torch.cuda.get_device_name() if CUDA else cores
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"model": model, "machine": machine, "versions": versions, "gemm_rate": rate, "gate": difference, "table": table}


def main() -> None:
    """Run the benchmark, and write its table and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("LORAENS_DATA"), help="the course's files; without them, made-up texts"
    )
    parser.add_argument("--quick", action="store_true", help="MiniLM alone, fewer rounds and packs: under ten minutes")
    parser.add_argument("--model", action="append", choices=["minilm", "bert-base"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where train.json and train.md go")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    names = arguments.model or (["minilm"] if arguments.quick else ["minilm", "bert-base"])
    with tempfile.TemporaryDirectory() as scratch, quiet_trainers():
        if arguments.memory is not None:
            print(json.dumps(memory(prepare(names[0], arguments.data, Path(scratch)), arguments.memory)))
            return
        results = [run(arguments, name, Path(scratch)) for name in names]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "train.json").write_text(json.dumps(results, indent=2) + "\n")
    text = "\n\n".join(map(as_table, results))
    (arguments.out / "train.md").write_text(text + "\n")
    print(text)
    best = max((row for row in results[0]["table"] if row["arm"].startswith("E")), key=lambda row: row["times_a"])
    print(f"best pack: {best['times_a']:.2f} times A, {100 * best['share_of_gemm_rate']:.0f} % of the GEMM rate")


if __name__ == "__main__":
    main()
