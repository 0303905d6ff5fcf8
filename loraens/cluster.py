"""Ray, the engine for more than one device: it is started here or joined, and runs tasks.

Queues, retries and placement are Ray's. The package is an extra, and is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any

from loraens.errors import InputError

RETRIES = 3  # of a task whose process or machine died
AHEAD = 2  # tasks a worker whose results are waited for in order
PAUSE = 0.5  # seconds between looks at signals and progress
RAY = "ray"  # name of the engine


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_worker(workers: int, cpus: int | None) -> int:
    """Cores of each worker: as given, or its part of those of this machine."""
    return cpus or max(1, cores() // workers)


def check_workers(
    engine: str, workers: int, address: str | None, cpus: int | None, section: str = ""
) -> None:
    """Refuse options of workers that are out of range, or that the engine of one process has not.

    Args:
        engine: Name of the engine.
        workers: Tasks at a time.
        address: Of a cluster.
        cpus: Cores of each worker.
        section: Of the options on the command line, such as "sweep.".

    Raises:
        InputError: It names the option.
    """
    for name, value in (("workers", workers), ("cpus", cpus)):
        if value is not None and value < 1:
            raise InputError(
                f"{name} {value} is too small: at least 1 is expected", option=f"{section}{name}"
            )
    if engine != "in_process":
        return
    given: dict[str, object] = {
        "workers": None if workers == 1 else workers,
        "address": address,
        "cpus": cpus,
    }
    for name, wanted in given.items():
        if wanted is not None:
            raise InputError(
                f"{name} {wanted} is of engine {RAY}: give --{section}engine {RAY} too",
                option=f"{section}{name}",
            )


def import_ray() -> Any:
    """The package, which does not report its use.

    Raises:
        InputError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # a task that took too much memory is not tried again as it was
    os.environ.setdefault("RAY_task_oom_retries", "0")
    # tasks have the priority of the command, as the engine of one process has
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(
            f"engine {RAY} needs the package ray: pip install 'loraens[ray]', or leave the option"
            " out"
        ) from None
    return ray


class Counts:
    """What tasks have done since it was last asked, by name; an actor, which imports no torch."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()

    def add(self, name: Any, count: int) -> None:
        """Count something."""
        self.counts[name] += count

    def take(self) -> Counter[Any]:
        """What was counted, which is then forgotten."""
        counts, self.counts = self.counts, Counter()
        return counts


class Cluster:
    """Ray on this machine or on a cluster, for functions that run as its tasks.

    Entered, it is started or joined, unless the program has done that itself; left, it is ended.

    Args:
        workers: Tasks at a time.
        address: Of a running cluster, as `ray.init` takes it; None: started on this machine.
        cpus: Cores of each task.
        gpus: GPUs of each task.
        section: Of the options on the command line, such as "sweep.", for messages.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        cpus: int | None = None,
        gpus: int = 0,
        section: str = "",
    ) -> None:
        self.workers = workers
        self.address = address
        self.cpus = cores_of_worker(workers, cpus)
        self.gpus = gpus
        self.section = section
        self._ray = import_ray()
        self._started = False

    def __enter__(self) -> Cluster:
        """Start or join Ray.

        Raises:
            InputError: No cluster answers at the address.
        """
        if not self._ray.is_initialized():
            self._start()
        self._say_what_is_missing()
        return self

    def _start(self) -> None:
        """Start or join Ray, whose handlers of signals and lines of its log are not wanted."""
        where: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = max(cores(), self.workers * self.cpus)
            where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            where["num_gpus"] = None if self.gpus else 0
        self._started = True
        with _signals_after():
            try:
                _probe(self.address or "")
                self._ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError) as error:
                if self.address is None:
                    raise
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"address {self.address}: no cluster of Ray can be joined there ({reason})",
                    option=f"{self.section}address",
                ) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what was started; its processes end too."""
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _say_what_is_missing(self) -> None:
        """Say that no machine of the cluster has room for a task: Ray waits until one joins."""
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(n.get(k, 0) >= v for k, v in needed.items()) for n in nodes):
            wanted = f"{self.cpus} cores" + (f" and {self.gpus} GPU" if self.gpus else "")
            print(f"no machine of the cluster has {wanted}: Ray waits for one", flush=True)

    def put(self, value: Any) -> Any:
        """Put a value into Ray's object store, once for all tasks; returns its reference, which
        `fetched` takes.
        """
        return self._ray.put(self._ray.cloudpickle.dumps(value))

    def actor(self, kind: type[Any]) -> Any:
        """A new object in a process of its own, whose methods any task may call; begun again if
        that dies.
        """
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return self._ray.remote(**options)(kind).remote()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have Ray run a function; returns the reference of its result."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": RETRIES}
        return self._ray.remote(**options)(function).remote(*arguments)

    def done(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """The references whose results are there, waited for that long at most."""
        with _signals_after():
            ready: list[Any] = self._ray.wait(list(references), timeout=seconds)[0]
        return ready

    def result(self, reference: Any) -> Any:
        """The result of a task, waited for.

        Raises:
            InputError: Its process or machine died again and again.
            MemoryError: Ray ended it, as the machine's memory ran out.
            Exception: What the function raised.
        """
        errors = self._ray.exceptions
        while not self.done([reference], PAUSE):
            pass
        try:
            with _signals_after():
                value = self._ray.get(reference)
            return value
        except errors.RayTaskError as error:
            raise error.cause from error  # which has the traceback there
        except errors.OutOfMemoryError as error:
            raise MemoryError(str(error).strip().partition("\n")[0]) from None
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"engine {RAY}: a task was begun {RETRIES + 1} times, and its process died each"
                f" time ({reason}): Ray's logs, such as those in /tmp/ray, say why"
            ) from None

    def cancel(self, references: Iterable[Any]) -> None:
        """End tasks whose results are not wanted any more."""
        for reference in references:
            self._ray.cancel(reference, force=True)

    def in_order(
        self, function: Callable[..., Any], shared: Any, items: Iterable[Any]
    ) -> Iterator[Any]:
        """Results of a function, in the order of the items, of which only some are taken ahead.

        Args:
            function: Is given a list of the reference of `shared`, and an item.
            shared: A value for all.
            items: The items.
        """
        pending: deque[Any] = deque()
        reference = [self.put(shared)]  # in a list, as Ray would fetch a bare one for every task
        try:
            for item in items:
                pending.append(self.submit(function, reference, item))
                if len(pending) == AHEAD * self.workers:
                    yield self.result(pending.popleft())
            while pending:
                yield self.result(pending.popleft())
        except MemoryError as error:
            raise InputError(
                f"a worker's memory ran out ({error}): give fewer workers", f"{self.section}workers"
            ) from None
        finally:
            self.cancel(pending)


def _probe(address: str) -> None:
    """Notice at once that nothing listens at HOST:PORT, for which Ray would wait minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


@lru_cache(maxsize=1)
def fetched(reference: Any) -> Any:
    """The value of a reference, which a worker's process keeps for the tasks that follow."""
    ray = import_ray()
    return ray.cloudpickle.loads(ray.get(reference))


@contextmanager
def _signals_after() -> Iterator[None]:
    """Have signals handled after a call of Ray, which sets a handler of its own, and in place of
    what ours raises exits with a code of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in kept.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:  # of Ray's own handler
            raise
        received.append(signal.SIGTERM)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    for pending in received:
        signal.raise_signal(pending)
