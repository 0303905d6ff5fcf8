"""Properties of regrouped checkpoints, of halvings and of a sweep's state, over drawn cases."""

import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraens.members import Member
from loraens.model.injection import padded_axis
from loraens.train.checkpoints import PackCheckpoint, Progress, concatenate
from loraens.train.options import SweepOptions
from loraens.train.packs import ranked, regrouped
from loraens.train.state import SweepState, changed_setting

FAST = settings(max_examples=25, deadline=None, database=None)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=5)
NAMES = st.sampled_from(["a", "b.c", "", "ü", '"'])
SCORES = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=6)


def progress_entry(scores):
    history = [
        {"name": f"epoch-{epoch:03d}", "epoch": epoch, "score": score}
        for epoch, score in enumerate(scores, 1)
    ]
    best = max(range(len(scores)), key=lambda index: (scores[index], -index))
    return {"best": history[best]["name"], "score": scores[best], "history": history}


def checkpoint(ranks, first_seed=0, failed=(), scores=None):
    """A pack's checkpoint with numbers of its own for every member, as our module writes it."""
    size = max(ranks)

    def tensors():
        a = torch.zeros(len(ranks), size, 5)
        b = torch.zeros(len(ranks), 4, size)
        for index, rank in enumerate(ranks):
            a[index, :rank] = 10 * rank + torch.rand(rank, 5)
            b[index, :, :rank] = torch.rand(4, rank)
        head = torch.rand(len(ranks), 1, 4)
        return {"model.x.lora_A": a, "model.x.lora_B": b, "model.head_sts.weight": head}

    state = tensors()
    moments = tensors()
    steps = [3 if index in failed else -1 for index in range(len(ranks))]
    members = [Member(rank, 1.0, seed=first_seed + index) for index, rank in enumerate(ranks)]
    scores = scores or [[0.1 * index, 0.5] for index in range(len(ranks))]
    optimizer = {
        "state": {index: {"step": 7, "exp_avg": m} for index, m in enumerate(moments.values())},
        "param_groups": [{"lr": 1.0}],
    }
    writer = {"progress": [progress_entry(of_member) for of_member in scores], "seconds": 1.0}
    return PackCheckpoint(
        {
            "state_dict": {
                "failures.step": torch.tensor(steps),
                "failures.loss": torch.rand(len(ranks)),
                **state,
            },
            "optimizer_states": [optimizer],
            "callbacks": {"loraens.members": writer},
            "pytorch-lightning_version": "2.6",
            "loraens": {"members": [asdict(member) for member in members], "warmup": 0.0},
        }
    )


def tensors_of(pack):
    moments = pack.content["optimizer_states"][0]["state"]
    names = [name for name in pack.content["state_dict"] if not name.startswith("failures.")]
    return {
        **pack.content["state_dict"],
        **{f"{names[index]} moment": entry["exp_avg"] for index, entry in moments.items()},
    }


def assert_equal(left, right):
    assert left.members == right.members
    assert left.content["callbacks"] == right.content["callbacks"]
    ours = tensors_of(left)
    for name, value in tensors_of(right).items():
        assert torch.equal(ours[name], value), name


@FAST
@given(RANKS, st.data())
def test_members_put_apart_and_together_again_are_the_same(ranks, data):
    whole = checkpoint(ranks)
    order = data.draw(st.permutations(range(len(ranks))))
    cut = data.draw(st.integers(0, len(ranks)))
    groups = [group for group in (order[:cut], order[cut:]) if group]
    together = concatenate([whole.select(group) for group in groups])
    assert [member.rank for member in together.members] == [ranks[index] for index in order]
    assert_equal(together.select([order.index(index) for index in range(len(ranks))]), whole)


@FAST
@given(RANKS, RANKS)
def test_concatenated_packs_are_selected_unchanged(left, right):
    packs = [checkpoint(left), checkpoint(right, first_seed=10)]
    together = concatenate(packs)
    assert_equal(together.select(range(len(left))), packs[0])
    assert_equal(together.select(range(len(left), len(left) + len(right))), packs[1])


@FAST
@given(RANKS, RANKS, st.data())
def test_padded_ranks_stay_zero_and_no_longer_than_the_largest(left, right, data):
    together = concatenate([checkpoint(left), checkpoint(right, first_seed=10)])
    count = len(left) + len(right)
    indices = data.draw(st.lists(st.sampled_from(range(count)), min_size=1, unique=True))
    chosen = together.select(indices)
    largest = max(member.rank for member in chosen.members)
    for name, value in tensors_of(chosen).items():
        axis = padded_axis(name.removesuffix(" moment"))
        if axis is None:
            continue
        assert value.shape[axis] == largest
        for index, member in enumerate(chosen.members):
            own = value[index].narrow(axis - 1, 0, member.rank)
            padding = value[index].narrow(axis - 1, member.rank, largest - member.rank)
            assert bool((own != 0).any())
            assert bool((padding == 0).all())


@FAST
@given(RANKS)
def test_a_checkpoint_is_read_as_it_was_written(tmp_path_factory, ranks):
    path = tmp_path_factory.getbasetemp() / "pack.ckpt"
    pack = checkpoint(ranks)
    pack.save(path)
    assert_equal(PackCheckpoint.load(path), pack)


@FAST
@given(SCORES, st.one_of(st.none(), st.integers(1, 4)))
def test_patience_counts_epochs_since_the_first_best(scores, patience):
    since = 0
    best = -math.inf
    for score in scores:
        since = 0 if score > best else since + 1
        best = max(best, score)
    progress = Progress.of(progress_entry(scores))
    assert progress.stalled(patience) == (patience is not None and since >= patience)


@FAST
@given(RANKS, RANKS, st.integers(1, 4), st.data())
def test_a_halving_keeps_the_best_and_loses_nobody(left, right, size, data):
    last = st.one_of(st.floats(0, 1), st.just(math.nan))
    scores = [[[data.draw(last)] for _ in ranks] for ranks in (left, right)]
    packs = [
        checkpoint(left, scores=scores[0], failed=(0,)),
        checkpoint(right, first_seed=10, scores=scores[1]),
    ]
    standings = ranked(packs)
    assert len(standings) == len(left) + len(right) - 1
    values = [-math.inf if math.isnan(entry.score) else entry.score for entry in standings]
    assert values == sorted(values, reverse=True)
    kept = standings[: math.ceil(len(standings) / 2)]
    groups = list(regrouped(packs, kept, size))
    assert all(name == pack.members[0].name for name, pack in groups)
    members = [member for _, pack in groups for member in pack.members]
    assert all(len(pack.members) <= size for _, pack in groups)
    assert sorted(m.name for m in members) == sorted(entry.member.name for entry in kept)
    assert len(members) == len(kept)


@FAST
@given(st.integers(1, 40), st.one_of(st.none(), st.floats(1.01, 5)), st.integers(1, 5))
def test_rungs_rise_to_the_last_epoch(epochs, factor, first):
    rungs = SweepOptions(halving_factor=factor, halving_epochs=first).rungs(epochs)
    assert rungs[-1] == epochs
    assert all(before < after for before, after in pairwise(rungs))


@FAST
@given(
    st.builds(
        SweepState,
        settings=st.dictionaries(NAMES, st.one_of(st.integers(), NAMES, st.none())),
        measured=st.one_of(st.none(), st.integers(1, 99)),
        fits=st.one_of(st.none(), st.integers(1, 99)),
        rung=st.integers(0, 9),
        logged=st.lists(NAMES),
    )
)
def test_a_state_is_read_as_it_was_written(state):
    again = SweepState.from_json(state.to_json(), Path("sweep.json"))
    assert again == state
    assert changed_setting(state.settings, again.settings) is None
