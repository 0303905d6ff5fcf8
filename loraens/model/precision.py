"""Types that a model computes in, by the names of Lightning's precisions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

HALF = "bf16-mixed"  # the only one in which weights are not of the type that is computed in


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
