"""Scores of members and ensembles on labelled files."""

import csv
import json

import numpy as np
import pandas
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import loraens
from loraens.ensemble.conformal import Conformal
from loraens.ensemble.evaluation import BINS, evaluate, exact, percentile
from loraens.labels.base import LabelKind
from loraens.metrics import Outcome
from loraens.store import MANIFEST, find_members
from loraens.tasks import SST, STS, Task

STEM = {"sst": "ids-sst", "sts": "sts"}


NAMES = ("art", "law", "news", "sport")
TAGS = Task(
    "tags", ("text",), "label", "labels", "binary_cross_entropy", "average_precision", NAMES
)


def of_classes(rng, task, count, sharpness=2.0):
    """Labels and an outcome that knows them in part."""
    labels = rng.integers(0, len(task.class_names), count).astype(float)
    logits = rng.normal(size=(count, len(task.class_names)))
    logits[np.arange(count), labels.astype(int)] += sharpness
    return task.outcome(logits), labels


def test_classes_against_scikit_learn():
    outcome, labels = of_classes(np.random.default_rng(0), SST, 400)
    labels[labels == 3] = 2  # a class without an example
    rows = SST.label_kind.breakdown(SST, outcome, labels)
    values = precision_recall_fscore_support(
        labels, outcome.predictions, labels=range(5), zero_division=np.nan
    )
    for k, row in enumerate(rows["classes"]):
        assert row["label"] == SST.class_names[k]
        assert row["examples"] == values[3][k]
        for name, of_classes_ in zip(("precision", "recall", "f1"), values[:3], strict=True):
            expected = None if np.isnan(of_classes_[k]) else pytest.approx(of_classes_[k])
            assert row[name] == expected, (k, name)
    matrix = confusion_matrix(labels, outcome.predictions, labels=range(5))
    counts = {(row["label"], row["prediction"]): row["count"] for row in rows["confusion"]}
    assert counts == {(str(k), str(j)): matrix[k, j] for k, j in np.argwhere(matrix)}
    never = Outcome(np.zeros(400, int), None)
    assert SST.label_kind.breakdown(SST, never, labels)["classes"][1]["precision"] is None


def test_several_labels_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 4)) < (0.5, 0.3, 0.1, 0.0)).astype(float)
    probabilities = np.clip(0.2 + 0.5 * labels + rng.normal(0, 0.2, labels.shape), 0.01, 0.99)
    thresholds = np.array([0.5, 0.4, 0.6, 0.9])
    outcome = Outcome((probabilities > 0.5).astype(int), probabilities).decided(thresholds)
    distances = TAGS.label_kind.distances(outcome, labels)
    conformal = Conformal.of(distances[None], np.zeros((1, 300)))
    found = evaluate(TAGS, outcome, labels, conformal=conformal)
    values = precision_recall_fscore_support(labels, outcome.predictions, zero_division=np.nan)
    for k, row in enumerate(found.parts["classes"]):
        assert row["label"] == TAGS.class_names[k]
        assert row["examples"] == values[3][k]
        for name, of_labels in zip(("precision", "recall", "f1"), values[:3], strict=True):
            expected = None if np.isnan(of_labels[k]) else pytest.approx(of_labels[k])
            assert row[name] == expected, (k, name)
    alike = (outcome.predictions == labels).all(axis=1)
    assert found.scores["exact_match"] == exact(int(alike.sum()), 300)
    assert sum(row["examples"] for row in found.calibration) == 300 * 4
    highest = found.calibration[-1]
    order = np.argsort(probabilities.ravel(), kind="stable")[-240:]
    assert highest["accuracy"] == labels.ravel()[order].mean()
    (row,) = [row for row in found.coverage if row["promised"] == 0.8]
    radius = conformal.at(0.8).radius(np.zeros(300))
    certain, possible = TAGS.label_kind.region(TAGS, outcome, radius)
    names = [TAGS.format_label(values) for values in labels]
    cells = zip(certain, names, possible, strict=True)
    held = [set(low) <= set(there) <= set(high) for low, there, high in cells]
    assert row["held"] == np.mean(held) >= 0.8
    assert row["size"] == np.mean([len(high) for high in possible])


def test_numbers_against_plain_loops():
    rng = np.random.default_rng(1)
    labels = rng.uniform(0, 5, 103)
    outcome = Outcome(labels + rng.normal(0.2, 0.5, 103))
    rows = STS.label_kind.breakdown(STS, outcome, labels)
    errors = [p - y for p, y in zip(outcome.predictions, labels, strict=True)]
    (quantiles,) = rows["errors"]
    assert quantiles["mean"] == pytest.approx(sum(errors) / 103)
    assert quantiles["100%"] == pytest.approx(max(map(abs, errors)))
    assert quantiles["50%"] == pytest.approx(sorted(map(abs, errors))[51])
    assert sum(row["examples"] for row in rows["labels"]) == 103
    first = [error for error, y in zip(errors, labels, strict=True) if y <= rows["labels"][0]["to"]]
    assert rows["labels"][0]["rms_error"] == pytest.approx(
        (sum(error**2 for error in first) / len(first)) ** 0.5
    )


@pytest.mark.slow
def test_intervals_hold_a_planted_truth(monkeypatch):
    """Of outcomes whose accuracy is 0.7 and whose squared error is 1, 19 of 20 intervals."""
    binary = Task("two", ("text",), "label", "classes", "cross_entropy", "accuracy", ("a", "b"))
    monkeypatch.setattr("loraens.ensemble.evaluation.RESAMPLES", (200, 200))
    held = {"accuracy": 0, "macro_f1": 0, "mse": 0}
    trials = 120
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 80).astype(float)
        right = rng.random(80) < 0.7
        scores = evaluate(binary, Outcome(np.where(right, labels, 1 - labels)), labels).scores
        numbers = rng.uniform(0, 5, 80)
        scores |= evaluate(STS, Outcome(numbers + rng.normal(size=80)), numbers).scores
        for name, truth in (("accuracy", 0.7), ("macro_f1", 0.7), ("mse", 1.0)):
            held[name] += scores[name].low <= truth <= scores[name].high
    assert held["accuracy"] / trials >= 0.93  # exact: at least what it says
    assert held["macro_f1"] / trials >= 0.87
    assert held["mse"] / trials >= 0.87


def test_exact_interval_and_undefined_scores():
    assert exact(0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert exact(10, 10).low == pytest.approx(0.025**0.1)
    assert np.isnan(percentile(float("nan"), np.full(9, np.nan)).low)
    constant = evaluate(STS, Outcome(np.ones(20)), np.arange(20.0))
    assert np.isnan(constant.score.value)
    assert {row["value"] for row in constant.rows() if row["measure"] == "pearson"} == {None}


@pytest.mark.slow
def test_difference_to_the_best_member_is_paired():
    rng = np.random.default_rng(2)
    outcome, labels = of_classes(rng, SST, 300)
    worse, _ = of_classes(rng, SST, 300, 0.5)
    result = evaluate(
        SST, outcome, labels, members={"good": outcome, "bad": worse}, standings=[0, 3]
    )
    assert result.best == "good"
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in result.to_best.values())
    other = evaluate(
        SST, outcome, labels, members={"good": outcome, "bad": worse}, standings=[1, 0]
    )
    accuracies = [float((one.predictions == labels).mean()) for one in (outcome, worse)]
    difference = other.to_best["accuracy"]
    assert difference.value == pytest.approx(accuracies[0] - accuracies[1])
    assert difference.low < difference.value < difference.high
    assert [member.scores["accuracy"] for member in other.members] == accuracies
    assert all(m.interval.low < m.scores["accuracy"] < m.interval.high for m in other.members)


@pytest.mark.slow
def test_calibration_and_coverage():
    rng = np.random.default_rng(3)
    outcome, labels = of_classes(rng, SST, 2000)
    held_out, of_held_out = of_classes(rng, SST, 2000)
    distances = SST.label_kind.distances(held_out, of_held_out)
    conformal = Conformal.of(distances[None], np.zeros((1, 2000)))
    result = evaluate(SST, outcome, labels, conformal=conformal)
    assert sum(row["examples"] for row in result.calibration) == 2000
    assert len(result.calibration) == BINS
    mean = sum(row["accuracy"] * row["examples"] for row in result.calibration) / 2000
    assert mean == pytest.approx(result.scores["accuracy"].value)
    assert [row["promised"] for row in result.coverage] == [0.8, 0.9, 0.95]
    for row in result.coverage:
        assert row["held"] == pytest.approx(row["promised"], abs=0.04)
        assert row["low"] < row["held"] < row["high"]
        radius = np.full(2000, conformal.at(row["promised"]).quantile)
        (sets,) = SST.label_kind.region(SST, outcome, radius)
        inside = [str(int(y)) in names for y, names in zip(labels, sets, strict=True)]
        assert row["held"] == pytest.approx(np.mean(inside))
        assert row["size"] == pytest.approx(np.mean(list(map(len, sets))))
    few = Conformal.of(distances[None, :6], np.zeros((1, 6)))
    of_few = evaluate(SST, outcome, labels, conformal=few).coverage
    assert [row["promised"] for row in of_few] == [0.8]


def test_a_kind_without_tables_of_its_own_has_none():
    assert LabelKind.breakdown(SST.label_kind, SST, Outcome(np.zeros(1)), np.zeros(1)) == {}


def labelled(corpus, task, split="dev"):
    return corpus / f"{STEM[task]}-{split}.csv"


@pytest.mark.slow
def test_an_ensemble_on_a_file(trained, corpus, run_command, tmp_path, capsys, monkeypatch):
    task, sweep = trained
    monkeypatch.setenv("COLUMNS", "80")
    table = pandas.read_csv(labelled(corpus, task), sep="\t", dtype=str, keep_default_na=False)
    label = "sentiment" if task == "sst" else "similarity"
    text = "sentence" if task == "sst" else "sentence1"
    table = table[["id", *[c for c in table if c.startswith("sentence")], label]]
    table.loc[3, label] = ""
    table.loc[5, text] = ""
    table.to_csv(tmp_path / "in.csv", index=False)
    for suffix in ("json", "csv"):
        command = ("evaluate", "--model", sweep / "ensembles" / "recommended")
        command = (*command, "--input", tmp_path / "in.csv", "--output", tmp_path / f"out.{suffix}")
        assert run_command(*command) == 0
    printed = capsys.readouterr().out
    assert "1 rows left out (no text): line 7" in printed
    assert "1 rows left out (no label): line 5" in printed
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["examples"] == 22
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    metric = result["metric"]
    (score,) = [row for row in rows if row["part"] == "scores" and row["measure"] == metric]
    assert float(score["value"]) == result["scores"][metric]["value"]
    # the same predictions as `predict`
    ensemble = loraens.Ensemble.load(sweep / "ensembles" / "recommended")
    kept = table[(table[label] != "") & (table[text] != "")]
    texts = kept.filter(like="sentence").to_numpy().tolist()
    predicted = [row["prediction"] for row in ensemble.predict(texts)]
    if task == "sst":
        right = [p == y for p, y in zip(predicted, kept[label], strict=True)]
        assert float(score["value"]) == pytest.approx(np.mean(right))
    else:
        expected = np.corrcoef(predicted, kept[label].astype(float))[0, 1]
        assert float(score["value"]) == pytest.approx(expected, abs=1e-4)
    again = ensemble.evaluate(table)
    assert again.score == loraens.evaluate(sweep / "ensembles" / "recommended", table).score
    assert again.score.value == float(score["value"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["omni", "dicor"])
def test_members_and_their_difference(trained, corpus, name):
    task, sweep = trained
    rule = "vote" if task == "sst" else "logits"
    directory = sweep / "ensembles" / f"{task}-{name}-{rule}"
    result = loraens.evaluate(directory, labelled(corpus, task))
    assert result.seen == "dev"
    assert len(result.members) == (4 if name == "omni" else 2)
    for member in result.members:
        alone = loraens.evaluate(sweep / member.name, labelled(corpus, task))
        assert alone.members == ()
        for metric, value in member.scores.items():
            assert value == pytest.approx(alone.scores[metric].value, abs=1e-5, nan_ok=True)
    best = min(result.members, key=lambda member: member.standing)
    assert result.best == best.name
    value = result.score.value - best.scores[result.metric]
    assert result.to_best[result.metric].value == pytest.approx(value)
    assert (task == "sts") == any("spread" in row for row in result.calibration)
    if task == "sst":  # votes have no probabilities
        assert np.isnan(result.scores["nll"].value)
        assert result.calibration == []


@pytest.mark.slow
def test_what_cannot_be_evaluated(trained, corpus, fails, tmp_path):
    task, sweep = trained
    member = find_members(sweep)[0]
    command = ("evaluate", "--model", member, "--input")
    message = fails(*command, labelled(corpus, task, "test-student"))
    assert "has no labels in column" in message
    assert fails(*command, "dev.csv", "--output", "out.txt").startswith("loraens: --output out.txt")
    there = fails(*command, "dev.csv", "--output", tmp_path / "none" / "out.csv")
    assert "its directory does not exist" in there
    texts = tmp_path / "dev.csv"
    texts.write_text("a file of labelled texts")
    assert "is the input" in fails(*command, texts, "--output", texts)
    assert texts.read_text() == "a file of labelled texts"
    assert "does not exist" in fails(*command, tmp_path / "none.csv")
    assert "--batch_size 0" in fails(*command, "dev.csv", "--batch_size", 0)
    assert MANIFEST in fails("evaluate", "--model", tmp_path, "--input", "dev.csv")


@pytest.mark.slow
def test_without_held_out_scores_there_is_no_coverage(trained, corpus, run_command, capsys):
    task, sweep = trained
    path = sweep / "ensembles" / f"{task}-omni-logits" / "ensemble.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps({**record, "conformal": None}))
    command = ("evaluate", "--model", path.parent, "--input", labelled(corpus, task))
    assert run_command(*command) == 0
    path.write_text(json.dumps(record))
    assert "left out: " in (printed := capsys.readouterr().out)
    assert "has no held-out scores" in printed
    assert "Coverage" not in printed
