"""The hash of `loraens.model.dropout` in Triton: the same bits."""

import triton
import triton.language as tl

from loraens.model import dropout

STRIDE = tl.constexpr(dropout.STRIDE)
FIRST = tl.constexpr(dropout.FIRST)
SECOND = tl.constexpr(dropout.SECOND)
COLUMN_BITS = tl.constexpr(dropout.COLUMN_BITS)


@triton.jit
def kept(index, first, second, threshold):
    """Whether the values at int32 coordinates are kept, as `dropout.keep` says."""
    x = index * STRIDE + first
    x = (x ^ (x >> 15)) * FIRST + second
    x = (x ^ (x >> 14)) * SECOND
    return (x >> 1) - threshold < 0


@triton.jit
def kept_columns(row, columns, first, second, sequence, position, threshold):
    """Whether the values of one token vector are kept; `first` and `second` are `(S,)` keys."""
    s = tl.load(sequence + row)
    index = (tl.load(position + row).to(tl.int32) << COLUMN_BITS) + columns
    return kept(index, tl.load(first + s), tl.load(second + s), threshold)
