"""The fast path under CUDA's autocast, on the emulated device; `tests/test_gpu.py` runs it."""

from copy import deepcopy

import pytest
import torch
from helpers.batches import batch_of
from helpers.encoders import ARCHITECTURES
from helpers.second_device import autocast_bf16, second_device, to_second_device

from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.population import MemberModel
from loraens.tasks import SST, STS
from loraens.train.optimizer import MemberAdamW

MEMBERS = [Member(2, 3.0, seed=5), Member(4, 1.0, seed=6, head_dropout=0.1), Member(1, 10.0)]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds a model on the device, whose adapters and heads are large."""
    directory = tmp_path_factory.mktemp("encoder")
    kind, config, _ = ARCHITECTURES["bert"]
    torch.manual_seed(1)
    kind(type(config)(**{**config.to_dict(), "initializer_range": 0.1})).save_pretrained(directory)
    encoder = load_encoder(str(directory), pooler=True)

    def make(fast, pooling, task=SST):
        model = MemberModel(deepcopy(encoder), [task], MEMBERS, pooling=pooling, fast=fast)
        generator = torch.Generator().manual_seed(0)
        for layer in model.adapters.values():
            for index, member in enumerate(MEMBERS):
                b = torch.empty(layer.lora_B.shape[1], member.rank)
                layer.lora_B.data[index, :, : member.rank] = b.normal_(0, 0.1, generator=generator)
        model.heads[task.name].weight.data.mul_(10)
        return to_second_device(model)

    return make


def on_cpu(tensor):
    return tensor.detach().to("cpu")


def train(model, steps, task=SST):
    """Losses `(steps, M)` of a few steps under autocast, on the same batch, as a population takes
    them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = MemberAdamW(trained, [5e-3] * 3, [0.01] * 3)
    batch = batch_of(3, task.name).to("cuda:0")
    losses = []
    for step in range(steps):
        model.train().seed_dropout(0, step)
        with autocast_bf16():
            of_members = task.member_losses(model(batch), batch.labels)
        assert of_members.dtype == torch.float32
        of_members.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(on_cpu(of_members))
    return torch.stack(losses)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_fast_equals_stock(build, pooling, training):
    logits = []
    for fast in (False, True):
        with second_device():
            model = build(fast, pooling).train(training)
            batch = batch_of(3).to("cuda:0")
            model.seed_dropout(0, 0)
            with autocast_bf16(), torch.set_grad_enabled(training):
                outputs = model(batch)
            assert outputs.device.type == "cuda"
            assert outputs.dtype == torch.float32
            logits.append(on_cpu(outputs))
            if fast:
                assert model.fast.layers[0].weight.dtype == torch.bfloat16
    stock, fast = logits
    assert stock.std() > 0.3
    torch.testing.assert_close(fast, stock, rtol=0, atol=5e-2)


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_losses_fall_alike(build, pooling):
    losses = []
    for fast in (False, True):
        with second_device():
            losses.append(train(build(fast, pooling), 50))
    stock, fast = losses
    assert (stock[-10:].mean(0) < 0.7 * stock[:10].mean(0)).all()
    torch.testing.assert_close(fast[0], stock[0], rtol=0, atol=2e-2)
    torch.testing.assert_close(fast[-10:].mean(0), stock[-10:].mean(0), rtol=0.15, atol=0.05)


def test_scores_are_not_rounded(build):
    """Logits of numbers around 2.5 in bfloat16 would be multiples of 1/64."""
    with second_device():
        model = build(True, "mean", STS).eval()
        batch = batch_of(3, "sts").to("cuda:0")
        with autocast_bf16(), torch.no_grad():
            logits = on_cpu(model(batch))
    assert len(logits.unique()) == logits.numel()
    assert not torch.equal(logits, logits.bfloat16().float())
