"""Texts of more tokens than an encoder reads: cut, or their head and tail kept."""

from __future__ import annotations

from typing import Literal

from tokenizers import Encoding

Long = Literal["cut", "head_tail"]
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
