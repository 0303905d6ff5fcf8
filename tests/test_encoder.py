"""The fast path against the general one, and what it must not do."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from helpers.encoders import ARCHITECTURES, LENGTHS, examples
from transformers import CamembertConfig, CamembertModel, XLMRobertaConfig, XLMRobertaModel

from loraens.members import Member
from loraens.model.architectures import ARCHITECTURES as ARCHITECTURE_RECORDS
from loraens.model.backbone import load_encoder
from loraens.model.batch import pack
from loraens.model.population import MemberModel
from loraens.tasks import SST

MEMBERS = [
    Member(2, 3.0, seed=5),
    Member(4, 1.0, seed=6, head_dropout=0.1),
    Member(1, 10.0, seed=7),
]
ROWS = [[0, 2, 3, 1], [4, 2, 1, 0], [2, 3, 4, 4]]
ROBERTA = {**ARCHITECTURES["roberta"][1].to_dict()}
FAST = {
    **{name: ARCHITECTURES[name][:2] for name in ("bert", "roberta", "electra")},
    "camembert": (CamembertModel, CamembertConfig(**ROBERTA)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ROBERTA)),
}


@pytest.fixture(scope="module", params=FAST)
def build(request, tmp_path_factory):
    """Builds a model of one architecture, whose encoder is read from disk once."""
    kind, config = FAST[request.param]
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    kind(config).save_pretrained(directory)

    @cache
    def loaded(pooler):
        return load_encoder(str(directory), pooler=pooler)

    def make(fast, pooling="cls", dtype=torch.float64, members=MEMBERS, **options):
        encoder = deepcopy(loaded(pooling == "pooler"))
        targets = options.pop("targets", ("query", "value"))
        model = MemberModel(
            encoder, [SST], members, targets=targets, pooling=pooling, fast=fast, **options
        ).to(dtype)
        assert (model.fast is not None) == fast
        generator = torch.Generator().manual_seed(0)
        for layer in model.adapters.values():
            for index, member in enumerate(members):
                b = torch.empty(layer.lora_B.shape[1], member.rank).normal_(
                    0, 0.3, generator=generator
                )
                layer.lora_B.data[index, :, : member.rank] = b
        return model

    make.name = request.param
    return make


def batch(rows=ROWS):
    import numpy as np

    tokens, types, offsets = examples()
    labels = np.arange(len(LENGTHS), dtype=float)
    return pack(tokens, types, offsets, np.array(rows), labels, "sst", "train")


def losses_and_grads(model, batch):
    model.train().seed_dropout(0, 3)
    losses = SST.member_losses(model(batch), batch.labels)
    losses.sum().backward()
    return losses.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    "targets", [("query", "value"), ("query", "key", "value"), ("value", "top-1")]
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fast_equals_general(build, pooling, targets, batched):
    """Losses, logits and every gradient, with dropout; member by member, and all members at once as
    on a GPU.
    """
    general = build(False, pooling, targets=targets)
    fast = build(True, pooling, targets=targets)
    fast.routing.batched = batched
    (expected, grads), (got, fast_grads) = (
        losses_and_grads(model, batch()) for model in (general, fast)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert grads.keys() == fast_grads.keys()
    for name, grad in grads.items():
        assert grad.abs().max() > 1e-6, name
        torch.testing.assert_close(fast_grads[name], grad, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(
            fast.eval()(batch()), general.eval()(batch()), rtol=0, atol=1e-12
        )


def test_targets_of_the_highest_layers(build):
    top = build(False, targets=("query", "value", "top-1"))
    assert {name.split(".")[2] for name in top.adapters} == {"1"}
    assert len(top.adapters) == 2
    for targets, message in (
        (("value", "top-3"), "top-3 is not among the encoder's 2 layers"),
        (("top-1",), "at least one name of a linear layer"),
    ):
        with pytest.raises(ValueError, match=message):
            build(False, targets=targets)


def test_nothing_is_kept_below_the_lowest_adapted_layer(build):
    """Its gradients are the same bits as with adapters below it that change nothing."""
    everywhere, top = (
        build(True, "mean", targets=[t]) for t in ("value", "layer.1.attention.self.value")
    )
    (name,) = (name for name in everywhere.adapters if name in top.adapters)
    for other, adapter in everywhere.adapters.items():
        adapter.lora_B.data.zero_()
        if other == name:
            adapter.load_state_dict(top.adapters[name].state_dict())
    (expected, grads), (got, of_top) = (losses_and_grads(m, batch()) for m in (everywhere, top))
    assert torch.equal(got, expected)
    for parameter, grad in of_top.items():
        assert torch.equal(grad, grads[parameter]), parameter
    assert {layer for _, layer in top.fast.buffers._tensors} == {-1, 1}  # -1: of all


def test_weights_of_long_sequences_are_computed_again(build, monkeypatch):
    """The same bits, with less memory."""
    kept, again = build(True, "mean"), build(True, "mean")
    losses, grads = losses_and_grads(kept, batch())
    monkeypatch.setattr("loraens.model.fast_run.LONG", 8)
    got, of_again = losses_and_grads(again, batch())
    assert torch.equal(got, losses)
    assert all(torch.equal(of_again[name], grad) for name, grad in grads.items())
    assert again.fast.buffers.nbytes < kept.fast.buffers.nbytes


def test_every_type_is_tried():
    assert set(FAST) == {kind for kind, record in ARCHITECTURE_RECORDS.items() if record.fast}


def test_pooler_and_single_precision(build):
    if build.name == "electra":
        pytest.skip("ELECTRA has no pooler")
    single, double = (build(True, "pooler", dtype) for dtype in (torch.float32, torch.float64))
    (a, grads), (b, wide_grads) = (losses_and_grads(model, batch()) for model in (single, double))
    torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-4)
    for name, grad in grads.items():
        torch.testing.assert_close(grad.double(), wide_grads[name], rtol=1e-3, atol=1e-4)


def test_half_precision_backbone(build):
    """Under autocast the backbone and its products are bfloat16, adapters and their gradients
    float32.
    """
    half = build(True, "mean", torch.float32)
    single = build(True, "mean", torch.float32)
    expected, grads = losses_and_grads(single, batch())
    with torch.autocast("cpu", torch.bfloat16):
        half.train().seed_dropout(0, 3)
        logits = half(batch())
        losses = SST.member_losses(logits.float(), batch().labels)
    losses.sum().backward()
    assert half.encoder.encoder.layer[0].attention.self.key.weight.dtype == torch.bfloat16
    torch.testing.assert_close(losses.detach(), expected, rtol=0.1, atol=0.1)
    for name, parameter in half.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            other = grads[name]
            assert (
                torch.nn.functional.cosine_similarity(parameter.grad.flatten(), other.flatten(), 0)
                > 0.95
            ), name


def test_frozen_weights_exist_once_and_get_no_gradient(build):
    model = build(True)
    before = {
        name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
    }
    losses_and_grads(model, batch())
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    assert all(p.grad is None for p in frozen.values())
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in frozen.values()
    }
    assert sum(storages.values()) == sum(p.nbytes for p in before.values())
    held = {layer.weight.untyped_storage().data_ptr() for layer in model.fast.layers}
    assert held <= set(
        storages
    )  # what the fast path laid side by side is what the stock modules see


def test_padded_ranks_get_no_gradient(build):
    _, grads = losses_and_grads(build(True), batch())
    for name, grad in grads.items():
        for index, member in enumerate(MEMBERS):
            if name.endswith("lora_A"):
                assert (grad[index, member.rank :] == 0).all()
            elif name.endswith("lora_B"):
                assert (grad[index, :, member.rank :] == 0).all()


def test_a_backward_after_another_forward_is_refused(build):
    model = build(True).train()
    model.seed_dropout(0)
    first = model(batch())
    model(batch())
    with pytest.raises(RuntimeError, match="must come before the next forward"):
        first.sum().backward()


def test_other_targets_and_activations_take_the_general_path(tmp_path):
    kind, config = FAST["bert"]
    for targets, act in ((("query", "intermediate.dense"), "gelu"), (("query",), "relu")):
        config = type(config)(**{**config.to_dict(), "hidden_act": act})
        kind(config).save_pretrained(tmp_path)
        encoder = load_encoder(str(tmp_path), pooler=False)
        assert MemberModel(encoder, [SST], MEMBERS[:1], targets=targets, pooling="cls").fast is None
