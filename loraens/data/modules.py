"""Lightning data modules: one for each of the paper's tasks, one for all of them, and one for any
files.

Shape letters: M members, B examples of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from loraens.data.folds import Folds, pooled
from loraens.data.recorded import RecordedArguments
from loraens.data.sampling import PackedDataset, TrainSampler, eval_loader
from loraens.data.sources import SPLITS, FileSource, HubSource, Source, course_source
from loraens.data.splits import Columns, Split, limited
from loraens.data.tables import Quoting, Reading
from loraens.data.tokens import TokenSplit, cached_tokens
from loraens.errors import InputError
from loraens.members import OUT_OF_FOLD, Member
from loraens.model.backbone import load_tokenizer
from loraens.model.batch import PackedBatch
from loraens.tasks import Task


class TextData(RecordedArguments, LightningDataModule):
    """Texts of one or more tasks, tokenised once and served in packed batches.

    Args:
        sources: One a task.
        backbone: Backbone whose tokenizer is used; set from `--model.backbone`.
        batch_size: Training records of one member in a batch.
        eval_batch_size: Records in a batch of dev or test, those of all members together.
        max_length: Longest sequence in tokens, special tokens counted; longer ones are cut and
            counted.
        limit: Use at most this many records of each split, drawn by a fixed seed: for a quick look,
            not for results.
        temperature: With several tasks, a task's share of the batches is in proportion to records
            ** (1 / temperature).
        pool_dev: With folds, cut dev into parts too, together with train. Without it dev is kept
            apart: it chooses nothing, and its logits are stored.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        backbone: str = "bert-base-uncased",
        batch_size: int = 8,
        eval_batch_size: int = 64,
        max_length: int = 128,
        limit: int | None = None,
        temperature: float = 1.0,
        pool_dev: bool = False,
    ) -> None:
        super().__init__()
        minima = {
            "batch_size": 1,
            "eval_batch_size": 1,
            "max_length": 8,
            "limit": 1,
            "temperature": 1,
        }
        given = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "max_length": max_length,
        }
        for name, value in {**given, "limit": limit, "temperature": temperature}.items():
            if value is not None and value < minima[name]:
                raise InputError(
                    f"{name} {value:g} is too small: at least {minima[name]} is expected",
                    option=f"data.{name}",
                )
        names = [source.task.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise InputError(
                f"names {names}: at least one task, and none twice, is expected",
                option="data.names",
            )
        self.sources = tuple(sources)
        self.backbone = backbone
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_length = max_length
        self.limit = limit
        self.temperature = temperature
        self.pool_dev = pool_dev
        self.folds: int | None = None  # K, see `cut`
        self.splits: dict[tuple[str, str], TokenSplit] = {}

    @property
    def tasks(self) -> list[Task]:
        """The tasks, in order."""
        return [source.task for source in self.sources]

    def cut(self, folds: int | None) -> None:
        """Choose the number K of parts for members of folds; None for none.

        It comes from the grid. The split "oof" then is there, and has the examples of train.
        """
        if folds != self.folds:
            self.folds = folds
            self.splits = {}  # which are read again

    def setup(self, stage: str) -> None:
        """Read and tokenise all splits, once.

        Raises:
            InputError: A file cannot be used, train or dev has no labels, or the examples cannot be
                cut into folds.
        """
        if self.splits:
            return
        if self.pool_dev and self.folds is None:
            raise InputError(
                "pool_dev is of folds, and there are none: give `sweep` --grid.folds, or leave"
                " it out",
                option="data.pool_dev",
            )
        tokenizer = load_tokenizer(self.backbone)
        splits = {}
        for source in self.sources:
            for name, split in self._read(source).items():
                tokens = cached_tokens(split.texts, tokenizer, self.max_length)
                splits[source.task.name, name] = TokenSplit(source.task, split, tokens)
                rank_zero_info(splits[source.task.name, name].report())
            if self.folds is not None:
                in_folds = splits[source.task.name, "train"].in_folds(self.folds)
                splits[source.task.name, OUT_OF_FOLD] = in_folds
                rank_zero_info(in_folds.report())
        self.splits = splits

    def _read(self, source: Source) -> dict[str, Split]:
        """The splits of a task, dev in train where it is pooled."""
        splits = {}
        for name in SPLITS:
            split = source.read(name)
            if split is None:
                continue
            if split.labels is None and name != "test":
                raise InputError(
                    f"{split.origin} has no label in a column {source.task.label_column!r}: the"
                    f" {name} split needs labels"
                )
            splits[name] = limited(split, self.limit)
        if self.pool_dev:
            splits["train"] = pooled(splits["train"], splits.pop("dev"))
        return splits

    def of(self, split: str) -> list[TokenSplit]:
        """The split of every task that has it."""
        return [
            self.splits[task.name, split]
            for task in self.tasks
            if (task.name, split) in self.splits
        ]

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Packed batches of the trainer's population."""
        return DataLoader(
            PackedDataset(self.of("train")), sampler=self.sampler(self._members()), batch_size=None
        )

    def sampler(self, members: Sequence[Member]) -> TrainSampler:
        """Places of the training batches of a population.

        Raises:
            InputError: A member has no fold and the examples are in parts, or the reverse.
        """
        seeds = [member.seed for member in members]
        parts = self._parts(members)
        if self.folds is None:
            sizes = [len(split) for split in self.of("train")]
            return TrainSampler(sizes, self.batch_size, seeds, self.temperature)
        sizes = [folds.trained for folds, _ in parts]
        examples = [[folds.outside[fold] for fold in of_members] for folds, of_members in parts]
        return TrainSampler(sizes, self.batch_size, seeds, self.temperature, examples)

    def _parts(self, members: Sequence[Member]) -> list[tuple[Folds, list[int]]]:
        """The parts of each task, and the fold of each member; empty without folds.

        Raises:
            InputError: A member has no fold and the examples are in parts, or the reverse.
        """
        folds = [member.fold for member in members if member.fold is not None]
        expected = 0 if self.folds is None else len(members)
        if len(folds) != expected or any(fold >= (self.folds or 0) for fold in folds):
            raise InputError(
                f"folds {self.folds}: the data is not cut for member {members[0].name}, give the"
                " folds of its grid"
            )
        if self.folds is None:
            return []
        of_tasks = [self.splits[task.name, OUT_OF_FOLD].folds for task in self.tasks]
        return [(of_task, folds) for of_task in of_tasks if of_task is not None]

    def val_dataloader(self) -> list[DataLoader[PackedBatch]]:
        """One loader a task, over dev, or over the members' own parts where there are folds; while
        fitting, over the other splits too, whose logits are stored and not scored.
        """
        assert self.trainer is not None
        fitting = self.trainer.state.fn == "fit"
        others = ["test"] if self.folds is None else ["dev", "test"]
        loaders = self.eval_loaders(self.scored)
        for split in others if fitting else ():
            loaders += self.eval_loaders(split)
        return loaders

    @property
    def scored(self) -> str:
        """The split whose scores choose epochs: dev, or "oof" where there are folds."""
        return "dev" if self.folds is None else OUT_OF_FOLD

    def test_dataloader(self) -> list[DataLoader[PackedBatch]]:
        """One loader a task, over test.

        Raises:
            InputError: A task has no test split, or one without labels.
        """
        for task in self.tasks:
            split = self.splits.get((task.name, "test"))
            if split is None or split.split.labels is None:
                raise InputError(
                    f"task {task.name} has no test split with labels, so it cannot be scored: "
                    "`loraens predict` writes predictions, and `fit` stores logits of it"
                )
        return self.eval_loaders("test")

    def eval_loaders(self, split: str) -> list[DataLoader[PackedBatch]]:
        """One loader for each task that has the split, in the order of `of(split)`."""
        members = self._members()
        size = max(1, self.eval_batch_size // len(members))
        if split != OUT_OF_FOLD:
            return [eval_loader(part, size, len(members)) for part in self.of(split)]
        loaders = []
        for part, (folds, of_members) in zip(self.of(split), self._parts(members), strict=True):
            own = [folds.inside[fold] for fold in of_members]
            loaders.append(eval_loader(part, size, len(members), own))
        return loaders

    def _members(self) -> Sequence[Member]:
        """The population of the trainer's module."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        members: Sequence[Member] = module.members
        return members


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
        label_column: str,
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
            label_column: Column of the label.
            kind: "classes" or "number".
            test: Further records whose logits are stored, labelled or not.
            class_names: Classes in order; labels are their names or their numbers from 0. Default:
                the labels in `train`, which are refused if they do not look like classes.
            metric: Score that chooses the best epoch; accuracy for classes and pearson for numbers
                by default.
            loss: cross_entropy for classes and mse for numbers by default; binary_cross_entropy
                gives two classes one logit.
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
        """
        source = FileSource(
            paths={"train": train, "dev": dev, "test": test},
            reading=Reading(encoding, quoting),
            name=name,
            columns=Columns(tuple(text_columns), label_column, id_column, group_column),
            kind=kind,
            class_names=class_names,
            metric=metric,
            loss=loss,
            low=low,
            high=high,
            missing=missing or (),
        )
        super().__init__([source], **kwargs)  # type: ignore[arg-type]


class HubTexts(TextData):
    """Any task in a data set of the Hugging Face hub, or in one that `datasets` saved on disk."""

    def __init__(
        self,
        name: str,
        path: str,
        text_columns: list[str],
        label_column: str,
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
            kind: "classes" or "number".
            class_names: Classes in order; the labels in `train` by default.
            metric: As of `TextFiles`; likewise
            loss: the loss,
            low: the smallest legal number,
            high: the largest legal number,
            id_column: the column of ids,
            group_column: the column of groups, and
            missing: cells that are missing values.
        """
        source = HubSource(
            path=path,
            config=config,
            splits={"train": train, "dev": dev, "test": test},
            name=name,
            columns=Columns(tuple(text_columns), label_column, id_column, group_column),
            kind=kind,
            class_names=class_names,
            metric=metric,
            loss=loss,
            low=low,
            high=high,
            missing=missing or (),
        )
        super().__init__([source], **kwargs)  # type: ignore[arg-type]
