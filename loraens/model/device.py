"""What depends on device and precision: types that are computed in, and sizes of batches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from loraens.errors import InputError

ON_CPU = 64  # records that are evaluated together on a CPU, whose caches more would not fit
SHARE = 8  # of a GPU's memory, an eighth is for evaluation
HALF = "bf16-mixed"  # the only one in which weights are not of the type that is computed in


def usable_device(name: str | None) -> torch.device:
    """The device of a name; by default a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: There is no such device, or it is of a kind on which models are not run, such as
            Apple's GPU.
    """
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < gpus):
        return device
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    raise InputError(f"device {name} is not here: one of {there} is expected", option="device")


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A forward within it computes as in a training of that precision: with autocast to bfloat16 in
    bf16-mixed, else in the type of the weights.
    """
    if precision == HALF:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def allow_tf32(device: torch.device) -> None:
    """Let a GPU round the factors of products in float32 to TF32 (10 bits of mantissa), which its
    tensor cores need; other devices are left as they are.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def records_together(config: Any, longest: int, device: torch.device) -> int:
    """Records that are evaluated in one batch, those of all members together: 64 on a CPU, and on a
    GPU what fits in an eighth of its memory, whatever is free of it, so that the same machine
    gives the same numbers.

    Without gradients each sequence takes some ten vectors of width D and two of width F a token,
    and of each head three matrices of attention, counted in float32.

    Args:
        config: The encoder's configuration.
        longest: Tokens of the longest sequence.
        device: The device.
    """
    if device.type != "cuda":
        return ON_CPU
    width = config.hidden_size
    wide = getattr(config, "intermediate_size", 4 * width)
    numbers = longest * (10 * width + 2 * wide) + 3 * config.num_attention_heads * longest**2
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, int(memory // SHARE // (4 * numbers)))
