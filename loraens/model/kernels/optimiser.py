"""AdamW and norms of gradients of many parameters in one Triton kernel each.

Shape letters: P parameters, M members, n numbers of one member in one parameter. A row of the table
`(P, 5)` has the addresses of a parameter, its gradient and its two moments, and n.
"""

import triton
import triton.language as tl


@triton.jit
def _row(table, parameter, NUMBER: tl.constexpr):
    """Pointers to a parameter, its gradient and its moments, and n."""
    row = table + parameter * 5
    kind = tl.pointer_type(NUMBER)
    return (
        tl.load(row).to(kind),
        tl.load(row + 1).to(kind),
        tl.load(row + 2).to(kind),
        tl.load(row + 3).to(kind),
        tl.load(row + 4),
    )


@triton.jit
def squares(table, sums, members, BLOCK: tl.constexpr, PARTS: tl.constexpr, NUMBER: tl.constexpr):
    """Sums of the squares of one member's gradients of one parameter in several parts, into `sums`
    `(P, parts, M)`.
    """
    parameter = tl.program_id(0)
    member = tl.program_id(1)
    part = tl.program_id(2)
    _, grad, _, _, n = _row(table, parameter, NUMBER)
    total = tl.zeros([BLOCK], NUMBER)
    for begin in range(part * BLOCK, n, PARTS * BLOCK):
        at = begin + tl.arange(0, BLOCK)
        g = tl.load(grad + member * n + at, mask=at < n, other=0.0)
        total += g * g
    tl.store(sums + (parameter * PARTS + part) * members + member, tl.sum(total, 0))


@triton.jit
def adamw(
    table,  # (P, 5)
    corrections,  # (P, 2): 1 - beta1 ** t, and the root of 1 - beta2 ** t
    rows,  # (P,) of rates, that each parameter has
    rates,  # (2, M)
    decays,  # (M,)
    factors,  # (M,) of the gradients
    active,  # (M,) 0 for members that stay where they are
    EPS: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    BLOCK: tl.constexpr,
    NUMBER: tl.constexpr,
):
    """One step of AdamW, in the order of `MemberAdamW`."""
    parameter = tl.program_id(1)
    member = tl.program_id(2)
    value, grad, first, second, n = _row(table, parameter, NUMBER)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(0) * BLOCK >= n:
        return
    inside = at < n
    at += member * n
    moves = tl.load(active + member) != 0
    at_rate = tl.load(rows + parameter) * tl.num_programs(2) + member
    rate = tl.where(moves, tl.load(rates + at_rate), 0.0)
    g = tl.load(grad + at, mask=inside, other=0.0) * tl.load(factors + member)
    g = tl.where(moves, g, 0.0)
    m = tl.load(first + at, mask=inside, other=0.0)
    m += (g - m) * (1 - BETA1)
    v = tl.load(second + at, mask=inside, other=0.0)
    v = v * BETA2 + g * g * (1 - BETA2)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    root = tl.sqrt(v) / tl.load(corrections + parameter * 2 + 1) + EPS
    change = m / root * (rate / tl.load(corrections + parameter * 2))
    x = tl.load(value + at, mask=inside, other=0.0)
    x = x * (1 - rate * tl.load(decays + member)) - change
    tl.store(value + at, x, mask=inside)
