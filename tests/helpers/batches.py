"""Packed batches of made-up tokens."""

import numpy as np
import torch

from loraens.model.batch import pack
from loraens.tasks import SST


def batch_of(members, task="sst", starts=None):
    """Four examples for each member, with labels of five classes, of one sequence of uneven length
    each, or of several that begin at `starts`.
    """
    rng = np.random.default_rng(3)
    examples = 12 if starts is None else len(starts) - 1
    lengths = rng.integers(3, 20, 12)
    tokens = rng.integers(5, 100, lengths.sum())
    return pack(
        tokens=tokens,
        types=np.zeros(len(tokens), np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        indices=np.stack([rng.permutation(examples)[:4] for _ in range(members)]),
        labels=rng.integers(0, 5, 12).astype(float),
        task=task,
        split="train",
        starts=starts,
    )


def one_member(batch, index):
    """The part of a pack's batch that belongs to one member."""
    low, high = (sum(map(sum, batch.member_lengths[:stop])) for stop in (index, index + 1))
    tokens = {
        name: getattr(batch, name)[low:high]
        for name in ("input_ids", "token_type_ids", "position_ids")
    }
    part = {name: getattr(batch, name)[index : index + 1] for name in ("indices", "labels")}
    if batch.windows is not None:
        each = batch.indices.shape[1]
        part["windows"] = batch.windows[index * each : (index + 1) * each]
    return type(batch)(
        **tokens,
        **part,
        lengths=batch.member_lengths[index],
        members=1,
        task=batch.task,
        split=batch.split,
    )


def step(model, batch, steps=3):
    """The model after steps of SGD, with dropout."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for number in range(steps):
        model.train().seed_dropout(0, number)
        optimizer.zero_grad()
        SST.member_losses(model(batch), batch.labels).sum().backward()
        optimizer.step()
    return model.eval()
