"""Members of a population and the grids that they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from numbers import Real
from typing import Any

OUT_OF_FOLD = "oof"  # the split of which a member of fold k has the examples of part k

WHOLE = ("rank", "seed", "epochs")  # settings that are whole numbers
NAMES = ("adapter", "targets")  # settings that are no numbers
NEWER = ("fold", "epochs", "loraplus_lr_ratio", *NAMES)  # settings that older versions had not


@dataclass(frozen=True)
class Member:
    """One adapter and its heads, trained with settings of their own.

    Args:
        rank: Rank r of the adapter; 0 where there is none (modes `frozen` and `full`).
        scale: Scale c = alpha / r of the adapter's effect c B A.
        seed: Names the member's initial weights, data order and dropout masks.
        lr: Learning rate.
        weight_decay: Decoupled weight decay (AdamW).
        head_dropout: Dropout before the heads, in [0, 1).
        fold: Number of the part of the labelled examples that it is not trained on, from 0; None
            where it is trained on all of train.
        epochs: Its own number of epochs; None for the run's, `trainer.max_epochs`.
        loraplus_lr_ratio: Learning rate of B by that of A and of the heads (LoRA+, Hayou et al.
            2024).
        adapter: Its own adapter kind; None for the run's, `model.adapter`.
        targets: Its own names of the layers that are adapted; None for the run's, `model.targets`.
    """

    rank: int
    scale: float
    seed: int = 0
    lr: float = 1e-4
    weight_decay: float = 0.01
    head_dropout: float = 0.3
    fold: int | None = None
    epochs: int | None = None
    loraplus_lr_ratio: float = 1.0
    adapter: str | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.targets is not None and not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))  # of a list, as JSON has it
        if (
            self.rank < 0
            or not 0 < self.scale < math.inf
            or not 0 < self.lr < math.inf
            or not 0 <= self.weight_decay < math.inf
            or not 0 <= self.head_dropout < 1
            or not 0 < self.loraplus_lr_ratio < math.inf
        ):
            raise ValueError(
                "rank and weight decay of at least 0, positive scale, learning rate and ratio of"
                f" learning rates and a dropout in [0, 1) are expected: {self}"
            )
        if self.fold is not None and self.fold < 0:
            raise ValueError(f"fold {self.fold} is not a number of a part, from 0")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs {self.epochs} is too small: at least 1 is expected")
        if self.adapter is not None and not _is_name(self.adapter):
            raise ValueError(f"adapter {self.adapter!r} is not the name of an adapter kind")
        if self.targets is not None and (
            not isinstance(self.targets, tuple)
            or not self.targets
            or not all(map(_is_name, self.targets))
        ):
            raise ValueError(
                f"targets {self.targets!r} is not a list of names of layers, such as [query, value]"
            )

    @property
    def name(self) -> str:
        """Short name; weight decay, dropout, epochs, ratio of learning rates, adapter kind, targets
        and fold are in it where they are not the default.

        Examples:
            >>> Member(rank=8, scale=3.0).name
            'r8-c3-s0-lr0.0001'
            >>> Member(rank=8, scale=3.0, head_dropout=0.1).name
            'r8-c3-s0-lr0.0001-do0.1'
            >>> Member(rank=8, scale=3.0, fold=0).name
            'r8-c3-s0-lr0.0001-f0'
            >>> Member(rank=8, scale=3.0, epochs=12).name
            'r8-c3-s0-lr0.0001-e12'
            >>> Member(rank=8, scale=3.0, loraplus_lr_ratio=16).name
            'r8-c3-s0-lr0.0001-plus16'
            >>> Member(rank=8, scale=3.0, adapter="dora", targets=("query", "key")).name
            'r8-c3-s0-lr0.0001-dora-query+key'
        """
        return self.configuration + ("" if self.fold is None else f"-f{self.fold}")

    @property
    def configuration(self) -> str:
        """The name without the fold. The members of the folds of one configuration have their
        score in common, and are trained, stopped and chosen together.
        """
        adapter = f"r{self.rank}-c{self.scale:g}-" if self.rank else ""
        decay = "" if self.weight_decay == Member.weight_decay else f"-wd{self.weight_decay:g}"
        dropout = "" if self.head_dropout == Member.head_dropout else f"-do{self.head_dropout:g}"
        epochs = "" if self.epochs is None else f"-e{self.epochs}"
        ratio = self.loraplus_lr_ratio
        plus = "" if ratio == Member.loraplus_lr_ratio else f"-plus{ratio:g}"
        kind = "" if self.adapter is None else f"-{self.adapter}"
        targets = "" if self.targets is None else f"-{'+'.join(self.targets)}"
        return f"{adapter}s{self.seed}-lr{self.lr:g}{decay}{dropout}{epochs}{plus}{kind}{targets}"

    @property
    def kind(self) -> tuple[str, tuple[str, ...]]:
        """Its own adapter kind and targets, which the members of one population have in common;
        empty for the run's.
        """
        return self.adapter or "", self.targets or ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; of those that older versions had not, what is not the
        default.
        """
        given = asdict(self)
        if self.targets is not None:
            given["targets"] = list(self.targets)
        return {k: v for k, v in given.items() if k not in NEWER or v != getattr(Member, k)}


def _is_name(value: object) -> bool:
    """Whether a value can be a part of the name of a directory."""
    return isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is not None


AXES = tuple(field.name for field in fields(Member) if field.name != "fold")


def _with(base: Member, setting: dict[str, Any]) -> Member:
    """The member with some settings of its own.

    Raises:
        ValueError: One is unknown, of a wrong type or out of range.
    """
    if "fold" in setting:
        raise ValueError("a fold is not a setting of one member: folds K makes K members of each")
    if unknown := set(setting) - set(AXES):
        raise ValueError(
            f"{sorted(unknown)[0]!r} is not a setting of a member: {', '.join(AXES)} are"
        )
    for name, value in setting.items():
        if name not in NAMES and not isinstance(value, Real):
            raise ValueError(f"{name} {value!r} is not a number")
        if name in WHOLE and value % 1 != 0:
            raise ValueError(f"{name} {value} is not a whole number")
    whole = {name: int(value) for name, value in setting.items() if name in WHOLE}
    return replace(base, **{**setting, **whole})


@dataclass
class Grid:
    """Axes that are crossed, or a list of members; what is not given is that of `--model`.

    Args:
        rank: Ranks.
        scale: Scales c = alpha / r.
        seed: Seeds.
        lr: Learning rates.
        weight_decay: Weight decays.
        head_dropout: Dropouts before the heads.
        epochs: Numbers of epochs; the trainer's where it is not given.
        loraplus_lr_ratio: Learning rates of B by that of A (LoRA+).
        adapter: Adapter kinds.
        targets: Lists of names of the layers that are adapted, such as `[[query, value],
            [attention]]`.
        members: Members one by one, such as `[{rank: 8, scale: 1}, {rank: 16, scale: 3}]`, in place
            of axes.
        folds: K of a K-fold cross-validation, at least 2: each point of the grid becomes K
            members, each trained on all but one of K parts of the labelled examples.
    """

    rank: list[int] | None = None
    scale: list[float] | None = None
    seed: list[int] | None = None
    lr: list[float] | None = None
    weight_decay: list[float] | None = None
    head_dropout: list[float] | None = None
    epochs: list[int] | None = None
    loraplus_lr_ratio: list[float] | None = None
    adapter: list[str] | None = None
    targets: list[list[str]] | None = None
    members: list[dict[str, Any]] | None = None
    folds: int | None = None

    def expand(self, base: Member) -> list[Member]:
        """The members, the last axis running fastest, and the folds of a point fastest of all.

        Raises:
            ValueError: An axis is empty, a setting is unknown or out of range, or a member occurs
                twice.

        Examples:
            >>> base = Member(rank=8, scale=1.0, lr=5e-4)
            >>> for member in Grid(rank=[1, 8], scale=[1, 3]).expand(base):
            ...     print(member.name)
            r1-c1-s0-lr0.0005
            r1-c3-s0-lr0.0005
            r8-c1-s0-lr0.0005
            r8-c3-s0-lr0.0005
            >>> [member.scale for member in Grid(members=[{"scale": 2.0}]).expand(base)]
            [2.0]
            >>> [member.name for member in Grid(rank=[8], folds=2).expand(base)]
            ['r8-c1-s0-lr0.0005-f0', 'r8-c1-s0-lr0.0005-f1']
        """
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds {self.folds} is too small: at least 2 is expected")
        axes = {name: getattr(self, name) for name in AXES}
        given = {name: values for name, values in axes.items() if values is not None}
        if self.members is not None:
            if given:
                raise ValueError(
                    f"members are given one by one, so the axis {next(iter(given))} is not expected"
                )
            settings: Iterable[dict[str, Any]] = self.members
        else:
            settings = (
                dict(zip(given, values, strict=True)) for values in product(*given.values())
            )
        members = [_with(base, setting) for setting in settings]
        if not members:
            raise ValueError("at least one member is expected, and no axis may be empty")
        names = [member.name for member in members]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"member {twice[0]} occurs twice")
        if self.folds is None:
            return members
        return [replace(member, fold=fold) for member in members for fold in range(self.folds)]


def indices_of_configurations(members: Sequence[Member]) -> list[list[int]]:
    """Indices of the members of each configuration, in the order of their first; of single members
    where there are no folds.
    """
    units: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        units.setdefault(member.configuration, []).append(index)
    return list(units.values())


def configurations(members: Iterable[Member]) -> list[list[Member]]:
    """The members of each configuration, in the order of their first; single members where there
    are no folds.
    """
    listed = list(members)
    return [[listed[index] for index in unit] for unit in indices_of_configurations(listed)]


def by_rank(members: Iterable[Member]) -> list[Member]:
    """The members in ascending order of rank, the folds of each configuration together."""
    return sorted(members, key=lambda m: (m.rank, m.configuration, m.fold or 0))


def by_kind(members: Iterable[Member]) -> list[list[Member]]:
    """The members of each adapter kind and targets, in the order of their first."""
    kinds: dict[tuple[str, tuple[str, ...]], list[Member]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    return list(kinds.values())


def packs(members: Sequence[Member], size: int) -> list[list[Member]]:
    """Packs of at most `size` members of one number of epochs and one adapter kind and targets;
    members of like rank come together, so that little is padded.

    The folds of a configuration are always in one pack, even where they are more than `size`.
    """

    def in_common(member: Member) -> tuple[Any, ...]:
        return member.kind, member.epochs or 0

    ordered = sorted(by_rank(members), key=in_common)
    made: list[list[Member]] = []
    for unit in configurations(ordered):
        same = bool(made) and in_common(made[-1][0]) == in_common(unit[0])
        if same and len(made[-1]) + len(unit) <= size:
            made[-1] += unit
        else:
            made.append(list(unit))
    return made
