"""A data module as plain values: its class and arguments, as `config.yaml` contains them."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from jsonargparse import ArgumentParser

from loraens.data.modules import TextData
from loraens.errors import InputError


def plain(value: Any) -> Any:
    """A value as YAML and JSON can contain it: paths become texts, tuples lists.

    Raises:
        TypeError: It is an object that they cannot contain.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is no plain value")


@dataclass(frozen=True)
class DataConfig:
    """How to make a data module again, in this process or in another.

    Args:
        class_path: Import path of a subclass of `TextData`.
        init_args: Its arguments; the backbone is the model's, the folds are the grid's.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: TextData) -> DataConfig | None:
        """The settings of a data module; None where they are not enough to make it again, as its
        class is local or an argument is an object, such as texts in memory.
        """
        kind = type(data)
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            return None
        lists = [value for value in data.init_args.values() if isinstance(value, list)]
        if any(isinstance(item, Mapping) for items in lists for item in items):
            return None
        try:
            init_args = plain(data.init_args)
        except TypeError:
            return None
        init_args.pop("backbone", None)
        return cls(f"{kind.__module__}.{kind.__qualname__}", init_args)

    def build(self, backbone: str, folds: int | None = None) -> TextData:
        """Make the data module; its texts are not read yet.

        Args:
            backbone: Backbone whose tokenizer is used.
            folds: Parts that the labelled examples are cut into.

        Raises:
            InputError: The class is not there, or does not take the arguments.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(TextData, "data")
        settings = {
            "class_path": self.class_path,
            "init_args": {**self.init_args, "backbone": backbone},
        }
        try:
            parsed = parser.parse_object({"data": settings})
        except ArgumentError as error:
            raise InputError(f"data {self.class_path}: {' '.join(str(error).split())}") from error
        data: TextData = parser.instantiate_classes(parsed).data
        data.cut(folds)
        return data
