"""`loraens sweep`: a grid of members, trained in packs on one backbone, resumed where it was.

checkpoints/<sweep>/ sweep.json              settings that all members share, the size of packs, the
    rung of successive halving <member>/               as `fit` writes it packs/<rung>-<name>.ckpt
    a pack that is under way, after its last whole epoch
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from loraens.errors import InputError
from loraens.members import Member, packs
from loraens.store import MANIFEST, MemberStore, write_atomically
from loraens.train.callbacks import MemberWriter
from loraens.train.checkpoints import join, members_of, progress_of, take
from loraens.train.cost import choose_pack
from loraens.train.failures import PopulationError
from loraens.train.packs import (
    Options,
    Setup,
    Watch,
    epochs_done,
    is_out_of_memory,
    load,
    name_of,
    save,
    stalled,
)
from loraens.train.tracking import log_member

SWEEP = "sweep.json"
PACKS = "packs"
ENDED = ("finished", "stopped", "failed")


class Sweep:
    """Trains what is missing of a grid, pack by pack.

    Args:
        setup: What every pack is trained with.
        options: How the members are trained together.

    Raises:
        InputError: The directory holds something else, or a sweep of other settings or data.
    """

    def __init__(self, setup: Setup, options: Options) -> None:
        self.setup = setup
        self.options = options
        self.directory = setup.directory
        self.rungs = options.rungs(setup.epochs)
        self.by_name = {member.name: member for member in setup.members}
        self.ended: dict[str, dict[str, Any]] = {}  # manifests of members that have ended
        self.state: dict[str, Any] = {
            "settings": self._settings(),
            "measured": None,
            "fits": None,
            "rung": 0,
            "logged": [],
        }
        self.bar: tqdm[Any] = tqdm(disable=True)
        self._read()

    def _settings(self) -> dict[str, Any]:
        """What all members share; JSON gives the same back."""
        module = self.setup.build(self.setup.members[:1])
        trainer = self.setup.trainer()
        module.build(self.setup.data.max_length)
        shared = {
            **module.fixed_settings(self.setup.data, trainer),
            "limit": self.setup.data.limit,
            "max_epochs": self.setup.epochs,
            "patience": self.options.patience,
            "halving": self.rungs[:-1],
            "halving_factor": self.options.halving_factor,
            "halved_members": sorted(self.by_name) if self.rungs[:-1] else None,
        }
        found: dict[str, Any] = json.loads(json.dumps(shared))
        return found

    def _read(self) -> None:
        path = self.directory / SWEEP
        if not path.is_file():
            if any(self.directory.glob(f"*/{MANIFEST}")) or any(self.directory.glob("*.ckpt")):
                raise InputError(
                    f"--store.run {self.directory} holds a run that is no sweep: choose another"
                    " name"
                )
            return
        try:
            state = json.loads(path.read_bytes())
            before = state["settings"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} cannot be read: restore it, or choose another --store.run"
            ) from None
        for name, value in _flat(self.state["settings"]).items():
            if _flat(before).get(name) != value:
                raise InputError(
                    f"sweep {self.directory} was started with {name} {_flat(before).get(name)!r},"
                    f" now it is {value!r}: use the sweep's config.yaml and data, or choose another"
                    " --store.run"
                )
        self.state = state

    def _write(self) -> None:
        write_atomically(self.directory / SWEEP, (json.dumps(self.state, indent=2) + "\n").encode())

    @property
    def _packs(self) -> Path:
        return self.directory / PACKS

    def pack_size(self) -> int:
        """Members of a pack: as given, as once measured for this sweep, or measured now; less where
        memory did not do.
        """
        setup = self.setup
        size = self.options.pack_size
        if size == "auto":
            if self.state["measured"] is None:
                self.state["measured"] = choose_pack(
                    setup.build, setup.members, setup.data, setup.trainer(), print
                ).size
            size = int(self.state["measured"])
        return min(size, self.state["fits"] or size)

    def steps_of_epoch(self) -> int:
        """Batches of one member and epoch."""
        batches = len(self.setup.data.sampler(self.setup.members[:1]))
        limit = self.state["settings"]["limit_train_batches"]
        return (
            max(1, int(batches * limit))
            if isinstance(limit, float)
            else min(batches, limit or batches)
        )

    # What is there

    def store(self, name: str) -> MemberStore:
        """A member's files."""
        return MemberStore(self.directory / name)

    def _verify(self) -> set[str]:
        """Find the members that have ended; returns those whose files are not whole, and names them
        aloud.
        """
        damaged = set()
        for name in self.by_name:
            if (self.directory / name / MANIFEST).is_file():
                try:
                    manifest = self.store(name).manifest()
                except InputError as error:
                    print(f"{error}: the sweep will do that", flush=True)
                    damaged.add(name)
                else:
                    if manifest["status"] in ENDED:
                        self.ended[name] = manifest
        return damaged

    def _clean_up(self, damaged: set[str]) -> None:
        """Remove damaged members, and packs that are theirs, of an earlier rung, half written or
        half split.
        """
        for name in damaged:
            shutil.rmtree(self.directory / name)
        held: set[str] = set()
        found = {path: self._names(path) for path in self._packs.glob("*")}
        for path, names in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
            if not names or names & damaged or names <= held:
                path.unlink()
            held |= names

    def _names(self, path: Path) -> set[str]:
        return set(map(name_of, members_of(load(path)))) if self._is_current(path) else set()

    def _is_current(self, path: Path) -> bool:
        return path.suffix == ".ckpt" and path.name.startswith(f"{self.state['rung']}-")

    def _missing(self) -> list[Member]:
        """Members that have not begun."""
        begun = set().union(*map(self._names, self._packs.glob("*")))
        return [
            member
            for name, member in self.by_name.items()
            if name not in begun and name not in self.ended
        ]

    def left(self) -> list[Member]:
        """Members that have not ended."""
        self._verify()
        return [member for name, member in self.by_name.items() if name not in self.ended]

    # Run

    def run(self) -> dict[str, dict[str, Any]]:
        """Train what is missing.

        Returns:
            The manifests of all members, by name.
        """
        self._packs.mkdir(parents=True, exist_ok=True)
        self._clean_up(self._verify())
        for name in list(self.ended):
            self._log(name)
        if len(self.ended) < len(self.by_name):
            self.pack_size()
        self._write()
        try:
            while not self._rung_done():
                self._halve()
        except (KeyboardInterrupt, SystemExit):
            print(f"\nto go on: {self.setup.resume}", flush=True)
            raise
        finally:
            self.bar.close()
        shutil.rmtree(self._packs)
        return {name: self.ended[name] for name in self.by_name}

    def _rung_done(self) -> bool:
        """Train every pack to the end of the rung; whether it was the last one."""
        until = self.rungs[self.state["rung"]]
        self._open_bar(until)
        for path in sorted(self._packs.glob("*.ckpt")):
            self._train_pack(path, [], until)
        while missing := self._missing():
            members = packs(missing, self.pack_size())[0]
            self._train_pack(self._path(members[0].name), members, until)
        return bool(self.state["rung"] + 1 == len(self.rungs))

    def _path(self, name: str, rung: int | None = None) -> Path:
        return self._packs / f"{self.state['rung'] if rung is None else rung}-{name}.ckpt"

    def _open_bar(self, until: int) -> None:
        done = len(self.ended) * until
        total = done + len(self._missing()) * until
        each = self.steps_of_epoch()
        for path in self._packs.glob("*.ckpt"):
            checkpoint = load(path)
            done += len(members_of(checkpoint)) * epochs_done(checkpoint)
            total += len(members_of(checkpoint)) * until
        self.bar.close()
        pause = 0.2 if sys.stderr.isatty() else 30  # seconds between two lines of a log
        shown = {"unit": " member-steps", "mininterval": pause, "disable": not self.setup.bar}
        self.bar = tqdm(total=total * each, initial=done * each, **shown)

    def _train_pack(self, path: Path, members: Sequence[Member], until: int) -> None:
        """Train a pack, from its checkpoint if there is one, and end its members as they are
        done.
        """
        while True:
            if path.is_file():
                checkpoint = self._compacted(path)
                if checkpoint is None or epochs_done(checkpoint) >= until:
                    break
                members = [Member(**member) for member in members_of(checkpoint)]
            problem = self._fit(path, members, until)
            if isinstance(problem, PopulationError):
                for member in members:
                    self._end(member.name)
                path.unlink(missing_ok=True)
            elif problem is not None:
                self._split(path, members, until, problem)
            if problem is not None:
                return
        if checkpoint is not None and until == self.setup.epochs:
            for settings, failed in zip(
                members_of(checkpoint), checkpoint["state_dict"]["failures.step"] >= 0, strict=True
            ):
                self._end(name_of(settings), **({} if failed else {"status": "finished"}))
            path.unlink()

    def _fit(self, path: Path, members: Sequence[Member], until: int) -> Exception | None:
        """Train a pack until some member has to be looked at; returns why nobody can go on, if
        so.
        """
        module = self.setup.build(members)
        writer = MemberWriter(self.directory, finish=False)
        trainer = self.setup.trainer(
            callbacks=[writer, Watch(path, until, self.options.patience, self.bar.update)]
        )
        self.bar.set_postfix_str(
            members[0].name + (f" and {len(members) - 1} more" if len(members) > 1 else "")
        )
        try:
            trainer.fit(
                module,
                self.setup.data,
                ckpt_path=path if path.is_file() else None,
                weights_only=True,
            )
        except PopulationError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)  # whose frames hold the pack's tensors
        finally:
            del module, trainer
            gc.collect()
        return None

    def _compacted(self, path: Path) -> dict[str, Any] | None:
        """A pack's checkpoint without the members that have stopped; None, and no file, where none
        is left.

        Members that failed stay while no other stops: so the others' numbers stay the same bit for
        bit.
        """
        checkpoint = load(path)
        if epochs_done(checkpoint) >= self.setup.epochs:
            return checkpoint
        failed = (checkpoint["state_dict"]["failures.step"] >= 0).tolist()
        stuck = [stalled(progress, self.options.patience) for progress in progress_of(checkpoint)]
        going = [
            index for index, gone in enumerate(zip(failed, stuck, strict=True)) if not any(gone)
        ]
        if going and not any(
            stops and not fails for stops, fails in zip(stuck, failed, strict=True)
        ):
            return checkpoint
        left = self.setup.epochs - epochs_done(checkpoint)
        for index, member in enumerate(members_of(checkpoint)):
            if index not in going:
                reason = (
                    f"epoch {epochs_done(checkpoint)}: no better dev score for"
                    f" {self.options.patience} epochs"
                )
                self._end(
                    name_of(member),
                    **({} if failed[index] else {"status": "stopped", "ended": reason}),
                )
                self.bar.total -= left * self.steps_of_epoch()
        if not going:
            path.unlink()
            return None
        checkpoint = take(checkpoint, going)
        save(path, checkpoint)
        return checkpoint

    def _split(self, path: Path, members: Sequence[Member], until: int, problem: Exception) -> None:
        """Go on with packs of half the size."""
        if len(members) == 1:
            raise InputError(
                f"member {members[0].name} alone does not fit in memory"
                f" ({' '.join(str(problem).split())[:200]}): lower --data.init_args.batch_size or"
                " --data.init_args.max_length"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = -(-len(members) // 2)
        self.bar.write(f"out of memory with {len(members)} members: going on with {half}")
        self.state["fits"] = half
        self._write()
        halves = [(path, range(half)), (self._path(members[half].name), range(half, len(members)))]
        if path.is_file():
            checkpoint = load(path)
            for place, indices in reversed(
                halves
            ):  # the first half's file replaces the whole pack's, last
                save(place, take(checkpoint, indices))
        for place, indices in halves:
            self._train_pack(place, [members[index] for index in indices], until)

    def _halve(self) -> None:
        """Stop all but the best members, and put those into new packs."""
        checkpoints = [load(path) for path in sorted(self._packs.glob("*.ckpt"))]
        places = [
            (progress_of(checkpoint)[index]["history"][-1]["score"], number, index)
            for number, checkpoint in enumerate(checkpoints)
            for index in range(len(members_of(checkpoint)))
            if checkpoint["state_dict"]["failures.step"][index] < 0
        ]
        ranked = sorted(
            places, key=lambda place: -math.inf if math.isnan(place[0]) else place[0], reverse=True
        )
        assert self.options.halving_factor is not None
        kept = math.ceil(len(ranked) / self.options.halving_factor)
        epoch = self.rungs[self.state["rung"]]
        for place, (_, number, index) in enumerate(ranked[kept:], kept + 1):
            name = name_of(members_of(checkpoints[number])[index])
            self._end(
                name,
                status="stopped",
                ended=f"epoch {epoch}: number {place} of {len(ranked)} by dev score",
            )
        for checkpoint in checkpoints:
            for index in (
                (checkpoint["state_dict"]["failures.step"] >= 0).nonzero().flatten().tolist()
            ):
                self._end(name_of(members_of(checkpoint)[index]))
        best = {Member(**members_of(checkpoints[n])[i]): (n, i) for _, n, i in ranked[:kept]}
        for members in packs(list(best), self.pack_size()):
            parts = [take(checkpoints[n], [i]) for n, i in map(best.__getitem__, members)]
            save(self._path(members[0].name, self.state["rung"] + 1), join(parts))
        self.state["rung"] += 1
        self._write()
        for path in self._packs.glob("*"):
            if not self._is_current(path):
                path.unlink()

    def _end(self, name: str, **fields: Any) -> None:
        """A member has ended: note it in its manifest, and log it."""
        self.ended[name] = self.store(name).update(**fields)
        self._log(name)

    def _log(self, name: str) -> None:
        if self.setup.logger is not False and name not in self.state["logged"]:
            log_member(self.setup.logger, self.directory, self.ended[name])
            self.state["logged"].append(name)
            self._write()


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found = {}
    for name, value in settings.items():
        found.update(
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return found
