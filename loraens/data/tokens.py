"""Texts tokenised once: cached by content, tokenizer and length."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from loraens.data.folds import Folds, cut
from loraens.data.splits import Split
from loraens.members import OUT_OF_FOLD
from loraens.model.batch import PackedBatch, pack
from loraens.model.tokenizer import cache_directory
from loraens.store import write_atomically
from loraens.tasks import Task


@dataclass
class Tokens:
    """Token ids of all examples, concatenated.

    Args:
        ids: Token ids, int32.
        types: 0 for the first text and special tokens, 1 for the second, int8.
        offsets: Start of each example, and the end, int64.
        truncated: How many examples were cut to the maximum length.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self.offsets)


def tokenise(texts: list[tuple[str, ...]], tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Tokenise one or two texts an example, with special tokens, cut to `max_length` tokens (the
    longer text first).
    """
    side = (tokenizer.truncation or {"direction": "right"})["direction"]
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=side)
    single = len(texts[0]) == 1
    encoded = tokenizer.encode_batch([text[0] for text in texts] if single else texts)
    lengths = np.array([len(encoding) for encoding in encoded])
    ids = np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encoded])
    types = np.zeros(len(ids), np.int8)
    if not single:
        types = np.concatenate([np.asarray(encoding.type_ids, np.int8) for encoding in encoded])
    overflowing = sum(bool(encoding.overflowing) for encoding in encoded)
    return Tokens(
        ids, types, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), overflowing
    )


def cached_tokens(texts: list[tuple[str, ...]], tokenizer: Tokenizer, max_length: int) -> Tokens:
    """As `tokenise`, read from the cache where the same texts, tokenizer and length were seen
    before.

    A cached file that cannot be read is made again.
    """
    backend = json.loads(tokenizer.to_str())
    backend["truncation"] = backend["padding"] = None  # left over from the last call
    digest = hashlib.sha256(f"v1 {max_length} {json.dumps(backend, sort_keys=True)}".encode())
    for text in texts:
        digest.update("\x1f".join(text).encode() + b"\x1e")
    path = cache_directory() / "tokens" / f"{digest.hexdigest()[:40]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return Tokens(file["ids"], file["types"], file["offsets"], int(file["truncated"]))
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError):
            path.unlink()
    tokens = tokenise(texts, tokenizer, max_length)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=tokens.ids,
        types=tokens.types,
        offsets=tokens.offsets,
        truncated=tokens.truncated,
    )
    write_atomically(path, buffer.getvalue())
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
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the split's ids, texts and labels, in order, and of their parts."""
        digest = hashlib.sha256()
        for identity, texts in zip(self.split.ids, self.split.texts, strict=True):
            digest.update("\x1f".join((identity, *texts)).encode() + b"\x1e")
        if self.split.labels is not None:
            digest.update(self.split.labels.tobytes())
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
        shortened = (
            f"; {self.tokens.truncated} cut to the maximum length" if self.tokens.truncated else ""
        )
        return f"{self.task.name} {self.split.report()}{shortened}"
