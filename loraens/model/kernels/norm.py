"""Dropout, residual and layer norm in one Triton kernel each way; the mask is made again in the
backward.

Shape letters: Q tokens, D width, S sequences. A program is one token.
"""

import triton
import triton.language as tl

from loraens.model.kernels.hashing import kept_columns


@triton.jit
def add_norm(
    y,  # (Q, D), overwritten by the sum
    residual,  # (Q, D)
    weight,  # (D,)
    bias,  # (D,)
    out,  # (Q, D)
    mean,  # (Q,)
    rstd,  # (Q,)
    first,  # (S,) keys of the mask
    second,  # (S,)
    sequence,  # (Q,)
    position,  # (Q,)
    width,
    eps,
    threshold,
    scale,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """Layer norm of residual + dropout(y), numbers rounded where the eager path rounds them."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        keep = kept_columns(row, columns, first, second, sequence, position, threshold)
        x = tl.where(keep, x, 0.0) * scale
    x += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(y.dtype.element_ty)
    tl.store(y + at, rounded, mask=inside)
    x = rounded.to(tl.float32)
    mu = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mu, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    tl.store(mean + row, mu)
    tl.store(rstd + row, r)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (centred * r * w + b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_backward(
    grad,  # (Q, D)
    x,  # (Q, D), the sum
    mean,  # (Q,)
    rstd,  # (Q,)
    weight,  # (D,)
    residual_grad,  # (Q, D), written
    y_grad,  # (Q, D), written with DROP; without, it is the residual's
    first,
    second,
    sequence,
    position,
    width,
    threshold,
    scale,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """Gradients of residual and y of `add_norm`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    r = tl.load(rstd + row)
    normed = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + row)) * r
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normed = tl.where(inside, normed, 0.0)
    along = tl.sum(g * normed, 0) / width
    g = ((g - tl.sum(g, 0) / width - normed * along) * r).to(residual_grad.dtype.element_ty)
    tl.store(residual_grad + at, g, mask=inside)
    if DROP:
        keep = kept_columns(row, columns, first, second, sequence, position, threshold)
        g = tl.where(keep, g.to(tl.float32) * scale, 0.0).to(y_grad.dtype.element_ty)
        tl.store(y_grad + at, g, mask=inside)


@triton.jit
def drop_tokens(
    x,  # (Q, D)
    out,  # (Q, D)
    first,
    second,
    sequence,
    position,
    width,
    threshold,
    scale,
    BLOCK: tl.constexpr,
):
    """Inverted dropout of token vectors."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    keep = kept_columns(row, columns, first, second, sequence, position, threshold)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(out + at, tl.where(keep, value, 0.0).to(out.dtype.element_ty), mask=inside)
