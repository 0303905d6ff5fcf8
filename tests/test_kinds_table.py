"""The table of docs/label-kinds.md: what every command does with every label kind, from files to
the report. `python tests/test_kinds_table.py` writes it again.
"""

import csv
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from loraens import LABEL_KINDS, Ensemble, cli
from loraens.ensemble.record import EnsembleRecord
from loraens.store import MemberStore

PAGE = Path(__file__).parents[1] / "docs" / "label-kinds.md"
KINDS = ("classes", "number", "labels", "levels")
HEAD = (
    "| kind | `fit`: loss; scores | `sweep`, also in folds | `ensemble` by rules |"
    " `predict` gives |"
    " `evaluate` breaks down by | `report` shows |"
)
WORDS = ("film", "goal", "vote")
SIZES = {"train": 60, "dev": 40, "test": 20}


def write_files(directory: Path, kind: str) -> None:
    """Made-up texts of three words, of which any number is in a text."""
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        with (directory / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(size):
                there = rng.random(3) < (0.5, 0.4, 0.3)
                words = [word for word, is_there in zip(WORDS, there, strict=True) if is_there]
                labels = {
                    "classes": "goal" if there[1] else "none",
                    "number": there.sum() + rng.random(),
                    "labels": "|".join(words) or "|",
                    "levels": ("low", "mid", "high")[min(2, there.sum())],
                }
                text = [*words, *"abcdefg"[: number % 5 + 1]]
                rng.shuffle(text)
                writer.writerow([" ".join(text), labels[kind]])


def options(directory: Path, kind: str, tiny_bert: Path) -> list[object]:
    own = {
        "labels": ("--data.delimiter", "|", "--data.class_weights", "balanced"),
        "levels": ("--data.class_names", "[low,mid,high]"),
    }
    files = [part for split in SIZES for part in (f"--data.{split}", directory / f"{split}.csv")]
    data = ("--data", "loraens.data.TextFiles", "--data.name", "t", *files)
    columns = ("--data.text_columns", "[text]", "--data.label_column", "label")
    model = ("--model.backbone", tiny_bert, "--model.lr", 1e-2, "--model.pooling", "mean")
    trainer = ("--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false")
    kind_options = ("--data.kind", kind, *own.get(kind, ()))
    return [*data, *columns, *kind_options, *model, *trainer, "--trainer.logger", "false"]


def run(*words: object) -> None:
    cli.main([str(word) for word in words])


def row(directory: Path, kind: str, tiny_bert: Path) -> str:
    """The table's row of a kind, as the commands give it."""
    write_files(directory, kind)
    given = options(directory, kind, tiny_bert)
    run("fit", *given, "--trainer.max_epochs", 10, "--store.root", directory / "one")
    (member,) = (directory / "one").glob("*/*/manifest.json")
    manifest = MemberStore(member.parent).manifest()
    (task,) = manifest.settings.tasks
    losses = [entry.train_loss for entry in manifest.history]
    assert np.mean(losses[5:]) < np.mean(losses[:5])
    scores = manifest.dev["best"]["t"]
    assert list(scores) == [metric.name for metric in task.label_kind.metrics]
    fit = f"`{task.loss}`; **{task.metric}**, {', '.join([*scores][1:])}"

    grid = ("--grid.rank", "[2,4]", "--grid.seed", "[0,1]", "--sweep.pack_size", 4)
    run("sweep", *given, *grid, "--store.root", directory / "many")
    folds = ("--grid.folds", 2, "--sweep.pack_size", 4)
    run("sweep", *given, *folds, "--store.root", directory / "folds")
    sweep, in_folds = directory / "many" / "t-sweep", directory / "folds" / "t-sweep"
    members = [len([*path.glob("*/manifest.json")]) for path in (sweep, in_folds)]
    assert members == [4, 2]
    run("ensemble", "--runs", in_folds, "--method", "omni")

    run("ensemble", "--runs", sweep, "--method", "all", "soup", "--size", 3)
    records = [EnsembleRecord.read(path) for path in sorted((sweep / "ensembles").glob("t-*"))]
    rules = [*task.label_kind.rules, "merged"]
    assert {r.rule for r in records} == set(rules)

    model = sweep / "ensembles" / f"t-omni-{rules[0]}"
    ensemble = Ensemble.load(model)
    predicted = ensemble.predict(["a film", "goal goal b c"], coverage=0.8)
    out = directory / "predictions.csv"
    run("predict", "--model", model, "--input", directory / "test.csv", "--output", out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    regions = task.label_kind.regions
    columns = [name for name in predicted[0] if not name.startswith("probability_")]
    assert [*rows[0]] == ["text", "label", *(n for n in predicted[0] if n not in regions)]
    if kind == "labels":
        assert set(json.loads(rows[0]["prediction"])) <= set(WORDS)
        soup = Ensemble.load(sweep / "ensembles" / "t-soup-merged")
        record = EnsembleRecord.read(sweep / "ensembles" / "t-soup-merged")
        for text in soup.predict(["a film", "goal goal b c"]):
            thresholds = zip(WORDS, record.thresholds, strict=True)
            above = [word for word, cut in thresholds if text[f"probability_{word}"] > cut]
            assert text["prediction"] == above
    probabilities = any(name.startswith("probability_") for name in predicted[0])
    columns[1:1] = ["probability_NAME"] if probabilities else []
    predict = ", ".join(f"`{name}`" for name in columns)

    out = directory / "scores.json"
    run("evaluate", "--model", model, "--input", directory / "test.csv", "--output", out)
    scores = json.loads(out.read_text())
    assert scores["examples"] == SIZES["test"]
    assert list(scores["scores"]) == [metric.name for metric in task.label_kind.metrics]
    evaluate = ", ".join([*scores["parts"], *(["calibration"] if scores["calibration"] else [])])

    run("report", "--runs", sweep, "--out", directory / "report")
    page = (directory / "report" / "index.html").read_text()
    shown = ("Confusion matrix", "Scatter plot", ">precision<")
    (section,) = [name for name in shown if name in page]
    section = {">precision<": "precision and recall of each label"}.get(section, section.lower())
    return f"| `{kind}` | {fit} | yes | {', '.join(rules)} | {predict} | {evaluate} | {section} |"


def test_the_page_has_every_kind_and_says_which_rules_do_not_apply():
    text = PAGE.read_text()
    _, head, rows = text.partition(HEAD)
    assert head
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == [*KINDS]
    for kind in KINDS:
        for rule, why in LABEL_KINDS[kind].not_rules.items():
            assert f"- `{rule}` of `{kind}`: {why}." in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_says_what_the_commands_do(kind, tmp_path, tiny_bert):
    assert row(tmp_path, kind, tiny_bert) in PAGE.read_text()


@pytest.mark.slow
def test_a_rule_that_does_not_apply_says_why(fails, tmp_path, tiny_bert):
    write_files(tmp_path, "labels")
    run("sweep", *options(tmp_path, "labels", tiny_bert), "--store.root", tmp_path)
    sentence = fails("ensemble", "--runs", tmp_path / "t-sweep", "--rule", "vote")
    why = LABEL_KINDS["labels"].not_rules["vote"]
    assert f"rule vote does not apply to task t, as {why}: give one of probs, logits" in sentence


if __name__ == "__main__":
    from conftest import made_up, write_tiny_bert

    head, _, _ = PAGE.read_text().partition(HEAD)
    with tempfile.TemporaryDirectory() as name:
        corpus, bert = Path(name) / "corpus", Path(name) / "bert"
        corpus.mkdir()
        made_up.write_corpus(corpus, {"train": 48, "dev": 24, "test": 10})
        write_tiny_bert(bert, corpus)
        rows = []
        for kind in KINDS:
            (Path(name) / kind).mkdir()
            rows.append(row(Path(name) / kind, kind, bert))
    line = "| --- | --- | --- | --- | --- | --- | --- |"
    PAGE.write_text("\n".join([f"{head}{HEAD}", line, *rows, ""]))
