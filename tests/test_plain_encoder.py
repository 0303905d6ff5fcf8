"""Encoders and tokenizers that are loaded without `transformers`, against those of it."""

import json
import shutil
from itertools import chain

import pytest
import torch
from helpers.encoders import ARCHITECTURES, examples
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from loraens.data.tokens import tokenise
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.model import plain_encoder, tokenizer
from loraens.model.backbone import fingerprint, load_encoder, local_directory
from loraens.model.batch import pack
from loraens.model.plain_encoder import read_plain
from loraens.model.population import MemberModel
from loraens.model.tokenizer import load_tokenizer
from loraens.tasks import SST

TEXTS = [("a man carried a boat", "a guy"), ("dogs", "two kids painted a wall near the river")]


@pytest.fixture
def saved(tmp_path):
    """Saves a random encoder; returns its directory."""

    def save(name):
        kind, config, _ = ARCHITECTURES[name]
        torch.manual_seed(0)
        kind(config).save_pretrained(tmp_path)
        return tmp_path

    return save


def features(encoder, pooling):
    members = [Member(rank=2, scale=1.0), Member(rank=3, scale=2.0, seed=1)]
    model = MemberModel(encoder, [SST], members, pooling=pooling).eval()
    assert model.fast is not None
    for layer in model.adapters.values():
        nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
    tokens, types, offsets = examples()
    indices = torch.arange(5).expand(2, 5).numpy()
    batch = pack(tokens, types, offsets, indices, None, "sst", "dev")
    with torch.inference_mode():
        return model(batch)


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_plain_encoder_computes_what_the_stock_one_does(saved, name, pooling):
    directory = saved(name)
    stock = load_encoder(str(directory), pooler=pooling == "pooler")
    plain = read_plain(directory, pooler=pooling == "pooler")
    assert fingerprint(plain) == fingerprint(stock)
    assert set(plain.state_dict()) == set(stock.state_dict())
    assert torch.equal(features(plain, pooling), features(stock, pooling))


def test_weights_below_a_whole_model_and_under_their_first_names(saved):
    directory = saved("bert")
    expected = fingerprint(read_plain(directory, pooler=False))
    old = {}
    for key, weight in load_file(directory / "model.safetensors").items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
        old["bert." + key.replace("LayerNorm.bias", "LayerNorm.beta")] = weight
    save_file({**old, "cls.predictions.bias": torch.zeros(3)}, directory / "model.safetensors")
    assert fingerprint(read_plain(directory, pooler=False)) == expected
    assert fingerprint(load_encoder(str(directory), pooler=False)) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "distilbert"},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"layer_norm_eps": None},
        {"hidden_size": 16},
    ],
)
def test_what_is_laid_out_otherwise_is_left_to_transformers(saved, change):
    directory = saved("bert")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **change}))
    assert read_plain(directory, pooler=False) is None


def test_files_that_are_not_whole_are_left_to_transformers(saved):
    directory = saved("bert")
    weights = load_file(directory / "model.safetensors")
    del weights["pooler.dense.weight"]
    save_file(weights, directory / "model.safetensors")
    assert read_plain(directory, pooler=False) is not None
    assert read_plain(directory, pooler=True) is None
    (directory / "model.safetensors").write_bytes(b"half a fi")
    assert read_plain(directory, pooler=False) is None
    (directory / "config.json").unlink()
    assert read_plain(directory, pooler=False) is None


@pytest.mark.slow
def test_predictions_are_the_same_with_and_without_transformers(trained, monkeypatch):
    task, run = trained
    paths = [run / "ensembles" / "recommended", run / "ensembles" / f"{task}-omni-logits"]
    texts = ["a man carried a boat", "dogs"] if task == "sst" else TEXTS
    plain = [Predictor.load(path) for path in paths]
    assert all(type(p.model.encoder) is plain_encoder.PlainEncoder for p in plain)
    monkeypatch.setattr(plain_encoder, "read_plain", lambda *_: None)
    stock = [Predictor.load(path) for path in paths]
    assert not any(type(p.model.encoder) is plain_encoder.PlainEncoder for p in stock)
    for one, other in zip(plain, stock, strict=True):
        assert one.predict(texts) == other.predict(texts)


@pytest.mark.slow
def test_a_model_off_the_fast_path_gets_the_stock_encoder(trained_sweep, monkeypatch):
    run = trained_sweep("sst")
    expected = Predictor.load(run / "ensembles" / "sst-omni-logits").predict(["a man"])
    monkeypatch.setattr(MemberModel, "_fast_encoder", lambda self: None)
    loaded = Predictor.load(run / "ensembles" / "sst-omni-logits")
    assert type(loaded.model.encoder) is not plain_encoder.PlainEncoder
    found = loaded.predict(["a man"])
    assert found[0] == pytest.approx(expected[0], abs=1e-4)


def test_hub_names_are_looked_up_in_the_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_directory("a/b") == snapshot
    assert local_directory("a/c") is None
    assert local_directory("no/such/path") is None


# Tokenizers


def write_tokenizer(tiny_bert, directory, **changes):
    """The files of a tokenizer, some settings changed."""
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [6, 64])
def test_tokens_are_those_of_transformers(tiny_bert, tmp_path, monkeypatch, side, length):
    monkeypatch.setenv("LORAENS_CACHE", str(tmp_path / "cache"))
    backbone = write_tokenizer(tiny_bert, tmp_path / "backbone", truncation_side=side)
    stock = AutoTokenizer.from_pretrained(backbone)
    assert stock.truncation_side == side
    for texts in (TEXTS, [text[:1] for text in TEXTS]):
        columns = [list(column) for column in zip(*texts, strict=True)]
        expected = stock(*columns, truncation="longest_first", max_length=length)
        for _ in range(2):  # made, and from the cache
            tokens = tokenise(texts, load_tokenizer(str(backbone)), length)
            assert tokens.ids.tolist() == list(chain(*expected["input_ids"]))
            assert tokens.types.tolist() == list(chain(*expected["token_type_ids"]))
            assert tokens.truncated == sum(bool(e.overflowing) for e in expected.encodings)


def test_tokens_without_embeddings_are_refused(tiny_bert, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(tiny_bert, tmp_path / "more")
    more = AutoTokenizer.from_pretrained(tiny_bert)
    size = len(more)
    more.add_tokens(["[URL]", "[USER]"])
    more.save_pretrained(tmp_path / "more")
    sentence = f"has a tokenizer of {size + 2} tokens and an encoder of {size} token embeddings:"
    with pytest.raises(InputError, match=sentence):
        load_tokenizer(str(tmp_path / "more"))


def test_a_tokenizer_is_cached_by_the_files_that_it_is_made_of(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAENS_CACHE", str(tmp_path / "cache"))
    backbone = write_tokenizer(tiny_bert, tmp_path / "backbone")
    made = []
    original = tokenizer._from_transformers
    monkeypatch.setattr(tokenizer, "_from_transformers", lambda n: made.append(n) or original(n))
    expected = load_tokenizer(str(backbone)).to_str()
    assert load_tokenizer(str(backbone)).to_str() == expected
    assert len(made) == 1
    (file,) = (tmp_path / "cache" / "tokenizers").iterdir()
    file.write_bytes(b"half a fi")
    assert load_tokenizer(str(backbone)).to_str() == expected
    assert len(made) == 2
    write_tokenizer(tiny_bert, backbone, padding_side="left")
    load_tokenizer(str(backbone))
    assert len(made) == 3
    monkeypatch.setenv("LORAENS_CACHE", str(file))  # no directory: nothing can be written
    assert load_tokenizer(str(backbone)).to_str() == expected
