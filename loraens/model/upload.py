"""Tensors to a GPU in one copy, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNED = 16  # bytes that each tensor begins at a multiple of


def upload(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """The tensors on a device: on a CUDA GPU in one copy from page-locked memory, elsewhere one by
    one.
    """
    device = torch.device(device)
    if device.type != "cuda" or not tensors or tensors[0].device.type == "cuda":
        return [tensor.to(device) for tensor in tensors]
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNED) * _ALIGNED)
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for tensor, start in zip(tensors, starts[:-1], strict=True):
        _part(host, start, tensor).copy_(tensor)
    # the allocator of page-locked memory keeps it until the copy has ended
    moved = host.to(device, non_blocking=True)
    return [_part(moved, start, tensor) for tensor, start in zip(tensors, starts[:-1], strict=True)]


def _part(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor of the type and the shape of another one, in memory from a byte on."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
