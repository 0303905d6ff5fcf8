"""Texts of more tokens than an encoder reads: cut, their head and tail kept, or read in windows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from tokenizers import Encoding

Long = Literal["cut", "head_tail", "windows"]
OVERLAP = 4  # a quarter of a window is in the next one, too
HEAD = 4  # of what is kept of a text, this part is its head: a quarter


def shares(sizes: list[int], room: int) -> list[int]:
    """Tokens that are kept of one or two texts: the longer one loses first.

    Examples:
        >>> shares([10, 3], 8), shares([10, 9], 8), shares([10, 9], 7), shares([2, 3], 8)
        ([5, 3], [4, 4], [4, 3], [2, 3])
    """
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    first, second = sizes
    half = room // 2
    if first + second <= room:
        return sizes
    if first <= half:
        return [first, room - first]
    return [room - second, second] if second <= half else [room - half, half]


def head_and_tail(encoding: Encoding, max_length: int) -> list[int]:
    """Indices of the tokens that are kept of an example: special ones, and of each text that is too
    long the first quarter of its share and the last three, after Sun et al. (2019), who keep 128
    and 382 of 510.

    Args:
        encoding: The whole example, with special tokens.
        max_length: Tokens that there may be.
    """
    of = encoding.sequence_ids  # None of special tokens
    sizes = [of.count(text) for text in range(max((x for x in of if x is not None), default=0) + 1)]
    kept = shares(sizes, max_length - of.count(None))
    seen = [0] * len(sizes)
    indices = []
    for index, text in enumerate(of):
        if text is None:
            indices.append(index)
            continue
        head = kept[text] // HEAD if kept[text] < sizes[text] else kept[text]
        if seen[text] < head or seen[text] >= sizes[text] - (kept[text] - head):
            indices.append(index)
        seen[text] += 1
    return indices


def windows_of(encoding: Encoding, max_length: int) -> list[list[int]]:
    """Indices of the tokens of each window of an example: special ones, and a part of the text, or
    of the longer text of a pair, beside the other, of which at most half a window is kept.

    A quarter of what a window has of the text is in the next one, too; the last one ends with the
    text.

    Args:
        encoding: The whole example, with special tokens; more than `max_length`.
        max_length: Tokens that a window may have.
    """
    of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    texts = [np.flatnonzero(of == text) for text in range(of.max() + 1)]
    long = max(range(len(texts)), key=lambda text: len(texts[text]))
    room = max_length - int((of < 0).sum())
    others = [tokens[: room // 2] for text, tokens in enumerate(texts) if text != long]
    size = room - sum(map(len, others))
    last = len(texts[long]) - size
    starts = [*range(0, last, size - size // OVERLAP), last]
    fixed = np.concatenate([np.flatnonzero(of < 0), *others])
    parts = [np.concatenate([fixed, texts[long][start : start + size]]) for start in starts]
    return [np.sort(part).tolist() for part in parts]
