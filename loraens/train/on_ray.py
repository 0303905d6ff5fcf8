"""The engine `ray`: every pack is a task of Ray, on one machine or on many."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from loraens.cluster import PAUSE, Cluster, Counts, fetched, import_ray
from loraens.data.examples import write_data_examples
from loraens.train.config import CONFIG, SweepConfig
from loraens.train.device import on_gpu
from loraens.train.options import SweepOptions
from loraens.train.packs import MemberResult, Pack, PackResult, Report
from loraens.train.state import pack_locked
from loraens.train.transfer import PackState
from loraens.train.worker import Worker


@dataclass(frozen=True)
class Job:
    """What all packs of a sweep have in common.

    Args:
        directory: The sweep's directory.
        cwd: The coordinator's working directory, which relative paths in settings start from.
        text: Content of config.yaml.
        data: Reference of the pickled data module in Ray's object store; None where every worker
            reads the texts itself.
        steps: The actor of `Counts` that is told the member-steps of packs.
    """

    directory: Path
    cwd: Path
    text: str
    data: Any
    steps: Any

    def worker(self, directory: Path) -> Worker:
        """A worker of the sweep that writes to a directory."""
        config = SweepConfig.from_yaml(self.text, str(self.directory / CONFIG)).train
        return Worker(directory, config, None if self.data is None else fetched(self.data))

    def report(self) -> Report:
        """Tells the steps of a pack about once a second."""
        counted = 0
        told = time.monotonic()

        def report(pack: Pack, steps: int) -> None:
            nonlocal counted, told
            counted += steps
            if time.monotonic() - told > 1:
                self.steps.add.remote(pack.checkpoint, counted)
                counted, told = 0, time.monotonic()

        return report


@lru_cache(maxsize=1)
def _worker(job: Job) -> Worker:
    """The worker of a sweep, which a process keeps with its texts for the packs that follow."""
    return job.worker(job.directory)


def train_here(job: Job, pack: Pack) -> PackResult:
    """Train a pack in the sweep's directory, which this machine sees; a task of Ray.

    Relative paths are of the coordinator's working directory. A worker that was taken for dead may
    still train the pack: its end is waited for.
    """
    os.chdir(job.cwd)
    with pack_locked(pack.checkpoint):
        return _worker(job).train(pack, job.report())


def train_apart(job: Job, pack: Pack, state: PackState) -> tuple[PackResult, PackState]:
    """Train a pack in a directory of its own; a task of Ray.

    Args:
        job: The sweep.
        pack: The pack.
        state: Its files before.

    Returns:
        The result, and the pack's files after.
    """
    report = job.report()
    with TemporaryDirectory(prefix="loraens-") as name:
        directory = Path(name)
        worker = job.worker(directory)
        write_data_examples(worker.data, directory)
        own = replace(pack, checkpoint=directory / "packs" / pack.checkpoint.name)
        state.write(directory, own.checkpoint)
        result = worker.train(own, lambda _, steps: report(pack, steps))
        return replace(result, pack=pack), PackState.read(directory, own)


class RayPacks:
    """Trains several packs at a time as tasks of Ray.

    Args:
        options: Workers, their cores, the cluster's address, and whether all see the sweep's
            directory.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, options: SweepOptions) -> None:
        import_ray()
        self.options = options
        self._cluster: Cluster | None = None
        self._data: Any = None  # reference of the data module in Ray's object store
        self._steps: Any = None

    @classmethod
    def of_options(cls, options: SweepOptions) -> RayPacks:
        """The executor that a sweep's options name."""
        return cls(options)

    def __enter__(self) -> RayPacks:
        """Ray is started when the first pack is there."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End Ray, where it was started here."""
        if self._cluster is not None:
            self._cluster.__exit__(kind, error, trace)
            self._cluster = None

    def _joined(self, worker: Worker) -> Cluster:
        """Ray, started or joined once for all rungs."""
        if self._cluster is None:
            given = self.options
            gpus = int(on_gpu(worker.config.trainer))
            self._cluster = Cluster(given.workers, given.address, given.cpus, gpus, "sweep.")
            self._cluster.__enter__()
            self._steps = self._cluster.actor(Counts)
            if worker.config.data is None or not given.shared:
                self._data = self._cluster.put(worker.data)
        return self._cluster

    def run(self, worker: Worker, packs: Iterator[Pack], report: Report) -> Iterator[PackResult]:
        """Train packs; see `Executor`."""
        first = next(packs, None)
        if first is None:
            return
        cluster = self._joined(worker)
        text = (worker.directory / CONFIG).read_text()
        job = Job(worker.directory.resolve(), Path.cwd(), text, self._data, self._steps)
        packs = chain([first], packs)
        running: dict[Any, Pack] = {}
        steps = self._steps.take.remote()
        try:
            while True:
                while len(running) < cluster.workers and (pack := next(packs, None)) is not None:
                    running[self._submit(cluster, job, pack)] = pack
                if not running:
                    return
                done = cluster.done(list(running), PAUSE)
                if cluster.done([steps], 0):
                    _tell(report, cluster.result(steps), running.values())
                    steps = self._steps.take.remote()
                for reference in done:
                    result = self._result(worker, reference, running[reference])
                    del running[reference]
                    yield result
        finally:
            cluster.cancel(running)

    def _submit(self, cluster: Cluster, job: Job, pack: Pack) -> Any:
        if self.options.shared:
            return cluster.submit(train_here, job, pack)
        state = PackState.read(job.directory, pack)
        return cluster.submit(train_apart, job, pack, state)

    def _result(self, worker: Worker, reference: Any, pack: Pack) -> PackResult:
        """The result of a pack; its files are then in the sweep's directory."""
        assert self._cluster is not None
        try:
            result = self._cluster.result(reference)
        except MemoryError as error:
            ended, members, epochs = worker.resumed(pack)
            left = [MemberResult(member.name, "out_of_memory", epochs) for member in members]
            return PackResult(pack, (*ended, *left), 0.0, str(error))
        if self.options.shared:
            whole: PackResult = result
            return whole
        outcome, state = result
        state.write(worker.directory, pack.checkpoint)
        done: PackResult = outcome
        return done


def _tell(report: Report, counts: Mapping[Path, int], running: Iterable[Pack]) -> None:
    """Tell the steps of the packs that are not done."""
    for pack in running:
        if pack.checkpoint in counts:
            report(pack, counts[pack.checkpoint])
