"""What a data set of one's own holds: cut, checked and described before anything is trained.

Shape letters: N examples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.data.folds import group_numbers, strata, text_key
from loraens.data.splits import Split, read_split
from loraens.data.tables import Reading
from loraens.data.tokens import Tokens, TokenSplit, cached_tokens
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.model.tokenizer import load_tokenizer
from loraens.seeding import derive_seed
from loraens.tasks import Task

DEV_SHARE = 0.2
DEV_LEAST = 12  # groups of equal texts; of fewer, bags can leave none out
DEV_MOST = 2000  # examples; more sharpen a choice little and are scored after every epoch
SHOWN = 20  # classes whose counts are printed


@dataclass(frozen=True)
class Understood:
    """Splits that are ready to be trained on.

    Args:
        task: What is predicted.
        splits: "train", "dev" and, where one is given, "test".
        notes: What was cut, and left out and why, a sentence each.
    """

    task: Task
    splits: dict[str, Split]
    notes: list[str]

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split's ids, texts and labels, by name."""
        nothing = np.zeros(0, np.int64)
        empty = Tokens(nothing, nothing, nothing, 0)
        return {
            name: TokenSplit(self.task, split, empty).fingerprint
            for name, split in self.splits.items()
        }

    def write(self, directory: Path) -> dict[str, str]:
        """Write the splits as JSON lines; returns the file of each."""
        files = {}
        for name, split in self.splits.items():
            path = directory / f"{name}.jsonl"
            lines = [json.dumps(row, ensure_ascii=False) for row in self._rows(split)]
            write_atomically(path, ("\n".join(lines) + "\n").encode())
            files[name] = str(path)
        return files

    def _rows(self, split: Split) -> Iterator[dict[str, Any]]:
        for index, (identity, texts) in enumerate(zip(split.ids, split.texts, strict=True)):
            row: dict[str, Any] = {"id": identity}
            row.update(zip(self.task.text_columns, texts, strict=True))
            if split.labels is not None:
                label = split.labels[index]
                row[self.task.label_column] = (
                    self.task.format_label(label)
                    if self.task.label_kind.categorical
                    else float(label)
                )
            yield row


def understand(
    task: Task,
    train: Split,
    dev: Any | None = None,
    test: Any | None = None,
    reading: Reading | None = None,
) -> Understood:
    """Read the other splits, cut dev from train where none is given, and leave out of train and
    dev what is in a split that they are scored on.

    Args:
        task: What is predicted.
        train: The labelled examples.
        dev: The table of those that choose, as `open_table` takes it.
        test: The table of those that are predicted, and scored where they have labels.
        reading: How files are read.

    Raises:
        InputError: A table cannot be used, or has no labels.
    """
    splits = {"train": train}
    for name, data in (("dev", dev), ("test", test)):
        if data is not None:
            splits[name] = read_split(data, name, task, reading=reading)
    notes = [split.report() for split in splits.values()]
    if "dev" in splits and splits["dev"].labels is None:
        raise InputError(
            f"{splits['dev'].origin} has no label in column {task.label_column!r}: the dev split"
            " needs labels"
        )
    notes += _repeats(splits["train"])
    for name, later in (("dev", ["test"]), ("train", ["dev", "test"])):
        for other in later:
            if name in splits and other in splits:
                splits[name], count = _without(splits[name], splits[other])
                if count:
                    notes.append(f"left out of {name}: {count} whose texts are in {other} too")
    if dev is None:
        splits = {**cut_dev(task, splits["train"]), **_only(splits, "test")}
        notes.append(
            f"dev: {len(splits['dev'])} of the records of train, cut at random,"
            " stratified by label and equal texts together"
        )
    return Understood(task, splits, notes)


def _only(splits: Mapping[str, Split], name: str) -> dict[str, Split]:
    return {name: splits[name]} if name in splits else {}


def _part(split: Split, keep: np.ndarray, name: str | None = None) -> Split:
    """The examples of a split for which `keep`, `(N,)`, is true."""
    indices = np.flatnonzero(keep)
    return replace(
        split,
        name=name or split.name,
        ids=[split.ids[index] for index in indices],
        texts=[split.texts[index] for index in indices],
        labels=None if split.labels is None else split.labels[indices],
    )


def _without(split: Split, other: Split) -> tuple[Split, int]:
    """A split without the examples whose texts another one has, and how many these are.

    Raises:
        InputError: None is left.
    """
    known = {text_key(texts) for texts in other.texts}
    keep = np.array([text_key(texts) not in known for texts in split.texts], bool)
    if not keep.any():
        raise InputError(f"all texts of {split.origin} are in {other.origin} too: give other files")
    return _part(split, keep), int((~keep).sum())


def _repeats(split: Split) -> list[str]:
    """How many texts are repeated, and how many of these with another label."""
    assert split.labels is not None
    labels: dict[tuple[str, ...], set[bytes]] = {}
    for texts, label in zip(split.texts, split.labels, strict=True):
        labels.setdefault(text_key(texts), set()).add(label.tobytes())
    repeated = len(split) - len(labels)
    if not repeated:
        return []
    several = sum(len(of_text) > 1 for of_text in labels.values())
    contrary = f"; {several} texts have more than one label" if several else ""
    return [f"train: {repeated} records repeat the text of another one{contrary}"]


def cut_dev(task: Task, split: Split) -> dict[str, Split]:
    """Train and dev of a labelled split: a fifth of the groups of equal texts of every class, or of
    every bin of numbers, is dev; more or fewer where that is outside of `DEV_LEAST` and `DEV_MOST`.

    Raises:
        InputError: There are too few different texts.
    """
    assert split.labels is not None
    groups = group_numbers(split)
    first = np.unique(groups, return_index=True)[1]  # the example that stands for its group
    if len(first) < 2 * DEV_LEAST:
        raise InputError(
            f"{split.origin} has {len(first)} different texts, too few to cut a dev set from: give"
            f" {2 * DEV_LEAST} or more, or a file (--dev)"
        )
    share = min(max(DEV_SHARE, DEV_LEAST / len(first)), DEV_MOST / len(split))
    classes = strata(task, split.labels, round(1 / DEV_SHARE))[first]
    rng = np.random.default_rng(derive_seed(0, "dev"))
    dev = np.zeros(len(first), bool)
    for number in np.unique(classes):
        of_class = rng.permutation(np.flatnonzero(classes == number))
        if len(of_class) > 1:
            dev[of_class[: max(1, round(share * len(of_class)))]] = True
    in_dev = dev[groups]
    return {"train": _part(split, ~in_dev), "dev": _part(split, in_dev, "dev")}


def describe(data: Understood, backbone: str, max_length: int) -> list[str]:
    """What is understood, a line each: splits, labels and lengths in tokens.

    Args:
        data: The splits.
        backbone: Backbone whose tokenizer is used.
        max_length: Longest sequence in tokens.
    """
    task = data.task
    texts = " and ".join(map(repr, task.text_columns))
    lines = [f"text: {texts}; label: {task.label_column!r}, {task.kind}; metric: {task.metric}"]
    lines += data.notes
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    lines.append(f"examples: {sizes}")
    labels = data.splits["train"].labels
    assert labels is not None
    lines.append(_classes(task, labels) if task.class_names else _numbers(labels))
    tokens = cached_tokens(data.splits["train"].texts, load_tokenizer(backbone), max_length)
    median, most, longest = np.quantile(tokens.lengths, [0.5, 0.95, 1]).astype(int)
    lines.append(
        f"tokens of a train text: median {median}, 95 % up to {most}, longest {longest};"
        f" {tokens.truncated} of {len(tokens.lengths)} are cut to {max_length}"
        + (" (--max_length)" if tokens.truncated else "")
    )
    return lines


def _classes(task: Task, labels: np.ndarray) -> str:
    counts = task.label_kind.counts(task, labels)
    assert counts is not None
    common = Counter(dict(zip(task.class_names, counts.tolist(), strict=True))).most_common()
    shown = ", ".join(f"{name} {count}" for name, count in common[:SHOWN])
    more = f", and {len(common) - SHOWN} more" if len(common) > SHOWN else ""
    (largest, most), (smallest, least) = common[0], common[-1]
    if labels.ndim == 2:
        return (
            f"{len(common)} labels in train: {shown}{more}; {labels.sum(axis=1).mean():.1f} an"
            f" example, none in {(~labels.any(axis=1)).mean():.0%}"
        )
    return (
        f"{len(common)} classes in train: {shown}{more}; always {largest!r} would be right in"
        f" {most / len(labels):.0%}, and is {most / max(1, least):.1f} times as frequent as"
        f" {smallest!r}"
    )


def _numbers(labels: np.ndarray) -> str:
    low, median, high = np.quantile(labels, [0, 0.5, 1])
    return (
        f"numbers in train: {low:g} to {high:g}, median {median:g}, standard deviation"
        f" {labels.std():.3g}"
    )
