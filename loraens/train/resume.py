"""What a sweep's directory has of an earlier start: its state, and the members that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loraens.errors import InputError, say
from loraens.members import Member, configurations
from loraens.records import ENDED, Manifest
from loraens.store import MANIFEST, SWEEP, MemberStore
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.packs import PackFiles
from loraens.train.state import SweepState


def read_state(directory: Path, new: SweepState, rungs: int) -> SweepState:
    """The state of a sweep that was begun, or the one given.

    Args:
        directory: The sweep's directory.
        new: The state of a sweep that begins, with what all members share now.
        rungs: Rungs of the sweep.

    Raises:
        InputError: The directory has something else, or a sweep of other settings or data.
    """
    path = directory / SWEEP
    if path.is_file():
        return SweepState.read(path, new.settings, rungs)
    if any(directory.glob(f"*/{MANIFEST}")) or any(directory.glob("*.ckpt")):
        raise InputError(
            f"run {directory} has a run that is no sweep: choose another name",
            option="store.run",
        )
    return new


def ended_members(
    directory: Path, members: Sequence[Member]
) -> tuple[dict[str, Manifest], set[str]]:
    """The members that have ended, and those whose files are not whole, which are reported.

    Args:
        directory: The sweep's directory.
        members: The grid.

    Returns:
        The manifests of those that have ended, by name; the names of those that are to be trained
        again, with all folds of their configurations.
    """
    ended = {}
    damaged = set()
    for member in members:
        if not (directory / member.name / MANIFEST).is_file():
            continue
        try:
            manifest = MemberStore(directory / member.name).manifest()
        except InputError as error:
            say(f"{error}: the sweep will do that")
            damaged.add(member.name)
        else:
            if manifest.status in ENDED:
                ended[member.name] = manifest
    for unit in configurations(members):
        names = {member.name for member in unit}
        if names & damaged:  # all folds of a configuration are trained again
            damaged |= {name for name in names if (directory / name).is_dir()}
    return {name: manifest for name, manifest in ended.items() if name not in damaged}, damaged


def without_incomplete(
    ended: Mapping[str, Manifest], members: Sequence[Member], files: PackFiles, rung: int
) -> dict[str, Manifest]:
    """The members that have ended, but for those of configurations of which others had not before a
    kill, and which are in no pack's checkpoint: these are trained again.

    Args:
        ended: The manifests of members that have ended, by name.
        members: The grid.
        files: The checkpoints of packs.
        rung: The current rung.
    """
    in_packs: set[Member] = set()
    for path in files.paths(rung):
        in_packs.update(PackCheckpoint.load(path).members)
    complete = dict(ended)
    for unit in configurations(members):
        names = {member.name for member in unit}
        if not names <= set(ended) and not in_packs.intersection(unit):
            complete = {n: m for n, m in complete.items() if n not in names}
    return complete
