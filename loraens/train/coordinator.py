"""A sweep: a grid of members, trained in packs on one backbone, resumed where it was.

    checkpoints/<sweep>/
        config.yaml                settings, as `--config` takes them
        sweep.json                 settings that all members share, the size of packs, the rung of
                                   successive halving
        examples/, <member>/       as `fit` writes them
        targets.npz                of students: what their teacher predicts, see data/targets.py
        packs/<rung>-<name>.ckpt   a pack that is under way, after its last whole epoch

The coordinator plans packs, and is the only writer of config.yaml and sweep.json; an executor has
workers train the packs. Both write `examples/`, always with the same contents.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraens.data.examples import write_data_examples
from loraens.data.imports import resume_options
from loraens.data.modules import TextData
from loraens.errors import say
from loraens.files import write_atomically
from loraens.members import Member, by_kind
from loraens.members import packs as packs_of
from loraens.records import Manifest
from loraens.store import SWEEP, MemberStore
from loraens.train.bar import SweepBar
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.config import CONFIG, SweepConfig
from loraens.train.cost import choose_size
from loraens.train.device import in_words
from loraens.train.executors import Executor, entered, executor_of
from loraens.train.halving import halved
from loraens.train.memory import PackLimit
from loraens.train.packs import Pack, PackFiles, PackResult, regrouped, too_large
from loraens.train.plan import Plan, count_in_words, planned
from loraens.train.resume import ended_members, read_state, without_incomplete
from loraens.train.runs import quiet_trainers
from loraens.train.state import SweepState, locked, wait_for_workers
from loraens.train.tracking import check_logger, log_member
from loraens.train.worker import Worker
from loraens.train.workers import Workers


class Coordinator:
    """Trains what is missing of a grid, pack by pack.

    Args:
        config: The sweep's settings.
        data: The texts, where they are at hand; made from the settings by default.
        executor: Trains the packs; by default the one that the settings name.

    Raises:
        InputError: A setting is out of range, or the data or the backbone cannot be used.
    """

    def __init__(
        self, config: SweepConfig, data: TextData | None = None, executor: Executor | None = None
    ) -> None:
        check_logger(config.train.logger)
        self.config = config
        self.members = {member.name: member for member in config.members}
        if executor is None:
            executor = executor_of(config.options)
        self.executor = executor
        if data is None and config.train.data is not None:
            data = config.train.data.build(config.train.backbone)
        tasks = [] if data is None else [task.name for task in data.tasks]
        self.directory = config.directory(tasks)
        self.workers = Workers.of(config.options, config.train.trainer)
        self.worker = Worker(self.directory, config.train, data)
        # absolute: a worker may train a pack in another working directory
        self.files = PackFiles(self.directory.resolve())
        self.ended: dict[str, Manifest] = {}  # manifests of members that have ended
        self.state = SweepState.new(self._settings())
        self._limit = PackLimit()  # where memory ran out
        self._under_way: dict[Path, Pack] = {}  # packs of the current rung, by their file
        self._claimed: dict[Path, Pack] = {}  # packs that an executor has taken
        self._bar = SweepBar(
            config.train.progress_bar,
            self.steps_of_epoch(),
            count_in_words(len(self.members), self.unit) if self.unit > 1 else "",
        )

    def _settings(self) -> dict[str, Any]:
        """What all members share; JSON gives the same back."""
        # first, so that a wrong option is noticed before the texts are read
        kinds = by_kind(self.config.members)
        for kind in kinds:
            self.worker.build(kind)  # refuses what one of its members cannot have
        modules = [self.worker.build(kind[:1]) for kind in kinds]
        data = self.worker.data
        for module in modules:
            module.build(data.max_length)
        halvings = self.config.rungs[:-1]
        train = self.config.train
        shared = {
            "folds": train.folds,  # first, as other folds are other data too
            **modules[0].fixed_settings(data, self.worker.trainer()).to_json(),
            # those of members that have none of their own
            "adapter": train.model["adapter"],
            "targets": list(train.model["targets"]),
            "limit": data.limit,
            "max_epochs": train.epochs,
            "patience": self.config.options.patience,
            "halving": halvings,
            "halving_factor": self.config.options.halving_factor,
            "halving_by": self.config.options.halving_by,
            "halved_members": sorted(self.members) if halvings else None,
        }
        settings: dict[str, Any] = json.loads(json.dumps(shared))
        return settings

    def steps_of_epoch(self) -> int:
        """Batches of one member and epoch."""
        batches = len(self.worker.data.sampler(self.config.members[:1]))
        limit = self.state.settings["limit_train_batches"]
        if isinstance(limit, float):
            return max(1, int(batches * limit))
        return min(batches, limit or batches)

    def pack_size(self) -> int:
        """Members of a pack: as wanted; less where memory did not do. With folds it is that of
        whole configurations, at least of one.
        """
        wanted = self._wanted_size()
        allowed = min(wanted, self._limit.size or wanted)
        return max(self.unit, allowed - allowed % self.unit)

    def _wanted_size(self) -> int:
        """Members of a pack: as given, as once measured for this sweep, or measured now."""
        size = self.config.options.pack_size
        if size == "auto":
            if self.state.measured is None:
                with self.workers.as_one():
                    self.state.measured = choose_size(
                        build=self.worker.build,
                        members=self.config.members,
                        data=self.worker.data,
                        trainer=self.worker.trainer(),
                        report=print,
                        workers=self.workers.count,
                        beside=self.workers.beside,
                    )
            size = self.state.measured
        return size

    @property
    def unit(self) -> int:
        """Members that are always trained together: the folds of a configuration."""
        return self.config.train.folds or 1

    def _missing(self) -> list[Member]:
        """Members that have not begun, of whole configurations."""
        begun = set(self.ended)
        for pack in (*self._under_way.values(), *self._claimed.values()):
            begun |= {member.name for member in pack.members}
        return [member for name, member in self.members.items() if name not in begun]

    # Plan

    def plan(self) -> Plan:
        """What is to be done, measured on this machine; writes nothing.

        Raises:
            InputError: The directory has something else, or a sweep of other settings or data.
        """
        with quiet_trainers():
            self._begin()
            self.ended, _ = ended_members(self.directory, self.config.members)
            left = [member for name, member in self.members.items() if name not in self.ended]
            size = max(map(len, packs_of(self.config.members, self.pack_size())))
            return planned(
                worker=self.worker,
                members=self.config.members,
                left=left,
                pack_size=size,
                steps_of_epoch=self.steps_of_epoch(),
                folds=self.config.train.folds,
                workers=self.workers,
            )

    # Run

    @property
    def resume(self) -> str:
        """How to resume an interrupted sweep."""
        if self.config.train.data is None:
            return "the same program again"
        address = self.config.options.address
        of_cluster = "" if address is None else f" --sweep.address {shlex.quote(address)}"
        return f"loraens sweep {resume_options(self.directory / CONFIG)}{of_cluster}"

    def run(self) -> dict[str, Manifest]:
        """Train what is missing.

        Returns:
            The manifests of all members, by name.

        Raises:
            InputError: Another sweep runs in the directory, it has something else or a sweep of
                other settings or data, or one member alone, or one configuration with its folds,
                does not fit in memory.
        """
        known = (self.directory / SWEEP).is_file()  # which is read before anything is written
        with locked(self.directory, known), quiet_trainers(), entered(self.executor):
            wait_for_workers(self.files.folder)
            self._begin()
            self.state.members = sorted({*(self.state.members or ()), *self.members})
            write_atomically(self.directory / CONFIG, self.config.text.encode())
            self.files.folder.mkdir(parents=True, exist_ok=True)
            # restored where they are not whole: no member need be trained again for that
            write_data_examples(self.worker.data, self.directory)
            self.ended, damaged = ended_members(self.directory, self.config.members)
            for name in damaged:
                MemberStore(self.directory / name).remove()
            self.files.clean(self.state.rung, damaged)
            if self.unit > 1:
                self.ended = without_incomplete(
                    self.ended, self.config.members, self.files, self.state.rung
                )
            for name in list(self.ended):
                self._log(name)
            if len(self.ended) < len(self.members):
                self.pack_size()
            self._write_state()
            try:
                self._train_rungs()
            except (KeyboardInterrupt, SystemExit):
                say(f"\nto resume: {self.resume}")
                raise
            finally:
                self._bar.close()
            self.files.remove()
        return {name: self.ended[name] for name in self.members}

    def _train_rungs(self) -> None:
        """Train every rung that is left; between two the members are halved."""
        while True:
            self._train_rung()
            if self.state.rung + 1 == len(self.config.rungs):
                return
            self._halve()

    def _until(self, members: Iterable[Member]) -> list[int]:
        """Last epoch of each member in the current rung."""
        if self.config.options.halving_factor is None:
            return [self.config.train.epochs_of(member) for member in members]
        return [self.config.rungs[self.state.rung] for _ in members]

    def _train_rung(self) -> None:
        """Train every pack of the current rung until its last epoch."""
        self._under_way = {path: self._pack_of(path) for path in self.files.paths(self.state.rung)}
        waiting = dict(self._under_way)
        self._bar.open(
            packs=self._under_way.values(),
            done=sum(self._until(self.members[name] for name in self.ended)),
            to_do=sum(self._until(self._missing())),
        )
        while waiting or self._missing():
            packs = self._take_packs(waiting)
            for result in self.executor.run(self.worker, packs, self._bar.report):
                self._settle(result, waiting)
            if self._claimed:
                lost = next(iter(self._claimed.values()))
                raise RuntimeError(
                    f"executor {self.executor} returned no result for {lost.checkpoint}"
                )

    def _take_packs(self, waiting: dict[Path, Pack]) -> Iterator[Pack]:
        """The packs that can be trained now, each planned when it is asked for: those that are
        under way, then members that have not begun.

        Args:
            waiting: Packs that have a checkpoint and are not trained until the rung's end.
        """
        while waiting or self._missing():
            if waiting:
                pack = waiting.pop(min(waiting))
            else:
                members = tuple(packs_of(self._missing(), self.pack_size())[0])
                path = self.files.path(self.state.rung, members[0].name)
                until = self._until(members)[0]
                pack = Pack(members, path, until, self.config.options.patience)
            self._claimed[pack.checkpoint] = pack
            self._bar.begin(pack)
            yield pack

    def _pack_of(self, path: Path) -> Pack:
        checkpoint = PackCheckpoint.load(path)
        return Pack(
            members=checkpoint.members,
            checkpoint=path,
            until=self._until(checkpoint.members)[0],
            patience=self.config.options.patience,
            epochs_done=checkpoint.epochs_done,
        )

    def _settle(self, result: PackResult, waiting: dict[Path, Pack]) -> None:
        """Note what became of a pack.

        Args:
            result: Of a pack that was taken.
            waiting: Gets the two halves of a pack that did not fit in memory.
        """
        path = result.pack.checkpoint
        self._claimed.pop(path)
        self._under_way.pop(path, None)
        self._bar.settle(result)
        for member in result.members:
            if member.status not in ("trained", "out_of_memory"):
                self._end(member.name)
        if result.out_of_memory:
            for half in self._split(result):
                self._under_way[half.checkpoint] = waiting[half.checkpoint] = half
        elif self._limit.size is not None:
            self._limit.trained(self._wanted_size())
            self._write_state()
        trained = {member.name for member in result.members if member.status == "trained"}
        if trained:  # they continue in the next rung
            members = tuple(member for member in result.pack.members if member.name in trained)
            self._under_way[path] = replace(result.pack, members=members)

    def _split(self, result: PackResult) -> list[Pack]:
        """Halve a pack that did not fit in memory, and all that will be planned.

        Returns:
            The two packs; none where the pack has no checkpoint, as its members then have not
            begun.

        Raises:
            InputError: It has one member only, or one configuration with its folds.
        """
        members = [member for member in result.members if member.status == "out_of_memory"]
        units = len(members) // self.unit
        if units == 1:
            raise too_large(result, self.unit)
        half = -(-units // 2) * self.unit
        self._bar.write(f"out of memory with {len(members)} members: continuing with {half}")
        self._limit.halve(half)
        self._write_state()
        path = result.pack.checkpoint
        if not path.is_file():
            return []
        second = self.files.split(path, self.state.rung, half)
        return [self._pack_of(part) for part in (path, second)]

    def _halve(self) -> None:
        """Stop all but the best members, and put those into packs of the next rung."""
        rung = self.state.rung
        checkpoints = [PackCheckpoint.load(path) for path in self.files.paths(rung)]
        kept, stopped = halved(
            checkpoints, self.config.options, self.config.train.folds, self.directory
        )
        for name, reason in stopped.items():
            ended = f"epoch {self.config.rungs[rung]}: {reason}"
            self._end(name, status="stopped", ended=ended)
        size = self.pack_size()
        if self.config.options.pack_size == "auto":  # there shall be a pack for each worker
            size = min(size, -(-len(kept) // self.workers.count))
        for name, checkpoint in regrouped(checkpoints, kept, size):
            checkpoint.save(self.files.path(rung + 1, name))
        # only now does the next rung count: killed before, this one is halved once more
        self.state.rung += 1
        self._write_state()
        self.files.remove_others(self.state.rung)

    def _end(self, name: str, **fields: str) -> None:
        """A member has ended: note it, in its manifest too where fields are given, and log it."""
        self.ended[name] = MemberStore(self.directory / name).update(**fields)
        self._log(name)

    def _log(self, name: str) -> None:
        logger = self.config.train.logger
        if logger is not False and name not in self.state.logged:
            log_member(logger, self.directory, self.ended[name])
            self.state.logged.append(name)
            self._write_state()

    def _begin(self) -> None:
        """Say where it computes, and read how far the sweep is."""
        if said := in_words(self.worker.trainer()):
            say(said)
        self.state = read_state(self.directory, self.state, len(self.config.rungs))
        self._limit = PackLimit(self.state.fits)

    def _write_state(self) -> None:
        self.state.fits = self._limit.size
        self.state.write(self.directory)
