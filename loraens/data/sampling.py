"""The examples of each batch: every member goes through train in an order of its own, and all
together through dev and test by length.

Shape letters: M members, B examples of a member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from loraens.data.tokens import TokenSplit
from loraens.model.batch import PackedBatch
from loraens.seeding import derive_seed

BatchIndex = tuple[int, np.ndarray]  # number of the split, and examples (M, B) of it


class PackedDataset(Dataset[PackedBatch]):
    """Token splits of one or more tasks; a batch index gives a whole packed batch."""

    def __init__(self, splits: Sequence[TokenSplit]) -> None:
        self.splits = tuple(splits)

    def __getitem__(self, index: BatchIndex) -> PackedBatch:
        number, examples = index
        return self.splits[number].batch(examples)


class TrainSampler(Sampler[BatchIndex]):
    """Batch indices of one epoch of training: each member goes through the data in an order of its
    own.

    A member's order depends on its seed and the epoch alone. With several tasks each batch is of
    one task. At temperature T a task of n examples gets a share of the batches in proportion to
    n ** (1 / T); at 1 every example is seen once an epoch, above 1 small tasks are seen more often
    than large ones.

    Args:
        sizes: Examples of each task.
        batch_size: Examples of a member in one batch; the last batch of a pass may be smaller.
        seeds: One a member.
        temperature: T, at least 1.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, seeds: Sequence[int], temperature: float = 1.0
    ) -> None:
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.epoch = 0
        batches = [-(-size // batch_size) for size in sizes]
        if temperature != 1:
            shares = np.array(sizes) ** (1 / temperature)
            batches = [max(1, round(sum(batches) * share)) for share in shares / shares.sum()]
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.batches)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = np.repeat(np.arange(len(self.sizes)), self.batches)
        np.random.default_rng(derive_seed(0, "tasks", self.epoch)).shuffle(order)
        streams = [self._stream(index) for index in range(len(self.sizes))]
        for index in order.tolist():
            yield index, next(streams[index])

    def _stream(self, index: int) -> Iterator[np.ndarray]:
        """Examples `(M, B)` of one task's batches, pass after pass without end."""
        size = self.sizes[index]
        for lap in count():
            seeds = [derive_seed(seed, "order", index, self.epoch, lap) for seed in self.seeds]
            orders = np.stack([np.random.default_rng(seed).permutation(size) for seed in seeds])
            for start in range(0, size, self.batch_size):
                yield orders[:, start : start + self.batch_size]


class EvalSampler(Sampler[BatchIndex]):
    """Batch indices of one pass over one split, ordered by length; every member sees the same
    examples.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, members: int) -> None:
        order = np.argsort(lengths, kind="stable")
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.batches = [(0, np.tile(chunk, (members, 1))) for chunk in chunks]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchIndex]:
        return iter(self.batches)


def eval_loader(split: TokenSplit, batch_size: int, members: int) -> DataLoader[PackedBatch]:
    """A loader that passes once over a split."""
    sampler = EvalSampler(split.tokens.lengths, batch_size, members)
    return DataLoader(PackedDataset([split]), sampler=sampler, batch_size=None)
