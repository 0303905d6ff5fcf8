"""Runs whose members were not trained: logits and labels are made up."""

import numpy as np

from helpers.records import make_manifest, make_settings
from loraens.members import Member
from loraens.store import Logits, MemberStore, logits_to_bytes
from loraens.tasks import QUORA


def plant(directory, task, members=6, examples=(120, 60), seed=0, test_labels=True, **changes):
    """A run of members that see the truth through noise of their own; `changes` are fields of their
    settings.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for split, size in zip(("dev", "test"), examples, strict=True):
        classes = len(task.class_names)
        labels = (
            rng.integers(0, classes, size).astype(float) if classes else rng.uniform(0, 5, size)
        )
        splits[split] = labels, np.array([f"{split}-{row}" for row in range(size)])
    data = {f"{task.name}-{split}": f"{split} of {seed}" for split in ("train", "dev", "test")}
    data |= changes.pop("data", {})
    settings = make_settings(**{"tasks": (task,), **changes, "data": data})
    for index in range(members):
        files = {}
        scores = {}
        for split, (labels, ids) in splits.items():
            noise = rng.normal(0, 1 + index / 5, (len(labels), task.num_outputs))
            truth = (
                labels[:, None]
                if task.num_outputs == 1
                else 2 * np.eye(task.num_outputs)[labels.astype(int)]
            )
            logits = (truth * (2 if task is QUORA else 1) - (task is QUORA) + noise).astype(
                np.float32
            )
            scores[split] = task.scores(logits, labels)
            given = labels if split == "dev" or test_labels else None
            files[f"{task.name}-{split}.npz"] = logits_to_bytes(Logits(logits, ids, given))
        dev = {epoch: {task.name: scores["dev"]} for epoch in ("best", "last")}
        name = f"r{index + 1}"
        member = Member(index + 1, 1.0)
        manifest = make_manifest(name=name, member=member, settings=settings, dev=dev)
        MemberStore(directory / name).write({"epoch-001": files}, manifest)
    return directory
