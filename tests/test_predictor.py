"""Ensembles predict what their members predict one at a time, combined."""

import csv
import json
import re

import numpy as np
import pytest
from helpers.corpus import STEMS, texts_of

import loraens
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.store import find_members


def test_a_packed_pass_equals_one_at_a_time(trained, corpus):
    name, sweep = trained
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
        each = np.stack([task.outcome(one).probabilities for one in expected])
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


@pytest.mark.slow
def test_the_dev_score_of_the_manifest_is_that_of_its_predictions(
    trained, corpus, run_command, tmp_path
):
    name, sweep = trained
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


@pytest.mark.parametrize(
    ("of_record", "of_member", "message"),
    [
        pytest.param({}, {"directory": "nowhere"}, "nowhere is missing: ensemble", id="missing"),
        pytest.param(
            {}, {"manifest_sha256": "0" * 64}, "has changed since ensemble", id="changed-member"
        ),
        pytest.param({"format": 99}, {}, "is not an ensemble that this version", id="format"),
    ],
)
def test_what_has_changed_is_refused(trained, fails, tmp_path, of_record, of_member, message):
    name, sweep = trained
    folder = next((sweep / "ensembles").glob(f"{name}-omni-*"))
    record = json.loads((folder / "ensemble.json").read_text())
    del record["sha256"]
    record["members"][0] |= of_member
    changed = folder.with_name(tmp_path.name)
    changed.mkdir()
    (changed / "ensemble.json").write_text(json.dumps({**record, **of_record}))
    texts = ["--text", "a", *(["--text2", "b"] if name == "sts" else [])]
    assert message in fails("predict", "--model", changed, *texts)


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        pytest.param("sst", "a film", "texts is one string: give a list", id="one-string"),
        pytest.param("sts", "a film", "texts is one string: give a list", id="one-string-of-pairs"),
        pytest.param(
            "sst",
            ["fine", ("a film", "a plot")],
            "task sst takes one text (sentence), got ('a film', 'a plot')",
            id="pair-for-one-text",
        ),
        pytest.param(
            "sts",
            [("a film", "a plot"), "a film"],
            "task sts takes a pair of texts (sentence1, sentence2), got 'a film'",
            id="one-text-for-a-pair",
        ),
        pytest.param("sts", [("a", "b", "c")], "task sts takes a pair of texts", id="three"),
        pytest.param("sst", [None], "task sst takes one text (sentence), got None", id="none"),
        pytest.param("sts", [("a", 1.0)], "task sts takes a pair of texts", id="no-text"),
    ],
)
def test_texts_that_the_task_does_not_take(trained_sweep, name, texts, message):
    folder = next((trained_sweep(name) / "ensembles").glob("*-omni-*"))
    with pytest.raises(InputError, match=re.escape(message)):
        loraens.Ensemble.load(folder).predict(texts)


def test_one_text_may_be_given_alone_or_as_a_tuple(trained_sweep):
    folder = next((trained_sweep("sst") / "ensembles").glob("*-omni-*"))
    predictor = loraens.Ensemble.load(folder)
    assert predictor.predict(["a film"]) == predictor.predict([("a film",)])


@pytest.mark.slow
def test_no_texts_give_no_rows(trained, run_command, tmp_path):
    name, sweep = trained
    blank = {"sst": "id\tsentence\n1\t\n", "sts": "id\tsentence1\tsentence2\n1\t\t\n"}
    (tmp_path / "blank.tsv").write_text(blank[name])
    for folder in sorted((sweep / "ensembles").glob(f"{name}-*/")):
        assert loraens.Ensemble.load(folder).predict([]) == []
        given = ("--input", tmp_path / "blank.tsv", "--output", tmp_path / "out.csv")
        assert run_command("predict", "--model", folder, *given) == 0
        with (tmp_path / "out.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["id"], row["prediction"]) == ("1", "")


def test_there_is_nothing_else_in_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        loraens.nonsense  # noqa: B018
