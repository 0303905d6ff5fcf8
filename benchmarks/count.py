"""Launches, bytes and host waits of one training step on a GPU, counted without one.

    python benchmarks/count.py [--shape MiniLM] [--members 186] [--out DIR]

The step is that of a population in bfloat16 under autocast: upload of the batch, forward, backward,
clipping and AdamW, on tests/helpers/second_device.py, which runs every operator on shapes without
numbers. A launch is an operator that computes or copies: views and allocations are none. Bytes are
those that a launch has to read and to write, each once, whatever the caches do. A wait is where the
host waits for the device, beside those of Lightning's loop. Where Triton is installed, the step is
counted with kernels, too. Members are of the paper's grid for STS, of rank 1 to 31, the sequences
made up, of 9 to 80 tokens, 28 on average. results/count-before.json has the counts before
there were kernels and uploads in one copy, by this script.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.second_device import (  # before torch  # isort: skip
    DEVICE,
    INDEXING,
    Device,
    Held,
    autocast_bf16,
    second_device,
    to_second_device,
)

import numpy as np
import torch
import yaml
from torch.utils._pytree import tree_flatten
from transformers import BertConfig, BertModel

from loraens.members import Member
from loraens.model import kernels
from loraens.model.batch import PackedBatch, pack
from loraens.tasks import STS
from loraens.train.module import Population

BATCH = 8
SHAPES = {
    "MiniLM": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "BERT-base": BertConfig(),
}
STEPS = (("MiniLM", 1), ("MiniLM", 8), ("MiniLM", 32), ("MiniLM", 186), ("BERT-base", 186))
PHASES = ("forward", "backward", "optimiser")
aten = torch.ops.aten
# operators that only make a tensor, or another view of one
FREE = {"_unsafe_view", "alias", "detach", "empty", "empty_like", "empty_strided", "new_empty"}
# operators of several launches: attention's backward is two kernels, and addresses are uploaded
SEVERAL = {"attend_backward": 2, "adamw": 2, "gradient_squares": 2}
GATHERS = {"index", "index_select", "embedding", "gather"}


class Count:
    """Launches and bytes by phase and operator."""

    def __init__(self) -> None:
        self.launches: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.phase = PHASES[0]

    def __call__(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operator on the device."""
        name = func.__name__.partition(".")[0]
        made = [x for x in tree_flatten(result)[0] if isinstance(x, Held)]
        written, read = _arguments(func, args, kwargs)
        if name in FREE or (func.is_view and not written):
            return
        if name in GATHERS or func in INDEXING:
            read = [x for x in read if x.numel() <= made[0].numel()] + made[:1]
        new = [x for x in made if not any(x is other for other in written)]
        self.launches[self.phase, name] += SEVERAL.get(name, 1)
        self.bytes[self.phase, name] += sum(map(_nbytes, [*read, *written, *new]))

    def total(self, counter: Counter[tuple[str, str]], phase: str | None = None) -> int:
        """Sum over the operators of a phase, or of all."""
        return sum(n for (of, _), n in counter.items() if phase in (None, of))


def _arguments(func: Any, args: Any, kwargs: Any) -> tuple[list[Held], list[Held]]:
    """Tensors that an operator writes, and those that it reads."""
    written: list[Held] = []
    read: list[Held] = []
    name = func.__name__.partition(".")[0]
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        tensors = [x for x in tree_flatten(value)[0] if isinstance(x, Held)]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written += tensors
        in_place = writes and name.endswith("_") and name not in ("copy_", "zero_", "fill_")
        if not writes or in_place:
            read += tensors
    return written, read


def _nbytes(x: torch.Tensor) -> int:
    """Bytes of a tensor, those that are repeated by a stride of 0 once."""
    sizes = [size for size, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return int(np.prod(sizes, initial=1)) * x.element_size()


def members_of(count: int) -> list[Member]:
    """Members spread over the paper's grid for STS."""
    grid = yaml.safe_load((ROOT / "configs" / "grids" / "sts.yaml").read_text())
    of_grid = [
        Member(rank, float(scale), lr=1e-4, head_dropout=0.3)
        for rank in grid["rank"]
        for scale in grid["scale"]
    ]
    return [of_grid[index * len(of_grid) // count] for index in range(count)]


def made_up_batch(members: int) -> PackedBatch:
    """Sequences of the lengths of STS, with labels."""
    rng = np.random.default_rng(0)
    examples = 512
    lengths = rng.lognormal(np.log(26), 0.4, examples).astype(int).clip(9, 80)
    return pack(
        tokens=rng.integers(1000, 30000, lengths.sum()),
        types=np.zeros(lengths.sum(), np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        indices=np.stack([rng.permutation(examples)[:BATCH] for _ in range(members)]),
        labels=rng.uniform(0, 5, examples),
        task="sts",
        split="train",
    )


def count_step(shape: str, members: int, by_kernels: bool, scratch: Path) -> dict[str, Any]:
    """The second step of a population, in which all that is made once is there."""
    if not by_kernels:
        kernels.usable = lambda device, dtype: False  # those with kernels are counted before
    directory = scratch / shape
    if not directory.exists():
        BertModel(SHAPES[shape]).save_pretrained(directory)
    module = Population(members_of(members), [STS], backbone=str(directory), pooling="mean")
    module.build(80)
    Population.trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
    Population.global_step = 1  # type: ignore[assignment]  # not one of those that look for failures
    Population.log = lambda *args, **options: None  # type: ignore[method-assign, assignment]
    count = Count()
    with second_device("meta"):
        to_second_device(module)
        module._device = DEVICE
        optimizer = module.configure_optimizers()
        module.model.train()
        for step in range(2):
            Device.watch = count if step else None
            Device.waits.clear()
            count.phase = PHASES[0]
            batch = made_up_batch(members).to(DEVICE)
            with autocast_bf16():
                loss = module.training_step(batch, step)
            count.phase = PHASES[1]
            loss.backward()
            count.phase = PHASES[2]
            module.configure_gradient_clipping(optimizer, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        Device.watch = None
    return {
        "step": "with kernels" if by_kernels else "without kernels",
        "shape": shape,
        "members": members,
        "launches": {phase: count.total(count.launches, phase) for phase in PHASES},
        "bytes": {phase: count.total(count.bytes, phase) for phase in PHASES},
        "waits": list(Device.waits),
        "operators": {
            f"{phase} {name}": [number, count.bytes[phase, name]]
            for (phase, name), number in count.launches.most_common()
        },
    }


def as_table(results: list[dict[str, Any]]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| | shape | members | launches: forward | backward | optimiser | all | GB moved: forward"
        " | backward | optimiser | all | host waits |",
        f"| {' | '.join(['---'] * 12)} |",
    ]
    for result in results:
        launches, moved = (list(result[name].values()) for name in ("launches", "bytes"))
        cells = [result["step"], result["shape"], result["members"]]
        cells += [f"{number:,}" for number in (*launches, sum(launches))]
        cells += [f"{number / 1e9:,.2f}" for number in (*moved, sum(moved))]
        lines.append(f"| {' | '.join(map(str, [*cells, len(result['waits'])]))} |")
    return "\n".join(lines)


def main() -> None:
    """Count, and write the table and the counts of each operator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--members", type=int, action="append")
    parser.add_argument("--out", type=Path, help="where count.json and count.md go")
    arguments = parser.parse_args()
    steps = [
        (shape, members)
        for shape, members in STEPS
        if arguments.shape in (None, shape)
        and (arguments.members is None or members in arguments.members)
    ]
    ways = (True, False) if kernels.why_not() is None else (False,)
    with tempfile.TemporaryDirectory() as scratch:
        results = [
            count_step(shape, members, by_kernels, Path(scratch))
            for by_kernels in ways
            for shape, members in steps
        ]
    before = json.loads((ROOT / "benchmarks" / "results" / "count-before.json").read_text())
    table = as_table([r for r in before if (r["shape"], r["members"]) in steps] + results)
    print(table)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(map(json.dumps, results))
        (arguments.out / "count.json").write_text(f"[\n{lines}\n]\n")
        (arguments.out / "count.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
