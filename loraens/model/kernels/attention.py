"""Attention within the sequences of a pack, without padding, in Triton: softmax on the way (Dao et
al. 2022), and dropout by the names of values, whose mask is made again in the backward.

Shape letters: S sequences, N tokens, Q query tokens, D width, H heads, K head width. A program of
the forward is one block of queries of one head and sequence; one of the backward a block of keys
and values, or of queries.
"""

import triton
import triton.language as tl

from loraens.model.kernels.hashing import kept


@triton.jit
def _tile(x, rows, start, length, stride, head, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """Rows of one head of a tensor `(N, H K)`, and which of their numbers are there."""
    columns = tl.arange(0, BLOCK_W)
    at = (start + rows[:, None]).to(tl.int64) * stride + head * WIDTH + columns[None, :]
    return x + at, (rows[:, None] < length) & (columns[None, :] < WIDTH)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Matrix product in float32; Triton's interpreter knows none of other types ("cpu")."""
    if PRECISION == "cpu":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _dropped(weights, rows, columns, head, first, second, threshold):
    """Weights of queries (rows) and keys, 0 where they are dropped."""
    index = (head << 24) + (rows[:, None] << 12) + columns[None, :]
    return tl.where(kept(index, first, second, threshold), weights, 0.0)


@triton.jit
def attend(
    q,  # (Q, D)
    k,  # (N, D)
    v,  # (N, D)
    out,  # (Q, D), written
    lse,  # (Q, H), written: logarithm of the sum of the exponentials of scores
    q_offsets,  # (S + 1,)
    k_offsets,  # (S + 1,)
    first,  # (S,) keys of the mask
    second,  # (S,)
    kv_stride,
    heads,
    factor,  # of scores
    threshold,
    scale,  # of the weights that are kept
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    DROP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention; `out` has q's stride."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    q_start = tl.load(q_offsets + s)
    q_length = tl.load(q_offsets + s + 1) - q_start
    k_start = tl.load(k_offsets + s)
    k_length = tl.load(k_offsets + s + 1) - k_start
    if tl.program_id(2) * BLOCK >= q_length:
        return
    stride = heads * WIDTH
    at, there = _tile(q, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    queries = tl.load(at, mask=there, other=0.0)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, BLOCK_W], tl.float32)
    for begin in range(0, k_length, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        at, there = _tile(k, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
        keys = tl.load(at, mask=there, other=0.0)
        scores = product(queries, tl.trans(keys), PRECISION) * factor
        scores = tl.where(columns[None, :] < k_length, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        if DROP:
            keys_of = tl.load(first + s), tl.load(second + s)
            weights = _dropped(weights, rows, columns, head, keys_of[0], keys_of[1], threshold)
        at, there = _tile(v, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
        values = tl.load(at, mask=there, other=0.0)
        mixed = mixed * shrink[:, None]
        mixed += product(weights.to(values.dtype), values, PRECISION)
        top = higher
    at, there = _tile(out, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    tl.store(at, (mixed * (scale / total)[:, None]).to(out.dtype.element_ty), mask=there)
    tl.store(lse + (q_start + rows) * heads + head, top + tl.log(total), mask=rows < q_length)


@triton.jit
def _gradients(
    queries, keys, values, out, grad, lse, rows, columns, k_length, head, first, second,
    factor, threshold, scale, DROP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one block of queries and one of keys: weights as they were applied to the values, and the
    gradient of the scores before their factor.
    """
    scores = product(queries, tl.trans(keys), PRECISION) * factor
    weights = tl.exp(scores - lse[:, None])
    weights = tl.where(columns[None, :] < k_length, weights, 0.0)
    weights_grad = product(grad, tl.trans(values), PRECISION)
    used = weights
    if DROP:
        used = _dropped(weights, rows, columns, head, first, second, threshold) * scale
        weights_grad = _dropped(weights_grad, rows, columns, head, first, second, threshold) * scale
    # what softmax's backward takes off: the sum of weights times their gradients is out times grad
    mean = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    return used, weights * (weights_grad - mean[:, None]) * factor


@triton.jit
def attend_backward_kv(
    q, k, v, out, lse, grad, q_grad, kv_grad, q_offsets, k_offsets, first, second,
    kv_stride, heads, factor, threshold, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr, DROP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients `(N, 2 D)` of keys and values from `grad` `(Q, D)` of `out`."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    q_start = tl.load(q_offsets + s)
    q_length = tl.load(q_offsets + s + 1) - q_start
    k_start = tl.load(k_offsets + s)
    k_length = tl.load(k_offsets + s + 1) - k_start
    if tl.program_id(2) * BLOCK >= k_length:
        return
    stride = heads * WIDTH
    first_key = tl.load(first + s)
    second_key = tl.load(second + s)
    at, there = _tile(k, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
    keys = tl.load(at, mask=there, other=0.0)
    at, there = _tile(v, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
    values = tl.load(at, mask=there, other=0.0)
    k_sum = tl.zeros([BLOCK, BLOCK_W], tl.float32)
    v_sum = tl.zeros([BLOCK, BLOCK_W], tl.float32)
    for begin in range(0, q_length, BLOCK):
        rows = begin + tl.arange(0, BLOCK)
        at, there = _tile(q, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
        queries = tl.load(at, mask=there, other=0.0)
        at, there = _tile(out, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
        o = tl.load(at, mask=there, other=0.0)
        at, there = _tile(grad, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
        g = tl.load(at, mask=there, other=0.0)
        # of rows behind the last, whose gradients are 0, no weight is more than 1
        of_rows = tl.load(lse + (q_start + rows) * heads + head, mask=rows < q_length, other=1e30)
        used, scores_grad = _gradients(
            queries, keys, values, o, g, of_rows, rows, columns, k_length, head, first_key,
            second_key, factor, threshold, scale, DROP, PRECISION,
        )  # fmt: skip
        v_sum += product(tl.trans(used.to(g.dtype)), g, PRECISION)
        k_sum += product(tl.trans(scores_grad.to(g.dtype)), queries, PRECISION)
    at, there = _tile(kv_grad, columns, k_start, k_length, 2 * stride, head, WIDTH, BLOCK_W)
    tl.store(at, k_sum.to(kv_grad.dtype.element_ty), mask=there)
    tl.store(at + stride, v_sum.to(kv_grad.dtype.element_ty), mask=there)


@triton.jit
def attend_backward_q(
    q, k, v, out, lse, grad, q_grad, kv_grad, q_offsets, k_offsets, first, second,
    kv_stride, heads, factor, threshold, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr, DROP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient `(Q, D)` of queries from `grad` `(Q, D)` of `out`."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    q_start = tl.load(q_offsets + s)
    q_length = tl.load(q_offsets + s + 1) - q_start
    k_start = tl.load(k_offsets + s)
    k_length = tl.load(k_offsets + s + 1) - k_start
    if tl.program_id(2) * BLOCK >= q_length:
        return
    stride = heads * WIDTH
    first_key = tl.load(first + s)
    second_key = tl.load(second + s)
    at, there = _tile(q, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    queries = tl.load(at, mask=there, other=0.0)
    at, there = _tile(out, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    o = tl.load(at, mask=there, other=0.0)
    at, there = _tile(grad, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    g = tl.load(at, mask=there, other=0.0)
    of_rows = tl.load(lse + (q_start + rows) * heads + head, mask=rows < q_length, other=1e30)
    q_sum = tl.zeros([BLOCK, BLOCK_W], tl.float32)
    for begin in range(0, k_length, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        at, there = _tile(k, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
        keys = tl.load(at, mask=there, other=0.0)
        at, there = _tile(v, columns, k_start, k_length, kv_stride, head, WIDTH, BLOCK_W)
        values = tl.load(at, mask=there, other=0.0)
        _, scores_grad = _gradients(
            queries, keys, values, o, g, of_rows, rows, columns, k_length, head, first_key,
            second_key, factor, threshold, scale, DROP, PRECISION,
        )  # fmt: skip
        q_sum += product(scores_grad.to(keys.dtype), keys, PRECISION)
    at, there = _tile(q_grad, rows, q_start, q_length, stride, head, WIDTH, BLOCK_W)
    tl.store(at, q_sum.to(q_grad.dtype.element_ty), mask=there)
