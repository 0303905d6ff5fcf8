"""The Triton kernels as PyTorch operators of the namespace `loraens`, all of which write into given
tensors.

As operators they are seen by PyTorch's dispatch, which counts them, and runs them in Triton's
interpreter where tensors are on the CPU (with TRITON_INTERPRET=1, in tests).

Shape letters: S sequences, N tokens, Q query tokens, D width, H heads, P parameters, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from loraens.model.dropout import COLUMN_BITS, coordinates, keep, threshold_of
from loraens.model.kernels import attention, low_rank, norm, optimiser
from loraens.model.upload import upload

_LIBRARY = torch.library.Library("loraens", "DEF")
_KEYS = "Tensor? first, Tensor? second"
_ROWS = f"{_KEYS}, Tensor? sequence, Tensor? position"
_SPANS = f"Tensor q_offsets, Tensor k_offsets, int longest, int heads, {_KEYS}, float p"
_BLOCK = 1024  # numbers of a program of the optimiser
_FLOATS = {torch.float32: tl.float32, torch.float64: tl.float64}


def _operator(schema: str) -> Callable[[Callable[..., None]], Any]:
    """Register a function as an operator without result; of tensors without numbers it does
    nothing.
    """

    def register(function: Callable[..., None]) -> Any:
        name = schema.partition("(")[0]
        _LIBRARY.define(f"{schema} -> ()")
        for key in ("CUDA", "CPU"):
            _LIBRARY.impl(name, function, key)
        _LIBRARY.impl(name, lambda *args, **options: None, "Meta")
        return getattr(torch.ops.loraens, name).default

    return register


def _warps(width: int) -> int:
    return 4 if width <= 1024 else 8


@_operator(
    "add_norm(Tensor(a!) y, Tensor residual, Tensor weight, Tensor bias, Tensor(b!) out,"
    f" Tensor(c!) mean, Tensor(d!) rstd, {_ROWS}, float p, float eps)"
)
def add_norm(
    y: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    sequence: Tensor | None,
    position: Tensor | None,
    p: float,
    eps: float,
) -> None:
    """Layer norm `out` of residual + dropout(y), all `(Q, D)`; the sum is left in y, and mean and
    reciprocal standard deviation `(Q,)` are written. Without keys nothing is dropped.
    """
    block = triton.next_power_of_2(y.shape[1])
    norm.add_norm[(len(y),)](
        y, residual, weight, bias, out, mean, rstd, first, second, sequence, position,
        y.shape[1], eps, threshold_of(p), 1 / (1 - p),
        BLOCK=block, DROP=first is not None, num_warps=_warps(block),
    )  # fmt: skip


@_operator(
    "add_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight,"
    f" Tensor(a!) residual_grad, Tensor(b!)? y_grad, {_ROWS}, float p)"
)
def add_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    residual_grad: Tensor,
    y_grad: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    sequence: Tensor | None,
    position: Tensor | None,
    p: float,
) -> None:
    """Gradients `(Q, D)` of residual and y of `add_norm`; x is the sum. Without keys they are the
    same, and only the first is written.
    """
    block = triton.next_power_of_2(x.shape[1])
    norm.add_norm_backward[(len(x),)](
        grad, x, mean, rstd, weight, residual_grad, y_grad, first, second, sequence, position,
        x.shape[1], threshold_of(p), 1 / (1 - p),
        BLOCK=block, DROP=first is not None, num_warps=_warps(block),
    )  # fmt: skip


@_operator(
    "drop_tokens(Tensor x, Tensor(a!) out, Tensor first, Tensor second, Tensor sequence,"
    " Tensor position, float p)"
)
def drop_tokens(
    x: Tensor,
    out: Tensor,
    first: Tensor,
    second: Tensor,
    sequence: Tensor,
    position: Tensor,
    p: float,
) -> None:
    """Inverted dropout of token vectors `(Q, D)`."""
    block = triton.next_power_of_2(x.shape[1])
    norm.drop_tokens[(len(x),)](
        x, out, first, second, sequence, position, x.shape[1], threshold_of(p), 1 / (1 - p),
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


def trial(device: torch.device) -> None:
    """Launch one kernel, and compare its numbers with those of the CPU.

    Raises:
        RuntimeError: They differ, or it cannot be launched.
    """
    width = 64
    first, second = (torch.tensor([number], dtype=torch.int32) for number in (12345, -678))
    index = coordinates(width, bits=(COLUMN_BITS,), device=first.device)
    expected = keep(index, (first, second), 0.3, torch.empty_like(index), torch.empty_like(index))
    ones = torch.ones(1, width, device=device)
    out = torch.empty_like(ones)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    drop_tokens(ones, out, first.to(device), second.to(device), row, row, 0.3)
    if not torch.equal(out[0].cpu() != 0, expected != 0):
        raise RuntimeError("masks are not those of the CPU")


def block_of(longest: int, width: int, itemsize: int) -> int:
    """Queries and keys of a program of attention: as many as sequences have, up to what fits in a
    GPU's shared memory.
    """
    most = 64 if width * itemsize <= 128 else 32
    return min(most, max(16, int(triton.next_power_of_2(longest))))


def _precision(x: Tensor) -> str:
    """How kernels multiply float32."""
    if x.device.type == "cpu":
        return "cpu"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _attention(
    kernel: Any,
    tensors: Sequence[Tensor],
    offsets: tuple[Tensor, Tensor],
    blocks_of: int,
    longest: int,
    heads: int,
    first: Tensor | None,
    second: Tensor | None,
    p: float,
) -> None:
    """Launch one of attention's kernels; `tensors` begin with q, k and v, and the sequences have
    at most `longest` keys, and `blocks_of` of what a program is for.
    """
    q, k = tensors[:2]
    width = q.shape[1] // heads
    block = block_of(longest, width, q.element_size())
    kernel[(len(offsets[0]) - 1, heads, triton.cdiv(blocks_of, block))](
        *tensors, *offsets,
        offsets[0] if first is None else first, offsets[0] if second is None else second,
        k.stride(0), heads, width**-0.5, threshold_of(p), 1 / (1 - p) if first is not None else 1.0,
        WIDTH=width, BLOCK=block, BLOCK_W=max(16, triton.next_power_of_2(width)),
        DROP=first is not None, PRECISION=_precision(q),
    )  # fmt: skip


@_operator(
    f"attend(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor(b!) lse, {_SPANS}, int queries)"
)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    longest: int,
    heads: int,
    first: Tensor | None,
    second: Tensor | None,
    p: float,
    queries: int,
) -> None:
    """Attention of queries `(Q, D)` to keys and values `(N, D)` of the same sequence, and its `lse`
    `(Q, H)`; of each sequence at most `longest` keys and `queries` queries.
    """
    tensors = (q, k, v, out, lse)
    offsets = (q_offsets, k_offsets)
    _attention(attention.attend, tensors, offsets, queries, longest, heads, first, second, p)


@_operator(
    "attend_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor grad,"
    f" Tensor(a!) q_grad, Tensor(b!) kv_grad, {_SPANS}, int queries)"
)
def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    q_grad: Tensor,
    kv_grad: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    longest: int,
    heads: int,
    first: Tensor | None,
    second: Tensor | None,
    p: float,
    queries: int,
) -> None:
    """Gradients of `attend`, of queries `(Q, D)` and of keys and values side by side `(N, 2 D)`;
    two kernels.
    """
    tensors = (q, k, v, out, lse, grad, q_grad, kv_grad)
    offsets = (q_offsets, k_offsets)
    for kernel, blocks_of in (
        (attention.attend_backward_kv, longest),
        (attention.attend_backward_q, queries),
    ):
        _attention(kernel, tensors, offsets, blocks_of, longest, heads, first, second, p)


def _table(members: int, *columns: Sequence[Tensor]) -> Tensor:
    """Addresses `(P, 5)` of parameters, gradients and moments, or of gradients alone, and the
    numbers of a member.

    Raises:
        ValueError: A tensor is not contiguous.
    """
    if not all(tensor.is_contiguous() for column in columns for tensor in column):
        raise ValueError("kernels read and change contiguous parameters and gradients only")
    addresses = [[tensor.data_ptr() for tensor in column] for column in columns]
    addresses += [addresses[0]] * (4 - len(addresses))
    numbers = [tensor.numel() // members for tensor in columns[0]]
    return torch.tensor([*addresses, numbers]).T.contiguous()


@_operator("gradient_squares(Tensor[] grads, Tensor(a!) sums)")
def gradient_squares(grads: list[Tensor], sums: Tensor) -> None:
    """Sums `(P, parts, M)` of the squares of each member's gradients of each parameter."""
    _, parts, members = sums.shape
    (table,) = upload([_table(members, grads)], sums.device)
    optimiser.squares[(len(grads), members, parts)](
        table, sums, members, BLOCK=_BLOCK, PARTS=parts, NUMBER=_FLOATS[sums.dtype]
    )


@_operator(
    "adamw(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] firsts, Tensor(c!)[] seconds,"
    " float[] corrections, int[] rows, Tensor rates, Tensor decays, Tensor factors, Tensor active,"
    " float beta1, float beta2, float eps)"
)
def adamw(
    parameters: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    corrections: list[float],
    rows: list[int],
    rates: Tensor,
    decays: Tensor,
    factors: Tensor,
    active: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of AdamW of all parameters: with decays and factors of the gradients `(M,)` of each
    member, rates `(2, M)`, of which each parameter has a row, and of each parameter's moments two
    corrections, 1 - beta1 ** t and the root of 1 - beta2 ** t.
    """
    members = len(decays)
    table = _table(members, parameters, grads, firsts, seconds)
    divisors, of_rates = torch.tensor(corrections, dtype=rates.dtype), torch.tensor(rows)
    table, divisors, of_rates = upload([table, divisors, of_rates], rates.device)
    most = max(parameter.numel() for parameter in parameters) // members
    optimiser.adamw[(triton.cdiv(most, _BLOCK), len(parameters), members)](
        table, divisors, of_rates, rates, decays, factors, active,
        EPS=eps, BETA1=beta1, BETA2=beta2, BLOCK=_BLOCK, NUMBER=_FLOATS[rates.dtype],
    )  # fmt: skip


def _of_low_rank(x: Tensor, ranks: int) -> dict[str, Any]:
    """Constants of the kernels of low rank."""
    return {
        "RANK": max(16, triton.next_power_of_2(ranks)),
        "BLOCK": 64,
        "COLUMNS": 64 if x.element_size() == 2 else 32,
        "PRECISION": _precision(x),
    }


@_operator(
    "add_low_rank(Tensor x, Tensor(a!) inner, Tensor(b!)? out, Tensor first, Tensor second,"
    " Tensor scales, int scaled, Tensor ends, int longest)"
)
def add_low_rank(
    x: Tensor,
    inner: Tensor,
    out: Tensor | None,
    first: Tensor,
    second: Tensor,
    scales: Tensor,
    scaled: int,
    ends: Tensor,
    longest: int,
) -> None:
    """Inner products `(N, R)` of x `(N, I)` and each member's first matrix, of `(M, R, I)`, and
    those with its second one, of `(M, O, R)`, added to `out` `(N, O)`, if it is given; one of the
    matrices (`scaled` is 1 or 2) times the scales `(M,)`. A member has at most `longest` rows.
    """
    ranks, inputs = first.shape[1:]
    outputs = second.shape[1]
    constants = _of_low_rank(x, ranks)
    low_rank.add_product[(len(scales), triton.cdiv(longest, constants["BLOCK"]))](
        x, inner, inner if out is None else out, first, second, scales, ends,
        inputs, outputs, ranks, x.stride(0), 0 if out is None else out.stride(0),
        first.stride(1), first.stride(2), second.stride(1), second.stride(2),
        SCALED=scaled, ADD=out is not None, **constants,
    )  # fmt: skip


@_operator(
    "low_rank_gradient(Tensor inner, Tensor x, Tensor(a!) grad, Tensor? scales, Tensor ends)"
)
def low_rank_gradient(
    inner: Tensor, x: Tensor, grad: Tensor, scales: Tensor | None, ends: Tensor
) -> None:
    """Inner^T x of the rows of each member, `(M, R, I)`, times its scale where those are given."""
    members, ranks, inputs = grad.shape
    constants = _of_low_rank(x, ranks)
    low_rank.inner_gradient[(members, triton.cdiv(inputs, constants["COLUMNS"]))](
        inner, x, grad, ends if scales is None else scales, ends, inputs, ranks, x.stride(0),
        grad.stride(1), grad.stride(2), SCALED=scales is not None, **constants,
    )  # fmt: skip
