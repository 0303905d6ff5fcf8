"""The LightningModule: what its steps, schedules and populations do."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from loraens.data import modules as data
from loraens.errors import InputError
from loraens.members import Member
from loraens.model.dropout import MemberDropout
from loraens.train.module import Population

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture
def train(tiny_bert, corpus):
    """Trains a population in float64; returns the module."""

    def run(members, epochs=2, callbacks=(), trainer=(), **options):
        texts = data.SST(root=str(corpus), backbone=str(tiny_bert))
        module = Population(
            members, texts.tasks, backbone=str(tiny_bert), pooling="mean", **options
        )
        settings = {
            "precision": "64-true",
            "max_epochs": epochs,
            "num_sanity_val_steps": 0,
            **QUIET,
            **dict(trainer),
        }
        Trainer(**settings, callbacks=list(callbacks)).fit(module, texts)
        return module

    return run


@pytest.mark.slow
def test_members_end_as_if_trained_alone(train):
    members = [
        Member(1, 10.0, lr=1e-2),
        Member(5, 1.0, seed=1, lr=1e-2),
        Member(3, 3.0, seed=2, lr=1e-2),
    ]
    together = train(members).model
    for index, member in enumerate(members):
        alone = train([member]).model
        for name, layer in alone.adapters.items():
            other = together.adapters[name]
            assert layer.lora_B.abs().max() > 1e-3
            torch.testing.assert_close(
                other.lora_A[index, : member.rank], layer.lora_A[0], rtol=0, atol=1e-10
            )
            torch.testing.assert_close(
                other.lora_B[index, :, : member.rank], layer.lora_B[0], rtol=0, atol=1e-10
            )
        torch.testing.assert_close(
            together.heads["sst"].weight[index], alone.heads["sst"].weight[0], rtol=0, atol=1e-10
        )


@pytest.mark.slow
def test_start_does_not_depend_on_the_precision(train):
    members = [Member(4, 1.0, lr=1e-30)]
    double, single = (
        train(members, epochs=1, trainer={"precision": p}.items()).model
        for p in ("64-true", "32-true")
    )
    assert double.heads["sst"].weight.dtype == torch.float64
    for name, layer in single.adapters.items():
        torch.testing.assert_close(
            double.adapters[name].lora_A, layer.lora_A.double(), rtol=1e-6, atol=0
        )


class Watch(Callback):
    """Notes the learning rate of every step and the counters of the dropout masks."""

    def __init__(self):
        self.rates = []
        self.counters = []

    def on_fit_start(self, trainer, pl_module):
        seed = pl_module.model.seed_dropout
        pl_module.model.seed_dropout = lambda *counter: (
            self.counters.append(counter),
            seed(*counter),
        )

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.slow
def test_schedules(train, schedule):
    watch = Watch()
    train(
        [Member(2, 1.0, lr=0.1)], callbacks=[watch], schedule=schedule, warmup=0.25
    )  # 12 steps, 3 of warm-up
    after = {
        "constant": lambda share: 1.0,
        "linear": lambda share: 1 - share,
        "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    }
    expected = [step / 3 if step < 3 else after[schedule]((step - 3) / 9) for step in range(12)]
    assert watch.rates == pytest.approx(expected)  # factors of each member's own rate
    assert len(set(watch.counters)) == len(watch.counters) == 12  # no two steps share their masks


def test_schedule_without_an_end(train):
    with pytest.raises(InputError, match="need an end"):
        train([Member(2, 1.0)], epochs=-1, warmup=0.1)


@pytest.mark.parametrize(
    ("mode", "dropout"), [("lora", True), ("lora", False), ("full", True), ("frozen", True)]
)
@pytest.mark.slow
def test_backbones_dropout_is_on_where_it_should_be(train, mode, dropout):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modules = [
                module for module in pl_module.model.modules() if isinstance(module, MemberDropout)
            ]
            seen.append(any(module.training and module.p > 0 for module in modules))

    train(
        [Member(2 if mode == "lora" else 0, 1.0)],
        epochs=2,
        callbacks=[Look()],
        mode=mode,
        encoder_dropout=dropout,
    )
    assert set(seen) == {dropout and mode != "frozen"}


def test_a_shared_loss_scale_is_refused(train, monkeypatch):
    monkeypatch.setattr(Trainer, "precision", "16-mixed")
    with pytest.raises(InputError, match="use bf16-mixed"):
        train([Member(2, 1.0)], trainer=())


def test_several_devices_are_refused(tiny_bert, corpus, tmp_path):
    from loraens.train.callbacks import MemberWriter

    texts = data.SST(root=str(corpus), backbone=str(tiny_bert))
    module = Population([Member(2, 1.0)], texts.tasks, backbone=str(tiny_bert))
    trainer = Trainer(max_epochs=1, callbacks=[MemberWriter(tmp_path)], **QUIET)
    trainer.strategy.world_size = 2
    with pytest.raises(InputError, match=r"^devices gives 2 devices"):
        MemberWriter(tmp_path).setup(trainer, module, "fit")
