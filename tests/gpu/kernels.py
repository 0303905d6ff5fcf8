"""The Triton kernels against the eager operators: in Triton's interpreter, and compiled for a GPU
that is not there. `tests/test_gpu.py` runs it.
"""

import numpy as np
import pytest
import torch
from helpers.kernels import LENGTHS, seeded

from loraens.model import kernels
from loraens.model.dropout import attention_coordinates, drop
from loraens.model.kernels import operators
from loraens.model.lora import LoRALinear
from loraens.model.routing import Routing
from loraens.train.optimizer import BETAS, EPS, MemberAdamW, gradient_norms, scale_gradients

HEADS = 3
WIDTH = 8  # of a head
D = HEADS * WIDTH
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 3e-2}
P = 0.3


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def rows_of(masks, site):
    return *masks.keys(site), *masks.rows()


def test_a_kernel_is_tried(monkeypatch):
    assert kernels.failure(torch.device("cpu")) is None
    monkeypatch.setattr(operators, "keep", lambda *args: torch.zeros(64))
    assert kernels.failure(torch.device("cpu")).endswith("(masks are not those of the CPU)")


@pytest.mark.parametrize("p", [0.0, 0.1, 0.9])
def test_token_masks_have_the_same_bits(p):
    masks, site = seeded()
    expected = masks.token_mask(site, 40, p)
    x = torch.ones(sum(LENGTHS), 40)
    out = torch.empty_like(x)
    operators.drop_tokens(x, out, *rows_of(masks, site), p)
    assert torch.equal(out != 0, expected != 0)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)] if p else [1])
    y, mean = torch.ones_like(x), torch.empty(len(x))
    rest = (torch.zeros_like(x), torch.ones(40), torch.zeros(40), out, mean, mean.clone())
    operators.add_norm(y, *rest, *rows_of(masks, site), p, 1e-12)
    assert torch.equal(y != 0, expected != 0)


@pytest.mark.parametrize("dropped", [True, False])
def test_add_and_norm(dtype, dropped):
    masks, site = seeded()
    tokens = sum(LENGTHS)
    y, residual = (random(tokens, D, dtype=dtype, seed=seed) for seed in (1, 2))
    weight, bias = (random(D, dtype=dtype, seed=seed) for seed in (3, 4))
    mask = masks.token_mask(site, D, P)
    part = drop(y.clone(), mask, y.clone()) if dropped else y
    total = torch.add(residual, part, alpha=1 / (1 - P) if dropped else 1)
    expected, mean, rstd = torch.native_layer_norm(total, (D,), weight, bias, 1e-5)
    keys = rows_of(masks, site) if dropped else (None,) * 4
    out, moments = torch.empty_like(y), [torch.empty(tokens) for _ in range(2)]
    operators.add_norm(y, residual, weight, bias, out, *moments, *keys, P, 1e-5)
    close = {"rtol": 1e-6 if dtype is torch.float32 else 1e-2, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(y, total, **close)
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(moments[1][:, None], rstd.float(), rtol=1e-2, atol=0)

    grad = random(tokens, D, dtype=dtype, seed=5)
    wanted = torch.ops.aten.native_layer_norm_backward(
        grad, total, (D,), mean, rstd, weight, bias, [True, False, False]
    )[0]
    found = [torch.empty_like(y), torch.empty_like(y) if dropped else None]
    operators.add_norm_backward(grad, y, *moments, weight, *found, *keys, P)
    torch.testing.assert_close(found[0], wanted, **close)
    if dropped:
        torch.testing.assert_close(found[1], drop(wanted / (1 - P), mask, wanted.clone()), **close)
        assert torch.equal(found[1] == 0, mask == 0)


def naive(q, k, v, masks, site, first_only):
    """Attention of each sequence by itself, with autograd."""
    parts, start = [], 0
    for number, length in enumerate(LENGTHS):
        rows = slice(start, start + length)
        start += length
        queries = slice(number, number + 1) if first_only else rows
        heads = [x.view(-1, HEADS, WIDTH).transpose(0, 1) for x in (q[queries], k[rows], v[rows])]
        weights = (heads[0] @ heads[1].mT * WIDTH**-0.5).softmax(-1)
        if masks is not None:
            grid = attention_coordinates(HEADS, weights.shape[1], length, q.device)
            mask = masks.attention_mask(site, grid, torch.tensor([number]), P)[0]
            weights = torch.where(mask != 0, weights, 0.0) / (1 - P)
        parts.append((weights @ heads[2]).transpose(0, 1).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize("first_only", [False, True], ids=["all", "first"])
@pytest.mark.parametrize("dropped", [True, False])
def test_attention(dtype, dropped, first_only):
    masks, site = seeded()
    tokens, queries = sum(LENGTHS), len(LENGTHS) if first_only else sum(LENGTHS)
    q, kv, grad = (
        random(rows, width, dtype=dtype, seed=rows + width).double().requires_grad_()
        for rows, width in ((queries, D), (tokens, 2 * D), (queries, D))
    )
    expected = naive(q, kv[:, :D], kv[:, D:], masks if dropped else None, site, first_only)
    wanted = torch.autograd.grad(expected, (q, kv), grad)
    q, kv, grad = (x.detach().to(dtype) for x in (q, kv, grad))
    offsets = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32)
    of_q = torch.arange(len(LENGTHS) + 1, dtype=torch.int32) if first_only else offsets
    keys = rows_of(masks, site)[:2] if dropped else (None, None)
    spans = (of_q, offsets, max(LENGTHS), HEADS, *keys, P, 1 if first_only else max(LENGTHS))
    out, lse = torch.empty_like(q), torch.empty(queries, HEADS)
    operators.attend(q, kv[:, :D], kv[:, D:], out, lse, *spans)
    found = torch.full_like(q, float("nan")), torch.full_like(kv, float("nan"))
    operators.attend_backward(q, kv[:, :D], kv[:, D:], out, lse, grad, *found, *spans)
    close = {"rtol": 1e-5 if dtype is torch.float32 else 3e-2, "atol": TOLERANCE[dtype]}
    for a, b in zip((out, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a.double(), b.detach(), **close)


def test_attention_masks_have_the_same_bits():
    """Weights of equal scores are 1 / L where they are kept: values that are the identity show
    them.
    """
    length, heads = 33, 2
    masks, site = seeded(lengths=[length] * 3)
    q, k = torch.zeros(2, 3 * length, heads * length)
    v = torch.eye(length).repeat(3, heads)
    offsets = torch.arange(4, dtype=torch.int32) * length
    out, lse = torch.empty_like(v), torch.empty(len(v), heads)
    keys = rows_of(masks, site)[:2]
    operators.attend(q, k, v, out, lse, offsets, offsets, length, heads, *keys, P, length)
    grid = attention_coordinates(heads, length, length, v.device)
    expected = masks.attention_mask(site, grid, torch.arange(3), P)
    kept = out.view(3, length, heads, length).transpose(1, 2) != 0
    assert torch.equal(kept, expected != 0)


@pytest.mark.parametrize("number", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_adamw(number):
    """Against the eager optimiser: heads of other tasks without a gradient now and then, a member
    that is not active, clipping, and a parameter of higher rates.
    """
    rates, decays, ratios = [1e-2, 3e-3, 1e-4], [0.0, 0.1, 0.01], [1.0, 2.0, 16.0]
    shapes = ((40, 33), (6,), (1,))
    ours, eager = (
        [torch.nn.Parameter(random(3, *shape, seed=9).to(number)) for shape in shapes]
        for _ in range(2)
    )
    optimizer = MemberAdamW(eager, rates, decays, ratios, faster=eager[1:2])
    moments = [[torch.zeros_like(p) for p in ours] for _ in range(2)]
    active = torch.tensor([True, False, True])
    optimizer.active = active
    tolerance = 1e-12 if number is torch.float64 else 1e-6
    for step in range(1, 6):
        grads = [random(*p.shape, seed=step).to(number) for p in ours]
        for parameter, grad in zip(eager, grads, strict=True):
            parameter.grad = grad.clone()
        norms = gradient_norms(eager, 3)
        sums = torch.empty(3, 2, 3, dtype=number)
        operators.gradient_squares(grads, sums)
        torch.testing.assert_close(sums.sum((0, 1)).sqrt(), norms, rtol=tolerance, atol=0)
        factors = (0.5 / norms).clamp(max=1)
        scale_gradients(eager, factors, active)
        optimizer.step()
        corrections = [1 - BETAS[0] ** step, (1 - BETAS[1] ** step) ** 0.5] * 3
        of_members = optimizer.rates, optimizer.decays, factors, active
        with torch.no_grad():
            operators.adamw(ours, grads, *moments, corrections, [0, 1, 0], *of_members, *BETAS, EPS)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("wanted", [True, False])
def test_low_rank(dtype, wanted):
    """Against the products member by member, of ranks that are padded."""
    tokens, ranks, scales = [40, 1, 70], [5, 20, 3], [3.0, 1.0, 0.5]
    routing = Routing()
    layers = [
        LoRALinear(torch.nn.Linear(D, 40), ranks, scales, routing if fused else Routing())
        for fused in (True, False)
    ]
    for layer in layers:
        for index, rank in enumerate(ranks):
            layer.lora_A.data[index, :rank] = random(rank, D, seed=index)
            layer.lora_B.data[index, :, :rank] = random(40, rank, seed=index + 9)
    routing.route(tokens, torch.tensor(tokens), torch.zeros(sum(tokens)))
    x = random(sum(tokens), D, dtype=dtype)
    wide = random(sum(tokens), 80, dtype=dtype, seed=1)
    grad = random(sum(tokens), 80, dtype=dtype, seed=2)[:, 40:]
    found = []
    for layer in layers:
        layer._fused = lambda x, fused=layer is layers[0]: fused
        out, x_grad = wide.clone()[:, 40:], x.clone() if wanted else None
        down = layer.add_delta(out, x, tokens)
        grads = layer.add_delta_backward(grad, x, down, tokens, x_grad)
        found.append([out, down, *grads, *([x_grad] if wanted else [])])
    close = {"rtol": 1e-5 if dtype is torch.float32 else 3e-2, "atol": 20 * TOLERANCE[dtype]}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **close)
