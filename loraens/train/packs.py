"""The files of a sweep's packs that are under way, and how members are regrouped at a halving."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from loraens.members import Member
from loraens.members import packs as packs_of
from loraens.train.checkpoints import PackCheckpoint, concatenate

PACKS = "packs"


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
        """Where the checkpoints lie."""
        return self.directory / PACKS

    def path(self, rung: int, member: str) -> Path:
        """The file of a pack that begins with a member in a rung."""
        return self.folder / f"{rung}-{member}.ckpt"

    def paths(self, rung: int) -> list[Path]:
        """The files of a rung, by name."""
        return sorted(self.folder.glob(f"{rung}-*.ckpt"))

    def remove_others(self, rung: int) -> None:
        """Remove all files but those of a rung."""
        current = set(self.paths(rung))
        for path in self.folder.glob("*"):
            if path not in current:
                path.unlink()

    def clean(self, rung: int, damaged: Set[str]) -> None:
        """Remove packs of another rung, half written ones, those with damaged members, and what was
        written of a split that did not come to its end.

        A split writes the second half first, and replaces the whole pack by its first half last: so
        a pack whose members are all in a larger one is a second half whose first is missing.

        Args:
            rung: The current rung.
            damaged: Names of members whose files are not whole.
        """
        self.remove_others(rung)
        names = {
            path: {member.name for member in PackCheckpoint.load(path).members}
            for path in self.paths(rung)
        }
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
    """The members of a rung that have not failed, the best first; of equals the first one first."""
    standings = []
    for number, checkpoint in enumerate(checkpoints):
        members = zip(checkpoint.members, checkpoint.progress, checkpoint.failed, strict=True)
        standings += [
            Standing(member, progress.scores[-1], number, index)
            for index, (member, progress, failed) in enumerate(members)
            if not failed
        ]

    def score(standing: Standing) -> float:
        return -math.inf if math.isnan(standing.score) else standing.score

    return sorted(standings, key=score, reverse=True)


def regrouped(
    checkpoints: Sequence[PackCheckpoint], kept: Sequence[Standing], pack_size: int
) -> Iterator[tuple[str, PackCheckpoint]]:
    """Packs of the members that go on.

    Args:
        checkpoints: Of the rung's packs.
        kept: The members that go on.
        pack_size: Most members of a pack.

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
