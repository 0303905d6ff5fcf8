"""Texts tokenised once: cached by content, tokenizer and length."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from loraens.data.folds import Folds, cut
from loraens.data.long_texts import Long, head_and_tail, windows_of
from loraens.data.splits import Split
from loraens.data.tables import BAR_DELAY
from loraens.files import replacing
from loraens.members import OUT_OF_FOLD
from loraens.model.batch import PackedBatch, pack
from loraens.model.packaged import cache_directory
from loraens.tasks import Task

CHUNK = 2048  # examples that are tokenised together
CHUNK_CHARACTERS = 2**22
SHOWN = 20  # classes in a report
FAR = 16  # characters a token: words have four to five


@dataclass
class Tokens:
    """Token ids of all examples, concatenated.

    Args:
        ids: Token ids, int32.
        types: 0 for the first text and special tokens, 1 for the second, int8.
        offsets: Start of each sequence, and the end, int64.
        truncated: How many examples were longer than the maximum length.
        starts: First sequence of each example, and the end, int64; None where each is one.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    truncated: int
    starts: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets if self.starts is None else self.offsets[self.starts])


def tokenise(
    texts: list[tuple[str, ...]], tokenizer: Tokenizer, max_length: int, long: Long = "cut"
) -> Tokens:
    """Tokenise one or two texts an example, with special tokens, shortened to `max_length` tokens
    (the longer text first): cut, to head and tail, or into windows of so many.

    Memory grows with the tokens that are kept, not with those of the whole texts; a bar is shown
    where it takes long.
    """
    from tqdm import tqdm

    pairs = len(texts[0]) == 2
    side = (tokenizer.truncation or {"direction": "right"})["direction"]
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    counts: list[int] = []
    overflowing = 0
    with tqdm(
        desc="tokenise", total=len(texts), unit=" texts", delay=BAR_DELAY, disable=None
    ) as bar:
        cut = long == "cut"
        for chunk in _chunks(texts, tokenizer, max_length if cut and side == "right" else None):
            if cut:
                tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
            else:
                tokenizer.no_truncation()
            encoded = tokenizer.encode_batch(chunk if pairs else [text for (text,) in chunk])
            examples = [_kept(encoding, max_length, long) for encoding in encoded]
            counts += map(len, examples)
            kept = [sequence for example in examples for sequence in example]
            lengths += [len(of_text) for of_text, _ in kept]
            ids.append(_joined([of_text for of_text, _ in kept], np.int32))
            if pairs:
                types.append(_joined([of_text for _, of_text in kept], np.int8))
            overflowing += sum(
                bool(encoding.overflowing) or len(encoding) > max_length for encoding in encoded
            )
            bar.update(len(chunk))
    if not cut:
        tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    total = sum(lengths)
    return Tokens(
        ids=_filled(np.empty(total, np.int32), ids),
        types=_filled(np.zeros(total, np.int8), types),
        offsets=_ends(lengths),
        truncated=overflowing,
        starts=_ends(counts) if long == "windows" else None,
    )


def _ends(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _kept(encoding: Encoding, max_length: int, long: Long) -> list[tuple[list[int], list[int]]]:
    """Ids and types of the tokens of an example's sequences: of one that is too long its head and
    tail, or its windows.
    """
    ids, types = encoding.ids, encoding.type_ids
    if len(encoding) <= max_length:
        return [(ids, types)]
    if long == "windows":
        parts = windows_of(encoding, max_length)
    else:
        parts = [head_and_tail(encoding, max_length)]
    return [([ids[index] for index in part], [types[index] for index in part]) for part in parts]


def _joined(rows: list[list[int]], kind: type) -> np.ndarray:
    return np.concatenate([np.asarray(row, kind) for row in rows])


def _filled(whole: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """An array with the parts in a row; they are freed on the way, to save memory."""
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def _chunks(
    texts: list[tuple[str, ...]], tokenizer: Tokenizer, max_length: int | None
) -> Iterator[list[tuple[str, ...]]]:
    """The texts, cut where they are far longer than what is kept, a few at a time; whole where
    no length is given, as where tokens are cut at the begin.
    """
    chunk: list[tuple[str, ...]] = []
    size = 0
    for example in texts:
        if max_length is not None:
            example = shortened(example, tokenizer, max_length)
        chunk.append(example)
        size += sum(map(len, chunk[-1]))
        if len(chunk) == CHUNK or size > CHUNK_CHARACTERS:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def shortened(texts: tuple[str, ...], tokenizer: Tokenizer, max_length: int) -> tuple[str, ...]:
    """An example whose tokens, cut to `max_length`, are those of the whole one.

    A text of more than `FAR` characters a token is cut between words where what is left has twice
    as many tokens as are kept: encoders of the BERT family split words first, so the begin of a
    text has the same tokens as in the whole. Of a pair in which both are that long, neither is cut:
    which one keeps the odd token depends on their whole lengths.
    """
    bound = FAR * max_length
    long = [index for index, text in enumerate(texts) if len(text) > 2 * bound]
    if len(long) != 1:
        return texts
    (index,) = long
    needed = 2 * max_length
    if len(texts) == 2:  # the cut text must stay the one with more tokens
        needed += _count(texts[1 - index], tokenizer)
    text = texts[index]
    while 2 * bound < len(text):
        begin, space, _ = re.sub(r"\s", " ", text[:bound]).rpartition(" ")
        if space and _count(begin, tokenizer) >= needed:
            return (*texts[:index], text[: len(begin)], *texts[index + 1 :])
        bound *= 2
    return texts


def _count(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text, without special ones."""
    tokenizer.no_truncation()
    return len(tokenizer.encode(text, add_special_tokens=False))


def cached_tokens(
    texts: list[tuple[str, ...]], tokenizer: Tokenizer, max_length: int, long: Long = "cut"
) -> Tokens:
    """As `tokenise`, read from the cache where the same texts, tokenizer and length were seen
    before.

    A cached file that cannot be read is made again.
    """
    backend = json.loads(tokenizer.to_str())
    backend["truncation"] = backend["padding"] = None  # left over from the last call
    length = f"{max_length}" if long == "cut" else f"{max_length} {long}"
    digest = hashlib.sha256(f"v1 {length} {json.dumps(backend, sort_keys=True)}".encode())
    for text in texts:
        digest.update("\x1f".join(text).encode() + b"\x1e")
    path = cache_directory() / "tokens" / f"{digest.hexdigest()[:40]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                starts = file["starts"] if long == "windows" else None
                truncated = int(file["truncated"])
                return Tokens(file["ids"], file["types"], file["offsets"], truncated, starts)
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, EOFError):
            path.unlink()
    tokens = tokenise(texts, tokenizer, max_length, long)
    of_windows: dict[str, Any] = {} if tokens.starts is None else {"starts": tokens.starts}
    try:
        with replacing(path) as file:
            np.savez(
                file,
                ids=tokens.ids,
                types=tokens.types,
                offsets=tokens.offsets,
                truncated=tokens.truncated,
                **of_windows,
            )
    except OSError as error:
        warnings.warn(
            f"tokens are not cached, as {cache_directory()} cannot be written ({error.strerror}):"
            " set LORAENS_CACHE to a directory that can",
            stacklevel=2,
        )
    return tokens


@dataclass
class TokenSplit:
    """One split of one task, tokenised; the split "oof" has the examples of train, in parts."""

    task: Task
    split: Split
    tokens: Tokens
    folds: Folds | None = None

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """The packed batch of examples `(M, B)`."""
        tokens = self.tokens
        labels = self.split.labels
        return pack(
            tokens=tokens.ids,
            types=tokens.types,
            offsets=tokens.offsets,
            indices=indices,
            labels=labels,
            task=self.task.name,
            split=self.split.name,
            weights=self.split.weights,
            starts=tokens.starts,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the split's ids, texts, labels and weights, in order, and of their parts."""
        digest = hashlib.sha256()
        for identity, texts in zip(self.split.ids, self.split.texts, strict=True):
            digest.update("\x1f".join((identity, *texts)).encode() + b"\x1e")
        if self.split.labels is not None:
            digest.update(self.split.labels.tobytes())
        if self.split.weights is not None:
            digest.update(self.split.weights.tobytes())
        if self.folds is not None:
            digest.update(self.folds.parts.tobytes())
        return digest.hexdigest()

    def in_folds(self, count: int) -> TokenSplit:
        """The same examples as the split "oof", cut into K parts.

        Raises:
            InputError: There are not enough examples.
        """
        named = replace(self.split, name=OUT_OF_FOLD, dropped={})
        return TokenSplit(self.task, named, self.tokens, cut(self.task, self.split, count))

    def report(self) -> str:
        """One line: what was read, dropped and cut, to the maximum length or into parts."""
        if self.folds is not None:
            return f"{self.task.name} {self.folds.report()}"
        parts = [f"{self.task.name} {self.split.report()}"]
        if self.tokens.truncated:
            what = "cut to the maximum length"
            if self.tokens.starts is not None:
                what = f"cut into up to {np.diff(self.tokens.starts).max()} windows"
            parts.append(f"{self.tokens.truncated} {what}")
        if self.split.labels is not None:
            counts = self.task.label_kind.counts(self.task, self.split.labels)
            parts += [] if counts is None else [self._classes(counts)]
        return "; ".join(parts)

    def _classes(self, counts: np.ndarray) -> str:
        """The classes with their numbers of examples `(K,)`, in order."""
        names = self.task.class_names
        shown = [f"{name} {count}" for name, count in zip(names, counts.tolist(), strict=True)]
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        kind = (
            "labels" if self.split.labels is not None and self.split.labels.ndim == 2 else "classes"
        )
        return f"{len(names)} {kind}: {', '.join(shown[:SHOWN])}{more}"
