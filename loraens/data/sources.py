"""Where the records of a task come from: the course's files, the Hugging Face hub, or any files of
the user's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from loraens.data.classes import checked_classes
from loraens.data.files import open_table
from loraens.data.hub import hub_table, load_hub
from loraens.data.splits import (
    Columns,
    Records,
    Split,
    collect_split,
    read_records,
    read_split,
    require,
    split_of,
)
from loraens.data.tables import Reading, Table
from loraens.data.values import cell_text
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
        hub_split = {"dev": "validation"}.get(split, split)
        hint = "connect, or give root with the course's files"
        data = load_hub(self.hub.path, self.hub.config, hub_split, hint)
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
        table = hub_table(data.rename_columns(self.hub.columns), f"{self.hub.path} {hub_split}")
        columns = Columns(self.task.text_columns, self.task.label_column, group=group_column)
        return collect_split(table, split, self.task, columns)


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


class TableSource(Source):
    """A task whose splits are tables.

    Where no class names are given, train is read at once for the labels that occur in it, and kept
    until it is asked for.

    Args:
        name: As of `TextFiles`, like the other arguments.
        columns: Names of the columns.
        kind: Label kind.
        class_names: Classes in order; those of train where they are None.
        metric: Score that chooses the best epoch.
        loss: Training loss.
        low: Smallest legal number.
        high: Largest legal number.
        missing: Further cells that are missing values.
        class_weights: Weights of the loss, or "balanced" for those of the labels in train.
        options: Further fields of `Task` that only some kinds take.

    Raises:
        InputError: The arguments do not fit each other, train cannot be read, or its labels look
            like no classes.
    """

    def __init__(
        self,
        name: str,
        columns: Columns,
        kind: str,
        class_names: Sequence[str | int | float | bool] | None,
        metric: str | None,
        loss: str | None,
        low: float | None,
        high: float | None,
        missing: Sequence[str | int | float] = (),
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        **options: Any,
    ) -> None:
        self.missing = frozenset(cell_text(cell) for cell in missing)
        self._kept: dict[str, Records] = {}
        if kind not in LABEL_KINDS:
            raise InputError(
                f"kind {kind!r} is none of {', '.join(LABEL_KINDS)}", option="data.kind"
            )
        label_kind = LABEL_KINDS[kind]
        several = "delimiter" in label_kind.options
        if columns.flags and not several:
            raise InputError(
                f"label_column {list(columns.flags)}: one column is expected for kind {kind!r}",
                option="data.label_column",
            )
        self.columns = replace(columns, lists=several)
        if columns.flags and class_names is None:
            class_names = columns.flags
        inferred = label_kind.categorical and class_names is None
        if inferred or any(isinstance(name, bool) for name in class_names or ()):
            records = self._records("train", labelled=True)
            assert records is not None
            self._kept["train"] = records
            names_in = partial(label_kind.names_in, delimiter=options.get("delimiter"))
            names = checked_classes(records, columns.label, class_names, names_in=names_in)
        else:
            names = tuple(cell_text(name) for name in class_names or ())
        try:
            self._task = Task(
                name=name,
                text_columns=columns.texts,
                label_column=columns.label,
                kind=kind,
                loss=loss or label_kind.losses[0],
                metric=metric or label_kind.metrics[0].name,
                class_names=names,
                low=low,
                high=high,
                numbered=not inferred,
                class_weights=() if isinstance(class_weights, str) else tuple(class_weights or ()),
                **options,
            )
            if isinstance(class_weights, str):
                self._task = replace(self._task, class_weights=self._balanced())
        except ValueError as error:
            raise InputError(str(error)) from None

    def _balanced(self) -> tuple[float, ...]:
        """Class weights from the labels in train, which is kept."""
        records = self._kept.get("train") or self._records("train")
        assert records is not None
        self._kept["train"] = copy(records)
        labels = split_of(records, "train", self._task).labels
        if labels is None:
            raise ValueError(f"class_weights: {records.table} has no labels to balance them by")
        weights: list[float] = self._task.label_kind.balanced_weights(self._task, labels).tolist()
        return tuple(weights)

    @abstractmethod
    def _open(self, split: str) -> AbstractContextManager[Table] | None:
        """Open the table of a split; None where there is no such split."""

    def _once(self, split: str) -> bool:
        """Whether the table of a split can be read only once."""
        return False

    @property
    def task(self) -> Task:
        """The task."""
        return self._task

    def read(self, split: str) -> Split | None:
        """Read one split; the test split may be left out."""
        records = self._kept.pop(split, None) or self._records(split)
        if records is None:
            return None
        if self._once(split):
            self._kept[split] = copy(records)
        return split_of(records, split, self.task)

    def _records(self, split: str, labelled: bool = False) -> Records | None:
        opened = self._open(split)
        if opened is None:
            return None
        columns = replace(self.columns, weight=None) if split == "test" else self.columns
        with opened as table:
            require(table, columns, split)
            if labelled:
                table.require(columns.labels, "label_column")
            return read_records(table, columns, self.missing)


class FileSource(TableSource):
    """Any task whose splits are files; see `loraens.data.TextFiles` for the arguments."""

    def __init__(self, paths: Mapping[str, Any], reading: Reading, **task: Any) -> None:
        self.paths = paths
        self.reading = reading
        super().__init__(**task)

    def _open(self, split: str) -> AbstractContextManager[Table] | None:
        path = self.paths[split]
        if path is None and split == "test":
            return None
        if path is None:
            raise InputError(
                f"{split} is not given: a file of the {split} split is expected",
                option=f"data.{split}",
            )
        return open_table(path, reading=self.reading)

    def _once(self, split: str) -> bool:
        path = self.paths[split]
        return isinstance(path, str) and (path == "-" or Path(path).is_fifo())


class HubSource(TableSource):
    """Any task whose splits are those of a data set of `datasets`; see `loraens.data.HubTexts` for
    the arguments.

    Class numbers of a column that has names are read as these names.
    """

    def __init__(
        self, path: str, config: str | None, splits: Mapping[str, str | None], **task: Any
    ) -> None:
        self.path = path
        self.config = config
        self.splits = splits
        super().__init__(**task)

    def _open(self, split: str) -> AbstractContextManager[Table] | None:
        name = self.splits[split]
        if name is None:
            return None
        hint = "check path, config and split, or connect"
        data = load_hub(self.path, self.config, name, hint)
        names = {}
        label = data.features.get(self.columns.label)
        label = getattr(label, "feature", label)  # of a list of classes
        if getattr(label, "names", None) is not None:
            names[self.columns.label] = label.names
        return nullcontext(hub_table(data, f"{self.path} {name}", names))
