"""The kinds rslora and dora, and the targets by words, against PEFT."""

import json

import numpy as np
import peft
import pytest
import torch
from helpers.batches import batch_of, one_member, step
from transformers import AutoModel

from loraens.errors import InputError
from loraens.members import Member
from loraens.model.adapters import ADAPTERS
from loraens.model.backbone import load_encoder
from loraens.model.batch import pack
from loraens.model.population import MemberModel
from loraens.model.weights import load_member, member_files
from loraens.tasks import SST

MEMBERS = [Member(2, 3.0, seed=5), Member(1, 1.0, seed=6), Member(4, 2.0, seed=7)]
KINDS = [("rslora", True), ("dora", True), ("dora", False)]  # kind, and whether packed


def build(directory, kind, packed, members=MEMBERS, **options):
    encoder = load_encoder(str(directory), pooler=False, packed=packed)
    options = {"pooling": "mean", "adapter": kind, **options}
    return MemberModel(encoder, [SST], members, **options).double()


def peft_features(directory, saved, model, index):
    """PEFT's model of a saved member, its features of one sequence, and ours."""
    tokens = np.arange(5, 14)
    one = pack(tokens, tokens * 0, np.array([0, 9]), np.zeros((3, 1), int), None, "sst", "dev")
    stock = AutoModel.from_pretrained(directory).double()
    theirs = peft.PeftModel.from_pretrained(stock, saved, is_trainable=True).double().eval()
    hidden = theirs(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0]
    return theirs, hidden.mean(0), model.eval().pooled(one)[index, 0]


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize(("kind", "packed"), KINDS)
def test_members_together_are_those_alone(tiny_bert, kind, packed):
    data = batch_of(3)
    together = build(tiny_bert, kind, packed)
    start = {name: p.detach().clone() for name, p in together.named_parameters()}
    step(together, data)
    for index, member in enumerate(MEMBERS):
        alone = step(build(tiny_bert, kind, packed, [member]), one_member(data, index))
        for name, layer in alone.adapters.items():
            ours = together.adapters[name].member_tensors(index)
            for end, tensor in layer.member_tensors(0).items():
                torch.testing.assert_close(tensor, ours[end], rtol=0, atol=1e-10)
    moved = [n for n, p in together.named_parameters() if not torch.equal(p, start[n])]
    expected = 3 if kind == "dora" else 2
    assert len(moved) == expected * len(together.adapters) + 2  # and the head's


@pytest.mark.parametrize(("kind", "packed"), KINDS)
def test_peft_loads_a_member_with_the_same_features_and_gradients(
    tiny_bert, tmp_path, kind, packed
):
    model = step(build(tiny_bert, kind, packed), batch_of(3))
    write(tmp_path, member_files(model, 2, str(tiny_bert), ("query", "value")))
    theirs, expected, features = peft_features(tiny_bert, tmp_path, model, 2)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)  # saved in float32
    model.zero_grad()
    features.square().sum().backward()
    expected.square().sum().backward()
    named = dict(theirs.named_parameters())
    for name, layer in model.adapters.items():
        grads = {"lora_A.default.weight": layer.lora_A.grad[2]}
        grads["lora_B.default.weight"] = layer.lora_B.grad[2]
        if kind == "dora":
            grads["lora_magnitude_vector.default.weight"] = layer.magnitude.grad[2]
        for end, grad in grads.items():
            other = named[f"base_model.model.{name}.{end}"].grad
            assert grad.abs().max() > 1e-6
            torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-5)

    again = build(tiny_bert, kind, packed, MEMBERS[2:]).eval()
    load_member(again, 0, tmp_path)
    logits = model(batch_of(3))[2]
    alone = one_member(batch_of(3), 2)
    torch.testing.assert_close(again(alone)[0], logits, rtol=0, atol=1e-5)
    again.fold()
    torch.testing.assert_close(again(alone)[0], logits, rtol=0, atol=1e-5)


def test_every_member_starts_as_the_backbone(tiny_bert):
    models = [build(tiny_bert, kind, True, fast=False).eval() for kind in ("lora", "dora")]
    features = [model.pooled(batch_of(3)) for model in models]
    torch.testing.assert_close(*features, rtol=0, atol=1e-5)  # norms of float32
    rslora, lora = (build(tiny_bert, kind, True) for kind in ("rslora", "lora"))
    assert rslora.fast is not None
    scales = [[next(iter(m.adapters.values())).scales[2]] for m in (rslora, lora)]
    assert scales == [[2.0 * 4**0.5], [2.0]]


def test_soups_of_dora_are_refused(tiny_bert):
    layer = next(iter(build(tiny_bert, "dora", True).adapters.values()))
    with pytest.raises(InputError, match="kind dora cannot be combined into one model, since"):
        layer.combined([0.5, 0.5, 0.0])
    assert [*ADAPTERS][:3] == ["lora", "dora", "rslora"]


@pytest.mark.parametrize(("packed", "kind"), [(True, "lora"), (False, "lora"), (False, "dora")])
def test_all_linear_layers(tiny_bert, tmp_path, packed, kind):
    model = build(tiny_bert, kind, packed, targets=["all-linear"])
    assert len(model.adapters) == 2 * 6
    step(model, batch_of(3), steps=1)
    write(tmp_path, member_files(model, 1, str(tiny_bert), ("all-linear",)))
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == list(model.adapters)
    _, expected, features = peft_features(tiny_bert, tmp_path, model, 1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_attention_is_query_key_and_value(tiny_bert):
    model = build(tiny_bert, "lora", True, targets=["attention"])
    ends = {name.rpartition(".")[2] for name in model.adapters}
    assert ends == {"query", "key", "value"}
    files = member_files(model, 0, str(tiny_bert), ("attention",))
    assert json.loads(files["adapter_config.json"])["target_modules"] == ["query", "key", "value"]
