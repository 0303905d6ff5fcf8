"""The examples of a run's splits, which its members' logits refer to."""

from __future__ import annotations

from pathlib import Path

from loraens.data.text_data import TextData
from loraens.store import write_examples


def write_data_examples(data: TextData, directory: Path) -> dict[str, str]:
    """Write ids and labels of every split that members are evaluated on, and groups of the one that
    is cut into folds.

    Args:
        data: The texts, read.
        directory: The run's directory.

    Returns:
        SHA-256 of each file, by its name.
    """
    return {
        (file := f"{task}-{split}.npz"): write_examples(
            directory,
            file,
            part.split.ids,
            part.split.labels,
            None if part.folds is None else part.folds.groups,
        )
        for (task, split), part in data.splits.items()
        if split != "train"
    }
