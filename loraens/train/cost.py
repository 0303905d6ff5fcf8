"""What a pack costs: seconds and bytes, measured on real batches, and the formula beside it.

Shape letters: M members, B examples of a member.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import psutil
import torch
from lightning.pytorch import Trainer

from loraens.data.modules import TextData
from loraens.members import Member, packs
from loraens.model.population import MemberModel, member_losses
from loraens.train.module import Population

SHARE = 0.7  # of the free memory that a pack may take
GAIN = 1.03  # a larger pack must be faster by this factor
Build = Callable[[Sequence[Member]], Population]


@dataclass
class Cost:
    """Cost of a pack of `size` members.

    Args:
        size: M.
        seconds: Of one training step of one member.
        member_bytes: Memory of one member beside the backbone, at the longest texts.
        backbone_bytes: Memory of the frozen weights.
    """

    size: int
    seconds: float
    member_bytes: int
    backbone_bytes: int

    @property
    def total_bytes(self) -> int:
        """Memory of the whole pack."""
        return self.backbone_bytes + self.size * self.member_bytes


def free_memory(device: torch.device) -> int:
    """Free bytes of the device's memory."""
    return int(
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )


def bytes_of_formula(model: MemberModel, lengths: np.ndarray) -> int:
    """Bytes that the fast path needs beside the backbone to train one member, without what it uses
    for a moment only.

    Of each token every layer keeps its input, two sums and a normalised one, query, key and value,
    the feed-forward part before its activation, two dropout masks, and of each head the attention
    weights and their mask. Trained numbers count four times: weight, gradient and AdamW's two
    moments.

    Args:
        model: The model.
        lengths: `(B,)` tokens of the sequences in the member's batch.
    """
    config = model.encoder.config
    width = config.hidden_size
    wide = config.intermediate_size
    heads = config.num_attention_heads
    tokens = int(lengths.sum())
    squares = int((lengths**2).sum())
    activations = config.num_hidden_layers * (tokens * (9 * width + wide) + 2 * heads * squares)
    trained = max(model.trainable_parameters(index) for index in range(len(model.members)))
    return int(4 * (activations + 4 * trained))


def measure(
    build: Build, members: Sequence[Member], data: TextData, trainer: Trainer, steps: int = 2
) -> Cost:
    """Train a pack for a few steps, on usual batches for the time and on one of the longest texts
    for the memory.
    """
    module = build(members)
    module.build(data.max_length)
    device = trainer.strategy.root_device
    precision = trainer.precision_plugin
    module = precision.convert_module(module).to(device)  # type: ignore[assignment]
    model = module.model.train()
    splits = data.of("train")
    saved = 0
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    def step(index: int, rows: np.ndarray) -> None:
        batch = splits[index].batch(rows).to(device)
        model.seed_dropout(0)
        assert batch.labels is not None
        with precision.forward_context():
            loss = member_losses(splits[index].task, model(batch), batch.labels).sum()
        loss.backward()
        model.zero_grad()

    widest = max(range(len(splits)), key=lambda index: float(splits[index].tokens.lengths.max()))
    longest = np.argsort(-splits[widest].tokens.lengths, kind="stable")[: data.batch_size]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(widest, np.tile(longest, (len(members), 1)))
    seconds = []
    for index, rows in islice(data.sampler(members), steps):
        started = time.perf_counter()
        step(index, rows)
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    used = saved + (model.fast.buffers.nbytes if model.fast is not None else 0)
    if cuda:
        used = torch.cuda.max_memory_allocated(device) - before
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    return Cost(
        len(members),
        float(np.median(seconds)) / len(members),
        (used + 4 * trained) // len(members),
        frozen,
    )


def choose_pack(
    build: Build,
    members: Sequence[Member],
    data: TextData,
    trainer: Trainer,
    say: Callable[[str], None],
) -> Cost:
    """The cost of the pack size that is best: doubled while that makes it faster and the memory
    allows it.

    Measured on the members of the highest ranks, which cost most.
    """
    best: Cost | None = None
    size = 1
    free = free_memory(trainer.strategy.root_device)
    while True:
        try:
            cost = measure(build, packs(members, len(members))[0][-size:], data, trainer)
        except torch.OutOfMemoryError:
            break
        finally:
            gc.collect()
        say(
            f"packs of {size}: {1 / cost.seconds:.1f} member-steps a second,"
            f" {cost.total_bytes / 2**20:,.0f} MiB"
        )
        faster = best is None or cost.seconds * GAIN < best.seconds
        if faster and (best is None or cost.total_bytes < SHARE * free):
            best = cost
        double = min(2 * size, len(members))
        if (
            not faster
            or double == size
            or cost.backbone_bytes + double * cost.member_bytes > SHARE * free
        ):
            break
        size = double
    if best is None:
        raise torch.OutOfMemoryError("one member alone does not fit")
    return best
