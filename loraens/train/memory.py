"""Memory: whether it ran out, how it is given back, and how large packs may be then."""

from __future__ import annotations

import errno
import gc
import re

import torch

# what libraries say where they cannot allocate, in errors that are of no class of their own
_MESSAGES = re.compile(
    r"out of memory"  # CUDA, HIP and MPS, from the allocator or from an operation
    r"|(cublas|cudnn|cusolver|cusparse|cufft|nccl)\w*_alloc(ation)?_failed"
    r"|cudnn_status_internal_error_\w+_allocation_failed"
    r"|cublas_status_not_initialized"  # a handle takes memory, too
    r"|can't allocate memory|not enough memory|cannot allocate memory"  # the CPU's allocators
    r"|could not create a (primitive|memory)"  # oneDNN
    r"|can't start new thread|resource temporarily unavailable"  # a thread's stack
    r"|unable to mmap",  # weights
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or not."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


def give_back() -> None:
    """Free what nothing refers to any more, and what a GPU's allocator keeps of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class PackLimit:
    """Most members of a pack after memory ran out.

    Memory may have run out as another program took it, so a limit is not for ever: it is doubled
    after 2 packs, after 4 where memory ran out twice, and so on.

    Args:
        size: The limit; None for none.

    Attributes:
        size: The limit; None for none.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._times = 0 if size is None else 1  # that memory ran out
        self._trained = 0  # packs since

    def halve(self, size: int) -> None:
        """Memory ran out: at most `size` members now."""
        self.size = min(size, self.size or size)
        self._times += 1
        self._trained = 0

    def trained(self, wanted: int) -> None:
        """A pack was trained; `wanted` is the size without a limit."""
        if self.size is None:
            return
        self._trained += 1
        if self._trained >= 2**self._times:
            self.size = 2 * self.size if 2 * self.size < wanted else None
            self._trained = 0
