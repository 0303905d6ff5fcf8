"""Settings of a sweep, read from `config.yaml` or made from Python objects."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from loraens.data.config import DataConfig, plain
from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import NAMES, Grid, Member
from loraens.train.device import default_precision
from loraens.train.module import Population
from loraens.train.options import SweepOptions
from loraens.train.runs import TRAINER_DEFAULTS, check_run, check_trainer

CONFIG = "config.yaml"
IN_MEMORY = "# data: in the memory of the Python program that made this sweep\n"
BASE = Member(rank=8, scale=1.0)  # as `fit` trains one by default
# those of `--model`: a fold is the grid's, and what a member has not of its own is the run's
_NOT_OF_MODEL = ("fold", "epochs", *NAMES)
MEMBER_FIELDS = tuple(f.name for f in fields(Member) if f.name not in _NOT_OF_MODEL)
# options of the trainer that a sweep needs at their defaults, as it trains whole epochs
_FIXED: dict[str, Any] = {
    "max_steps": -1,
    "min_epochs": None,
    "min_steps": None,
    "max_time": None,
    "check_val_every_n_epoch": 1,
    "val_check_interval": None,
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "limit_val_batches": None,
}


@dataclass(frozen=True)
class TrainConfig:
    """What every pack is trained with, as plain values: all that a worker needs.

    Args:
        data: The data module; None where it is only in the memory of the program that made it.
        model: Options of `Population` beside its members and tasks.
        trainer: Options of Lightning's `Trainer`.
        folds: Parts that the labelled examples are cut into; the grid's.
    """

    data: DataConfig | None
    model: Mapping[str, Any]
    trainer: Mapping[str, Any]
    folds: int | None = None

    @classmethod
    def read(cls, directory: Path) -> TrainConfig:
        """The settings in a sweep's directory.

        Raises:
            InputError: config.yaml is missing or does not describe a training.
        """
        return SweepConfig.read(directory).train

    @property
    def backbone(self) -> str:
        """Hub name or directory of the backbone."""
        return str(self.model["backbone"])

    @property
    def epochs(self) -> int:
        """Epochs of a member that gives none of its own and is not stopped."""
        return int(self.trainer["max_epochs"])

    def epochs_of(self, member: Member) -> int:
        """Epochs of a member that is not stopped."""
        return member.epochs or self.epochs

    def kind_in_words(self, member: Member) -> str:
        """The adapter kind and the targets of a member."""
        targets = member.targets or self.model["targets"]
        return f"{member.adapter or self.model['adapter']} on {', '.join(targets)}"

    @property
    def logger(self) -> Any:
        """The logger as configured: None or True for W&B, False for none, or a class path with
        arguments. Members are logged to it one by one.
        """
        return self.trainer.get("logger")

    @property
    def progress_bar(self) -> bool:
        """Whether to show a progress bar."""
        return self.trainer.get("enable_progress_bar") is not False


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a whole sweep.

    Args:
        text: The content of config.yaml, which the other fields are read from.
        train: What every pack is trained with.
        base: Settings of a member that the grid does not give.
        grid: The members.
        options: How they are trained together.
        root: Directory of all runs.
        run: Name of the sweep's directory in it; None: named after the tasks.
    """

    text: str
    train: TrainConfig
    base: Member
    grid: Grid
    options: SweepOptions
    root: str
    run: str | None = field(default=None)

    @classmethod
    def read(cls, directory: Path) -> SweepConfig:
        """The settings in a sweep's directory.

        Raises:
            InputError: config.yaml is missing or does not describe a sweep.
        """
        path = directory / CONFIG
        if not path.is_file():
            raise InputError(f"{path} is missing: it has the settings of the sweep, so restore it")
        return cls.from_yaml(path.read_text(), str(path))

    @classmethod
    def from_yaml(cls, text: str, origin: str = CONFIG) -> SweepConfig:
        """Read the content of config.yaml.

        Args:
            text: The content.
            origin: Where it is from, for messages.

        Raises:
            InputError: It does not describe a sweep of LoRA members.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
        sections = {
            name: _section(content, name, origin)
            for name in ("trainer", "model", "store", "grid", "sweep")
        }
        model = sections["model"]
        member = {name: model.pop(name) for name in MEMBER_FIELDS if name in model}
        options = _arguments(Population, model, f"{origin}: model", frozenset({"members", "tasks"}))
        grid = Grid(**_arguments(Grid, sections["grid"], f"{origin}: grid"))
        train = TrainConfig(
            data=_data_section(content, origin),
            model=options,
            trainer={**TRAINER_DEFAULTS, **sections["trainer"]},
            folds=grid.folds,
        )
        _check_training(train)
        member = _arguments(Member, {**BASE.to_json(), **member}, f"{origin}: model")
        try:
            base = Member(**member)
        except ValueError as error:
            raise InputError(f"model: {error}", option="model") from None
        check_run(sections["store"].get("run"))
        return cls(
            text=text,
            train=train,
            base=base,
            grid=grid,
            options=SweepOptions(**_arguments(SweepOptions, sections["sweep"], f"{origin}: sweep")),
            root=str(sections["store"].get("root", "checkpoints")),
            run=sections["store"].get("run"),
        )

    @classmethod
    def from_objects(
        cls,
        data: TextData,
        grid: Grid | Sequence[Member],
        directory: Path | str,
        *,
        backbone: str,
        epochs: int,
        base: Member = BASE,
        options: SweepOptions = SweepOptions(),  # noqa: B008
        model: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> SweepConfig:
        """Settings of a sweep that is made in Python.

        Args:
            data: The texts. If the data module cannot be made again from its class and plain
                arguments, the sweep runs in this process only.
            grid: Axes that are crossed with `base`, or the members themselves.
            directory: The sweep's directory.
            backbone: Hub name or directory of the backbone; `data` gets it too.
            epochs: Epochs of a member that gives none of its own and is not stopped.
            base: Settings of a member that the grid does not give; rank 8 and scale 1 by default.
            options: How the members are trained together.
            model: Further options of `Population`, such as `{"pooling": "mean"}`.
            trainer: Further options of Lightning's `Trainer`, as plain values. Nothing is logged,
                unless a `logger` is given as its class path and arguments, or None for W&B.

        Raises:
            InputError: An option is unknown or not plain, or `data` is of another backbone.
        """
        _set_backbone(data, backbone)
        data_config = DataConfig.of(data)
        axes = grid if isinstance(grid, Grid) else Grid(members=[m.to_json() for m in grid])
        path = Path(directory)
        off = {"logger": False}
        given = {**TRAINER_DEFAULTS, **off, **(trainer or {}), "max_epochs": epochs}
        given["precision"] = given.get("precision") or default_precision(given)
        content = {
            "trainer": given,
            "model": {**base.to_json(), **(model or {}), "backbone": backbone},
            "data": data_config and asdict(data_config),
            "store": {"root": path.parent, "run": path.name},
            "grid": asdict(axes),
            "sweep": asdict(options),
        }
        text = _yaml(content)
        return cls.from_yaml(text if data_config else IN_MEMORY + text, "the sweep's settings")

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The grid's members.

        Raises:
            InputError: The grid is empty, a member is out of range or occurs twice, or has epochs
                of its own where members are halved.
        """
        try:
            members = self.grid.expand(self.base)
        except (TypeError, ValueError) as error:
            raise InputError(f"grid: {error}", option="grid") from None
        if any(member.rank < 1 for member in members):
            raise InputError("rank must be at least 1", option="grid.rank")
        others = [m for m in members if self.train.epochs_of(m) != self.train.epochs]
        if others and self.options.halving_factor is not None:
            raise InputError(
                f"halving_factor: member {others[0].name} is to be trained for {others[0].epochs}"
                " epochs, and successive halving compares members after equal epochs, until"
                f" max_epochs {self.train.epochs}: leave out one of the two",
                option="sweep.halving_factor",
            )
        return tuple(members)

    @property
    def rungs(self) -> list[int]:
        """Epochs after which members are compared; the last is the end."""
        return self.options.rungs(self.train.epochs)

    def directory(self, tasks: Sequence[str]) -> Path:
        """The sweep's directory.

        Args:
            tasks: Names of the tasks, which name the directory if nothing else does.
        """
        return Path(self.root) / (self.run or "-".join(tasks) + "-sweep")


def _yaml(content: Mapping[str, Any]) -> str:
    """Settings as config.yaml contains them.

    Raises:
        InputError: One is no plain value.
    """
    try:
        return yaml.safe_dump(plain(content), sort_keys=False)  # type: ignore[no-any-return]
    except TypeError as error:
        raise InputError(
            f"model and trainer take plain values, as YAML contains them: {error}"
        ) from None


def _section(content: Any, name: str, origin: str) -> dict[str, Any]:
    section = content.get(name) if isinstance(content, dict) else None
    if section is None and isinstance(content, dict):
        section = {}
    if not isinstance(section, dict):
        raise InputError(f"{origin} has no settings of {name}: restore it")
    return dict(section)


def _data_section(content: dict[str, Any], origin: str) -> DataConfig | None:
    section = _section(content, "data", origin)
    if not section:
        return None
    if not isinstance(section.get("class_path"), str):
        raise InputError(f"{origin} has no data.class_path: restore it")
    return DataConfig(section["class_path"], dict(section.get("init_args") or {}))


def _arguments(
    kind: type[Any], given: Mapping[str, Any], origin: str, skip: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """All arguments of a class, checked and converted, with the defaults of what is not given.

    Args:
        kind: The class.
        given: Arguments.
        origin: Where they are from, for messages.
        skip: Arguments of the class that are left out.

    Raises:
        InputError: One is unknown or of a wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(
        kind, "settings", skip=set(skip), instantiate=False, fail_untyped=False
    )
    try:
        parsed = parser.parse_object({"settings": dict(given)})
    except ArgumentError as error:
        raise InputError(f"{origin}: {' '.join(str(error).split())}") from error
    arguments: dict[str, Any] = parsed.settings.as_dict()
    return arguments


def _check_training(train: TrainConfig) -> None:
    """Refuse a training that does not fit a sweep.

    Raises:
        InputError: It trains something else than LoRA members, or not in whole epochs.
    """
    if train.model["mode"] != "lora":
        raise InputError(
            f"mode {train.model['mode']}: a sweep trains LoRA members, use `loraens fit`",
            option="model.mode",
        )
    for name, value in _FIXED.items():
        if train.trainer.get(name) not in (value, None):
            raise InputError(
                f"{name} {train.trainer[name]}: a sweep trains whole epochs, leave it out",
                option=f"trainer.{name}",
            )
    epochs = train.trainer["max_epochs"]
    if not epochs or epochs < 1:
        raise InputError(
            f"max_epochs {epochs}: a sweep needs an end, at least 1 is expected",
            option="trainer.max_epochs",
        )
    check_trainer(train.trainer)


def _set_backbone(data: TextData, backbone: str) -> None:
    """Give a data module the sweep's backbone.

    Raises:
        InputError: It was made for another one.
    """
    if data.backbone != backbone and (data.splits or "backbone" in data.init_args):
        raise InputError(
            f"the data is tokenised for backbone {data.backbone!r}, and the sweep's is"
            f" {backbone!r}: give both the same"
        )
    data.backbone = backbone
