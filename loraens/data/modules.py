"""Lightning data modules: for the paper's tasks, for files, and for data sets of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from loraens.data.sources import FileSource, HubSource, course_source
from loraens.data.splits import Columns
from loraens.data.tables import Quoting, Reading
from loraens.data.text_data import TextData

__all__ = ["SST", "STS", "HubTexts", "Multitask", "Quora", "TextData", "TextFiles"]


class SST(TextData):
    """SST-5: sentiment of a sentence in five classes."""

    def __init__(
        self, root: str | None = None, group_column: str | None = None, **kwargs: object
    ) -> None:
        """Make the data module of SST-5.

        Args:
            root: Directory of the course's files (ids-sst-*.csv); without it, SetFit/sst5 from the
                Hugging Face hub.
            group_column: Column that says which records belong together: those of one group are in
                one fold. Train and dev must have it.
        """
        super().__init__([course_source("sst", root, group_column)], **kwargs)  # type: ignore[arg-type]


class Quora(TextData):
    """Quora question pairs: whether two questions are paraphrases."""

    def __init__(
        self, root: str | None = None, group_column: str | None = None, **kwargs: object
    ) -> None:
        """Make the data module of Quora.

        Args:
            root: Directory of the course's files (quora-*.csv); without it, nyu-mll/glue qqp from
                the Hugging Face hub.
            group_column: Column that says which records belong together: those of one group are in
                one fold. Train and dev must have it.
        """
        super().__init__([course_source("quora", root, group_column)], **kwargs)  # type: ignore[arg-type]


class STS(TextData):
    """STS-B: similarity of two sentences from 0 to 5."""

    def __init__(
        self, root: str | None = None, group_column: str | None = None, **kwargs: object
    ) -> None:
        """Make the data module of STS-B.

        Args:
            root: Directory of the course's files (sts-*.csv); without it, nyu-mll/glue stsb from
                the Hugging Face hub.
            group_column: Column that says which records belong together: those of one group are in
                one fold. Train and dev must have it.
        """
        super().__init__([course_source("sts", root, group_column)], **kwargs)  # type: ignore[arg-type]


class Multitask(TextData):
    """Several of the paper's tasks at once: one shared adapter, one head a task."""

    def __init__(
        self,
        root: str | None = None,
        names: Sequence[Literal["sst", "quora", "sts"]] = ("sst", "quora", "sts"),
        group_column: str | None = None,
        **kwargs: object,
    ) -> None:
        """Make the data module of several tasks.

        Args:
            root: Directory of the course's files; without it, the Hugging Face hub.
            names: The tasks.
            group_column: Column that says which records belong together: those of one group are in
                one fold. Train and dev must have it.
        """
        sources = [course_source(name, root, group_column) for name in names]
        super().__init__(sources, **kwargs)  # type: ignore[arg-type]


class TextFiles(TextData):
    """Any task in CSV, TSV, JSON, Parquet, Arrow or Excel files, or in memory."""

    def __init__(
        self,
        name: str,
        train: str | list[dict[str, Any]],
        dev: str | list[dict[str, Any]],
        text_columns: list[str],
        label_column: list[str] | str,
        kind: str = "classes",
        test: str | list[dict[str, Any]] | None = None,
        class_names: list[str | bool | int | float] | None = None,
        metric: str | None = None,
        loss: str | None = None,
        low: float | None = None,
        high: float | None = None,
        id_column: str = "id",
        group_column: str | None = None,
        encoding: str = "utf-8",
        quoting: Quoting = "auto",
        missing: list[str | int | float] | None = None,
        delimiter: str | None = None,
        weight_column: str | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        **kwargs: object,
    ) -> None:
        """Make the data module of files.

        Args:
            name: Name of the task; names its files and figures.
            train: Training records: a file (.csv, .tsv, .jsonl or .json, also with .gz, .bz2, .xz
                or .zst; .parquet, .arrow or .xlsx), a directory of files with the same columns, a
                pattern such as "data/*.csv", or - for standard input. In Python also a pandas
                DataFrame or a list of dicts.
            dev: Records that choose the best epoch, likewise.
            text_columns: One or two columns of text; two are combined in one sequence.
            label_column: Column of the label; for `labels` also several columns of 0 and 1, whose
                names are the labels'.
            kind: "classes", "number", "labels" (any number of them) or "levels" (ordered classes).
            test: Further records whose logits are stored, labelled or not.
            class_names: Classes in order; labels are their names or their numbers from 0. Default:
                the labels in `train`, which are refused if they do not look like classes. Levels
                are named from the lowest.
            metric: Score that chooses the best epoch; by default accuracy for classes, pearson for
                numbers, average_precision for labels, quadratic_kappa for levels.
            loss: One of the kind's; for classes binary_cross_entropy gives two classes one logit in
                place of cross_entropy.
            low: Smallest legal number.
            high: Largest legal number.
            id_column: Column of a unique id; where it is not there, line numbers are the ids.
            group_column: Column that says which records belong together: those of one group are in
                one fold. Train and dev must have it.
            encoding: Encoding of text files.
            quoting: What a quote means that opens a field of CSV or TSV and is not closed in its
                line: "standard" (the field has line breaks), "lines" (an ordinary character: each
                line is a record), "none" (as all quotes: an ordinary character), or "auto"
                (decided by what follows, an error where that is not certain).
            missing: Further cells that are missing values, such as [NA, "-"]. Blank cells, null and
                NaN always are; NA, NaN, null and None are in label columns of numbers.
            delimiter: What separates labels in a cell, such as "|"; by default it is a JSON list.
            weight_column: Column of a positive weight of each example in the training loss; divided
                by their mean. Train and dev must have it.
            class_weights: Weight of the loss of each class, or of the presence of each of several
                labels; "balanced" computes them from train.
            label_smoothing: Share of the target that is spread over all classes.
            focal_gamma: Exponent of the focal loss; 0 for none.
        """
        source = FileSource(
            paths={"train": train, "dev": dev, "test": test},
            reading=Reading(encoding, quoting),
            name=name,
            columns=Columns.of(text_columns, label_column, id_column, group_column, weight_column),
            kind=kind,
            class_names=class_names,
            metric=metric,
            loss=loss,
            low=low,
            high=high,
            missing=missing or (),
            class_weights=class_weights,
            delimiter=delimiter,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
        )
        super().__init__([source], **kwargs)  # type: ignore[arg-type]


class HubTexts(TextData):
    """Any task in a data set of the Hugging Face hub, or in one that `datasets` saved on disk."""

    def __init__(
        self,
        name: str,
        path: str,
        text_columns: list[str],
        label_column: list[str] | str,
        config: str | None = None,
        train: str = "train",
        dev: str = "validation",
        test: str | None = None,
        kind: str = "classes",
        class_names: list[str | bool | int | float] | None = None,
        metric: str | None = None,
        loss: str | None = None,
        low: float | None = None,
        high: float | None = None,
        id_column: str = "id",
        group_column: str | None = None,
        missing: list[str | int | float] | None = None,
        delimiter: str | None = None,
        weight_column: str | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        **kwargs: object,
    ) -> None:
        """Make the data module of a data set.

        Args:
            name: Name of the task; names its files and figures.
            path: Hub name, such as fancyzhx/ag_news, or a directory.
            text_columns: One or two columns of text; two are combined in one sequence.
            label_column: Column of the label.
            config: Name of the data set's configuration, where it has several.
            train: Split of the training records; of the hub also a part, such as "train[:90%]".
            dev: Split of the records that choose the best epoch, likewise.
            test: Split of further records whose logits are stored, labelled or not.
            kind: As of `TextFiles`.
            class_names: Classes in order; the labels in `train` by default.
            metric: As of `TextFiles`; likewise
            loss: the loss,
            low: the smallest legal number,
            high: the largest legal number,
            id_column: the column of ids,
            group_column: the column of groups,
            missing: cells that are missing values,
            delimiter: what separates labels,
            weight_column: the column of weights,
            class_weights: the weight of each class,
            label_smoothing: the share that is spread, and
            focal_gamma: the exponent of the focal loss.
        """
        source = HubSource(
            path=path,
            config=config,
            splits={"train": train, "dev": dev, "test": test},
            name=name,
            columns=Columns.of(text_columns, label_column, id_column, group_column, weight_column),
            kind=kind,
            class_names=class_names,
            metric=metric,
            loss=loss,
            low=low,
            high=high,
            missing=missing or (),
            class_weights=class_weights,
            delimiter=delimiter,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
        )
        super().__init__([source], **kwargs)  # type: ignore[arg-type]
