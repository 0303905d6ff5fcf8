"""Data sets of `datasets`: of the Hugging Face hub, or saved on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraens.data.tables import Row, Table
from loraens.errors import InputError


def load_hub(path: str, config: str | None, split: str, hint: str) -> Any:
    """A split of a data set.

    Args:
        path: Hub name, a directory with files that `datasets` can read, or one that
            `save_to_disk` wrote.
        config: Name of the configuration, or None.
        split: Name of the split; of the hub also a part of one, such as "train[:90%]".
        hint: What to do where it cannot be loaded.

    Raises:
        InputError: It cannot be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            f"data set {path!r} needs the package datasets: pip install datasets, or give files"
        ) from None
    try:
        if (Path(path) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)[split]
        if (Path(path) / "state.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, config, split=split)
    except KeyError:
        raise InputError(
            f"data set {path!r} has no split {split!r}: give one of those in dataset_dict.json"
        ) from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"data set {path!r} could not be loaded from the hub ({reason}): {hint}"
        ) from None


def hub_table(data: Any, name: str, names: dict[str, list[str]] | None = None) -> Table:
    """The table of a data set of `datasets`.

    Args:
        data: The data set.
        name: Its name, for messages.
        names: Column of class numbers -> names that stand in their place.
    """

    def rows() -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(data, start=1):
            for column, classes in (names or {}).items():
                value = row[column]
                if isinstance(value, list):
                    row[column] = [classes[number] for number in value]
                    continue
                row[column] = None if value is None or value < 0 else classes[value]
            yield number, row

    return Table(name, "memory", data.column_names, rows())
