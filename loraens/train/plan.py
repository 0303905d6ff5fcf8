"""What a sweep has to do, and what that costs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraens.errors import InputError
from loraens.members import Member, by_kind, by_rank
from loraens.members import packs as packs_of
from loraens.train.cost import Cost, measure
from loraens.train.memory import give_back, is_out_of_memory
from loraens.train.worker import Worker
from loraens.train.workers import Workers, busiest

FORWARD = 0.45  # of a step's time; measured
ONE = Workers()


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do, and what it costs on this machine.

    Args:
        members: Members of the grid.
        ended: How many of them have ended.
        packs: Packs that are left.
        pack_size: Most members of a pack.
        epochs: Different numbers of epochs of the members that are left, if none stops early, the
            smallest first; of all members where none is left.
        steps_of_epoch: Batches of one member and epoch.
        member_steps: Training steps that are left, of all members.
        seconds: Until the last worker ends, if nothing stops early and none slows another.
        cost: Of the pack that takes most memory; its seconds are the mean of all packs' steps.
        folds: Members of each configuration; None without folds.
        workers: That train packs at a time.
        kinds: Each adapter kind and targets in words, its members that are left, and the cost of a
            pack of them.
    """

    members: int
    ended: int
    packs: int
    pack_size: int
    epochs: tuple[int, ...]
    steps_of_epoch: int
    member_steps: int
    seconds: float
    cost: Cost
    folds: int | None = None
    workers: Workers = ONE
    kinds: tuple[tuple[str, int, Cost], ...] = ()

    @property
    def total_bytes(self) -> int:
        """Memory of all packs that are trained at a time."""
        return min(self.workers.count, self.packs) * self.cost.total_bytes

    @property
    def count(self) -> str:
        """The number of members in words."""
        return count_in_words(self.members, self.folds or 1)


def count_in_words(members: int, unit: int) -> str:
    """A number of members, each configuration of which has `unit`, one a fold.

    Examples:
        >>> count_in_words(20, 5)
        '4 configurations x 5 folds = 20 members'
    """
    total = f"{members} members"
    return total if unit == 1 else f"{members // unit} configurations x {unit} folds = {total}"


def planned(
    worker: Worker,
    members: Sequence[Member],
    left: Sequence[Member],
    pack_size: int,
    steps_of_epoch: int,
    folds: int | None = None,
    workers: Workers = ONE,
) -> Plan:
    """Measure a pack of each adapter kind and targets, and multiply.

    Args:
        worker: Of the sweep.
        members: The grid.
        left: Members that have not ended.
        pack_size: Most members of a pack.
        steps_of_epoch: Batches of one member and epoch.
        folds: Members of each configuration; None without folds.
        workers: That train packs at a time.

    Raises:
        InputError: A pack does not fit in memory.
    """
    with workers.as_one():
        costs = {kind[0].kind: _cost(worker, kind, pack_size) for kind in by_kind(members)}
    tokens = {
        split: sum(int(part.tokens.lengths.sum()) for part in worker.data.of(split))
        for split in ("train", "dev", "test")
    }
    part = tokens["train"] / folds if folds else 0.0  # that a member is evaluated on
    test = tokens["test"] if worker.data.stores_test else 0
    trained = sum(int(s.tokens.lengths.sum()) for s in worker.data.trained_by(members)) - part
    evaluated = (part + tokens["dev"] + test) / trained
    epochs_of = worker.config.epochs_of
    packs = packs_of(left, pack_size) if left else []
    loads = [sum(map(epochs_of, pack)) * steps_of_epoch for pack in packs]
    seconds = [load * costs[pack[0].kind].seconds for load, pack in zip(loads, packs, strict=True)]
    cost = max(costs.values(), key=lambda cost: cost.total_bytes)
    if len(costs) > 1 and packs:
        cost = replace(cost, seconds=sum(seconds) / sum(loads))
    kinds = tuple(
        (
            worker.config.kind_in_words(kind[0]),
            sum(member.kind == kind[0].kind for member in left),
            costs[kind[0].kind],
        )
        for kind in by_kind(members)
    )
    return Plan(
        members=len(members),
        ended=len(members) - len(left),
        packs=len(packs),
        pack_size=pack_size,
        epochs=tuple(sorted(set(map(epochs_of, left or members)))),
        steps_of_epoch=steps_of_epoch,
        member_steps=sum(loads),
        seconds=busiest(seconds, workers.count) * (1 + evaluated * FORWARD),
        cost=cost,
        folds=folds,
        workers=workers,
        kinds=kinds,
    )


def _cost(worker: Worker, members: Sequence[Member], pack_size: int) -> Cost:
    """The cost of a pack of members of one kind.

    Raises:
        InputError: It does not fit in memory.
    """
    try:
        return measure(
            build=worker.build,
            members=by_rank(members)[-pack_size:],
            data=worker.data,
            trainer=worker.trainer(),
        )
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"pack_size {pack_size}: so many members do not fit in memory, give fewer",
            option="sweep.pack_size",
        ) from None
    finally:
        give_back()
