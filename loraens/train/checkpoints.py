"""Checkpoints of populations, taken apart and put together by member.

A pack that loses members (early stopping, halving, too little memory) goes on from the checkpoint
of those that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_RANK_AXIS = {"lora_A": 1, "lora_B": 2}
FAILURES = ("failures.step", "failures.loss")
# keys of what our module and our member writer put there
MODULE = "loraens"
WRITER = "loraens.members"


def members_of(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings of a checkpoint's members."""
    found: list[dict[str, Any]] = checkpoint[MODULE]["members"]
    return found


def progress_of(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """History of a checkpoint's members, as the member writer keeps it."""
    found: list[dict[str, Any]] = checkpoint["callbacks"][WRITER]["progress"]
    return found


def take(checkpoint: dict[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """The checkpoint of some of a population's members, as if it had never had others."""
    rank = max(members_of(checkpoint)[index]["rank"] for index in indices)
    return _rebuilt(
        [checkpoint],
        lambda name, parts: _resized(parts[0][list(indices)], name, rank),
        [list(indices)],
    )


def join(checkpoints: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint of several populations' members side by side; they must have come equally
    far.
    """
    rank = max(member["rank"] for checkpoint in checkpoints for member in members_of(checkpoint))
    return _rebuilt(
        checkpoints,
        lambda name, parts: torch.cat([_resized(part, name, rank) for part in parts]),
        [list(range(len(members_of(checkpoint)))) for checkpoint in checkpoints],
    )


def _resized(tensor: Tensor, name: str, rank: int) -> Tensor:
    """Padded to, or cut to, another largest rank; what is beyond a member's own rank is zero."""
    axis = _RANK_AXIS.get(name.rpartition(".")[2])
    if axis is None or tensor.shape[axis] == rank:
        return tensor
    if tensor.shape[axis] > rank:
        return tensor.narrow(axis, 0, rank).clone()
    shape = list(tensor.shape)
    shape[axis] = rank - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _rebuilt(
    checkpoints: Sequence[dict[str, Any]], combine: Any, kept: list[list[int]]
) -> dict[str, Any]:
    first = checkpoints[0]
    names = list(first["state_dict"])
    state = {
        name: combine(name, [checkpoint["state_dict"][name] for checkpoint in checkpoints])
        for name in names
    }
    trained = [name for name in names if name not in FAILURES]
    optimizer = first["optimizer_states"][0]
    moments: dict[int, dict[str, Any]] = {}
    for place, entry in optimizer["state"].items():
        others = [checkpoint["optimizer_states"][0]["state"][place] for checkpoint in checkpoints]
        moments[place] = {
            key: (
                combine(trained[place], [other[key] for other in others])
                if isinstance(value, Tensor)
                else value
            )
            for key, value in entry.items()
        }
    chosen = list(zip(checkpoints, kept, strict=True))
    writer = first["callbacks"][WRITER]
    return {
        **first,
        "state_dict": state,
        "optimizer_states": [{**optimizer, "state": moments}],
        "callbacks": {
            **first["callbacks"],
            WRITER: {
                **writer,
                "progress": [progress_of(c)[index] for c, indices in chosen for index in indices],
            },
        },
        MODULE: {
            **first[MODULE],
            "members": [members_of(c)[index] for c, indices in chosen for index in indices],
        },
    }
