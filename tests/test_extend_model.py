"""What can be added to the model from outside: a kind of adapters, an architecture; and what the
model refuses.
"""

import json

import numpy as np
import pytest
import torch
from helpers.batches import batch_of, one_member, step
from helpers.encoders import ARCHITECTURES as STOCK
from helpers.encoders import SMALL
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from loraens.errors import InputError
from loraens.members import Member
from loraens.model.adapters import ADAPTERS, Adapter
from loraens.model.architectures import ARCHITECTURES, Architecture
from loraens.model.backbone import load_encoder
from loraens.model.batch import pack
from loraens.model.dropout import MaskGenerator, attention_coordinates
from loraens.model.injection import padded_axis
from loraens.model.packed import layout_of, packed_attention
from loraens.model.population import MemberModel
from loraens.model.routing import Routing
from loraens.model.weights import load_member, member_files
from loraens.tasks import SST

ROBERTA = STOCK["roberta"][1].to_dict()
KINDS = {
    **{name: STOCK[name][:2] for name in STOCK},
    "camembert": (CamembertModel, CamembertConfig(**ROBERTA)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ROBERTA)),
}
MEMBERS = [Member(2, 3.0, seed=5), Member(1, 1.0, seed=6), Member(4, 2.0, seed=7)]


# A kind of adapters


class OutputScale(Adapter):
    """A learned scale of each output, y (1 + l), as (IA)^3 has on keys and values (Liu et al.
    2022).
    """

    def __init__(self, base, ranks, scales, routing):
        super().__init__(base, ranks, scales, routing)
        self.ia3_l = nn.Parameter(base.weight.new_zeros(len(ranks), base.out_features))

    @torch.no_grad()
    def reset(self, seeds, name, std):
        for index, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            self.ia3_l[index] = torch.randn(self.ia3_l.shape[1], generator=generator) * std

    def delta(self, x, y, index):
        return y * self.ia3_l[index]

    def delta_weight(self, index):
        return self.base.weight * self.ia3_l[index][:, None]

    def delta_bias(self, index):
        return self.base.bias * self.ia3_l[index]

    def member_tensors(self, index):
        return {"ia3_l": self.ia3_l[index]}

    @classmethod
    def peft_config(cls, member):
        return {"peft_type": "IA3"}


@pytest.fixture(scope="module")
def toy():
    ADAPTERS.register("toy", OutputScale)
    yield "toy"
    ADAPTERS.unregister("toy")


def build(tiny_bert, members=MEMBERS, **options):
    encoder = load_encoder(str(tiny_bert), pooler=options.get("pooling") == "pooler")
    return MemberModel(encoder, [SST], members, **{"pooling": "cls", **options}).double()


def test_another_kind_trains_in_a_pack_as_alone(tiny_bert, toy):
    together = build(tiny_bert, adapter=toy)
    assert together.fast is None  # the kind does not support the fast path
    assert together.trainable_parameters(1) == 4 * 32 + 5 * 32 + 5
    start = {name: layer.ia3_l.clone() for name, layer in together.adapters.items()}
    batch = batch_of(3)
    step(together, batch)
    for index, member in enumerate(MEMBERS):
        alone = step(build(tiny_bert, [member], adapter=toy), one_member(batch, index))
        for name, layer in alone.adapters.items():
            learned = together.adapters[name].ia3_l[index]
            assert (learned - start[name][index]).abs().max() > 1e-4
            torch.testing.assert_close(layer.ia3_l[0], learned, rtol=0, atol=1e-12)
    frozen = [p for p in together.parameters() if not p.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_another_kind_is_saved_loaded_and_merged(tiny_bert, toy, tmp_path, pooling):
    model = step(build(tiny_bert, adapter=toy, pooling=pooling), batch_of(3)).float()
    files = member_files(model, 1, str(tiny_bert), ("query", "value"))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert json.loads(files["adapter_config.json"])["peft_type"] == "IA3"
    again = build(tiny_bert, MEMBERS[1:2], adapter=toy, pooling=pooling).float().eval()
    load_member(again, 0, tmp_path)
    batch = one_member(batch_of(3), 1)
    expected = model(batch_of(3))[1]
    torch.testing.assert_close(again(batch)[0], expected, rtol=0, atol=1e-5)
    again.fold()
    assert again.fast is not None  # without adapters it is BERT
    assert not any(isinstance(module, Adapter) for module in again.modules())
    torch.testing.assert_close(again(batch)[0], expected, rtol=0, atol=1e-5)


def test_a_kind_that_cannot_be_combined_says_so(tiny_bert, toy):
    layer = next(iter(build(tiny_bert, adapter=toy).adapters.values()))
    with pytest.raises(InputError, match="OutputScale cannot be combined into one model"):
        layer.combined([0.5, 0.5, 0.0])
    with pytest.raises(NotImplementedError, match="does not support the fast path"):
        layer.add_delta(torch.zeros(1, 32), torch.zeros(1, 32), [1])


def test_kinds_by_name(tiny_bert, toy):
    assert list(ADAPTERS)[:1] == ["lora"]
    assert padded_axis("model.encoder.layer.0.attention.self.query.lora_A") == 1
    assert padded_axis("x.lora_B") == 2
    assert padded_axis("model.head_sts.weight") is None
    assert padded_axis("x.ia3_l", adapter=toy) is None
    with pytest.raises(KeyError, match="none of the adapters: lora"):
        build(tiny_bert, adapter="nora")
    with pytest.raises(ValueError, match="is taken"):
        ADAPTERS.register("lora", OutputScale)


# An architecture


class ToyConfig(BertConfig):
    model_type = "toy-bert"


class ToyModel(BertModel):
    config_class = ToyConfig


@pytest.fixture(scope="module")
def toy_types():
    AutoConfig.register("toy-bert", ToyConfig)
    AutoModel.register(ToyConfig, ToyModel)


@pytest.fixture(params=[False, True], ids=["packed", "fast"])
def toy_bert(request, toy_types, tiny_bert, tmp_path):
    """The tiny BERT's weights as an encoder of a model type of its own, and its record."""
    stock = BertModel.from_pretrained(tiny_bert)
    encoder = ToyModel(ToyConfig(**{**stock.config.to_dict(), "model_type": "toy-bert"}))
    encoder.load_state_dict(stock.state_dict())
    encoder.save_pretrained(tmp_path)
    record = Architecture(fast=request.param)
    ARCHITECTURES.register("toy-bert", record)
    yield tmp_path, record
    ARCHITECTURES.unregister("toy-bert")


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@pytest.mark.slow
def test_another_architecture_trains_as_bert(toy_bert, tiny_bert, pooling):
    directory, record = toy_bert
    model = build(directory, pooling=pooling)
    assert model.architecture is record
    assert (model.fast is not None) == record.fast
    bert = build(tiny_bert, pooling=pooling, fast=record.fast)
    batch = batch_of(3)
    trained, expected = (step(each, batch) for each in (model, bert))
    for name, value in expected.named_parameters():
        assert torch.equal(dict(trained.named_parameters())[name], value), name
    assert torch.equal(trained(batch), expected(batch))


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_unknown_and_unpacked_types_train_as_bert_on_the_padded_path(toy_bert, tiny_bert, pooling):
    directory, record = toy_bert
    ARCHITECTURES.unregister("toy-bert")
    batch = batch_of(3)
    try:
        unknown = build(directory, pooling=pooling)
        assert unknown.padded is not None
        expected = step(build(tiny_bert, pooling=pooling), batch)
        ARCHITECTURES.register("toy-bert", Architecture(packed=False))
        for model in (unknown, build(directory, pooling=pooling)):
            torch.testing.assert_close(step(model, batch)(batch), expected(batch))
    finally:
        if "toy-bert" in ARCHITECTURES:
            ARCHITECTURES.unregister("toy-bert")
        ARCHITECTURES.register("toy-bert", record)


def test_records_fit_the_stock_encoders():
    packed = {name: record for name, record in ARCHITECTURES.items() if record.packed}
    assert set(KINDS) == {name for name, record in packed.items() if record.make_packed is None}
    kinds = {**KINDS, "mpnet": (MPNetModel, MPNetConfig(**SMALL, max_position_embeddings=40))}
    for name, (kind, config) in kinds.items():
        record = ARCHITECTURES[name]
        encoder = kind(config)
        linears = {n.rpartition(".")[2] for n, m in encoder.named_modules() if type(m) is nn.Linear}
        assert set(record.projections) <= linears
        assert hasattr(encoder, "pooler") == (record.pooler is not None)
        ids = torch.arange(5, 5 + record.max_positions(config))[None] % 90 + 5
        assert encoder(input_ids=ids).last_hidden_state.isfinite().all()
        with pytest.raises((RuntimeError, IndexError)):  # one more token cannot be read
            encoder(input_ids=torch.cat([ids, ids[:, :1]], 1))


# Arguments of attention


@pytest.fixture(params=KINDS)
def encoder(request, tmp_path):
    kind, config = KINDS[request.param]
    kind(config).save_pretrained(tmp_path)
    return load_encoder(str(tmp_path), pooler=False)


def test_stock_encoders_pass_nothing_that_is_refused(encoder):
    layout = layout_of([3, 4], torch.device("cpu"))
    inputs = {
        "input_ids": torch.arange(5, 12)[None],
        "position_ids": torch.tensor([[2, 3, 4, 2, 3, 4, 5]]),
        "masks": MaskGenerator(Routing()),
        "layout": layout,
    }
    plain = encoder.eval()(**inputs).last_hidden_state
    with_states = encoder(**inputs, output_hidden_states=True)
    assert torch.equal(with_states.last_hidden_state, plain)
    assert len(with_states.hidden_states) == 3
    for name, value in (
        ("attention_mask", torch.ones(1, 7)),
        ("attention_mask", torch.zeros(1, 1, 7, 7)),
        ("output_attentions", True),
        ("cu_seq_lens_q", torch.tensor([0, 3, 7])),
    ):
        with pytest.raises(NotImplementedError, match=rf"does not support {name}"):
            encoder(**inputs, **{name: value})


def test_arguments_that_change_the_result_are_refused():
    x = torch.randn(1, 2, 7, 8)
    common = {
        "masks": MaskGenerator(Routing()),
        "layout": layout_of([3, 4], torch.device("cpu")),
    }
    module = nn.Module().eval()
    harmless = {
        "position_ids": torch.arange(7),
        "output_hidden_states": True,
        "output_attentions": False,
        "is_causal": False,
        "sliding_window": None,
        "softcap": None,
        "encoder_hidden_states": None,
    }
    out, weights = packed_attention(module, x, x, x, None, **common, **harmless)
    assert out.shape == (1, 7, 2, 8)
    assert weights is None
    for name, value in (
        ("softcap", 30.0),
        ("is_causal", True),
        ("seq_idx", torch.zeros(1, 7)),
    ):
        with pytest.raises(NotImplementedError, match=f"does not support {name}, which Module"):
            packed_attention(module, x, x, x, None, **common, **{name: value})
    with pytest.raises(NotImplementedError, match="does not support attention_mask, softcap"):
        packed_attention(module, x, x, x, torch.zeros(1), **common, softcap=1.0)
    module.is_causal = True
    with pytest.raises(NotImplementedError, match="does not support is_causal"):
        packed_attention(module, x, x, x, None, **common)


def test_a_mask_of_windows_is_refused():
    """It is not needed, as attention is told of the window; others' masks may say more."""
    config = ModernBertConfig(**SMALL, local_attention=6, pad_token_id=0)
    encoder = ModernBertModel(config).eval()
    ids = torch.arange(5, 25)[None]
    assert encoder(input_ids=ids).last_hidden_state.isfinite().all()
    encoder.set_attn_implementation("loraens_packed")
    layout = layout_of([20], torch.device("cpu"))
    with pytest.raises(NotImplementedError, match=r"does not support the mask .*and_mask"):
        encoder(input_ids=ids, masks=MaskGenerator(Routing()), layout=layout)


# The order of calls


def routed(routing):
    routing.route([5, 4], torch.tensor([5, 4]), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3]))


def test_masks_need_a_seed_then_a_batch():
    routing = Routing()
    masks = MaskGenerator(routing)
    site = masks.site("layer")
    inputs = attention_coordinates(2, 3, 3, torch.device("cpu"))
    features = {"each": 1, "width": 3, "p": torch.full((2, 1, 1), 0.5)}
    with pytest.raises(RuntimeError, match="no batch was routed: call route"):
        routing.member_rows([2, 3])
    routed(routing)
    with pytest.raises(RuntimeError, match="no seed: call seed, then route, then a mask"):
        masks.token_mask(site, 4, 0.5)
    with pytest.raises(RuntimeError, match="no seed: call seed, then route, then a mask"):
        masks.attention_mask(site, inputs, torch.tensor([0]), 0.5)
    with pytest.raises(RuntimeError, match="no seed: call seed before a mask"):
        masks.feature_mask(site, **features)
    masks.seed([1, 2], 0)
    with pytest.raises(RuntimeError, match="no batch was routed since dropout masks were seeded"):
        masks.token_mask(site, 4, 0.5)
    features_before = masks.feature_mask(site, **features)  # needs no batch
    routed(routing)
    first = masks.token_mask(site, 4, 0.5)
    routed(routing)
    assert torch.equal(masks.token_mask(site, 4, 0.5), first)  # the same seed, the same masks
    assert torch.equal(masks.feature_mask(site, **features), features_before)
    masks.seed([1, 2], 1)
    with pytest.raises(RuntimeError, match="no batch was routed since dropout masks were seeded"):
        masks.token_mask(site, 4, 0.5)
    masks.seed([1, 2, 3], 1)
    routed(routing)
    with pytest.raises(RuntimeError, match="seeded for 3 members, and the batch has 2"):
        masks.token_mask(site, 4, 0.5)


@pytest.mark.parametrize("fast", [True, False])
def test_training_without_a_seed_is_refused(tiny_bert, fast):
    model = build(tiny_bert, fast=fast)
    batch = batch_of(3)
    assert model.eval()(batch).isfinite().all()
    with pytest.raises(RuntimeError, match="dropout masks have no seed"):
        model.train()(batch)


def test_an_example_does_not_depend_on_the_batch(tiny_bert):
    model = build(tiny_bert).eval()
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 100, 12)
    parts = (tokens, np.zeros(12, np.int8), np.array([0, 2, 12]))
    both = model(pack(*parts, np.array([[0, 1]] * 3), None, "sst", "dev"))
    for index in range(2):
        alone = model(pack(*parts, np.array([[index]] * 3), None, "sst", "dev"))
        torch.testing.assert_close(alone[:, 0], both[:, index], rtol=0, atol=1e-12)
