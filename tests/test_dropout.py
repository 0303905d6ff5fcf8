"""Dropout masks: that they drop what they should, look random, and depend on their names alone."""

import numpy as np
import pytest
import torch

from loraens.model.dropout import MaskGenerator, attention_coordinates, drop, factor
from loraens.model.routing import MemberRows, Routing

LENGTHS = [9, 5, 7, 9, 6, 8]  # three members of two sequences


def routed(seeds=(3, 4, 5), lengths=LENGTHS, counter=(0, 1)):
    routing = Routing()
    masks = MaskGenerator(routing)
    sites = [masks.site(name) for name in ("embeddings.dropout", "layer.0.dropout")]
    masks.seed(seeds, *counter)
    positions = torch.cat([torch.arange(length) for length in lengths])
    each = len(lengths) // len(seeds)
    tokens = [sum(lengths[start : start + each]) for start in range(0, len(lengths), each)]
    routing.route(tokens, torch.tensor(lengths), positions)
    return masks, sites


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_share_and_independence(p):
    masks, (site, other) = routed(seeds=[1, 2], lengths=[120] * 40)
    mask = masks.token_mask(site, 96, p)
    assert set(mask.unique().tolist()) <= {0, -1}
    dropped = (mask == 0).double()
    assert dropped.mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / mask.numel()) ** 0.5)
    if p == 0:
        return
    centred = dropped - p
    variance = p * (1 - p)
    for lag in (1, 2, 3, 4, 7, 8, 16, 32, 64):  # neither neighbours in a row nor rows are alike
        for a, b in ((centred[:, lag:], centred[:, :-lag]), (centred[lag:], centred[:-lag])):
            assert abs((a * b).mean().item()) / variance < 5 / a.numel() ** 0.5
    rows = dropped.view(40, 120, 96)
    for left, right in (
        (rows[0], rows[1]),
        (rows[3], rows[23]),
    ):  # sequences of one member, and of two
        assert abs(((left - p) * (right - p)).mean().item()) / variance < 5 / left.numel() ** 0.5
    elsewhere = (masks.token_mask(other, 96, p) == 0).double() - p
    assert abs((centred * elsewhere).mean().item()) / variance < 5 / centred.numel() ** 0.5
    per_column = dropped.mean(0)
    assert per_column.std().item() < 1.5 * (variance / len(dropped)) ** 0.5


def test_names_and_nothing_else():
    masks, (site, other) = routed()
    mask = masks.token_mask(site, 12, 0.4)
    assert not torch.equal(mask, masks.token_mask(other, 12, 0.4))
    assert not torch.equal(mask, routed(counter=(0, 2))[0].token_mask(site, 12, 0.4))
    rows = torch.tensor([0, 9, 30])
    assert torch.equal(masks.token_mask(site, 12, 0.4, rows), mask[rows])
    alone, (site, _) = routed(seeds=[4], lengths=LENGTHS[2:4])  # the second member alone
    assert torch.equal(alone.token_mask(site, 12, 0.4), mask[14:30])
    longer = [9, 5, 11, 9, 6, 8]  # its first sequence longer: what was there stays
    again = routed(lengths=longer)[0].token_mask(site, 12, 0.4)
    assert torch.equal(again[14:21], mask[14:21])
    assert torch.equal(again[25:34], mask[21:30])


def test_attention_masks_do_not_depend_on_padding():
    masks, (site, _) = routed()
    device = torch.device("cpu")
    short = masks.attention_mask(
        site, attention_coordinates(3, 7, 7, device), torch.tensor([2, 4]), 0.3
    )
    long = masks.attention_mask(
        site, attention_coordinates(3, 11, 11, device), torch.tensor([0, 4, 2]), 0.3
    )
    assert torch.equal(short[0], long[2, :, :7, :7])
    assert torch.equal(short[1], long[1, :, :7, :7])
    first = masks.attention_mask(
        site, attention_coordinates(3, 1, 7, device), torch.tensor([2]), 0.3
    )
    assert torch.equal(first[0], short[0, :, :1])


def test_features_have_each_members_own_dropout():
    masks, (site, _) = routed(seeds=range(4), lengths=[3] * 4 * 50)
    p = torch.tensor([0.0, 0.1, 0.5, 0.8])[:, None, None]
    mask = masks.feature_mask(site, 50, 64, p)
    assert mask.shape == (4, 50, 64)
    assert (mask == 0).double().mean((1, 2)).tolist() == pytest.approx(
        p.flatten().tolist(), abs=0.03
    )
    alone = routed(seeds=[2], lengths=[3] * 50)[0].feature_mask(site, 50, 64, p[2:3])
    assert torch.equal(alone[0], mask[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_drop_and_factor(dtype):
    mask = torch.tensor([-1, 0, -1, 0], dtype=torch.int32)
    x = torch.tensor([1.5, 2.5, -3.0, float("nan")], dtype=dtype)
    assert drop(x, mask, torch.empty_like(x)).tolist() == [1.5, 0, -3, 0]
    assert factor(mask, 0.5, dtype).tolist() == [2, 0, 2, 0]


def test_member_rows_against_a_loop():
    counts = [4, 1, 3]
    rows = MemberRows(counts, torch.device("cpu"))
    x = torch.randn(8, 5)
    padded = rows.pad(x)
    start = 0
    for index, count in enumerate(counts):
        assert torch.equal(padded[index, :count], x[start : start + count])
        assert (padded[index, count:] == 0).all()
        start += count
    assert torch.equal(rows.unpad(padded), x)
    out = torch.ones_like(x)
    rows.add(out, padded)
    assert np.allclose(out, x + 1)
