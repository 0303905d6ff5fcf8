"""How fast an ensemble predicts, in one packed pass, against its members one at a time.

    python benchmarks/predict.py --data DIR [--quick]

Arms, all on the same texts (STS test pairs, or made-up ones), in batches of 64 sequences ordered by
length, with tokenisation:

    PEFT          one member after another: PEFT on transformers, adapter merged, batches padded to
    their longest one by one    one member after another: loraens, each on a backbone of its own
    with the adapter folded in packed        the ensemble: all members in one packed pass over one
    backbone

First the equality gate: all three must give the same logits. Then the arms are timed in turn,
several rounds; the table has members times rows a second, medians and quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import CUDA, RANK, SCALE, collate, now, ours_of
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from loraens.data import modules
from loraens.data.made_up import write_corpus
from loraens.data.tokens import tokenise
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.packaged import locate
from loraens.model.population import MemberModel
from loraens.model.tokenizer import load_tokenizer
from loraens.tasks import STS
from loraens.train.runs import quiet

SIZES = (1, 4, 11)
BATCH = 64
LENGTH = 128
DEVICE = "cuda" if CUDA else "cpu"
Texts = list[tuple[str, ...]]


def ensemble(members: int) -> Predictor:
    """Members with adapters that do something."""
    model = MemberModel(
        load_encoder("minilm", pooler=True),
        [STS],
        [Member(RANK, SCALE, seed) for seed in range(members)],
    )
    generator = torch.Generator().manual_seed(0)
    for layer in model.adapters.values():
        layer.lora_B.data.normal_(0, 0.02, generator=generator)
    return Predictor(model.eval().to(DEVICE), {"sts": STS}, load_tokenizer("minilm"), LENGTH, BATCH)


def alone(whole: Predictor, index: int) -> Predictor:
    """One member of them on a backbone of its own, as `Predictor.load` leaves it."""
    member = whole.model.members[index]
    model = MemberModel(load_encoder("minilm", pooler=True), [STS], [member])
    for name, layer in model.adapters.items():
        layer.lora_A.data.copy_(whole.model.adapters[name].lora_A[index : index + 1])
        layer.lora_B.data.copy_(whole.model.adapters[name].lora_B[index : index + 1])
    for mine, theirs in zip(
        model.heads["sts"].parameters(), whole.model.heads["sts"].parameters(), strict=True
    ):
        mine.data.copy_(theirs[index : index + 1])
    model.eval().to(DEVICE).fold()
    return Predictor(model, whole.tasks, whole.tokenizer, LENGTH, BATCH)


def by_peft(whole: Predictor, index: int) -> Any:
    """The same member as PEFT has it, merged."""
    config = AutoConfig.from_pretrained(locate("minilm"), num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(
        locate("minilm"), config=config, attn_implementation="sdpa"
    )
    lora = LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=RANK * SCALE, target_modules=["query", "value"]
    )
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(ours_of(whole.model, name, index))
    return model.merge_and_unload().eval().to(DEVICE)


def peft_logits(model: Any, whole: Predictor, texts: Texts) -> np.ndarray:
    """Logits `(N, 1)`."""
    tokens = tokenise(texts, whole.tokenizer, LENGTH)
    order = np.argsort(tokens.lengths, kind="stable")
    found = np.zeros((len(texts), 1), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            parts = [slice(tokens.offsets[row], tokens.offsets[row + 1]) for row in rows]
            batch = collate(
                [
                    {
                        "input_ids": torch.from_numpy(tokens.ids[part].astype(np.int64)),
                        "token_type_ids": torch.from_numpy(tokens.types[part].astype(np.int64)),
                        "labels": torch.zeros(()),
                    }
                    for part in parts
                ]
            )
            del batch["labels"]
            logits = model(**{name: tensor.to(DEVICE) for name, tensor in batch.items()}).logits
            found[rows] = logits.cpu().numpy()
    return found


def measure(texts: Texts, members: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table of one size."""
    whole = ensemble(members)
    singles = [alone(whole, index) for index in range(members)]
    hub = [by_peft(whole, index) for index in range(members)]
    arms: dict[str, Callable[[Texts], np.ndarray]] = {
        "PEFT": lambda given: np.stack([peft_logits(model, whole, given) for model in hub]),
        "one by one": lambda given: np.stack([single.logits(given, STS)[0] for single in singles]),
        "packed": lambda given: whole.logits(given, STS),
    }
    outputs = [run(texts[:64]) for run in arms.values()]
    gap = max(float(np.abs(output - outputs[2]).max()) for output in outputs)
    if gap > (1e-2 if CUDA else 1e-4):
        raise SystemExit(f"the arms do not give the same logits: they differ by {gap:.1e}")
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name, run in arms.items():
            started = now()
            run(texts)
            found[name].append(members * len(texts) / (now() - started))
            print(
                f"round {turn + 1} of {rounds}, {members} members, {name}: {found[name][-1]:,.0f} a"
                " second",
                flush=True,
            )
    table = []
    for name, rates in found.items():
        low, middle, high = np.percentile(rates, [25, 50, 75])
        times = float(np.median(np.array(rates) / np.array(found["one by one"])))
        row = {
            "members": members,
            "arm": name,
            "rows_per_second": [middle, low, high],
            "times_one_by_one": times,
            "gate": gap,
        }
        table.append(row)
    return table


def as_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    worst = max(row["gate"] for row in result["table"])
    lines = [
        (
            f"minilm, {result['machine']}, {result['rows']:,} pairs, {result['rounds']} rounds;"
            f" logits differ by {worst:.0e}"
        ),
        "",
        "| members | arm | members x rows a second (quartiles) | times one by one |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["table"]:
        middle, low, high = row["rows_per_second"]
        rates = f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        lines.append(
            f"| {row['members']} | {row['arm']} | {rates} | {row['times_one_by_one']:.2f} |"
        )
    return "\n".join(lines)


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
        "--quick", action="store_true", help="fewer rows and rounds: under two minutes"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        help="where predict.json and predict.md go",
    )
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or scratch
        if arguments.data is None:
            write_corpus(Path(scratch))
        texts = modules.STS(data, backbone="minilm")
        texts.setup("fit")
        (split,) = texts.of("test")
        rows = split.split.texts[: 256 if arguments.quick else 600]
    rounds = 3 if arguments.quick else 5
    table = [row for size in SIZES for row in measure(rows, size, rounds)]
    machine = (
        torch.cuda.get_device_name()
        if CUDA
        else f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    result = {
        "machine": machine,
        "versions": versions,
        "rows": len(rows),
        "rounds": rounds,
        "table": table,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "predict.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / "predict.md").write_text(as_table(result) + "\n")
    print(as_table(result))


if __name__ == "__main__":
    main()
