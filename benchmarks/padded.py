"""What the padded path and the packed one cost, beside PEFT in a loop.

    python benchmarks/padded.py [--quick] [--out benchmarks/results/padded.md]

Arms, on the same batches of 8 made-up sequences, whose lengths are spread as those of STS pairs:

    PEFT        PEFT on transformers in a bare loop, batches padded to their longest; members are
                trained one after another, so that one member-step costs the same for any number
    padded      loraens' padded path, one member, and eight together
    packed      the packed path, likewise, of types that take it

PEFT and the padded path also with batches grouped by length (transformers' order of that name, and
`--data.group_by_length`); the packed path has no padding to save.

First the equality gate: without dropout, both must end with the same adapters after three steps.
Then the arms are timed in turn, a step each, many rounds spread over an epoch; the table has
medians and quartiles of the milliseconds of a member-step, of the process's CPU time in one thread,
so that other processes on the machine change little, and the ratio of the means.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModel, DebertaV2Config, ModernBertConfig, MPNetConfig, Qwen3Config

from loraens.data.sampling import TrainSampler
from loraens.members import Member
from loraens.model.architectures import ARCHITECTURES
from loraens.model.backbone import load_encoder
from loraens.model.batch import PackedBatch, pack
from loraens.model.population import MemberModel
from loraens.tasks import STS
from loraens.train.optimizer import MemberAdamW

BATCH = 8
RANK = 8
LR = 1e-4
TOKENS = 2000
MEMBERS = 8
GROUPED = "grouped by length"
SMALL = {
    "vocab_size": TOKENS,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
LONG = {"max_position_embeddings": 512}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CONFIGS: dict[str, tuple[Any, list[str]]] = {
    "ModernBERT": (ModernBertConfig(**SMALL, **SPECIAL, intermediate_size=384), ["Wqkv"]),
    "MPNet": (
        MPNetConfig(**{**SMALL, **LONG, "pad_token_id": 1}, intermediate_size=1024),
        ["q", "v"],
    ),
    "Qwen3": (
        Qwen3Config(**SMALL, **LONG, intermediate_size=768, num_key_value_heads=2, head_dim=64),
        ["q_proj", "v_proj"],
    ),
    "DeBERTa-v3": (
        DebertaV2Config(
            **SMALL,
            **LONG,
            intermediate_size=1024,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        ),
        ["query_proj", "value_proj"],
    ),
}


class Texts:
    """Made-up sequences and labels."""

    def __init__(self, size: int = 1024) -> None:
        rng = np.random.default_rng(0)
        lengths = np.clip(np.exp(rng.normal(3.25, 0.4, size)), 8, 100).astype(int)
        self.tokens = rng.integers(5, TOKENS, lengths.sum())
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.labels = rng.uniform(0, 5, size)

    def epoch(self, grouped: bool) -> list[np.ndarray]:
        """Rows `(M, B)` of each step of an epoch."""
        lengths = [np.diff(self.offsets)] if grouped else None
        sampler = TrainSampler([len(self.labels)], BATCH, range(MEMBERS), lengths=lengths)
        return [rows for _, rows in sampler]

    def batch(self, rows: np.ndarray) -> PackedBatch:
        """The batch of examples `(M, B)`."""
        types = np.zeros(len(self.tokens), np.int8)
        return pack(self.tokens, types, self.offsets, rows, self.labels, "sts", "train")

    def padded(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids `(B, L)`, mask and labels of examples `(B,)`."""
        parts = [self.tokens[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        ids = torch.zeros(len(parts), max(map(len, parts)), dtype=torch.long)
        for place, part in enumerate(parts):
            ids[place, : len(part)] = torch.from_numpy(part)
        return ids, (ids > 0).long(), torch.from_numpy(self.labels[rows]).float()


class Ours:
    """The padded or the packed path."""

    def __init__(self, directory: str, members: int, dropout: bool, packed: bool = False) -> None:
        self.members = [
            Member(RANK, 1.0, seed, lr=LR, weight_decay=0.0, head_dropout=0.3 if dropout else 0.0)
            for seed in range(members)
        ]
        encoder = load_encoder(directory, pooler=False, packed=packed)
        self.model = MemberModel(
            encoder, [STS], self.members, pooling="last", encoder_dropout=dropout
        ).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = MemberAdamW(trained, [LR] * members, [0.0] * members)
        self.steps = 0

    def step(self, texts: Texts, rows: np.ndarray) -> None:
        """One step of all members on `(M, B)`."""
        self.steps += 1
        self.model.seed_dropout(0, self.steps)
        batch = texts.batch(rows)
        self.optimizer.zero_grad()
        assert batch.labels is not None
        STS.member_losses(self.model(batch), batch.labels).sum().backward()
        self.optimizer.step()


class Theirs:
    """PEFT in a bare loop; it starts as a member of ours."""

    def __init__(self, directory: str, targets: list[str], dropout: bool, ours: Ours) -> None:
        encoder = AutoModel.from_pretrained(directory)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
        self.model = get_peft_model(encoder, config).train()
        if not dropout:
            for module in self.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        head = ours.model.heads["sts"]
        self.head = torch.nn.Linear(encoder.config.hidden_size, 1)
        self.dropout = torch.nn.Dropout(0.3 if dropout else 0.0)
        with torch.no_grad():
            self.head.weight.copy_(head.weight[0])
            self.head.bias.copy_(head.bias[0])
            for name, parameter in self.adapters(ours):
                parameter.copy_(dict(self.model.named_parameters())[name])
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [*trained, *self.head.parameters()], lr=LR, weight_decay=0.0
        )

    @staticmethod
    def adapters(ours: Ours) -> list[tuple[str, torch.Tensor]]:
        """PEFT's names, and the first of our members' tensors."""
        return [
            (f"base_model.model.{name}.{end.replace('.weight', '.default.weight')}", tensor)
            for name, layer in ours.model.adapters.items()
            for end, tensor in layer.member_tensors(0).items()
        ]

    def step(self, texts: Texts, rows: np.ndarray) -> None:
        """One step on `(B,)`."""
        ids, mask, labels = texts.padded(rows)
        self.optimizer.zero_grad()
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(ids)), mask.sum(1) - 1]
        F.mse_loss(self.head(self.dropout(last))[:, 0], labels).backward()
        self.optimizer.step()


def gate(directory: str, targets: list[str], texts: Texts) -> float:
    """Largest difference of trained adapters after three steps without dropout, as a share of what
    was learned.
    """
    ours = Ours(directory, 1, dropout=False)
    theirs = Theirs(directory, targets, False, ours)
    start = [tensor.detach().clone() for _, tensor in theirs.adapters(ours)]
    for step in range(3):
        rows = np.arange(BATCH) + BATCH * step
        ours.step(texts, rows[None])
        theirs.step(texts, rows)
    found = dict(theirs.model.named_parameters())
    gaps, learned = [], []
    for before, (name, tensor) in zip(start, theirs.adapters(ours), strict=True):
        gaps.append(float((found[name] - tensor).abs().max()))
        learned.append(float((tensor - before).abs().max()))
    return max(gaps) / max(learned)


def step_of(texts: Texts, ours: Ours, rows: np.ndarray) -> None:
    """One step of our members on the first of `(M, B)`."""
    ours.step(texts, rows[: len(ours.members)])


def measure(
    directory: str, targets: list[str], texts: Texts, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of a member-step of each arm, one a round."""
    ours = {"padded, one member": Ours(directory, 1, True)}
    ours["padded, eight"] = Ours(directory, MEMBERS, True)
    theirs = Theirs(directory, targets, True, ours["padded, one member"])
    if theirs.model.config.model_type in ARCHITECTURES:
        ours["packed, one member"] = Ours(directory, 1, True, packed=True)
        ours["packed, eight"] = Ours(directory, MEMBERS, True, packed=True)
    arms: dict[str, Callable[[np.ndarray], None]] = {
        "PEFT": lambda rows: theirs.step(texts, rows[0]),
        **{name: partial(step_of, texts, arm) for name, arm in ours.items()},
    }
    arms |= {f"{name}, {GROUPED}": arms[name] for name in ("PEFT", "padded, eight")}
    found: dict[str, list[float]] = {name: [] for name in arms}
    orders = {grouped: texts.epoch(grouped) for grouped in (False, True)}
    for turn in range(-2, rounds):
        for name, run in arms.items():
            order = orders[GROUPED in name]
            rows = order[turn * len(order) // rounds]
            started = time.process_time()
            run(rows)
            if turn >= 0:
                members = MEMBERS if "eight" in name else 1
                found[name].append(1000 * (time.process_time() - started) / members)
    return found


def main() -> None:
    """Gate, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: whether it runs")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    texts = Texts()
    lines: list[str] = []
    for name, (config, targets) in CONFIGS.items():
        with tempfile.TemporaryDirectory() as directory:
            torch.manual_seed(0)
            AutoModel.from_config(config).save_pretrained(directory)
            gap = gate(directory, targets, texts)
            if gap > 0.05:
                raise SystemExit(f"{name}: the adapters differ by {gap:.2g} of what was learned")
            found = measure(directory, targets, texts, 3 if given.quick else given.rounds)
        usual = np.mean(found["PEFT"])
        for arm, times in found.items():
            low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
            lines.append(
                f"| {name} | {arm} | {middle:.1f} [{low:.1f}, {high:.1f}] |"
                f" {usual / np.mean(times):.2f} |"
            )
            print(lines[-1], flush=True)
    parameters = "4 layers, 256 wide, random weights"
    head = [
        "The padded and the packed path beside PEFT in a loop;"
        f" {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread. CPU"
        f" time. Encoders of {parameters}; batches of {BATCH}, rank {RANK}, each with its own"
        f" dropout (ModernBERT and Qwen3 have none). Arms in turn, a step each, {given.rounds}"
        f" rounds; load of the machine {os.getloadavg()[1]:.0f} processes.",
        "",
        "    python benchmarks/padded.py --out benchmarks/results/padded.md",
        "",
        "| type | arm | ms a member-step [quartiles] | times PEFT |",
        "| --- | --- | --- | --- |",
    ]
    if given.out is not None:
        given.out.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
