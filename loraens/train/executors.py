"""Executors: where and in which order the packs of a sweep are trained.

An executor takes packs from the coordinator, hands each to the worker, and yields the results as
they come. Packs are planned when they are taken, so that an executor takes one only when it can
begin to train it. Another package adds its own with `EXECUTORS.register("name", Class)`, or as an
entry point of the group `loraens.executors`; `--sweep.engine name` chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from loraens.errors import InputError
from loraens.registry import Registry
from loraens.train.on_ray import RayPacks
from loraens.train.options import SweepOptions
from loraens.train.packs import Pack, PackResult, Report
from loraens.train.worker import Worker


class Executor(Protocol):
    """Trains packs.

    One that is a context manager is entered for the time of a sweep. A class is called without
    arguments, or its `of_options` with the `SweepOptions`, where it has that.
    """

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


EXECUTORS: Registry[Any] = Registry("executors")  # classes of executors
EXECUTORS.register("in_process", InProcess)
EXECUTORS.register("ray", RayPacks)


def executor_of(options: SweepOptions) -> Executor:
    """The executor that a sweep's options name.

    Raises:
        InputError: None has that name, or it cannot be used.
    """
    name = options.engine
    if name not in EXECUTORS:
        raise InputError(
            f"engine {name!r} is none of {', '.join(EXECUTORS)}", option="sweep.engine"
        )
    kind = EXECUTORS[name]
    of_options: Callable[[SweepOptions], Executor] | None = getattr(kind, "of_options", None)
    executor: Executor = kind() if of_options is None else of_options(options)
    return executor


def entered(executor: Executor) -> AbstractContextManager[Any]:
    """What is entered for the time of a sweep."""
    return executor if isinstance(executor, AbstractContextManager) else nullcontext()
