"""What must hold of masks, packs and layouts whatever their sizes."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraens.model.batch import pack
from loraens.model.dropout import MaskGenerator, attention_coordinates, drop, factor
from loraens.model.packed import layout_of
from loraens.model.routing import MemberRows, Routing

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=12)
RATES = st.floats(0, 0.95)
SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def populations(draw):
    """Seeds of M members, and the lengths of each one's B sequences."""
    members = draw(st.integers(1, 4))
    each = draw(st.integers(1, 3))
    seeds = draw(st.lists(SEEDS, min_size=members, max_size=members))
    lengths = st.lists(st.integers(1, 9), min_size=each, max_size=each)
    return seeds, draw(st.lists(lengths, min_size=members, max_size=members))


def generator(seeds, lengths, counter=(0,)):
    """Masks of a routed pack, and the number of one site."""
    routing = Routing()
    masks = MaskGenerator(routing)
    site = masks.site("encoder.layer.0.output.dropout")
    masks.seed(seeds, *counter)
    flat = [length for member in lengths for length in member]
    positions = torch.cat([torch.arange(length) for length in flat])
    routing.route([sum(member) for member in lengths], torch.tensor(flat), positions)
    return masks, site


@QUICK
@given(populations(), st.integers(1, 40), RATES, st.data())
def test_token_masks_do_not_depend_on_the_pack(population, width, p, data):
    seeds, lengths = population
    masks, site = generator(seeds, lengths)
    together = masks.token_mask(site, width, p).split([sum(member) for member in lengths])
    order = data.draw(st.permutations(range(len(seeds))))[: data.draw(st.integers(1, len(seeds)))]
    other, site = generator([seeds[m] for m in order], [lengths[m] for m in order])
    parts = other.token_mask(site, width, p).split([sum(lengths[m]) for m in order])
    for index, member in enumerate(order):
        assert torch.equal(parts[index], together[member])


@QUICK
@given(populations(), st.integers(1, 40), RATES, st.data())
def test_token_masks_do_not_depend_on_what_else_is_computed(population, width, p, data):
    seeds, lengths = population
    masks, site = generator(seeds, lengths)
    whole = masks.token_mask(site, width, p)
    indices = st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=5)
    rows = torch.tensor(data.draw(indices))
    out = torch.empty(len(rows) * width, dtype=torch.int32)
    assert torch.equal(masks.token_mask(site, width, p, rows, out), whole[rows])
    narrow = data.draw(st.integers(1, width))
    assert torch.equal(masks.token_mask(site, narrow, p), whole[:, :narrow])


@QUICK
@given(populations(), st.integers(1, 6), RATES)
def test_attention_masks_do_not_depend_on_padding(population, padding, p):
    seeds, lengths = population
    masks, site = generator(seeds, lengths)
    flat = [length for member in lengths for length in member]
    longest = max(flat) + padding
    every = torch.arange(len(flat))
    padded = masks.attention_mask(site, attention_coordinates(3, longest, longest, CPU), every, p)
    for index, length in enumerate(flat):
        inputs = attention_coordinates(3, length, length, CPU)
        alone = masks.attention_mask(site, inputs, torch.tensor([index]), p)
        assert torch.equal(alone[0], padded[index, :, :length, :length])


@QUICK
@given(SEEDS, SEEDS, RATES)
def test_masks_depend_on_seed_and_counter(seed, counter, p):
    def mask(*arguments):
        masks, site = generator(*arguments)
        return masks.token_mask(site, 256, p)

    lengths = [[8]]
    first = mask([seed], lengths, (counter,))
    assert torch.equal(first, mask([seed], lengths, (counter,)))
    kept = (first != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 6 * (p * (1 - p) / first.numel()) ** 0.5 + 1e-9
    if 0.1 < p < 0.9:
        assert not torch.equal(first, mask([seed], lengths, (counter + 1,)))
        assert not torch.equal(first, mask([seed + 1], lengths, (counter,)))


@QUICK
@given(SEEDS, st.lists(RATES, min_size=1, max_size=5), st.integers(1, 3))
def test_feature_masks_are_each_members_own(seed, rates, each):
    seeds = [seed + index for index in range(len(rates))]
    p = torch.tensor(rates)[:, None, None]
    masks, site = generator(seeds, [[1] * each for _ in seeds])
    together = masks.feature_mask(site, each, 16, p)
    for index in range(len(rates)):
        alone, site = generator(seeds[index : index + 1], [[1] * each])
        mask = alone.feature_mask(site, each, 16, p[index : index + 1])
        assert torch.equal(mask[0], together[index])


@QUICK
@given(SEEDS, RATES, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_drop_keeps_bits_and_factor_is_the_mean_one(seed, p, dtype):
    masks, site = generator([seed], [[9]])
    mask = masks.token_mask(site, 16, p)
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(seed % 1000)).to(dtype)
    dropped = drop(x, mask, torch.empty_like(x))
    assert torch.equal(dropped, torch.where(mask != 0, x, torch.zeros_like(x)))
    scale = factor(mask, p, torch.float64)
    assert torch.equal(scale != 0, mask != 0)
    np.testing.assert_allclose(scale[mask != 0], 1 / (1 - p))


@QUICK
@given(LENGTHS, st.floats(1, 3))
def test_layouts_cover_every_token_exactly_once(lengths, growth):
    layout = layout_of(lengths, CPU, growth)
    tokens = sum(lengths)
    real = layout.token_of_slot[layout.token_of_slot < tokens]
    assert sorted(real.tolist()) == list(range(tokens))
    assert torch.equal(layout.token_of_slot[layout.slot_of_token], torch.arange(tokens))
    assert sorted(layout.order.tolist()) == list(range(len(lengths)))
    assert torch.equal(torch.cat([g.sequences for g in layout.groups]), layout.order)
    ends = torch.tensor(lengths).cumsum(0)
    assert torch.equal(layout.first, ends - torch.tensor(lengths))
    assert [g.start for g in layout.groups[1:]] == [g.end for g in layout.groups[:-1]]
    assert layout.groups[-1].end == len(layout.token_of_slot)
    for group in layout.groups:
        sizes = [lengths[index] for index in group.sequences]
        assert group.length == max(sizes) <= min(sizes) * growth
        slots = layout.token_of_slot[group.start : group.end].view(len(sizes), group.length)
        padding = slots == tokens
        assert (~padding).sum(1).tolist() == sizes
        assert (group.bias is None) == (not padding.any())
        if group.bias is not None:
            assert torch.equal(group.bias[:, 0, 0] == float("-inf"), padding)


@QUICK
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.data())
def test_packs_are_the_examples_one_after_another(lengths, members, data):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(offsets[-1], dtype=np.int32)
    types = (tokens % 2).astype(np.int8)
    each = data.draw(st.integers(1, 4))
    chosen = st.lists(st.integers(0, len(lengths) - 1), min_size=each, max_size=each)
    rows = np.array([data.draw(chosen) for _ in range(members)])
    batch = pack(tokens, types, offsets, rows, np.arange(len(lengths)) / 2, "sst", "train")
    expected = [tokens[offsets[row] : offsets[row + 1]] for row in rows.ravel()]
    parts = batch.input_ids.split(batch.lengths)
    assert len(parts) == members * each == sum(map(len, batch.member_lengths))
    for part, example in zip(parts, expected, strict=True):
        assert part.tolist() == example.tolist()
    for part in batch.position_ids.split(batch.lengths):
        assert part.tolist() == list(range(len(part)))
    assert torch.equal(batch.token_type_ids, batch.input_ids % 2)
    assert torch.equal(batch.labels, torch.from_numpy(rows / 2))


@QUICK
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_member_rows_come_back(counts, width):
    rows = MemberRows(counts, CPU)
    x = torch.arange(sum(counts) * width, dtype=torch.float64).view(-1, width) + 1
    padded = rows.pad(x)
    assert padded.shape == (len(counts), max(counts), width)
    assert torch.equal(rows.unpad(padded), x)
    assert (padded != 0).sum() == x.numel()  # padding is zero
