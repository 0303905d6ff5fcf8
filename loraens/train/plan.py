"""What a sweep has to do, and what that costs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraens.members import Member
from loraens.members import packs as packs_of
from loraens.train.cost import Cost, measure
from loraens.train.worker import Worker


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do, and what it costs on this machine.

    Args:
        members: Members of the grid.
        ended: How many of them have ended.
        packs: Packs that are left.
        pack_size: Most members of a pack.
        epochs: Epochs of a member that is not stopped.
        steps_of_epoch: Batches of one member and epoch.
        seconds: Of all, if nothing stops early.
        cost: Of a pack.
    """

    members: int
    ended: int
    packs: int
    pack_size: int
    epochs: int
    steps_of_epoch: int
    seconds: float
    cost: Cost

    @property
    def member_steps(self) -> int:
        """Training steps that are left, of all members."""
        return (self.members - self.ended) * self.epochs * self.steps_of_epoch


def planned(
    worker: Worker,
    members: Sequence[Member],
    left: Sequence[Member],
    pack_size: int,
    steps_of_epoch: int,
) -> Plan:
    """Measure a pack, and multiply.

    Args:
        worker: Of the sweep.
        members: The grid.
        left: Members that have not ended.
        pack_size: Most members of a pack.
        steps_of_epoch: Batches of one member and epoch.
    """
    cost = measure(
        build=worker.build,
        members=packs_of(members, len(members))[0][-pack_size:],
        data=worker.data,
        trainer=worker.trainer(),
    )
    tokens = {
        split: sum(int(part.tokens.lengths.sum()) for part in worker.data.of(split))
        for split in ("train", "dev", "test")
    }
    evaluated = (tokens["dev"] + tokens["test"]) / tokens["train"]
    steps = len(left) * worker.config.epochs * steps_of_epoch
    return Plan(
        members=len(members),
        ended=len(members) - len(left),
        packs=len(packs_of(left, pack_size)) if left else 0,
        pack_size=pack_size,
        epochs=worker.config.epochs,
        steps_of_epoch=steps_of_epoch,
        seconds=steps * cost.seconds * (1 + evaluated / 3),  # a forward is a third of a step
        cost=cost,
    )
