"""Packed batches of made-up tokens."""

import numpy as np

from loraens.model.batch import pack


def batch_of(members, task="sst"):
    """Four sequences of uneven lengths for each member, with labels of five classes."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 20, 12)
    tokens = rng.integers(5, 100, lengths.sum())
    return pack(
        tokens=tokens,
        types=np.zeros(len(tokens), np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        indices=np.stack([rng.permutation(12)[:4] for _ in range(members)]),
        labels=rng.integers(0, 5, 12).astype(float),
        task=task,
        split="train",
    )
