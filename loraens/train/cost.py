"""What a pack costs: seconds and bytes, measured on real batches, and the formula beside it.

Shape letters: M members, B examples of a member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import psutil
import torch
from lightning.pytorch import Trainer

from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import Member, by_kind, by_rank, configurations, packs
from loraens.model.fast_attention import LONG
from loraens.model.population import MemberModel
from loraens.train.memory import give_back, is_out_of_memory
from loraens.train.module import Population

SHARE = 0.7  # of the free memory that a pack may take
GAIN = 1.03  # a larger pack must be faster by this factor
PATIENCE = 40.0  # seconds for measuring packs, so that a dry run takes less than a minute
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


def formula_bytes(model: MemberModel, lengths: np.ndarray) -> int:
    """Bytes that the fast path needs beside the backbone to train one member, without what it uses
    for a moment only.

    Of each token every layer from the lowest adapted one on keeps its input, two sums and a
    normalised one, query, key and value, the feed-forward part before its activation, and of each
    head the attention weights, if the sequence is not too long for that. Trained numbers count four
    times: weight, gradient and AdamW's two moments.

    Args:
        model: The model.
        lengths: `(B,)` tokens of the sequences in the member's batch.
    """
    config = model.encoder.config
    layers = config.num_hidden_layers - (model.fast.lowest if model.fast is not None else 0)
    width = config.hidden_size
    wide = config.intermediate_size
    heads = config.num_attention_heads
    tokens = int(lengths.sum())
    squares = int((lengths[lengths <= LONG] ** 2).sum())
    activations = layers * (tokens * (7 * width + wide) + heads * squares)
    trained = max(model.trainable_parameters(index) for index in range(len(model.members)))
    return int(4 * (activations + 4 * trained))


class _Trial:
    """A pack on its device, for training steps that change no weight.

    Args:
        module: The population; it is built here.
        data: The texts, set up.
        trainer: Gives the device and the precision.
    """

    def __init__(self, module: Population, data: TextData, trainer: Trainer) -> None:
        module.build(data.max_length)
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin
        module = self.precision.convert_module(module).to(self.device)  # type: ignore[assignment]
        self.model = module.model.train()
        self.splits = data.trained_by(module.members)
        self.batch_size = data.batch_size

    def step(self, index: int, indices: np.ndarray) -> None:
        """One forward and backward pass.

        Args:
            index: Of the task.
            indices: `(M, B)` examples of its training split.
        """
        batch = self.splits[index].batch(indices).to(self.device)
        self.model.seed_dropout(0)
        assert batch.labels is not None
        with self.precision.forward_context():
            task = self.splits[index].task
            losses = task.member_losses(self.model(batch), batch.labels, soft=batch.soft)
        losses.sum().backward()
        self.model.zero_grad()

    def seconds(self, index: int, indices: np.ndarray) -> float:
        """Time of one step."""
        started = time.perf_counter()
        self.step(index, indices)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps in a step on the longest texts."""
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        longest_of = [float(split.tokens.lengths.max()) for split in self.splits]
        index = max(range(len(self.splits)), key=longest_of.__getitem__)
        order = np.argsort(-self.splits[index].tokens.lengths, kind="stable")
        indices = np.tile(order[: self.batch_size], (len(self.model.members), 1))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            self.step(index, indices)
        return saved

    def weight_bytes(self, trained: bool) -> int:
        """Bytes of the weights that are trained, or of those that are frozen."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad == trained)


def measure(
    build: Build, members: Sequence[Member], data: TextData, trainer: Trainer, steps: int = 2
) -> Cost:
    """Train a pack for a few steps, on usual batches for the time and on one of the longest texts
    for the memory.

    Args:
        build: Makes the population.
        members: The pack.
        data: The texts, set up.
        trainer: Gives the device and the precision.
        steps: Steps whose time is taken.
    """
    trial = _Trial(build(members), data, trainer)
    cuda = trial.device.type == "cuda"
    before = 0
    if cuda:
        before = torch.cuda.memory_allocated(trial.device)
        torch.cuda.reset_peak_memory_stats(trial.device)
    used = trial.saved_bytes()
    seconds = [
        trial.seconds(index, indices) for index, indices in islice(data.sampler(members), steps)
    ]
    if cuda:
        used = torch.cuda.max_memory_allocated(trial.device) - before
    elif trial.model.fast is not None:
        used += trial.model.fast.buffers.nbytes  # the fast path keeps some tensors itself
    return Cost(
        size=len(members),
        seconds=float(np.median(seconds)) / len(members),
        member_bytes=(used + 4 * trial.weight_bytes(trained=True)) // len(members),
        backbone_bytes=trial.weight_bytes(trained=False),
    )


def choose_size(
    build: Build,
    members: Sequence[Member],
    data: TextData,
    trainer: Trainer,
    report: Callable[[str], None],
    workers: int = 1,
    beside: int = 1,
) -> int:
    """The pack size that is best for the adapter kind and targets of most members; less where the
    memory of others needs it. Arguments as of `choose_pack`.

    Raises:
        InputError: One member alone, or one configuration, does not fit in memory.
    """
    most, *others = sorted(by_kind(members), key=len, reverse=True)
    size = choose_pack(build, most, data, trainer, report, workers, beside).size
    free = free_memory(trainer.strategy.root_device) / beside
    unit = len(configurations(members)[0])
    for kind in others:
        cost = choose_pack(build, kind, data, trainer, lambda text: None, patience=0)
        size = min(size, max(unit, int((SHARE * free - cost.backbone_bytes) // cost.member_bytes)))
    return size


def choose_pack(
    build: Build,
    members: Sequence[Member],
    data: TextData,
    trainer: Trainer,
    report: Callable[[str], None],
    workers: int = 1,
    beside: int = 1,
    patience: float = PATIENCE,
) -> Cost:
    """The cost of the pack size that is best: doubled while that makes it faster, and memory and
    patience allow it, from one configuration on.

    Measured on the members of the highest ranks, which cost most.

    Args:
        build: Makes the population.
        members: The grid.
        data: The texts, set up.
        trainer: Gives the device and the precision.
        report: Is told each size's cost in words.
        workers: Packs that are trained at a time: there shall be one for each.
        beside: How many of them share the device's memory.
        patience: Seconds for measuring.

    Raises:
        InputError: One member alone, or one configuration, does not fit in memory.
    """
    best: Cost | None = None
    size = least = len(configurations(members)[0])
    most = max(map(len, packs(members, -(-len(members) // workers))))
    free = free_memory(trainer.strategy.root_device) / beside
    started = time.monotonic()
    while True:
        begun = time.monotonic()
        try:
            cost = measure(build, by_rank(members)[-size:], data, trainer)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            give_back()
        report(
            f"packs of {size}: {1 / cost.seconds:.1f} member-steps a second,"
            f" {cost.total_bytes / 2**20:,.0f} MiB"
        )
        faster = best is None or cost.seconds * GAIN < best.seconds
        if faster and (best is None or cost.total_bytes < SHARE * free):
            best = cost
        double = min(2 * size, most)
        predicted = cost.backbone_bytes + double * cost.member_bytes
        if not faster or double == size or predicted > SHARE * free:
            break
        now = time.monotonic()
        if now + 2 * (now - begun) > started + patience:
            report(f"packs of {double} are not measured, which would take long: --sweep.pack_size")
            break
        size = double
    if best is None:
        one = "one member alone" if least == 1 else f"one configuration of {least} folds"
        raise InputError(f"{one} does not fit in memory: lower batch_size or max_length")
    return best
