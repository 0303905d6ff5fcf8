"""Backbones that are adapters of PEFT, merged with what they adapt; backbones that are moved."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from helpers.peft_adapters import save_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.model.backbone import fingerprint, load_encoder, pooler_of
from loraens.model.packaged import locate
from loraens.model.tokenizer import load_tokenizer
from loraens.store import MemberStore, find_members
from loraens.tasks import SST

KINDS = {
    "lora": {"alpha_pattern": {"value": 10}, "rank_pattern": {"query": 2}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_merges(kind, tiny_bert, tmp_path):
    save_adapter(tiny_bert, tmp_path / "adapter", classifier=False, **KINDS[kind])
    stock = peft.PeftModel.from_pretrained(
        AutoModel.from_pretrained(tiny_bert), tmp_path / "adapter"
    )
    expected = stock.merge_and_unload().state_dict()
    encoder = load_encoder(str(tmp_path / "adapter"), pooler=True)
    found = encoder.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    assert fingerprint(encoder) != fingerprint(load_encoder(str(tiny_bert), pooler=True))


@pytest.mark.slow
def test_members_are_trained_on_it(tiny_bert, corpus, tmp_path, run_command):
    adapter = tmp_path / "adapter"
    save_adapter(tiny_bert, adapter)  # whose head is left out
    settings = ("--config", "configs/sst.yaml", "--data.root", corpus, "--trainer.logger", "false")
    settings += ("--trainer.max_epochs", 1, "--store.root", tmp_path, "--store.run", "run")
    assert run_command("fit", *settings, "--model.backbone", adapter) == 0
    (member,) = find_members(tmp_path / "run")
    found = MemberStore(member).read().settings
    assert found.backbone == str(adapter)
    assert found.merged["base"] == fingerprint(load_encoder(str(tiny_bert), pooler=False))
    config = json.loads((member / "epoch-001" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == locate(str(adapter))
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        member / "epoch-001", num_labels=5
    ).eval()
    tokens = AutoTokenizer.from_pretrained(locate(str(adapter)))("a dog", return_tensors="pt")
    logits = Predictor.load(member).logits([("a dog",)], SST)[0]
    torch.testing.assert_close(torch.from_numpy(logits), model(**tokens).logits, atol=1e-5, rtol=0)


def test_what_cannot_be_merged_is_refused(tiny_bert, tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(tiny_bert, adapter, classifier=False)

    def refused(name, **fields):
        copy = shutil.copytree(adapter, tmp_path / name)
        path = copy / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        with pytest.raises(
            InputError, match="is an adapter of PEFT that cannot be merged"
        ) as error:
            load_encoder(str(copy), pooler=False)
        return str(error.value)

    gone = refused("gone", base_model_name_or_path="gone/bert")
    assert "base model 'gone/bert' is not on this machine" in gone
    assert "of peft_type IA3" in refused("ia3", peft_type="IA3")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.embeddings.word_embeddings.weight"] = torch.ones(2, 32)
    save_file(weights, adapter / "adapter_model.safetensors")
    assert "weights of the model itself: merge it by" in refused("embeddings")


def test_added_tokens_need_embeddings(tiny_bert, tmp_path):
    save_adapter(tiny_bert, tmp_path, classifier=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer)
    with pytest.raises(
        InputError, match=f"a tokenizer of {size} tokens and an encoder of {size - 2}"
    ):
        load_tokenizer(str(tmp_path))
    assert pooler_of(load_encoder(str(tmp_path), pooler=True)) is not None


@pytest.mark.slow
def test_a_run_is_moved_together_with_its_backbone(
    tiny_bert, corpus, tmp_path, run_command, monkeypatch, fails
):
    root = tmp_path / "here"
    shutil.copytree(tiny_bert, root / "models" / "bert")
    config = Path("configs/sst.yaml").resolve()
    monkeypatch.chdir(root)
    settings = ("--config", config, "--data.root", corpus, "--trainer.logger", "false")
    settings += ("--trainer.max_epochs", 1, "--grid.seed", "[0,1]", "--model.pooling", "cls")
    assert run_command("sweep", *settings, "--model.backbone", "models/bert") == 0
    run = Path("checkpoints/sst-sweep")
    ensemble = ("ensemble", "--method", "omni", "soup", "--logger", "false", "--runs")
    assert run_command(*ensemble, run) == 0
    names = ("sst-omni-logits", "sst-soup-merged")
    bundle = ("--format", "loraens", "--out", "out")
    assert run_command("export", run / "ensembles" / names[0], *bundle) == 0
    texts = [("a man",), ("a dog",)]
    before = [Predictor.load(run / "ensembles" / name).logits(texts, SST) for name in names]
    moved = root.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    places = [moved / run / "ensembles" / name for name in names]
    for expected, place in zip([*before, before[0]], [*places, moved / "out"], strict=True):
        torch.testing.assert_close(Predictor.load(place).logits(texts, SST), expected)
    shutil.rmtree(moved / "out")
    assert run_command(*ensemble, moved / run) == 0
    (moved / "models").rename(moved / "elsewhere")
    message = fails("predict", "--model", places[0], "--text", "a man")
    assert "backbone 'models/bert' could not be loaded" in message
    assert "say where it is (--backbone)" in message
