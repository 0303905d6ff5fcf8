"""Settings and manifests that are complete and valid, for members that were not trained."""

from loraens.members import Member
from loraens.records import Manifest, Settings
from loraens.tasks import STS


def make_settings(tasks=(STS,), **changes):
    """Settings of a member of some tasks; `changes` are fields, and `data` is added to."""
    data = {
        f"{task.name}-{split}": f"{task.name} {split}"
        for task in tasks
        for split in ("train", "dev", "test")
    }
    fields = {
        "backbone": "minilm",
        "backbone_fingerprint": "b",
        "mode": "lora",
        "targets": ("query", "value"),
        "pooling": "mean",
        "init_std": 0.02,
        "encoder_dropout": True,
        "schedule": "constant",
        "warmup": 0.0,
        "batch_size": 8,
        "max_length": 128,
        "temperature": 1.0,
        "precision": "32-true",
        "accumulate_grad_batches": 1,
        "gradient_clip_val": None,
        "gradient_clip_algorithm": "norm",
        "limit_train_batches": 1.0,
    }
    data |= changes.pop("data", {})
    return Settings(**{**fields, **changes, "tasks": tuple(tasks), "data": data})


def make_manifest(**changes):
    """A finished member of one epoch; `changes` are fields."""
    fields = {
        "name": "r4",
        "status": "finished",
        "member": Member(4, 1.0),
        "settings": make_settings(),
        "epochs": {"best": "epoch-001", "last": "epoch-001"},
        "dev": {},
    }
    return Manifest(**{**fields, **changes})
