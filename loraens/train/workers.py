"""Workers of a sweep: how many packs are trained at a time, and what each has to itself."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from loraens.cluster import cores, cores_of_worker
from loraens.train.device import on_gpu
from loraens.train.options import SweepOptions


@dataclass(frozen=True)
class Workers:
    """Workers that train packs at a time.

    Args:
        count: How many.
        threads: Of each; None: those of this process, as it is the only one.
        gpu: Whether each has a GPU.
        beside: How many share the memory of one device.
    """

    count: int = 1
    threads: int | None = None
    gpu: bool = False
    beside: int = 1

    @classmethod
    def of(cls, options: SweepOptions, trainer: Mapping[str, Any]) -> Workers:
        """The workers of a sweep.

        Args:
            options: How its members are trained together.
            trainer: Options of the trainer.
        """
        gpu = on_gpu(trainer)
        if options.engine == "in_process":
            return cls(gpu=gpu)
        threads = cores_of_worker(options.workers, options.cpus)
        here = options.workers
        if options.address is not None:  # machines like this one, each with as many as it has room
            here = min(here, max(1, cores() // threads))
        return cls(options.workers, threads, gpu, 1 if gpu else here)

    @property
    def in_words(self) -> str:
        """What they are, such as "4 workers of 2 cores"."""
        of = "one GPU" if self.gpu else f"{self.threads} core{'s' if self.threads != 1 else ''}"
        return f"{self.count} worker{'s' if self.count != 1 else ''} of {of}"

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """Compute with as many threads as one of them has, to measure what it needs."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def busiest(loads: Iterable[float], workers: int) -> float:
    """What the worker with most to do has to do, where each load goes to the first that is free.

    Examples:
        >>> busiest([4, 4, 3, 2], 1), busiest([4, 4, 3, 2], 2), busiest([], 3)
        (13, 7, 0)
    """
    ends: list[float] = [0] * workers
    for load in loads:
        heapq.heapreplace(ends, ends[0] + load)
    return max(ends)
