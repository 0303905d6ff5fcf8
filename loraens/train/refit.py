"""Configurations of a sweep with folds, trained once more on all of its labelled texts.

checkpoints/<sweep>/refit/
<member>/                  a configuration as one member, for as many epochs as its folds chose
packs/<epochs>-<name>.ckpt members that are under way, after their last whole epoch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

from loraens.data.imports import check_imports
from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import Member
from loraens.members import packs as packs_of
from loraens.records import Epoch, Manifest
from loraens.store import MANIFEST, SWEEP, MemberStore
from loraens.train.bar import SweepBar
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.config import CONFIG, TrainConfig
from loraens.train.packs import Pack, PackFiles, PackResult, too_large
from loraens.train.runs import quiet_trainers
from loraens.train.state import SweepState, locked
from loraens.train.worker import Worker

REFIT = "refit"
PACK_SIZE = 8  # where the sweep's own is not known


def refit(
    run: Path, configurations: Sequence[Manifest], epoch: Epoch, data: TextData | None = None
) -> list[Path]:
    """Train configurations on all labelled texts, those that are not yet; nothing is held out, so
    that the members have no scores.

    The learning rate's schedule is that of the folds, and is left where they were best.

    Args:
        run: The sweep's directory.
        configurations: Manifest of one member of each.
        epoch: Which epoch of the folds' is the last.
        data: The texts, where they are only in memory.

    Returns:
        The directory of each configuration's member.

    Raises:
        InputError: The sweep's config.yaml or data cannot be used, its data has changed, a member
            does not fit in memory, or its numbers became NaN or infinite.
    """
    directory = run / REFIT
    config = TrainConfig.read(run)
    named = None if config.data is None else asdict(config.data)
    check_imports({"data": named, "trainer": config.trainer, "model": config.model}, run / CONFIG)
    backbone = configurations[0].settings.backbone  # which may have been moved
    config = replace(config, model={**config.model, "backbone": backbone})
    worker = Worker(directory, config, data)
    wanted = {
        replace(manifest.member, fold=None): _last_epoch(manifest, epoch)
        for manifest in configurations
    }
    with locked(directory, known=True), quiet_trainers():
        _check_data(worker, configurations[0])
        files = PackFiles(directory.resolve())
        files.folder.mkdir(exist_ok=True)
        left = [m for m, until in wanted.items() if not _is_trained(directory / m.name, until)]
        bar = SweepBar(worker.config.progress_bar, len(worker.data.sampler(list(wanted))), REFIT)
        bar.open([], done=0, to_do=sum(wanted[member] for member in left))
        try:
            size = _pack_size(run)
            for until, members in groupby(sorted(left, key=wanted.__getitem__), wanted.__getitem__):
                waiting = packs_of(list(members), size)
                while waiting:
                    result = _train(worker, files, waiting[0], until, bar)
                    if not result.out_of_memory:
                        waiting.pop(0)
                        continue
                    size = len(waiting[0]) // 2
                    if size == 0:
                        raise too_large(result, 1)
                    waiting = packs_of([member for pack in waiting for member in pack], size)
        finally:
            bar.close()
    return [directory / member.name for member in wanted]


def _last_epoch(manifest: Manifest, epoch: Epoch) -> int:
    """Number of the epoch, from 1, that the folds of a configuration were best after."""
    name = manifest.epochs[epoch]
    return next(entry.epoch for entry in manifest.history if entry.name == name)


def _check_data(worker: Worker, manifest: Manifest) -> None:
    """Refuse other texts than the folds were trained on."""
    now = worker.data.fingerprints
    for name, before in manifest.settings.data.items():
        if now.get(name) != before:
            raise InputError(
                f"{name} of run {worker.directory.parent} has changed since its members were"
                " trained: restore its data, or do without refit"
            )


def _is_trained(directory: Path, until: int) -> bool:
    """Whether a member is there as it is wanted."""
    if not (directory / MANIFEST).is_file():
        return False
    manifest = MemberStore(directory).manifest()
    return manifest.status == "finished" and manifest.history[-1].epoch == until


def _pack_size(run: Path) -> int:
    """Members of a pack, as the sweep had it."""
    path = run / SWEEP
    state = SweepState.from_json(path.read_bytes(), path)
    return state.fits or state.measured or PACK_SIZE


def _train(
    worker: Worker, files: PackFiles, members: Sequence[Member], until: int, bar: SweepBar
) -> PackResult:
    """Train a pack, from its checkpoint if there is one of the same members."""
    path = files.path(until, members[0].name)
    pack = Pack(tuple(members), path, until)
    if path.is_file():
        checkpoint = PackCheckpoint.load(path)
        if set(checkpoint.members) == set(members):
            pack = replace(pack, members=checkpoint.members, epochs_done=checkpoint.epochs_done)
        else:
            path.unlink()
    bar.begin(pack)
    result = worker.train(pack, bar.report)
    bar.settle(result)
    failed = [member for member in result.members if "failed" in member.status]
    if failed:
        raise InputError(
            f"refit of {failed[0].name} failed, its numbers became NaN or infinite: make another"
            " ensemble, or do without refit"
        )
    if not result.out_of_memory:
        for member in members:
            MemberStore(worker.directory / member.name).update(status="finished")
        path.unlink(missing_ok=True)
    return result
