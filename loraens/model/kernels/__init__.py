"""Fused operations of a training step on CUDA GPUs, as Triton kernels behind PyTorch operators.

The eager path is the reference, and what every other device takes. Importing this package needs no
Triton; `operators` and the modules of kernels do.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from subprocess import SubprocessError

import torch

SWITCH = "LORAENS_KERNELS"  # 0 switches the kernels off
MOST_RANKS = 64  # that the kernels of low rank hold at once
OLDEST = 8  # compute capability of GPUs that multiply bfloat16 and TF32
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def why_not() -> str | None:
    """Why PyTorch's own operators are used on a GPU; None where the kernels are."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if find_spec("triton") is None:
        return "the package triton is missing"
    if torch.cuda.is_available() and torch.version.cuda:
        major, minor = torch.cuda.get_device_capability()
        if major < OLDEST:
            return f"the GPU's compute capability is {major}.{minor}, and {OLDEST}.0 is needed"
        return failure(torch.device("cuda"))
    return None


def failure(device: torch.device) -> str | None:
    """Why Triton cannot launch a kernel on a device, or gets other numbers there; None where it
    can. It needs a C compiler and Python's headers, for example.
    """
    try:
        from loraens.model.kernels import operators

        operators.trial(device)
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"Triton cannot launch them here ({reason})"
    return None


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels are used for tensors of a device and a type."""
    return device.type == "cuda" and dtype in TYPES and why_not() is None


def low_rank_usable(device: torch.device, dtype: torch.dtype, ranks: int) -> bool:
    """Whether the kernels of low rank are used; higher ranks take padded products."""
    return ranks <= MOST_RANKS and usable(device, dtype)
