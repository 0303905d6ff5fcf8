"""Weights, logits, scores, choices and predictions of small runs are those of `golden.json`, bit
for bit.

`python tests/test_golden.py` writes the file again: a change that is meant to alter numbers says so
in CHANGELOG.md. Scores that training writes are compared to 1e-6. Bits depend on the processor's
kernels and on the libraries: on another platform than the file's only scores are compared, to a
tenth, of runs in which a last bit decides nothing.
"""

import csv
import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_bert
from safetensors.torch import load_file
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from loraens.cli import main

GOLDEN = Path(__file__).with_name("golden.json")
CONFIGS = Path(__file__).parent.parent / "configs"
QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
RECORD = ("member", "status", "epochs", "trainable_parameters", "truncated", "dropped")
PROOF = (
    "method",
    "rule",
    "dev",
    "held_out",
    "interval",
    "to_best",
    "to_omni",
    "p_best",
    "temperature",
    "calibrated",
)
SWEEPS = {
    "sts": (
        "sts.yaml",
        (
            "--model.pooling mean --grid.rank [1,8] --grid.scale [1,3] --grid.seed [0,1]"
            " --sweep.patience 1 --model.schedule linear --model.warmup 0.1 --trainer.max_epochs 4"
        ),
    ),
    "sst": (
        "sst.yaml",
        (
            "--grid.rank [2,5,12] --grid.head_dropout [0.0,0.3] --sweep.halving_factor 2"
            " --trainer.gradient_clip_val 1.0 --trainer.max_epochs 4"
        ),
    ),
    "quora": (
        "quora.yaml",
        (
            "--model.pooling cls --grid.rank [2,4] --grid.scale [1,2] --model.targets"
            " [query,key,value] --trainer.max_epochs 2"
        ),
    ),
    "all": ("multitask.yaml", "--model.pooling cls --grid.rank [2,4] --trainer.max_epochs 2"),
    "stock": (
        "sts.yaml",
        (
            "--model.pooling mean --model.targets [q_lin,v_lin] --grid.rank [2,4]"
            " --trainer.max_epochs 2"
        ),
    ),
}
PREDICTED = {
    "ids-sst": "sst/ensembles/sst-omni-vote",
    "quora": "quora/ensembles/quora-greedy-probs",
    "sts": "sts/ensembles/sts-dicor-logits",
}
STEADY = (
    "quora",
    "all",
    "stock",
    "frozen",
    "full",
)  # runs in which a last bit decides nothing: none stops early
FITS = {
    "frozen": ["--model.mode", "frozen"],
    "full": ["--model.mode", "full", "--model.lr", "1e-4"],
}


def sha(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(
            part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        )
    return digest.hexdigest()[:16]


def arrays(items):
    """Names, types, shapes and bytes of arrays, in the order of their names."""
    parts = []
    for name, value in sorted(items):
        parts += [
            [name, str(value.dtype), list(value.shape)],
            np.ascontiguousarray(value).tobytes(),
        ]
    return sha(*parts)


def write_tiny_distilbert(directory, tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(1)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=160,
    )
    DistilBertModel(config).save_pretrained(directory)
    return directory


def of_member(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    weights = []
    logits = []
    for path in sorted(directory.glob("epoch-*/*")):
        if path.suffix == ".safetensors":
            weights += [
                (f"{path.parent.name}/{path.name}/{k}", v.numpy())
                for k, v in load_file(path).items()
            ]
        elif path.suffix == ".npz":
            found = dict(np.load(path))
            if "example_id" not in found:
                found |= dict(np.load(directory.parent / "examples" / path.name))
            logits += [
                (f"{path.parent.name}/{path.name}/{name}", array) for name, array in found.items()
            ]
    history = manifest.get("history", [])
    losses = [[entry["epoch"], entry["step"], entry["train_loss"]] for entry in history]
    record = {name: manifest.get(name) or None for name in RECORD} | {"losses": losses}
    scores = {
        "best": manifest["dev"].get("best", {}),
        "epochs": {e["name"]: e["dev"] for e in history},
    }
    return {
        "weights": arrays(weights),
        "logits": arrays(logits),
        "record": sha(record),
        "scores": scores,
    }


def of_ensemble(directory):
    entry = json.loads((directory / "ensemble.json").read_text())
    weights = {member["name"]: member["weight"] for member in entry["members"]}
    proof = {name: entry[name] for name in PROOF}
    return {"weights": sha(weights), "proof": sha(proof), "diversity": sha(entry["diversity"])}


def run(*args):
    with suppress(SystemExit):
        main([str(arg) for arg in args])


def results(directory, corpus, tiny_bert):
    """Everything that is compared, by name."""
    found = {}
    distilbert = write_tiny_distilbert(directory / "distilbert", tiny_bert)
    common = ("--data.root", corpus, "--data.test_logits", "true")
    common += ("--store.root", directory / "runs", *QUIET)
    for name, (config, options) in SWEEPS.items():
        backbone = distilbert if name == "stock" else tiny_bert
        model = (
            "--model.backbone",
            backbone,
            "--model.lr",
            "1e-2",
            "--store.run",
            name,
            "--sweep.pack_size",
            4,
        )
        run("sweep", "--config", CONFIGS / config, *model, *common, *options.split())
    for name, options in FITS.items():
        model = ("--model.backbone", tiny_bert, "--store.run", name)
        trainer = ("--trainer.max_epochs", 2, "--trainer.enable_model_summary", "false")
        run("fit", "--config", CONFIGS / "sst.yaml", *model, *common, *trainer, *options)
    for name in ("sts", "sst", "quora"):
        folder = directory / "runs" / name
        run("ensemble", "--runs", folder, "--method", "all", "soup", "--logger", "false")
    for manifest in sorted((directory / "runs").rglob("manifest.json")):
        found[manifest.parent.relative_to(directory / "runs").as_posix()] = of_member(
            manifest.parent
        )
    for entry in sorted((directory / "runs").rglob("ensemble.json")):
        found[entry.parent.relative_to(directory / "runs").as_posix() + " ensemble"] = of_ensemble(
            entry.parent
        )
    for stem, model in PREDICTED.items():
        output = directory / f"{model.replace('/', '-')}.csv"
        texts = corpus / f"{stem}-test-student.csv"
        run("predict", "--model", directory / "runs" / model, "--input", texts, "--output", output)
        with output.open() as file:
            found[f"{model} predictions"] = {"rows": sha(list(csv.reader(file, delimiter="\t")))}
    return found


def platform():
    """What bits depend on beside the code."""
    names = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "tokenizers")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
    return {
        "processor": processor,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in names},
    }


def close(found, expected, tolerance):
    """Whether nested scores differ by a tolerance at most; None is a score that is not defined."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            close(found[k], expected[k], tolerance) for k in expected
        )
    return (
        found == expected
        if None in (found, expected)
        else found == pytest.approx(expected, abs=tolerance)
    )


@pytest.mark.slow
def test_numbers_are_those_of_the_golden_file(tmp_path, corpus, tiny_bert):
    golden = json.loads(GOLDEN.read_text())
    found = results(tmp_path, corpus, tiny_bert)
    assert found.keys() == golden["results"].keys()
    same = golden["platform"] == platform()
    steady = [name for name in found if same or name.split("/")[0] in STEADY]
    tolerance = 1e-6 if same else 0.1
    for name in steady:
        expected = golden["results"][name]
        if same:
            assert {k: v for k, v in found[name].items() if k != "scores"} == {
                k: v for k, v in expected.items() if k != "scores"
            }, name
        assert close(found[name].get("scores"), expected.get("scores"), tolerance), name


if __name__ == "__main__":
    import os
    import tempfile

    from loraens.data import made_up

    with tempfile.TemporaryDirectory() as place:
        os.environ["LORAENS_CACHE"] = f"{place}/cache"
        made_up.write_corpus(Path(place) / "corpus", {"train": 48, "dev": 24, "test": 10})
        bert = write_tiny_bert(Path(place) / "bert", Path(place) / "corpus")
        found = results(Path(place), Path(place) / "corpus", bert)
    GOLDEN.write_text(json.dumps({"platform": platform(), "results": found}, indent=1) + "\n")
