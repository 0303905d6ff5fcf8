"""Executors: where and in which order the packs of a sweep are trained.

An executor takes packs from the coordinator, hands each to the worker, and yields the results as
they come. Packs are planned when they are taken, so that an executor takes one only when it can
begin to train it. Another package adds its own with `EXECUTORS.register("name", Class)`, or as an
entry point of the group `loraens.executors`; `--sweep.engine name` chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from loraens.errors import InputError
from loraens.registry import Registry
from loraens.train.packs import Pack, PackResult, Report
from loraens.train.worker import Worker


class Executor(Protocol):
    """Trains packs."""

    def run(self, worker: Worker, packs: Iterator[Pack], report: Report) -> Iterator[PackResult]:
        """Train packs.

        Args:
            worker: Trains one pack; it can be pickled, unless the data is only in memory.
            packs: The packs that can be trained now; ends when there is none. It is called again
                for those that follow from the results.
            report: May be told the member-steps that a pack has done, for the progress bar.

        Yields:
            One result for each pack, in any order.
        """
        ...


class InProcess:
    """Trains one pack after the other in this process."""

    def run(self, worker: Worker, packs: Iterator[Pack], report: Report) -> Iterator[PackResult]:
        """Train packs; see `Executor`."""
        for pack in packs:
            yield worker.train(pack, report)


EXECUTORS: Registry[Callable[[], Executor]] = Registry("executors")
EXECUTORS.register("in_process", InProcess)


def executor_named(name: str) -> Executor:
    """A new executor.

    Raises:
        InputError: None has that name.
    """
    if name not in EXECUTORS:
        raise InputError(
            f"engine {name!r} is none of {', '.join(EXECUTORS)}", option="sweep.engine"
        )
    return EXECUTORS[name]()
