"""`loraens import`: adapters of PEFT predict in a run what they predict in `peft`."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.corpus import split_texts, texts_of
from helpers.peft_adapters import save_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from loraens.ensemble.read import read_runs
from loraens.inference.predictor import Predictor
from loraens.report.comparison import read_rows
from loraens.store import MemberStore, find_members
from loraens.tasks import QUORA, SST

CONFIG = "configs/sst.yaml"
KINDS = {
    "plain": {},
    "patterns": {
        "rank_pattern": {"layer.0.attention.self.query": 5},
        "alpha_pattern": {"value": 10, r"layer\.1\..*query": 1},
    },
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "dora": {"use_dora": True, "rank_pattern": {"value": 2}},
    "one_layer": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "others": {"target_modules": ["key", "intermediate.dense"]},
    "gaussian": {"init_lora_weights": "gaussian", "target_modules": "all-linear"},
}


def logits_of(model, backbone, texts):
    """Logits or hidden states `(N, ...)` of PEFT's model, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    with torch.no_grad():
        rows = [model(**tokenizer(*text, return_tensors="pt")) for text in texts]
    return np.stack([row.logits[0].numpy() for row in rows])


def settings(tiny_bert, corpus):
    return ("--config", CONFIG, "--data.root", corpus, "--model.backbone", tiny_bert)


@pytest.fixture(scope="module")
def adapters(tiny_bert, tmp_path_factory):
    """Directory of an adapter of each kind, and PEFT's models."""
    root = tmp_path_factory.mktemp("adapters")
    models = {
        name: save_adapter(tiny_bert, root / name, seed=seed, **options)
        for seed, (name, options) in enumerate(KINDS.items())
        if name != "gaussian"  # which adapts the pooler
    }
    return root, models


@pytest.fixture(scope="module")
def imported(adapters, tiny_bert, corpus, tmp_path_factory, run_command):
    """A run of imported members alone."""
    root, models = adapters
    run = tmp_path_factory.mktemp("runs") / "imported"
    given = [root / name for name in models]
    assert run_command("import", *given, "--run", run, *settings(tiny_bert, corpus)) == 0
    return run


@pytest.mark.slow
def test_logits_are_those_of_peft(imported, adapters, tiny_bert, corpus):
    for name, model in adapters[1].items():
        store = MemberStore(imported / f"peft-{name}")
        manifest = store.manifest()
        for split, texts in (
            ("dev", split_texts(corpus, "sst", "dev")),
            ("test", texts_of(corpus, "sst")[1]),
        ):
            expected = logits_of(model, tiny_bert, texts)
            found = store.logits("sst", split)
            np.testing.assert_allclose(found.logits, expected, atol=2e-5)
        labels = store.logits("sst", "dev").labels
        scores = SST.scores(store.logits("sst", "dev").logits, labels)
        assert manifest.dev["best"]["sst"] == pytest.approx(scores)
        assert manifest.trainable_parameters == sum(
            p.numel() for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n
        )
        found = Predictor.load(store.directory).logits(texts, SST)[0]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_settings_of_imported_members(imported):
    manifests = {path.name: MemberStore(path).read() for path in find_members(imported)}
    assert {name: m.settings.targets for name, m in manifests.items()} == {
        **dict.fromkeys(manifests, ("query", "value")),
        "peft-others": (
            "encoder.layer.0.attention.self.key",
            "encoder.layer.0.intermediate.dense",
            "encoder.layer.1.attention.self.key",
            "encoder.layer.1.intermediate.dense",
        ),
    }
    kinds = {name: manifest.settings.adapter for name, manifest in manifests.items()}
    assert kinds == {**dict.fromkeys(manifests, "lora"), "peft-dora": "dora"}
    assert manifests["peft-patterns"].member.rank == 5
    assert manifests["peft-rslora"].member.scale == pytest.approx(4 / 3**0.5)
    assert manifests["peft-plain"].imported.keys() == {"directory", "base", "sha256"}


@pytest.mark.slow
def test_they_are_joined_with_members_of_a_sweep(
    trained_sweep, tiny_bert, corpus, tmp_path, run_command
):
    """The sweep pools the first token, for which PEFT's classifier has no head: it is beside."""
    sweep = trained_sweep("sst")
    adapter = tmp_path / "mine"
    model = save_adapter(tiny_bert, adapter, classifier=False)
    head = torch.nn.Linear(32, 5)
    save_file({"sst.weight": head.weight, "sst.bias": head.bias}, adapter / "heads.safetensors")
    member = find_members(sweep)[0]
    assert run_command("export", member, "--format", "peft", "--out", tmp_path / "ours") == 0
    assert run_command("import", adapter, tmp_path / "ours", "--run", sweep) == 0
    texts = texts_of(corpus, "sst")[1]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with torch.no_grad():
        hidden = [model(**tokenizer(*text, return_tensors="pt"))[0][0, 0] for text in texts]
        expected = head(torch.stack(hidden)).numpy()
    found = MemberStore(sweep / "peft-mine").logits("sst", "test").logits
    np.testing.assert_allclose(found, expected, atol=2e-5)
    again = MemberStore(sweep / "peft-ours").logits("sst", "dev").logits
    np.testing.assert_allclose(again, MemberStore(member).logits("sst", "dev").logits, atol=1e-6)

    pool = read_runs([sweep], report=pytest.fail)["sst"].dev
    assert len(pool) == 6
    assert sorted(len(epochs) for epochs in pool.epochs) == [1, 1, 2, 2, 2, 2]
    shutil.rmtree(sweep / "ensembles")
    options = ("--runs", sweep, "--method", "omni", "soup", "--logger", "false")
    assert run_command("ensemble", *options) == 0
    assert run_command("report", "--runs", sweep) == 0
    assert "peft-mine" in (sweep / "report" / "index.html").read_text()
    (row,) = (row for row in read_rows([sweep]) if row["name"] == "peft-mine")
    assert [row[name] for name in ("rank", "scale", "seed", "lr")] == [3, 2.0, None, None]
    logits = Predictor.load(sweep / "ensembles" / "sst-omni-logits").logits(texts, SST)
    assert len(logits) == 6
    assert any(np.allclose(one, expected, atol=2e-5) for one in logits)


def test_two_logits_become_one(tiny_bert, corpus, tmp_path, run_command):
    adapter = tmp_path / "adapter"
    model = save_adapter(tiny_bert, adapter, classes=2)
    options = ("--config", "configs/multitask.yaml", "--model.pooling", "pooler", "--data.root")
    options = (*options, corpus, "--model.backbone", tiny_bert, "--task", "quora")
    assert run_command("import", adapter, "--run", tmp_path / "run", *options) == 0
    member = tmp_path / "run" / "peft-adapter"
    assert [task.name for task in MemberStore(member).read().settings.tasks] == ["quora"]
    texts = [("a man", "a dog"), ("a boat", "a boat")]
    rows = Predictor.load(member).rows(texts, QUORA)
    expected = torch.from_numpy(logits_of(model, tiny_bert, texts)).softmax(1)[:, 1]
    assert [row["probability_1"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)


def edited(source, target, **fields):
    """A copy of an adapter with other fields in its configuration."""
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return target


REFUSED = {
    "is of peft_type IA3: LORA is expected": {"peft_type": "IA3"},
    "has trained biases of the backbone (bias 'all')": {"bias": "all"},
    "init_lora_weights 'pissa', which changes the backbone's own weights": {
        "init_lora_weights": "pissa"
    },
    "has layer_replication, which members cannot have": {"layer_replication": [[0, 2]]},
    "gives layer bert.encoder.layer.0.attention.self.query no scale": {"lora_alpha": -1},
    "does not have what its adapter_config.json says of layer": {"use_dora": True},
    "was trained on elsewhere/bert, which is not on this machine": {
        "base_model_name_or_path": "elsewhere/bert"
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_configuration_says_is_refused(
    sentence, adapters, tiny_bert, corpus, tmp_path, fails
):
    adapter = edited(adapters[0] / "plain", tmp_path / "adapter", **REFUSED[sentence])
    run = tmp_path / "run"
    message = fails("import", adapter, "--run", run, *settings(tiny_bert, corpus))
    assert sentence in message
    assert not run.exists()


@pytest.mark.slow
def test_what_its_files_hold_is_refused(adapters, imported, tiny_bert, corpus, tmp_path, fails):
    def refused(*given, run=tmp_path / "run", more=()):
        return fails("import", *given, "--run", run, *more)

    own = settings(tiny_bert, corpus)
    plain = adapters[0] / "plain"
    assert "has no adapter of PEFT: give a directory with" in refused(tmp_path, more=own)
    pickled = shutil.copytree(plain, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "has adapter_model.bin, a pickle, which can run code" in refused(pickled, more=own)
    (pickled / "adapter_model.safetensors").write_bytes(b"damaged")
    assert "has no weights" in refused(pickled, more=own)
    (pickled / "adapter_config.json").write_text("[]")
    assert "is no JSON object" in refused(pickled, more=own)

    save_adapter(tiny_bert, tmp_path / "pooler", **KINDS["gaussian"])
    message = refused(tmp_path / "pooler", more=own)
    assert "adapts bert.pooler.dense, and what can be adapted here are the linear" in message
    save_adapter(tiny_bert, tmp_path / "headless", classifier=False)
    assert "has no head, which a member needs" in refused(tmp_path / "headless", more=own)
    save_adapter(tiny_bert, tmp_path / "three", classes=3)
    message = refused(tmp_path / "three", more=own)
    assert "weights of shape (3, 32)" in message
    assert "task sst has 5 outputs over 32 features" in message
    weights = load_file(plain / "adapter_model.safetensors")
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    for key, tensor, sentence in (
        ("base_model.model.bert.pooler.dense.weight", torch.ones(32, 32), "beside its adapters"),
        (name, torch.ones(3, 16), "layer bert.encoder.layer.0.attention.self.query is 32 wide in"),
    ):
        other = shutil.copytree(plain, tmp_path / sentence[:6].strip())
        save_file({**weights, key: tensor}, other / "adapter_model.safetensors")
        assert sentence in refused(other, more=own)
    mean = (*own, "--model.pooling", "mean")
    assert "reads pooling pooler, and the members of" in refused(plain, more=mean)

    assert "give each directory once" in refused(plain, plain, more=own)
    assert "has no config.yaml: give the run of a sweep" in refused(plain)
    assert "has settings of its own" in refused(plain, run=imported, more=own)
    assert "has a member peft-plain already" in refused(plain, run=imported)
    assert "--epochs is not an option of sweep" in refused(plain, more=("--epochs", 3))
    assert "has folds" in refused(plain, more=(*own, "--grid.folds", 2))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_model_is_compared_by_its_weights(
    adapters, tiny_bert, corpus, tmp_path, fails, run_command
):
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    given = edited(adapters[0] / "plain", tmp_path / "a", base_model_name_or_path=str(copy))
    own = settings(tiny_bert, corpus)
    assert run_command("import", given, "--run", tmp_path / "run", *own) == 0
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "which has other weights than" in fails("import", given, "--run", tmp_path / "b", *own)
    gone = edited(adapters[0] / "plain", tmp_path / "c", base_model_name_or_path="gone")
    assert run_command("import", gone, "--run", tmp_path / "d", "--same_backbone", *own) == 0
