"""Pools of members whose logits are the truth and noise."""

import numpy as np

from loraens.ensemble.pool import Pool


def make_pool(task, members=6, examples=200, noise=1.0, seed=0):
    """Members that see the truth through noise of their own."""
    rng = np.random.default_rng(seed)
    classes = len(task.class_names)
    labels = (
        rng.integers(0, classes, examples).astype(float) if classes else rng.uniform(0, 5, examples)
    )
    if task.kind == "number":
        logits = (
            labels[None, :, None]
            + rng.normal(0, noise, (members, examples, 1))
            * np.linspace(0.5, 1.5, members)[:, None, None]
        )
    elif task.num_outputs == 1:
        logits = (2 * labels - 1)[None, :, None] + rng.normal(0, 2 * noise, (members, examples, 1))
    else:
        logits = 2 * np.eye(classes)[labels.astype(int)][None] + rng.normal(
            0, 1.5 * noise, (members, examples, classes)
        )
    names = tuple(f"m{index}" for index in range(members))
    return Pool(task, names, np.arange(1, members + 1), logits, labels)
