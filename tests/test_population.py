"""Members trained together end as if each had been trained alone, by a plain loop over one
member.
"""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from loraens.data import modules as data
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.population import MemberModel
from loraens.train.failures import PopulationError
from loraens.train.module import Population

MEMBERS = [
    Member(1, 10.0, seed=0, lr=1e-3),
    Member(31, 1.0, seed=1, lr=5e-3, weight_decay=0.3),
    Member(7, 3.0, seed=2, lr=1e-3, head_dropout=0.0, loraplus_lr_ratio=16.0),
    Member(16, 2.5, seed=0, lr=5e-3, head_dropout=0.5),
    Member(3, 4.0, seed=1, lr=1e-3, loraplus_lr_ratio=2.0),
]
STEPS = 20
CLIP = 0.5
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(scope="module")
def texts(tiny_bert, tmp_path_factory):
    """Pairs of made-up words, of very uneven lengths."""
    directory = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(0)
    for split, size in (("train", 48), ("dev", 8)):
        pairs = [
            [" ".join(rng.choice(["sun", "a", "tree", "x"], rng.integers(1, 30))) for _ in "ab"]
            for _ in range(size)
        ]
        lines = [f"{a},{b},{5 * rng.random():.1f}" for a, b in pairs]
        (directory / f"{split}.csv").write_text("\n".join(["a,b,label", *lines]))
    files = {split: str(directory / f"{split}.csv") for split in ("train", "dev")}
    found = data.TextFiles(
        "pairs",
        **files,
        text_columns=["a", "b"],
        label_column="label",
        kind="number",
        low=0,
        high=5,
        backbone=str(tiny_bert),
    )
    found.setup("fit")
    return found


@pytest.fixture(scope="module")
def train(texts, tiny_bert):
    """Trains a population; one without callbacks only once, so no test may change it."""

    def run(members, precision="64-true", callbacks=(), steps=STEPS, targets=("query", "value")):
        module = Population(
            members, texts.tasks, backbone=str(tiny_bert), pooling="cls", targets=targets
        )
        options = {
            "precision": precision,
            "max_steps": steps,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            **QUIET,
        }
        Trainer(**options, gradient_clip_val=CLIP, callbacks=list(callbacks)).fit(module, texts)
        return module

    once = cache(run)

    def train(members, *args, callbacks=(), **options):
        if callbacks:
            return run(members, *args, callbacks=callbacks, **options)
        return once(tuple(members), *args, **options)

    return train


def naive(member, texts, tiny_bert, targets):
    """One member, stock forward, torch's AdamW and clipping."""
    encoder = load_encoder(str(tiny_bert), pooler=False)
    model = (
        MemberModel(encoder, texts.tasks, [member], targets=targets, pooling="cls", fast=False)
        .double()
        .train()
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    of_b = [layer.lora_B for layer in model.adapters.values()]
    others = [p for p in parameters if all(p is not b for b in of_b)]
    groups = [{"params": of_b, "lr": member.lr * member.loraplus_lr_ratio}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=member.lr, weight_decay=member.weight_decay)
    sampler = texts.sampler([member])
    (split,) = texts.of("train")
    step = 0
    norms = []
    while step < STEPS:
        sampler.set_epoch(step // len(sampler))
        for number, (_, rows) in enumerate(sampler):
            if step == STEPS:
                break
            batch = split.batch(rows)
            model.seed_dropout(sampler.epoch, number)
            optimizer.zero_grad()
            split.task.member_losses(model(batch), batch.labels).sum().backward()
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
            optimizer.step()
            step += 1
    assert min(norms) < CLIP < max(norms) or min(norms) > CLIP
    return model


def weights(model, index, rank):
    found = {f"{name} A": layer.lora_A[index, :rank] for name, layer in model.adapters.items()}
    found |= {f"{name} B": layer.lora_B[index, :, :rank] for name, layer in model.adapters.items()}
    head = model.heads["pairs"]
    return {**found, "weight": head.weight[index], "bias": head.bias[index]}


def assert_close(left, right, atol):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets", [("query", "value"), ("query", "intermediate.dense")], ids=["fast", "general"]
)
def test_together_as_alone(train, texts, tiny_bert, targets):
    lengths = texts.of("train")[0].tokens.lengths
    assert lengths.max() > 5 * lengths.min()
    together = train(MEMBERS, targets=targets).model
    assert (together.fast is not None) == (targets == ("query", "value"))
    for index, member in enumerate(MEMBERS):
        expected = weights(naive(member, texts, tiny_bert, targets), 0, member.rank)
        assert (
            max(value.abs().max() for name, value in expected.items() if name.endswith("B")) > 1e-3
        )
        assert_close(weights(together, index, member.rank), expected, 1e-10)
    for layer in together.adapters.values():
        for index, member in enumerate(MEMBERS):  # padded ranks stay zero
            assert (layer.lora_A[index, member.rank :] == 0).all()
            assert (layer.lora_B[index, :, member.rank :] == 0).all()


@pytest.mark.slow
def test_order_and_size_of_packs_do_not_matter(train):
    together = train(MEMBERS).model
    for chosen in ([4, 3, 2, 1, 0], [1, 3]):
        other = train([MEMBERS[index] for index in chosen]).model
        for place, index in enumerate(chosen):
            rank = MEMBERS[index].rank
            assert_close(weights(other, place, rank), weights(together, index, rank), 1e-10)


@pytest.mark.slow
def test_single_precision(train):
    """At the paper's learning rate: where a gradient is next to nothing, AdamW moves a weight by
    the whole rate.
    """
    members = [replace(member, lr=1e-4) for member in MEMBERS[1:4]]
    together = train(members, "32-true").model
    for index, member in enumerate(members):
        assert_close(
            weights(train([member], "32-true").model, 0, member.rank),
            weights(together, index, member.rank),
            1e-4,
        )


class Poison(Callback):
    """Puts a NaN or an infinity into a member's weights, or into its gradient alone."""

    def __init__(self, index, step, value, where):
        self.index = index
        self.step = step
        self.value = value
        self.where = where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.where == "weight":
            next(iter(pl_module.model.adapters.values())).lora_A.data[self.index, 0, 0] = self.value

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step and self.where == "gradient":
            next(iter(pl_module.model.adapters.values())).lora_B.grad[self.index, 0, 0] = self.value


@pytest.mark.parametrize(
    ("where", "value", "precision"),
    [
        pytest.param("weight", math.nan, "32-true", marks=pytest.mark.slow),
        pytest.param("weight", math.inf, "64-true", marks=pytest.mark.slow),
        ("gradient", -math.inf, "32-true"),
    ],
)
def test_a_failed_member_leaves_the_others_bit_for_bit(train, value, where, precision):
    good = train(MEMBERS, precision)
    bad = train(MEMBERS, precision, callbacks=[Poison(1, 5, value, where)])
    for index in (0, 2, 3, 4):
        a, b = (weights(module.model, index, MEMBERS[index].rank) for module in (good, bad))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert bad.failures.of(index) is None
    step, reason = bad.failures.of(1)
    assert step == 5
    assert ("the loss is" in reason) == (where == "weight")
    if where == "gradient":  # it stands where it was before the step
        stopped = weights(train(MEMBERS, precision, steps=5).model, 1, 31)
        assert all(
            torch.equal(stopped[name], value) for name, value in weights(bad.model, 1, 31).items()
        )


def test_a_population_without_a_member_left(train):
    with pytest.raises(PopulationError, match=r"the loss is .* at step [0-9]+: choose a lower"):
        train([Member(2, 1.0, lr=1e30), Member(4, 3.0, lr=1e30)], "32-true")


@pytest.mark.slow
def test_losses_are_each_members_own(train, texts):
    module = train(MEMBERS, steps=6)
    for index, member in enumerate(MEMBERS):
        alone = train([member], steps=6)
        assert np.isfinite(module.mean_losses[index])
        assert alone.mean_losses[0] == pytest.approx(module.mean_losses[index], abs=1e-10)
