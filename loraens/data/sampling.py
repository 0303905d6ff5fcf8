"""The examples of each batch: every member goes through train in an order of its own, and all
together through dev and test by length. A member of a fold goes through its own part by length.

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
GROUPED = 50  # batches whose examples are put in order of length, as transformers does


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

    With folds, members train on different examples. So that no member's steps depend on its pack,
    each goes through equally many an epoch: the first ones in its order, which leaves out others
    in every epoch.

    Args:
        sizes: Examples of each task that a member goes through in an epoch.
        batch_size: Examples of a member in one batch; the last batch of a pass may be smaller.
        seeds: One a member.
        temperature: T, at least 1.
        examples: For each task, the examples of each member, at least as many as its size; all
            from 0 to the size by default.
        lengths: For each task, tokens of each example, where batches are to be of examples of
            similar lengths: a member's order is cut into parts of `GROUPED` batches, or a quarter
            of the data if that is less, and each part is put in order of length, the longest first,
            so that batches of all members become short together.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
        examples: Sequence[Sequence[np.ndarray]] | None = None,
        lengths: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.examples = examples or [[np.arange(size)] * len(seeds) for size in sizes]
        self.lengths = lengths
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
            orders = np.stack(
                [
                    np.random.default_rng(seed).permutation(own)[:size]
                    for seed, own in zip(seeds, self.examples[index], strict=True)
                ]
            )
            if self.lengths is not None:
                orders = self._by_length(orders, self.lengths[index])
            for start in range(0, size, self.batch_size):
                yield orders[:, start : start + self.batch_size]

    def _by_length(self, orders: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Orders `(M, N)` with each part of them sorted by length."""
        batches = min(GROUPED, max(1, orders.shape[1] // (4 * self.batch_size)))
        sorted_parts = []
        for start in range(0, orders.shape[1], batches * self.batch_size):
            part = orders[:, start : start + batches * self.batch_size]
            by_length = np.argsort(-lengths[part], axis=1, kind="stable")
            sorted_parts.append(np.take_along_axis(part, by_length, axis=1))
        return np.concatenate(sorted_parts, axis=1)


class EvalSampler(Sampler[BatchIndex]):
    """Batch indices of one pass over one split, ordered by length.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples of a member in one batch.
        members: M.
        parts: The examples of each member; all by default. A member that has fewer than another
            begins with its shortest one several times.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        members: int,
        parts: Sequence[np.ndarray] | None = None,
    ) -> None:
        if parts is None:
            orders = np.tile(np.argsort(lengths, kind="stable"), (members, 1))
        else:
            longest = max(map(len, parts))
            by_length = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
            orders = np.stack(
                [np.pad(order, (longest - len(order), 0), mode="edge") for order in by_length]
            )
        starts = range(0, orders.shape[1], batch_size)
        self.batches = [(0, orders[:, start : start + batch_size]) for start in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchIndex]:
        return iter(self.batches)


def eval_loader(
    split: TokenSplit,
    batch_size: int,
    members: int,
    parts: Sequence[np.ndarray] | None = None,
) -> DataLoader[PackedBatch]:
    """A loader that passes once over a split, or over a part of each member's own."""
    sampler = EvalSampler(split.tokens.lengths, batch_size, members, parts)
    return DataLoader(PackedDataset([split]), sampler=sampler, batch_size=None)
