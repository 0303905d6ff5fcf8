"""The Lightning data module of texts of one or more tasks.

Shape letters: M members, B examples of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from loraens.data.folds import Folds, pooled
from loraens.data.long_texts import Long
from loraens.data.recorded import RecordedArguments
from loraens.data.sampling import PackedDataset, TrainSampler, eval_loader
from loraens.data.sources import SPLITS, Source
from loraens.data.splits import Split, limited
from loraens.data.tokens import TokenSplit, cached_tokens
from loraens.errors import InputError, escaped
from loraens.members import OUT_OF_FOLD, Member
from loraens.model.batch import PackedBatch
from loraens.model.device import records_together
from loraens.model.tokenizer import load_tokenizer
from loraens.tasks import Task


class TextData(RecordedArguments, LightningDataModule):
    """Texts of one or more tasks, tokenised once and served in packed batches.

    Args:
        sources: One a task.
        backbone: Backbone whose tokenizer is used; set from `--model.backbone`.
        batch_size: Training records of one member in a batch.
        eval_batch_size: Records in a batch of dev or test, those of all members together; by
            default 64 on a CPU, and what an eighth of its memory holds on a GPU.
        max_length: Longest sequence in tokens, special tokens counted; longer ones are shortened
            and counted.
        long: How they are: "cut" at the end; to "head_tail", the first quarter and the last three
            of what is kept of a text; or not, but read in overlapping "windows" of that length,
            over whose features the mean is taken.
        limit: Use at most this many records of each split, drawn by a fixed seed: for a quick look,
            not for results.
        temperature: With several tasks, a task's share of the batches is in proportion to records
            ** (1 / temperature).
        group_by_length: Whether a training batch is of texts of similar lengths, in an order that
            is less random. It saves padding on the padded path; on the packed path there is none.
        pool_dev: With folds, cut dev into parts too, together with train. Without it dev is kept
            apart: it chooses nothing, and its logits are stored.
        test_logits: Whether logits of test are stored after every epoch, for scores of ensembles on
            it; by default where it has labels. `predict` needs none.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        backbone: str = "bert-base-uncased",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        limit: int | None = None,
        temperature: float = 1.0,
        pool_dev: bool = False,
        test_logits: bool | None = None,
        long: Long = "cut",
        group_by_length: bool = False,
    ) -> None:
        super().__init__()
        minima = {
            "batch_size": 1,
            "eval_batch_size": 1,
            "max_length": 8,
            "limit": 1,
            "temperature": 1,
        }
        given = {"batch_size": batch_size, "max_length": max_length, "temperature": temperature}
        optional = {"eval_batch_size": eval_batch_size, "limit": limit}
        for name, value in {**given, **optional}.items():
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
        self.long = long
        self.limit = limit
        self.temperature = temperature
        self.group_by_length = group_by_length
        self.pool_dev = pool_dev
        self.test_logits = test_logits
        self.folds: int | None = None  # K, see `cut`
        self.splits: dict[tuple[str, str], TokenSplit] = {}

    @property
    def tasks(self) -> list[Task]:
        """The tasks, in order."""
        return [source.task for source in self.sources]

    def cut(self, folds: int | None) -> None:
        """Choose the number K of parts for members of folds; None for none.

        It comes from the grid. The split "oof" then is there, and has the examples of train. A
        member without a fold then trains on all of these, and has no examples to be scored on.
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
                tokens = cached_tokens(split.texts, tokenizer, self.max_length, self.long)
                splits[source.task.name, name] = TokenSplit(source.task, split, tokens)
                rank_zero_info(escaped(splits[source.task.name, name].report()))
            if self.folds is not None:
                in_folds = splits[source.task.name, "train"].in_folds(self.folds)
                splits[source.task.name, OUT_OF_FOLD] = in_folds
                rank_zero_info(escaped(in_folds.report()))
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

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each split, by `<task>-<split>`."""
        return {f"{task}-{split}": part.fingerprint for (task, split), part in self.splits.items()}

    def of(self, split: str) -> list[TokenSplit]:
        """The split of every task that has it."""
        return [
            self.splits[task.name, split]
            for task in self.tasks
            if (task.name, split) in self.splits
        ]

    def trained_by(self, members: Sequence[Member]) -> list[TokenSplit]:
        """What a population is trained on of every task: the split train, and what a subclass adds
        at its end.
        """
        return self.of("train")

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Packed batches of the trainer's population."""
        members = self._members()
        return DataLoader(
            PackedDataset(self.trained_by(members)), sampler=self.sampler(members), batch_size=None
        )

    def sampler(self, members: Sequence[Member]) -> TrainSampler:
        """Places of the training batches of a population.

        Raises:
            InputError: Some members have a fold and others not, or the examples are not in parts.
        """
        splits = self.trained_by(members)
        parts = self._parts(members)
        sizes = [len(split) for split in splits]
        examples = None
        if parts:
            added = [
                np.arange(len(split), size)
                for split, size in zip(self.of("train"), sizes, strict=True)
            ]
            sizes = [
                len(more) + folds.trained for more, (folds, _) in zip(added, parts, strict=True)
            ]
            examples = [
                [np.concatenate([folds.outside[fold], more]) for fold in of_members]
                for more, (folds, of_members) in zip(added, parts, strict=True)
            ]
        return TrainSampler(
            sizes,
            self.batch_size,
            seeds=[member.seed for member in members],
            temperature=self.temperature,
            examples=examples,
            lengths=[split.tokens.lengths for split in splits] if self.group_by_length else None,
        )

    def _parts(self, members: Sequence[Member]) -> list[tuple[Folds, list[int]]]:
        """The parts of each task, and the fold of each member; empty where members have none.

        Raises:
            InputError: Some members have a fold and others not, or the examples are not in parts.
        """
        folds = [member.fold for member in members if member.fold is not None]
        if len(folds) not in (0, len(members)) or any(fold >= (self.folds or 0) for fold in folds):
            raise InputError(
                f"folds {self.folds}: the data is not cut for member {members[0].name}, give the"
                " folds of its grid"
            )
        if not folds:
            return []
        of_tasks = [self.splits[task.name, OUT_OF_FOLD].folds for task in self.tasks]
        return [(of_task, folds) for of_task in of_tasks if of_task is not None]

    def val_dataloader(self) -> list[DataLoader[PackedBatch]]:
        """One loader a task, over dev, or over the members' own parts where there are folds; while
        fitting, over the other splits too, whose logits are stored and not scored.
        """
        assert self.trainer is not None
        fitting = self.trainer.state.fn == "fit"
        others = [] if self.folds is None else ["dev"]
        others += ["test"] if self.stores_test else []
        loaders = self.eval_loaders(self.scored)
        for split in others if fitting else ():
            loaders += self.eval_loaders(split)
        return loaders

    @property
    def stores_test(self) -> bool:
        """Whether logits of test are stored while fitting."""
        if self.test_logits is not None:
            return self.test_logits
        return any(part.split.labels is not None for part in self.of("test"))

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
        count = len(members)
        if split != OUT_OF_FOLD:
            return [eval_loader(part, self.eval_records(part), count) for part in self.of(split)]
        parts = self._parts(members)
        loaders = []
        for part, (folds, of_members) in zip(self.of(split) if parts else [], parts, strict=True):
            own = [folds.inside[fold] for fold in of_members]
            loaders.append(eval_loader(part, self.eval_records(part), count, own))
        return loaders

    def eval_records(self, part: TokenSplit) -> int:
        """Records of each member in a batch of a split that is evaluated."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        together = self.eval_batch_size or records_together(
            config=module.model.encoder.config,
            longest=int(part.tokens.lengths.max()),
            device=self.trainer.strategy.root_device,
        )
        return max(1, together // len(module.members))

    def _members(self) -> Sequence[Member]:
        """The population of the trainer's module."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        members: Sequence[Member] = module.members
        return members
