"""Packs of a sweep: members trained together, the result, the file, and regrouping at a halving."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraens.errors import InputError, say
from loraens.files import PART, remove_files
from loraens.members import Member, indices_of_configurations
from loraens.members import packs as packs_of
from loraens.train.checkpoints import PackCheckpoint, concatenate

PACKS = "packs"
NAMES = rf"\d+-.*\.(ckpt|part|lock)|{PART}"  # of files in it
FOLD_FAILED = "another fold of the configuration failed"

Status = Literal["trained", "finished", "stopped", "failed", "population_failed", "out_of_memory"]


@dataclass(frozen=True)
class Pack:
    """Members to train together.

    Args:
        members: The members, all of one number of epochs; those of the checkpoint, where there is
            one.
        checkpoint: The pack's file, from which its training is resumed and to which it is saved.
        until: Epoch after which the training ends.
        patience: Epochs without a better dev score after which a member stops.
        epochs_done: Whole epochs behind the checkpoint.
    """

    members: tuple[Member, ...]
    checkpoint: Path
    until: int
    patience: int | None = None
    epochs_done: int = 0


@dataclass(frozen=True)
class MemberResult:
    """What became of one member of a pack.

    Args:
        name: The member's name.
        status: "trained": until the pack's epoch, and not done. "finished", "stopped" (no better
            score for the patience), "failed" (its numbers became NaN or infinite) and
            "population_failed" (those of all members): done, and so marked in its manifest.
            "out_of_memory": to be trained in a smaller pack.
        epochs: Whole epochs that it is trained.
    """

    name: str
    status: Status
    epochs: int


@dataclass(frozen=True)
class PackResult:
    """What became of a pack.

    Args:
        pack: The pack as it was given.
        members: One result a member of the pack.
        seconds: Time that the worker took.
        problem: Why no member could continue, if so: what failed, or what memory was asked for.
    """

    pack: Pack
    members: tuple[MemberResult, ...]
    seconds: float
    problem: str | None = None

    @property
    def out_of_memory(self) -> bool:
        """Whether the pack has to be split."""
        return any(member.status == "out_of_memory" for member in self.members)


def incomplete(members: Sequence[Member], failed: Sequence[bool]) -> list[bool]:
    """Whether each member's configuration has no score any more, as the member of one of its folds
    failed, or the member itself.
    """
    without_score = [False] * len(members)
    for unit in indices_of_configurations(members):
        for index in unit:
            without_score[index] = any(failed[other] for other in unit)
    return without_score


Report = Callable[[Pack, int], None]  # is told a pack and the member-steps that it has just done


@dataclass(frozen=True)
class PackFiles:
    """The checkpoints of packs, `packs/<rung>-<member>.ckpt`; each is named after a member that is
    or was in it.

    Args:
        directory: The sweep's directory.
    """

    directory: Path

    @property
    def folder(self) -> Path:
        """The directory of the checkpoints."""
        return self.directory / PACKS

    def path(self, rung: int, member: str) -> Path:
        """The file of a pack that begins with a member in a rung."""
        return self.folder / f"{rung}-{member}.ckpt"

    def paths(self, rung: int) -> list[Path]:
        """The files of a rung, by name."""
        return sorted(self.folder.glob(f"{rung}-*.ckpt"))

    def remove_others(self, rung: int) -> None:
        """Remove the files of all rungs but one, and half written ones."""
        current = set(self.paths(rung))
        for path in self.folder.glob("*"):
            if path not in current and re.fullmatch(NAMES, path.name):
                path.unlink()

    def remove(self) -> None:
        """Remove all files, and their directory."""
        remove_files(self.folder, NAMES)

    def clean(self, rung: int, damaged: Set[str]) -> None:
        """Remove packs of another rung, half written ones, those with damaged members, what was
        written of a split that did not come to its end, and damaged packs, which are reported:
        their members begin again.

        A split writes the second half first, and replaces the whole pack by its first half last: so
        a pack whose members are all in a larger one is a second half whose first is missing.

        Args:
            rung: The current rung.
            damaged: Names of members whose files are not whole.

        Raises:
            InputError: The directory is a link.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a link: remove it, or choose another directory")
        self.remove_others(rung)
        names = {}
        for path in self.paths(rung):
            try:
                names[path] = {member.name for member in PackCheckpoint.load(path).members}
            except InputError as error:
                say(f"{error}: it is removed, and its members begin again")
                path.unlink()
        in_packs: set[str] = set()
        for path in sorted(names, key=lambda path: (-len(names[path]), path)):
            if names[path] & damaged or names[path] <= in_packs:
                path.unlink()
            in_packs |= names[path]

    def split(self, path: Path, rung: int, half: int) -> Path:
        """Replace a pack by two, the first with `half` members; returns the second one's file.

        The first half's file replaces the whole pack's, last: killed in between, `clean` removes
        the second half, and no member is lost.
        """
        checkpoint = PackCheckpoint.load(path)
        members = checkpoint.members
        second = self.path(rung, members[half].name)
        checkpoint.select(range(half, len(members))).save(second)
        checkpoint.select(range(half)).save(path)
        return second


@dataclass(frozen=True)
class Standing:
    """A member at the end of a rung.

    Args:
        member: The member.
        score: Its last dev score, higher is better.
        number: Of its pack among the rung's checkpoints.
        index: Of the member in that pack.
    """

    member: Member
    score: float
    number: int
    index: int


def ranked(checkpoints: Sequence[PackCheckpoint]) -> list[Standing]:
    """The members of a rung whose configuration has a score, the best first; of equals the first
    one first. So the members of a configuration's folds follow each other.
    """
    standings = []
    for number, checkpoint in enumerate(checkpoints):
        without_score = incomplete(checkpoint.members, checkpoint.failed)
        members = zip(checkpoint.members, checkpoint.progress, without_score, strict=True)
        standings += [
            Standing(member, progress.scores[-1], number, index)
            for index, (member, progress, left_out) in enumerate(members)
            if not left_out
        ]

    def score(standing: Standing) -> float:
        return -math.inf if math.isnan(standing.score) else standing.score

    return sorted(standings, key=score, reverse=True)


def beside_failed_folds(checkpoints: Sequence[PackCheckpoint]) -> list[str]:
    """Names of the members that have not failed, but another fold of their configuration has."""
    names = []
    for checkpoint in checkpoints:
        without_score = incomplete(checkpoint.members, checkpoint.failed)
        entries = zip(checkpoint.members, without_score, checkpoint.failed, strict=True)
        names += [member.name for member, left_out, failed in entries if left_out and not failed]
    return names


def too_large(result: PackResult, unit: int) -> InputError:
    """The error of a pack that cannot be split.

    Args:
        result: Of a pack of one member, or of one configuration.
        unit: Folds of a configuration; 1 without folds.
    """
    member = next(member for member in result.members if member.status == "out_of_memory")
    one = f"member {member.name} alone does not fit in memory"
    fewer = ""
    if unit > 1:
        configuration = member.name[: member.name.rindex("-f")]
        one = (
            f"configuration {configuration} does not fit in memory with its {unit} folds, which"
            " are trained together"
        )
        fewer = ", or give fewer folds"
    problem = " ".join(str(result.problem).split())[:200]
    return InputError(f"{one} ({problem}): lower batch_size or max_length{fewer}")


def regrouped(
    checkpoints: Sequence[PackCheckpoint], kept: Sequence[Standing], pack_size: int
) -> Iterator[tuple[str, PackCheckpoint]]:
    """Packs of the members that continue.

    Args:
        checkpoints: Of the rung's packs.
        kept: The members that continue.
        pack_size: Most members of a pack, unless one configuration has more folds.

    Yields:
        The name of each pack's first member, and the pack's checkpoint.
    """
    standings = {standing.member: standing for standing in kept}
    for members in packs_of(list(standings), pack_size):
        parts = [
            checkpoints[standings[member].number].select([standings[member].index])
            for member in members
        ]
        yield members[0].name, concatenate(parts)
