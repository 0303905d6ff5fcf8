"""Texts to train students on: those of a run and unlabelled ones, with what a teacher predicts.

Shape letters: M members, B examples of a member in a batch, N labelled examples, U unlabelled
texts, T teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from loraens.data.config import DataConfig
from loraens.data.splits import Split
from loraens.data.targets import FIX, Targets, digest_of, unlabelled_texts
from loraens.data.text_data import TextData
from loraens.data.tokens import Tokens, TokenSplit, cached_tokens
from loraens.errors import InputError, escaped
from loraens.labels.base import SoftTargets
from loraens.members import Member
from loraens.model.batch import PackedBatch
from loraens.model.tokenizer import load_tokenizer


class Distilled(TextData):
    """The texts of a run of one task, whose training examples have a teacher's predictions beside
    their labels, and unlabelled texts that have these alone; see `loraens distil`.

    Args:
        run: Data module of the teacher's members: `class_path` and `init_args`.
        targets: File of the teacher's predictions, as `loraens distil` wrote it.
        texts: Files of unlabelled texts, as the teacher was given them.
        label_share: Share of the label in the loss of an example that has both.
        target_temperature: Divides log probabilities, of teacher and member, in the loss of the
            targets.
        backbone: Backbone whose tokenizer is used; set from `--model.backbone`.

    Raises:
        InputError: An option is out of range.
    """

    def __init__(
        self,
        run: dict[str, Any],
        targets: str,
        texts: Sequence[str] = (),
        label_share: float = 0.5,
        target_temperature: float = 1.0,
        backbone: str = "bert-base-uncased",
    ) -> None:
        check_options(label_share, target_temperature)
        inner = DataConfig(run["class_path"], run.get("init_args") or {}).build(backbone)
        (_, _, *options) = signature(TextData.__init__).parameters
        super().__init__(inner.sources, **{name: getattr(inner, name) for name in options})
        self.targets = Path(targets)
        self.texts = tuple(texts)
        self.label_share = label_share
        self.target_temperature = target_temperature
        self._taught: TaughtSplit

    def setup(self, stage: str) -> None:
        """Read and tokenise all splits, the unlabelled texts and the targets, once.

        Raises:
            InputError: A file cannot be used, or the targets are of other texts.
        """
        if not self.splits:
            super().setup(stage)
            self._taught = self._read_taught()

    def _read_taught(self) -> TaughtSplit:
        """All that students are trained on.

        Raises:
            InputError: A file cannot be used, or the targets are of other texts.
        """
        (task,) = self.tasks
        train = self.splits[task.name, "train"]
        more = unlabelled_texts(task, self.texts, [part.split for part in self.splits.values()])
        targets = Targets.read(self.targets)
        if targets.texts != digest_of(train, more):
            raise InputError(
                f"{self.targets} is of other texts than the run's data and the files"
                f" {', '.join(self.texts) or '(none)'}: restore these, or {FIX}"
            )
        teachers = len(targets.unlabelled)
        if teachers != (self.folds or 0) + 1:
            raise InputError(
                f"folds {self.folds}: the teacher is of {teachers - 1 or None}, leave it out",
                option="grid.folds",
            )
        if more is not None:
            tokens = cached_tokens(
                more.texts, load_tokenizer(self.backbone), self.max_length, self.long
            )
            rank_zero_info(escaped(TokenSplit(task, more, tokens).report()))
            train = _with_more(train, more, tokens)
        held_out = np.broadcast_to(targets.labelled, (teachers, *targets.labelled.shape))
        known = np.isfinite(targets.labelled.reshape(len(targets.labelled), -1)).all(axis=1)
        return TaughtSplit(
            task=task,
            split=train.split,
            tokens=train.tokens,
            targets=np.nan_to_num(np.concatenate([held_out, targets.unlabelled], axis=1)),
            label_shares=np.concatenate(
                [np.where(known, self.label_share, 1.0), np.zeros(targets.unlabelled.shape[1])]
            ),
            temperature=self.target_temperature,
            digest=targets.digest,
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """As of any data, and of the targets and how they are learned."""
        (task,) = self.tasks
        how = f"share {self.label_share:g} of labels, temperature {self.target_temperature:g}"
        return {**super().fingerprints, f"{task.name}-targets": f"{self._taught.digest}, {how}"}

    def trained_by(self, members: Sequence[Member]) -> list[TokenSplit]:
        """The labelled examples and then the unlabelled texts, with the teacher of each member."""
        teachers = [-1 if member.fold is None else member.fold for member in members]
        return [replace(self._taught, teachers=tuple(teachers))]


@dataclass(kw_only=True)
class TaughtSplit(TokenSplit):
    """Examples to train on, with what teachers predict for them.

    Args:
        targets: `(T, N + U, ...)`; anything where there is none.
        label_shares: `(N + U,)` share of the label in the loss.
        temperature: Of the loss of the targets.
        digest: SHA-256 of the targets.
        teachers: Index of the teacher of each of M members.
    """

    targets: np.ndarray
    label_shares: np.ndarray
    temperature: float
    digest: str
    teachers: tuple[int, ...] = ()

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """The packed batch of examples `(M, B)`."""
        soft = SoftTargets(
            targets=torch.from_numpy(self.targets[np.array(self.teachers)[:, None], indices]),
            label_shares=torch.from_numpy(self.label_shares[indices]),
            temperature=self.temperature,
        )
        return replace(super().batch(indices), soft=soft)


def check_options(label_share: float, temperature: float) -> None:
    """Refuse what is out of range.

    Raises:
        InputError: It names the option.
    """
    if not 0 <= label_share <= 1:
        raise InputError(
            f"label_share {label_share:g}: a share from 0 to 1 is expected", option="label_share"
        )
    if not 0 < temperature < np.inf:
        raise InputError(
            f"temperature {temperature:g}: a positive number is expected", option="temperature"
        )


def _with_more(train: TokenSplit, more: Split, tokens: Tokens) -> TokenSplit:
    """Training examples with unlabelled texts at their end, whose labels are zeros."""
    split, own = train.split, train.tokens
    assert split.labels is not None
    ones = np.ones(len(more))
    return TokenSplit(
        task=train.task,
        split=replace(
            split,
            ids=[*split.ids, *more.ids],
            texts=[*split.texts, *more.texts],
            labels=np.concatenate([split.labels, np.zeros((len(more), *split.labels.shape[1:]))]),
            groups=None,
            weights=None if split.weights is None else np.concatenate([split.weights, ones]),
        ),
        tokens=Tokens(
            ids=np.concatenate([own.ids, tokens.ids]),
            types=np.concatenate([own.types, tokens.types]),
            offsets=np.concatenate([own.offsets, own.offsets[-1] + tokens.offsets[1:]]),
            truncated=own.truncated + tokens.truncated,
        ),
    )
