"""Data sets and backbones by hub name, against a local stand-in of the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.hub import Hub, serving

CONFIGS = Path(__file__).parent.parent / "configs"


def parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def hub_files(tiny_bert):
    """Repository -> file name -> content, laid out as the real ones are."""
    words = [
        "a dull film",
        "a fine film",
        "a charming plot",
        "a flat ending",
        "an ordinary score",
        "a dazzling cast",
    ]
    sst = [
        {"text": f"{word} {i}", "label": (i + j) % 5, "label_text": "x"}
        for i in range(3)
        for j, word in enumerate(words)
    ]
    pairs = [
        {"sentence1": f"a man {i}", "sentence2": f"a dog {i}", "label": float(i % 6), "idx": i}
        for i in range(12)
    ]
    hidden = [{**pair, "label": -1.0} for pair in pairs]
    splits = ("train", "validation", "test")
    return {
        "datasets/SetFit/sst5": {
            f"{s}.jsonl": "".join(json.dumps(row) + "\n" for row in sst).encode() for s in splits
        },
        "datasets/nyu-mll/glue": {
            "README.md": (
                b"---\nconfigs:\n- config_name: stsb\n  data_files:\n"
                + b"".join(f"  - split: {s}\n    path: stsb/{s}-*\n".encode() for s in splits)
                + b"---\n"
            ),
            **{
                f"stsb/{s}-00000-of-00001.parquet": parquet(hidden if s == "test" else pairs)
                for s in splits
            },
        },
        "models/some/tiny-bert": {path.name: path.read_bytes() for path in tiny_bert.iterdir()},
    }


@pytest.fixture(scope="module")
def endpoint(tiny_bert):
    handler = type("LocalHub", (Hub,), {"files": hub_files(tiny_bert)})
    with serving(handler) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize(("config", "sizes", "labelled"), [("sst", 18, True), ("sts", 12, False)])
def test_fit_from_the_hub(endpoint, tmp_path, config, sizes, labelled):
    from loraens.errors import InputError
    from loraens.store import MemberStore, find_member

    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [
        "fit",
        "--config",
        CONFIGS / f"{config}.yaml",
        "--model.backbone",
        "some/tiny-bert",
        "--data.max_length",
        40,
    ]
    command += [
        "--trainer.max_epochs",
        1,
        "--store.root",
        tmp_path,
        "--store.run",
        "run",
        "--trainer.logger",
        "false",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from loraens.cli import main; main()", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    store = MemberStore(find_member(tmp_path / "run"))
    assert store.manifest().settings.backbone == "some/tiny-bert"
    assert store.logits(config, "dev").logits.shape[0] == sizes
    if labelled:
        assert store.logits(config, "test").labels is not None
    else:
        with pytest.raises(InputError, match=r"sts-test\.npz is missing"):
            store.logits(config, "test")


@pytest.mark.slow
def test_a_hub_that_is_out_of_reach(fails, tiny_bert, tmp_path):
    command = [
        "fit",
        "--config",
        CONFIGS / "sst.yaml",
        "--model.backbone",
        tiny_bert,
        "--store.root",
        tmp_path,
    ]
    message = fails(*command, "--trainer.logger", "false")
    assert "data set 'SetFit/sst5' could not be loaded from the hub" in message
    assert "give root" in message
