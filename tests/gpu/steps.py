"""Training steps of a population on the emulated device; `tests/test_gpu.py` runs it. Lightning's
trainer is not emulated: its part of a step is played here.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers.batches import batch_of
from helpers.second_device import DEVICE, Device, autocast_bf16, second_device, to_second_device

from loraens.members import Member
from loraens.tasks import SST, STS
from loraens.train.module import Population

STEPS = 2 if os.environ.get("TRITON_INTERPRET") else 4  # the interpreter is slow
MEMBERS = [Member(2, 3.0, lr=1e-3), Member(4, 1.0, seed=1, lr=5e-3), Member(1, 9.0, lr=1e-3)]


def stepped(tiny_bert, monkeypatch, task, device, half=False):
    """Mean losses and trained weights after some steps and one evaluation, and where the host
    waited in each step.
    """
    module = Population(MEMBERS, [task], backbone=str(tiny_bert), pooling="mean")
    module.build(64)
    data = SimpleNamespace(scored="dev")
    trainer = SimpleNamespace(datamodule=data, current_epoch=0, global_step=0)
    monkeypatch.setattr(Population, "trainer", trainer)
    monkeypatch.setattr(Population, "log", lambda *args, **options: None)
    if device != "cpu":
        to_second_device(module)
        module._device = DEVICE
    module._trainer = trainer  # without one its step is always 0
    optimizer = module.configure_optimizers()
    waits = []
    module.model.train()
    for step in range(STEPS):
        trainer.global_step = step
        Device.waits.clear()
        batch = batch_of(len(MEMBERS), task.name).to(device)
        context = autocast_bf16() if half else torch.enable_grad()
        with context:
            loss = module.training_step(batch, step)
        loss.backward()
        module.configure_gradient_clipping(optimizer, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        waits.append(list(Device.waits))
    module.model.eval()
    with torch.no_grad(), autocast_bf16() if half else torch.no_grad():
        module.validation_step(batch, 0)
    assert module.evaluation.finish().tolist() == [True] * 3
    weights = {n: p.detach().to("cpu") for n, p in module.named_parameters() if p.requires_grad}
    return module.mean_losses, weights, waits


@pytest.mark.parametrize("task", [SST, STS], ids=lambda task: task.name)
def test_steps_are_those_of_the_cpu(monkeypatch, tiny_bert, task):
    losses, weights, _ = stepped(tiny_bert, monkeypatch, task, "cpu")
    with second_device():
        found, moved, _ = stepped(tiny_bert, monkeypatch, task, DEVICE)
        half, _, waits = stepped(tiny_bert, monkeypatch, task, DEVICE, half=True)
    assert found == pytest.approx(losses, rel=1e-5)
    assert half == pytest.approx(losses, rel=5e-2)
    assert waits[0]  # at the first step it is seen whether any member is left
    assert waits[1:] == [[]] * (STEPS - 1)
    assert moved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(moved[name], weight, rtol=1e-3, atol=1e-4)
