"""What must hold of an adapter whatever the model."""

import pytest
import torch
from helpers.batches import batch_of
from torch import nn

from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.injection import linear_names, merge
from loraens.model.lora import LoRALinear
from loraens.model.population import MemberModel
from loraens.model.routing import Routing
from loraens.model.weights import member_files
from loraens.tasks import QUORA, SST, STS

MEMBERS = [Member(1, 10.0), Member(5, 3.0, seed=1), Member(3, 1.0, seed=2)]


def build(tiny_bert, members=MEMBERS, **options):
    encoder = load_encoder(str(tiny_bert), pooler=options.get("pooling") == "pooler")
    return MemberModel(encoder, [SST], members, **{"pooling": "cls", **options}).double()


def test_layer_against_a_loop():
    routing = Routing([4, 2, 3])
    layer = LoRALinear(nn.Linear(6, 5), [1, 3, 2], [2.0, 1.0, 0.5], routing).double()
    for parameter in (layer.lora_A, layer.lora_B):
        nn.init.normal_(parameter)
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    got = layer(x)
    start = 0
    for index, tokens in enumerate(routing.tokens):
        for place in range(start, start + tokens):
            expected = layer.base.weight @ x[0, place] + layer.base.bias
            expected += (
                layer.scales[index] * layer.lora_B[index] @ (layer.lora_A[index] @ x[0, place])
            )
            torch.testing.assert_close(got[0, place], expected, rtol=0, atol=1e-12)
        start += tokens


def test_zero_b_gives_the_backbone(tiny_bert):
    model = build(tiny_bert)
    plain = load_encoder(str(tiny_bert), pooler=False).double()
    assert all((layer.lora_B == 0).all() for layer in model.adapters.values())
    adapted = (
        MemberModel(plain, [SST], [MEMBERS[0]], targets=("key",), pooling="cls").double().eval()
    )
    batch = batch_of(1)
    torch.testing.assert_close(
        adapted.pooled(batch),
        build(tiny_bert, MEMBERS[:1]).eval().pooled(batch),
        rtol=0,
        atol=1e-13,
    )


def test_step_leaves_base_and_padded_ranks_alone(tiny_bert):
    model = build(tiny_bert).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    for step in range(3):
        model.seed_dropout(step)
        batch = batch_of(3)
        optimizer.zero_grad()
        SST.member_losses(model(batch), batch.labels).sum().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora_" in name or name.startswith("head_"))
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for layer in model.adapters.values():
        for index, rank in enumerate(layer.ranks):
            assert (layer.lora_A[index, :rank] != 0).all()
            assert (layer.lora_B[index, :, :rank] != 0).any()
            assert (layer.lora_A[index, rank:] == 0).all()
            assert (layer.lora_B[index, :, rank:] == 0).all()


def test_frozen_weights_exist_once(tiny_bert):
    encoder = load_encoder(str(tiny_bert), pooler=False)
    plain = sum(parameter.numel() for parameter in encoder.parameters())
    model = MemberModel(encoder, [SST], MEMBERS, pooling="cls")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert sum(parameter.numel() for parameter in frozen) == plain
    assert len({parameter.data_ptr() for parameter in frozen}) == len(frozen)


def test_merge_is_exact_and_idempotent(tiny_bert):
    model = build(tiny_bert, MEMBERS[:1]).eval()
    for layer in model.adapters.values():
        nn.init.normal_(layer.lora_B)
    expected = {
        name: layer.base.weight + 10.0 * layer.lora_B[0] @ layer.lora_A[0]
        for name, layer in model.adapters.items()
    }
    batch = batch_of(1)
    before = model.pooled(batch)
    merge(model.encoder, 0)
    after = model.pooled(batch)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)
    for name, weight in expected.items():
        torch.testing.assert_close(
            model.encoder.get_submodule(name).weight, weight, rtol=0, atol=1e-12
        )
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    merge(model.encoder, 0)
    assert torch.equal(model.pooled(batch), after)


def test_a_member_starts_the_same_in_any_pack(tiny_bert):
    together = build(tiny_bert)
    alone = build(tiny_bert, MEMBERS[1:2])
    for name, layer in alone.adapters.items():
        assert torch.equal(layer.lora_A[0], together.adapters[name].lora_A[1, :5])
        assert layer.lora_A.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(alone.heads["sst"].weight[0], together.heads["sst"].weight[1])
    assert not torch.equal(together.heads["sst"].weight[0], together.heads["sst"].weight[1])


@pytest.mark.parametrize(("task", "start"), [(SST, 0.0), (QUORA, 0.0), (STS, 2.5)])
def test_bias_starts_in_the_middle_of_a_known_range(tiny_bert, task, start):
    encoder = load_encoder(str(tiny_bert), pooler=False)
    head = MemberModel(encoder, [task], MEMBERS, pooling="cls").heads[task.name]
    assert (head.bias == start).all()


def test_targets(tiny_bert):
    with_pooler = build(tiny_bert, targets=("dense",), pooling="pooler")
    assert len(with_pooler.adapters) == 2 * 3  # the pooler's own dense layer stays frozen
    assert with_pooler.eval()(batch_of(3)).shape == (3, 4, 5)
    model = build(tiny_bert, targets=("layer.1.attention.self.key", "intermediate.dense"))
    names = {name.removeprefix("encoder.") for name in model.adapters}
    assert names == {
        "layer.1.attention.self.key",
        "layer.0.intermediate.dense",
        "layer.1.intermediate.dense",
    }
    assert linear_names(load_encoder(str(tiny_bert), pooler=False)) == [
        "query",
        "key",
        "value",
        "dense",
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param((), "at least one name", id="none"),
        pytest.param(
            ("q_lin",),
            "'q_lin' matches no linear layer; the encoder has query, key, value, dense",
            id="unknown",
        ),
    ],
)
def test_targets_that_match_nothing(tiny_bert, targets, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_bert, targets=targets)


def test_saved_keys_hold_no_frozen_weight(tiny_bert):
    from safetensors.torch import load

    files = member_files(build(tiny_bert), 1, "tiny", ("query", "value"))
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "heads.safetensors"}
    keys = {
        f"base_model.model.encoder.layer.{layer}.attention.self.{target}.lora_{part}.weight": shape
        for layer in range(2)
        for target in ("query", "value")
        for part, shape in (("A", (5, 32)), ("B", (32, 5)))
    }
    assert {
        name: tuple(tensor.shape)
        for name, tensor in load(files["adapter_model.safetensors"]).items()
    } == keys


@pytest.mark.parametrize("task", [SST, QUORA, STS])
def test_losses_against_a_loop(task):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, task.num_outputs, dtype=torch.float64)
    labels = torch.tensor([[0.0, 1, 1], [1, 0, 1]], dtype=torch.float64)
    losses = task.member_losses(logits, labels)
    for member in range(2):
        total = 0.0
        for example in range(3):
            row = logits[member, example]
            label = labels[member, example]
            if task is SST:
                total += (row.logsumexp(0) - row[int(label)]).item()
            elif task is QUORA:
                total += -torch.log(torch.sigmoid(row[0] if label else -row[0])).item()
            else:
                total += ((row[0] - label) ** 2).item()
        assert losses[member].item() == pytest.approx(total / 3, abs=1e-12)
