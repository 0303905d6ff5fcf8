"""Where the records of a task come from: the course's files, the Hugging Face hub, or any files of
the user's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraens.data.files import Table
from loraens.data.splits import Split, collect_split, distinct_labels, read_split
from loraens.errors import InputError
from loraens.labels import LABEL_KINDS
from loraens.tasks import QUORA, SST, STS, Task

SPLITS = ("train", "dev", "test")


class Source(ABC):
    """One task and its splits."""

    @property
    @abstractmethod
    def task(self) -> Task:
        """The task."""

    @abstractmethod
    def read(self, split: str) -> Split | None:
        """Read "train", "dev" or "test"; None where there is no such split.

        Raises:
            InputError: The records cannot be used.
        """


@dataclass(frozen=True)
class HubName:
    """A data set of the Hugging Face hub, and which of its columns are the task's.

    Args:
        path: Hub name, or a directory with files that `datasets` can read.
        config: Name of the configuration, or None.
        columns: Hub column -> column of the task.
    """

    path: str
    config: str | None
    columns: dict[str, str]


@dataclass(frozen=True)
class CourseSource(Source):
    """One of the paper's tasks, from the course's files in `root`, or from the hub where there is
    no root.
    """

    built_in: Task
    stem: str
    hub: HubName
    root: str | None = None
    group_column: str | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.built_in

    def read(self, split: str) -> Split | None:
        """Read one split; a labelled test file is taken before the one without labels."""
        if self.root is None:
            return self._read_hub(split)
        names = [f"{self.stem}-{split}.csv"] + [f"{self.stem}-test-student.csv"] * (split == "test")
        for name in names:
            if (Path(self.root) / name).is_file():
                path = Path(self.root) / name
                return read_split(path, split, self.task, group_column=self.group_column)
        if split == "test":
            return None
        raise InputError(
            f"data.root {self.root} has no {names[0]}: give the directory that holds the course's"
            " files"
        )

    def _read_hub(self, split: str) -> Split:
        import datasets

        hub_split = {"dev": "validation"}.get(split, split)
        try:
            data = datasets.load_dataset(self.hub.path, self.hub.config, split=hub_split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(
                f"data set {self.hub.path!r} could not be loaded from the hub ({reason}): "
                "connect, or give root with the course's files"
            ) from None
        groups = [self.group_column] if self.group_column else []
        missing = {*self.hub.columns, *groups} - set(data.column_names)
        if missing:
            raise InputError(
                f"data set {self.hub.path!r} has no column {missing.pop()!r}: expected"
                f" {[*self.hub.columns, *groups]}"
            )
        data = data.select_columns(list(dict.fromkeys([*self.hub.columns, *groups])))
        group_column = self.group_column and self.hub.columns.get(
            self.group_column, self.group_column
        )
        data = data.rename_columns(self.hub.columns)
        if set(data.unique(self.task.label_column)) <= {-1, None}:  # GLUE's mark for hidden labels
            data = data.remove_columns(self.task.label_column)
        rows: list[dict[str, Any]] = list(data)
        table = Table(
            f"{self.hub.path} {hub_split}",
            "jsonl",
            data.column_names,
            iter(enumerate(rows, start=1)),
        )
        return collect_split(table, split, self.task, "id", group_column)


_PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}
_COURSE = {
    "sst": (
        SST,
        "ids-sst",
        HubName("SetFit/sst5", None, {"text": "sentence", "label": "sentiment"}),
    ),
    "quora": (
        QUORA,
        "quora",
        HubName(
            "nyu-mll/glue",
            "qqp",
            {"question1": "sentence1", "question2": "sentence2", "label": "is_duplicate"},
        ),
    ),
    "sts": (STS, "sts", HubName("nyu-mll/glue", "stsb", {**_PAIR, "label": "similarity"})),
}


def course_source(name: str, root: str | None, group_column: str | None = None) -> CourseSource:
    """The source of "sst", "quora" or "sts"."""
    task, stem, hub = _COURSE[name]
    return CourseSource(task, stem, hub, root, group_column)


class FileSource(Source):
    """Any task whose splits are files; see `loraens.data.TextFiles` for the arguments."""

    def __init__(
        self,
        name: str,
        paths: dict[str, str | None],
        text_columns: Sequence[str],
        label_column: str,
        kind: str,
        class_names: Sequence[str] | None,
        metric: str | None,
        loss: str | None,
        low: float | None,
        high: float | None,
        id_column: str,
        group_column: str | None = None,
    ) -> None:
        self.paths = paths
        self.id_column = id_column
        self.group_column = group_column
        if kind not in LABEL_KINDS:
            raise InputError(
                f"kind {kind!r} is none of {', '.join(LABEL_KINDS)}", option="data.kind"
            )
        label_kind = LABEL_KINDS[kind]
        inferred = label_kind.categorical and class_names is None
        if inferred:
            class_names = distinct_labels(self._path("train"), label_column)
        try:
            self._task = Task(
                name=name,
                text_columns=tuple(text_columns),
                label_column=label_column,
                kind=kind,
                loss=loss or label_kind.losses[0],
                metric=metric or label_kind.metrics[0].name,
                class_names=tuple(class_names or ()),
                low=low,
                high=high,
                numbered=not inferred,
            )
        except ValueError as error:
            raise InputError(str(error)) from None

    def _path(self, split: str) -> str:
        path = self.paths[split]
        if path is None:
            raise InputError(
                f"{split} is not given: a file of the {split} split is expected",
                option=f"data.{split}",
            )
        return path

    @property
    def task(self) -> Task:
        """The task."""
        return self._task

    def read(self, split: str) -> Split | None:
        """Read one split; the test split may be left out."""
        if split == "test" and self.paths["test"] is None:
            return None
        path = self._path(split)
        return read_split(path, split, self.task, self.id_column, self.group_column)
