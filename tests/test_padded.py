"""The padded path: stock encoders and decoders of many types, against themselves one by one, and
against PEFT.
"""

import json
from copy import deepcopy
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch
from helpers.batches import batch_of, one_member, step
from helpers.encoders import ARCHITECTURES, LENGTHS, SMALL, examples
from helpers.peft_adapters import save_adapter
from helpers.stock import CONFIGS, DECODERS, TARGETS
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, FNetConfig, T5Config
from transformers.models.bert.modeling_bert import BertLayer

from loraens.errors import InputError
from loraens.members import Member
from loraens.model.architectures import ARCHITECTURES as RECORDS
from loraens.model.backbone import is_packed, load_encoder
from loraens.model.batch import pack
from loraens.model.imported import Imported
from loraens.model.padded import _cheapest
from loraens.model.peft_adapter import PeftAdapter
from loraens.model.population import MemberModel
from loraens.model.weights import load_member, member_files
from loraens.tasks import SST

MEMBERS = [Member(2, 3.0, seed=5), Member(1, 1.0, seed=6), Member(4, 2.0, seed=7)]
ROWS = np.array([[0, 2, 3, 1], [4, 2, 1, 0], [2, 3, 4, 4]])

QUICK = ("bert", "deberta-v2", "modernbert", "qwen3")  # those that differ the most
EACH_TYPE = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directory of a small random model of a type, as `transformers` saved it."""
    directories = {}

    def save(name, config=None):
        if name not in directories:
            directories[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(1)
            AutoModel.from_config(deepcopy(config or CONFIGS[name])).save_pretrained(
                directories[name]
            )
        return directories[name]

    return save


def build(directory, name, members=MEMBERS, **options):
    """The model of members, their B random."""
    pooling = options.setdefault("pooling", "last" if name in DECODERS else "mean")
    encoder = load_encoder(str(directory), pooler=pooling == "pooler", packed=False)
    options.setdefault("targets", TARGETS.get(name, ("query", "value")))
    model = MemberModel(encoder, [SST], members, **options).double()
    assert model.padded is not None
    for layer in model.adapters.values():
        for index, member in enumerate(members):
            generator = torch.Generator().manual_seed(member.seed)
            own = torch.empty(layer.lora_B.shape[1], member.rank, dtype=torch.float64)
            own.normal_(0, 0.3, generator=generator)
            layer.lora_B.data[index, :, : member.rank] = own
    return model


def batch(rows=ROWS):
    return pack(*examples(), rows, np.arange(len(LENGTHS), dtype=float), "sst", "train")


def stock_features(directory, model, index, row):
    """Features of one example from the stock model, the member's change added to its weights."""
    stock = AutoModel.from_pretrained(directory).double().eval()
    for name, layer in model.adapters.items():
        stock.get_submodule(name).weight.data += layer.delta_weight(index)
    tokens, types, offsets = examples()
    part = slice(offsets[row], offsets[row + 1])
    given = {"input_ids": torch.from_numpy(tokens[part].astype(np.int64))[None]}
    if model.architecture.reads_token_types(stock.config):
        given["token_type_ids"] = torch.from_numpy(types[part].astype(np.int64))[None]
    with torch.no_grad():
        hidden = stock(**given).last_hidden_state[0]
    return {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[model.pooling]


@pytest.mark.parametrize("name", EACH_TYPE)
def test_features_are_those_of_the_stock_model(saved, name):
    model = build(saved(name), name).eval()
    adapted = {id(layer) for layer in model.adapters.values()}
    assert len(adapted) == len(model.adapters) >= 2
    features = model.pooled(batch())
    for index, rows in enumerate(ROWS):
        for got, row in zip(features[index], rows, strict=True):
            expected = stock_features(saved(name), model, index, row)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", EACH_TYPE)
def test_members_together_are_those_alone(saved, name):
    """Three steps with dropout: the same weights and logits to rounding."""
    data = batch_of(3)
    # Longformer's softmax is in float32, in which the masks of float64 are minus infinity, and its
    # gradient NaN
    dtype, close = (torch.float32, 1e-4) if name == "longformer" else (torch.float64, 1e-10)
    start = build(saved(name), name).to(dtype).train()
    start.seed_dropout(0, 0)
    dropped = start(data)
    assert not torch.allclose(dropped, start.eval()(data), atol=1e-4)
    together = step(start, data)
    for index, member in enumerate(MEMBERS):
        alone = step(build(saved(name), name, [member]).to(dtype), one_member(data, index))
        for layer, own in alone.adapters.items():
            for end, tensor in own.member_tensors(0).items():
                expected = together.adapters[layer].member_tensors(index)[end]
                torch.testing.assert_close(tensor, expected, rtol=0, atol=close)
        torch.testing.assert_close(
            alone(one_member(data, index))[0], together(data)[index], rtol=0, atol=close
        )
    for layer in together.adapters.values():
        assert (layer.lora_A[0, 2:] == 0).all()
        assert (layer.lora_B[0, :, 2:] == 0).all()


@pytest.mark.parametrize("name", EACH_TYPE)
def test_masks_do_not_depend_on_padding(saved, name):
    """The first example beside shorter ones and beside a longer one, in training."""
    model = build(saved(name), name, MEMBERS[:1]).train()
    model.padded.forward = 1000  # all in one
    features = []
    for rows in ([0, 1, 4], [0, 2, 4]):
        model.seed_dropout(3)
        features.append(model.pooled(batch(np.array([rows]))).detach())
    torch.testing.assert_close(*(x[0, [0, 2]] for x in features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EACH_TYPE)
def test_peft_loads_a_member_with_the_same_logits(saved, name, tmp_path):
    model = build(saved(name), name).eval()
    targets = TARGETS.get(name, ("query", "value"))
    for file, content in member_files(model, 2, str(saved(name)), targets).items():
        (tmp_path / file).write_bytes(content)
    stock = AutoModel.from_pretrained(saved(name))
    loaded = peft.PeftModel.from_pretrained(stock, tmp_path).double().eval()
    adapted = {n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert adapted == {f"base_model.model.{layer}" for layer in model.adapters}
    tokens, _, offsets = examples()
    ids = torch.from_numpy(tokens[: offsets[1]].astype(np.int64))[None]
    typed = model.architecture.reads_token_types(stock.config)
    types = {"token_type_ids": torch.zeros_like(ids)} if typed else {}
    hidden = loaded(input_ids=ids, **types).last_hidden_state[0].detach()
    features = hidden[-1] if model.pooling == "last" else hidden.mean(0)
    one = pack(tokens, np.zeros_like(tokens), offsets, np.zeros((3, 1), int), None, "sst", "dev")
    torch.testing.assert_close(features, model.pooled(one)[2, 0].detach(), rtol=0, atol=1e-6)

    again = build(saved(name), name, MEMBERS[2:]).eval()
    load_member(again, 0, tmp_path)
    again.float()
    expected = model.float()(batch())[2]
    torch.testing.assert_close(again(batch(ROWS[2:]))[0], expected, rtol=0, atol=1e-5)
    again.fold()
    torch.testing.assert_close(again(batch(ROWS[2:]))[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EACH_TYPE)
def test_a_member_is_what_peft_trained(saved, name, tmp_path):
    members = [Member(1, 1.0), Member(3, 2.0)]
    model = build(saved(name), name, members).eval()
    targets = model.architecture.linear_names(TARGETS.get(name, ("query", "value")))
    other = save_adapter(saved(name), tmp_path, classifier=False, target_modules=targets).double()
    adapter = PeftAdapter.read(tmp_path)
    layers = adapter.on(load_encoder(str(saved(name)), pooler=False))
    head = torch.ones(5, 32), torch.zeros(5)
    imported = Imported("peft", adapter, layers, *head, "lora", tuple(targets))
    assert imported.member == members[1]
    assert layers.keys() == model.adapters.keys()
    imported.copy_to(model, 1, "sst")
    tokens, types, offsets = examples()
    for example in range(2):
        part = slice(offsets[example], offsets[example + 1])
        given = {"input_ids": torch.from_numpy(tokens[part].astype(np.int64))[None]}
        if model.architecture.reads_token_types(model.encoder.config):
            given["token_type_ids"] = torch.from_numpy(types[part].astype(np.int64))[None]
        hidden = other(**given).last_hidden_state[0].detach()
        features = hidden[-1] if model.pooling == "last" else hidden.mean(0)
        rows = np.full((2, 1), example)
        one = pack(tokens, types, offsets, rows, None, "sst", "dev")
        torch.testing.assert_close(model.pooled(one)[1, 0].detach(), features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler", "last"])
@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record.packed])
def test_packed_and_padded_are_one(saved, name, pooling):
    if pooling == "pooler" and RECORDS[name].pooler is None:
        pytest.skip("it has no pooler")
    padded = build(saved(name), name, pooling=pooling)
    encoder = load_encoder(str(saved(name)), pooler=pooling == "pooler")
    assert is_packed(encoder)
    packed = MemberModel(encoder, [SST], MEMBERS, pooling=pooling, fast=False).double()
    assert packed.padded is None
    packed.load_state_dict(padded.state_dict())
    outputs = []
    for model in (padded, packed):
        model.train().seed_dropout(1, 2)
        outputs.append(model(batch()))
        outputs.append(model.eval()(batch()))
    torch.testing.assert_close(outputs[0], outputs[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs[1], outputs[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"encoder_dropout": False}, {"mode": "frozen"}])
def test_without_dropout_training_is_evaluation(saved, options):
    members = [Member(2, 3.0, seed=5, head_dropout=0.0)]
    model = build(saved("modernbert"), "modernbert", members, **options).train()
    model.seed_dropout(0, 0)
    torch.testing.assert_close(model(batch(ROWS[:1])), model.eval()(batch(ROWS[:1])))


def test_the_whole_model_is_trained(saved):
    model = build(saved("llama"), "llama", MEMBERS[:1], mode="full").train()
    model.seed_dropout(0, 0)
    model(batch(ROWS[:1])).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.encoder.parameters())


# What is refused


def test_every_packed_type_is_tried_on_both_paths():
    assert {name for name, record in RECORDS.items() if record.packed} <= set(CONFIGS)
    assert set(ARCHITECTURES) <= set(CONFIGS)


class Behind(BertLayer):
    """A layer of BERT, in front of which something else is done."""

    def forward(self, x, *args, **kwargs):
        return super().forward(self.change(x), *args, **kwargs)


class BatchNormed(Behind):
    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.hidden_size)

    def change(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Centred(Behind):
    def change(self, x):
        return x - x.mean()  # of all texts


class Random(Behind):
    def change(self, x):
        return x * torch.rand(()) if self.training else x


class Folded(Behind):
    def change(self, x):
        return nn.functional.dropout(x.flatten(0, 1), 0.1, self.training).view(x.shape)


class Fixed(Behind):
    def change(self, x):
        return x * nn.functional.dropout(x.new_ones(x.shape[-1]), 0.5, self.training)


def changed(layer, directory):
    encoder = load_encoder(str(directory), pooler=False, packed=False)
    behind = layer(encoder.config)
    behind.load_state_dict(encoder.encoder.layer[0].state_dict(), strict=False)
    encoder.encoder.layer[0] = behind.eval()
    return encoder


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BatchNormed, "its batch norm makes a text depend on those beside it"),
        (Centred, "features of a text change with the texts and the padding beside it, by"),
        (Random, "something beside dropout is random in it while it is trained"),
        (Folded, "its dropout acts on axes that mix texts with something else"),
    ],
)
def test_what_cannot_be_exact_is_refused(saved, layer, reason):
    encoder = changed(layer, saved("bert"))
    with pytest.raises(InputError, match=f"^backbone of type bert: {reason}.*: give another one$"):
        MemberModel(encoder, [SST], MEMBERS, pooling="mean")


def test_dropout_that_all_texts_share_is_the_members_own(saved):
    """Members are run one after another, and each ends as alone."""
    data = batch_of(3)
    models = []
    for members in (MEMBERS, MEMBERS[1:2]):
        model = MemberModel(changed(Fixed, saved("bert")), [SST], members, pooling="mean").double()
        assert not model.eval().padded.in_turn
        assert model.train().padded.in_turn
        models.append(model)
    together, alone = step(models[0], data), step(models[1], one_member(data, 1))
    torch.testing.assert_close(alone(one_member(data, 1))[0], together(data)[1], rtol=0, atol=1e-10)


def test_texts_that_are_mixed_are_refused(saved):
    """FNet's Fourier transform reads padding as it reads texts."""
    sizes = {name: size for name, size in SMALL.items() if name != "num_attention_heads"}
    encoder = load_encoder(str(saved("fnet", FNetConfig(**sizes))), pooler=False)
    with pytest.raises(InputError, match="type fnet: features of a text change with"):
        MemberModel(encoder, [SST], MEMBERS, targets=["intermediate.dense"], pooling="mean")


def test_an_encoder_with_a_decoder_is_refused(saved):
    config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(InputError, match="type t5, an encoder with a decoder, which"):
        load_encoder(str(saved("t5", config)), pooler=False)


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_a_decoder_does_not_pool_its_first_token(saved, name, tmp_path):
    directory = saved(name)
    if name == "bert":
        BertModel(BertConfig(**CONFIGS["bert"].to_dict() | {"is_decoder": True})).save_pretrained(
            directory := tmp_path
        )
    with pytest.raises(InputError, match="in a decoder it has seen no other token, so give last"):
        build(directory, name, pooling="cls")
    build(directory, name, pooling="last")


def test_projections_that_are_no_linear_layers_are_said(saved):
    encoder = load_encoder(str(saved("xlnet")), pooler=False)
    reason = (
        "the encoder's query projections are no linear layers; the encoder has layer_1, layer_2"
    )
    with pytest.raises(ValueError, match=reason):
        MemberModel(encoder, [SST], MEMBERS, pooling="mean")


def test_other_targets_are_saved_by_their_full_names(saved, tmp_path):
    """`dense` alone would be the pooler's layer, too, when PEFT loads it."""
    model = build(saved("bert"), "bert", targets=["intermediate.dense", "query"])
    files = member_files(model, 0, "tiny", ["intermediate.dense", "query"])
    names = json.loads(files["adapter_config.json"])["target_modules"]
    assert names == list(model.adapters)
    assert "encoder.layer.1.intermediate.dense" in names


def test_training_without_a_seed_is_refused(saved):
    model = build(saved("modernbert"), "modernbert").train()
    with pytest.raises(RuntimeError, match="dropout masks have no seed"):
        model(batch())


def test_forwards_are_the_cheapest():
    """Against all ways to cut ascending lengths."""
    rng = np.random.default_rng(0)
    for forward in (1, 20, 60, 1000):
        lengths = np.sort(rng.integers(3, 40, 9))

        def cost(parts, lengths=lengths, forward=forward):
            return sum((high - low) * lengths[high - 1] + forward for low, high in parts)

        ways = []
        for cuts in range(2**8):
            ends = [index + 1 for index in range(8) if cuts >> index & 1]
            ways.append([*pairwise([0, *ends, 9])])
        found = _cheapest(lengths, forward)
        assert cost(found) == min(map(cost, ways))
        assert [index for low, high in found for index in range(low, high)] == [*range(9)]
