"""Products of every member's rows with its own two low-rank matrices, in Triton, without padding.

Shape letters: M members, N rows of all members, R largest rank, I inputs, O outputs. Members' rows
follow each other; those of member m begin at `ends[m]`.
"""

import triton
import triton.language as tl

from loraens.model.kernels.attention import product


@triton.jit
def add_product(
    x,  # (N, I)
    inner,  # (N, R), written
    out,  # (N, O), added to
    first,  # of member m at m * member_first, (R, I) by the strides
    second,  # of member m at m * member_second, (O, R) by the strides
    scales,  # (M,)
    ends,  # (M + 1,)
    inputs,
    outputs,
    ranks,
    x_stride,
    out_stride,
    first_rank,
    first_input,
    second_output,
    second_rank,
    SCALED: tl.constexpr,  # 1 or 2: the matrix that is multiplied by the scale
    ADD: tl.constexpr,  # whether `out` is wanted
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Inner = x first^T, and out += inner second^T; a program is one block of rows of a member."""
    member = tl.program_id(0)
    end = tl.load(ends + member + 1)
    rows = tl.load(ends + member) + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(ends + member) + tl.program_id(1) * BLOCK >= end:
        return
    scale = tl.load(scales + member)
    rank = tl.arange(0, RANK)
    there = (rows < end)[:, None]
    of_rank = (rank < ranks)[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    first += member.to(tl.int64) * ranks * inputs
    second += member.to(tl.int64) * ranks * outputs
    total = tl.zeros([BLOCK, RANK], tl.float32)
    for begin in range(0, inputs, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        inside = columns < inputs
        a = tl.load(x + long_rows * x_stride + columns, mask=there & inside[None, :], other=0.0)
        at = columns[:, None] * first_input + rank[None, :] * first_rank
        w = tl.load(first + at, mask=inside[:, None] & of_rank, other=0.0)
        if SCALED == 1:
            w *= scale
        total += product(a, w.to(a.dtype), PRECISION)
    rounded = total.to(inner.dtype.element_ty)
    tl.store(inner + long_rows * ranks + rank[None, :], rounded, mask=there & of_rank)
    if ADD:
        for begin in range(0, outputs, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            inside = columns < outputs
            at = rank[:, None] * second_rank + columns[None, :] * second_output
            w = tl.load(second + at, mask=(rank < ranks)[:, None] & inside[None, :], other=0.0)
            if SCALED == 2:
                w *= scale
            change = product(rounded, w.to(rounded.dtype), PRECISION)
            target = out + long_rows * out_stride + columns
            there_ = there & inside[None, :]
            change += tl.load(target, mask=there_, other=0.0).to(tl.float32)
            tl.store(target, change.to(out.dtype.element_ty), mask=there_)


@triton.jit
def inner_gradient(
    inner,  # (N, R)
    x,  # (N, I)
    grad,  # of member m at m * R * I, (R, I) by the strides, written
    scales,  # (M,)
    ends,  # (M + 1,)
    inputs,
    ranks,
    x_stride,
    grad_rank,
    grad_input,
    SCALED: tl.constexpr,  # whether the gradient is multiplied by the scale
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Inner^T x of each member's rows; a program is one block of columns of a member."""
    member = tl.program_id(0)
    start = tl.load(ends + member)
    end = tl.load(ends + member + 1)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (columns < inputs)[None, :]
    rank = tl.arange(0, RANK)
    total = tl.zeros([RANK, COLUMNS], tl.float32)
    for begin in range(start, end, BLOCK):
        rows = (begin + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
        there = rows < end
        a = tl.load(inner + rows * ranks + rank, mask=there & (rank < ranks)[None, :], other=0.0)
        b = tl.load(x + rows * x_stride + columns, mask=there & inside, other=0.0)
        total += product(tl.trans(a), b, PRECISION)
    if SCALED:
        total *= tl.load(scales + member)
    grad += member.to(tl.int64) * ranks * inputs
    at = rank[:, None] * grad_rank + columns[None, :] * grad_input
    tl.store(grad + at, total.to(grad.dtype.element_ty), mask=(rank < ranks)[:, None] & inside)
