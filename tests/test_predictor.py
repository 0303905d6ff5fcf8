"""Ensembles predict what their members predict one at a time, joined."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import loraens
from loraens.inference.predictor import Predictor
from loraens.metrics import probabilities
from loraens.store import find_members

CONFIGS = Path(__file__).parent.parent / "configs"
STEMS = {"sst": "ids-sst", "sts": "sts"}


@pytest.fixture(scope="module", params=["sst", "sts"])
def made(request, run_command, tiny_bert, corpus, tmp_path_factory):
    """A sweep of four members and its ensembles; returns the task's name and the sweep's
    directory.
    """
    root = tmp_path_factory.mktemp("runs")
    command = [
        "sweep",
        "--config",
        CONFIGS / f"{request.param}.yaml",
        "--model.backbone",
        tiny_bert,
        "--data.root",
        corpus,
    ]
    command += [
        "--model.pooling",
        "cls",
        "--model.lr",
        1e-2,
        "--trainer.max_epochs",
        2,
        "--store.root",
        root,
    ]
    command += [
        "--grid.rank",
        "[2,5]",
        "--grid.seed",
        "[0,1]",
        "--sweep.pack_size",
        4,
        "--trainer.logger",
        "false",
    ]
    assert run_command(*command, "--trainer.enable_progress_bar", "false") == 0
    sweep = root / f"{request.param}-sweep"
    assert (
        run_command(
            "ensemble", "--runs", sweep, "--method", "omni", "dicor", "weighted", "--size", 2
        )
        == 0
    )
    return request.param, sweep


def texts_of(corpus, task):
    with (corpus / f"{STEMS[task]}-test-student.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ["sentence"] if task == "sst" else ["sentence1", "sentence2"]
    return [row["id"] for row in rows], [
        tuple(row[column].strip() for column in columns) for row in rows
    ]


def test_a_packed_pass_equals_one_at_a_time(made, corpus):
    name, sweep = made
    ids, texts = texts_of(corpus, name)
    alone = {path.name: Predictor.load(path) for path in find_members(sweep)}
    for folder in sorted((sweep / "ensembles").glob("*/")):
        record = json.loads((folder / "ensemble.json").read_text())
        predictor = loraens.Ensemble.load(folder)
        task = predictor.task()
        logits = predictor.logits(texts, task)
        expected = np.stack(
            [alone[member["name"]].logits(texts, task)[0] for member in record["members"]]
        )
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        weights = np.array([member["weight"] for member in record["members"]])
        rows = predictor.predict(texts if name == "sts" else [text for (text,) in texts])
        assert len(rows) == len(ids)
        if name == "sts":
            mean = weights @ expected[..., 0]
            assert [row["prediction"] for row in rows] == pytest.approx(mean.tolist(), abs=1e-4)
            spread = np.sqrt(
                (weights[:, None] * (expected[..., 0] - mean) ** 2).sum(0) / weights.sum()
            )
            assert [row["spread"] for row in rows] == pytest.approx(spread.tolist(), abs=1e-4)
            continue
        each = np.stack([probabilities(task, one) for one in expected])
        mean = np.tensordot(weights, each, 1)
        entropy = -(mean * np.log(mean)).sum(1)
        information = entropy - weights @ -(each * np.log(each)).sum(2)
        assert [row["entropy"] for row in rows] == pytest.approx(entropy.tolist(), abs=1e-4)
        assert [row["mutual_information"] for row in rows] == pytest.approx(
            information.tolist(), abs=1e-4
        )
        for index, row in enumerate(rows):
            place = task.class_names.index(row["prediction"])
            share = weights[each[:, index].argmax(1) == place].sum()
            assert row["vote_share"] == pytest.approx(share, abs=1e-5)
            shares = [row[f"probability_{label}"] for label in task.class_names]
            assert sum(shares) == pytest.approx(1, abs=1e-4)
            assert shares[place] == pytest.approx(max(shares), abs=1e-5)


def test_the_dev_score_of_the_manifest_is_that_of_its_predictions(
    made, corpus, run_command, tmp_path
):
    name, sweep = made
    source = tmp_path / "dev.csv"
    source.write_text((corpus / f"{STEMS[name]}-dev.csv").read_text())
    for folder in sorted((sweep / "ensembles").glob("*/")):
        out = tmp_path / f"{folder.name}.csv"
        assert (
            run_command(
                "predict", "--model", folder, "--input", source, "--format", "tsv", "--output", out
            )
            == 0
        )
        with out.open(newline="") as file:
            rows = list(
                csv.DictReader(file, delimiter="," if out.read_text().count(",") > 20 else "\t")
            )
        record = json.loads((folder / "ensemble.json").read_text())
        if name == "sts":
            pairs = [(float(row["prediction"]), float(row["similarity"])) for row in rows]
            assert np.corrcoef(*zip(*pairs, strict=True))[0, 1] == pytest.approx(
                record["dev"]["pearson"], abs=1e-3
            )
            assert "spread" in rows[0]
        else:
            names = record["task"]["class_names"]
            right = [names.index(row["prediction"]) == int(row["sentiment"]) for row in rows]
            assert np.mean(right) == pytest.approx(record["dev"]["accuracy"], abs=1e-9)
            assert {"entropy", "mutual_information", "vote_share"} <= set(rows[0])


def test_what_has_changed_is_refused(made, fails, tmp_path):
    name, sweep = made
    folder = next((sweep / "ensembles").glob(f"{name}-omni-*"))
    record = json.loads((folder / "ensemble.json").read_text())

    def refused(**changes):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        members = [
            {**member, "directory": str((folder / member["directory"]).resolve())}
            for member in record["members"]
        ]
        (other / "ensemble.json").write_text(json.dumps({**record, "members": members, **changes}))
        return fails(
            "predict", "--model", other, "--text", "a", *(["--text2", "b"] if name == "sts" else [])
        )

    moved = [{**record["members"][0], "directory": "nowhere"}]
    assert "nowhere is missing: ensemble" in refused(members=moved)
    changed = [
        {
            **record["members"][0],
            "directory": str((folder / record["members"][0]["directory"]).resolve()),
        }
    ]
    changed[0]["manifest_sha256"] = "0"
    assert "has changed since ensemble" in refused(members=changed)
    assert "is not an ensemble that this version" in refused(format=99)


def test_there_is_nothing_else_in_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        loraens.nonsense  # noqa: B018
