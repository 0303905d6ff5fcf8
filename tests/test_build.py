"""One command from a labelled table to an ensemble: columns, splits, sizes, and all of it."""

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest

import loraens
from loraens.data.columns import read_found, task_of
from loraens.data.folds import text_key
from loraens.data.splits import split_of
from loraens.data.understanding import cut_dev, describe, understand
from loraens.errors import InputError
from loraens.store import MemberStore, find_members
from loraens.tasks import STS, Task
from loraens.train.cost import Cost
from loraens.train.design import LEAST, default_members, rate_members, sizes
from loraens.train.plan import Plan
from loraens.train.sizing import Size, largest, seconds

KINDS = Task(
    "kinds", ("text",), "label", "classes", "cross_entropy", "accuracy", ("WHEN", "WHERE", "WHO")
)
WORDS = {"WHO": "wrote painted sang", "WHERE": "lies stands flows", "WHEN": "began ended opened"}


def frame(count=120, seed=0):
    """Questions whose verb tells their kind."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        kind = list(WORDS)[index % 3]
        verb = rng.choice(WORDS[kind].split())
        thing = rng.choice(["house", "river", "song", "war"])
        text = f"{kind.lower()} {verb} the {thing} {index}"
        rows.append({"number": index, "text": text, "label": kind, "likes": index / 8})
    return pandas.DataFrame(rows)


def write(path, table):
    table.to_csv(path, index=False)
    return path


def found(table, texts=None, label=None, **given):
    """The task of a table."""
    return task_of(*read_found(table, texts, label), **given)


def understood(task, table, **others):
    records, _ = read_found(table, task.text_columns, task.label_column)
    return understand(task, split_of(records, "train", task), **others)


@pytest.mark.parametrize("suffix", [None, "csv", "jsonl"])
def test_columns_are_found(tmp_path, suffix):
    def task(table, **given):
        if suffix is None:
            return found(table, **given)
        path = tmp_path / f"my table.{suffix}"
        if suffix == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_json(path, orient="records", lines=True)
        return found(path, **given)

    plain = task(frame())
    assert (plain.text_columns, plain.label_column, plain.kind) == (("text",), "label", "classes")
    assert plain.class_names == ("WHEN", "WHERE", "WHO")
    assert plain.name == ("my-table" if suffix else "the-table-in-memory")
    named = task(frame().rename(columns={"text": "What", "label": "kind of it"}))
    assert (named.text_columns, named.label_column) == (
        ("What",),
        "kind of it",
    )  # by what they hold
    number = task(frame(), label="likes")
    assert (number.kind, number.class_names, number.low + number.high) == ("number", (), 119 / 8)
    assert number.low < 0 < 119 / 8 < number.high
    stars = frame().assign(label=[float(index % 5) for index in range(120)])
    assert task(stars).class_names == ("0", "1", "2", "3", "4")
    assert task(stars, kind="number").kind == "number"
    pair = frame().assign(sentence1="a b c", sentence2="d e f")
    assert task(pair).text_columns == ("sentence1", "sentence2")
    assert task(pair, texts=["text"]).text_columns == ("text",)
    once = frame().assign(label=["once", *["b", "c"] * 60][:120])
    assert task(once, class_names=["b", "c", "once"]).class_names == ("b", "c", "once")


def test_several_labels_and_levels_are_found(tmp_path):
    lists = [["a", "b"], ["a"], [], ["c", "b"]] * 30
    task = found(frame().assign(label=lists))
    assert (task.kind, task.class_names) == ("labels", ("a", "b", "c"))
    path = tmp_path / "t.jsonl"
    frame().assign(label=lists).to_json(path, orient="records", lines=True)
    assert found(path).kind == "labels"
    joined = frame().assign(label=["|".join(names) or "|" for names in lists])
    task = found(write(tmp_path / "t.csv", joined), delimiter="|")
    assert (task.kind, task.class_names, task.delimiter) == ("labels", ("a", "b", "c"), "|")
    data = understood(task, joined)
    assert data.splits["train"].labels.shape[1] == 3
    rows = map(json.loads, Path(data.write(tmp_path)["train"]).read_text().splitlines())
    written = {tuple(row["label"]) for row in rows}
    assert written == {("a", "b"), ("a",), (), ("b", "c")}
    levels = found(frame().assign(label=[index % 4 for index in range(120)]), kind="levels")
    assert levels.class_names == ("0", "1", "2", "3")
    names = ["WHO", "WHEN", "WHERE"]
    assert found(frame(), kind="levels", class_names=names).class_names == tuple(names)
    with pytest.raises(InputError, match="the order of the levels WHEN, WHERE, WHO is not known"):
        found(frame(), kind="levels")
    with pytest.raises(InputError, match=r"line 1: label 'WHO' is no JSON list of names"):
        found(frame(), kind="labels")


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"label": None}, {}, "no column looks like a label; its columns are 'number', 'text',"),
        ({"label": None}, {"label": "c"}, "has no column 'c'"),
        ({"text": None}, {}, "no column looks like a text; its columns are 'number', 'likes'"),
        (
            {},
            {"label": "text", "texts": ["number"]},
            "as texts, or ids: choose another column or kind, or name all classes to insist"
            " (--class_names)",
        ),
        ({"label": "WHO"}, {}, "has one class only, 'WHO'"),
        ({"label": ["once", *["b", "c"] * 60][:120]}, {}, "line 1 is the only example of class"),
        ({"label": ""}, {}, "has no label: name another (--label)"),
        ({}, {"kind": "number"}, "line 1: label 'WHO', and a number is expected"),
    ],
)
def test_columns_that_cannot_be_used(changes, given, message):
    table = frame().drop(columns=[name for name, value in changes.items() if value is None])
    table = table.assign(**{name: v for name, v in changes.items() if v is not None})
    with pytest.raises(InputError, match=re.escape(message)) as error:
        found(table, **given)
    assert "\n" not in str(error.value)


def test_two_columns_that_look_alike_are_asked_about():
    table = frame().rename(columns={"text": "a", "label": "c"})
    with pytest.raises(InputError, match=r"2 columns look like a text; its columns are 'a', 'b'"):
        found(table.assign(b=table["a"]))
    with pytest.raises(InputError, match=r"2 columns look like a label; its columns are 'c', 'd'"):
        found(table.assign(d=table["c"]))


def test_dev_is_stratified_and_equal_texts_are_together():
    table = pandas.concat([frame(150), frame(30)])  # 30 texts twice
    table["text"] = table["text"].where(table["number"] % 2 == 0, table["text"].str.upper() + " ")
    table["label"] = table["label"].where(table["number"] % 30 != 1, "WHO")
    data = understood(KINDS, table)
    train, dev = data.splits["train"], data.splits["dev"]
    assert len(train) + len(dev) == 180
    assert len(dev) == pytest.approx(36, abs=5)
    assert not {text_key(t) for t in train.texts} & {text_key(t) for t in dev.texts}
    shares = [np.bincount(split.labels.astype(int)) / len(split) for split in (train, dev)]
    np.testing.assert_allclose(*shares, atol=0.07)
    assert "train: 30 records repeat the text of another one" in data.notes
    again = understood(KINDS, table)
    assert again.fingerprints() == data.fingerprints()


def test_a_rare_class_is_in_both_and_numbers_are_spread():
    table = frame(90)
    table.loc[[0, 3], "label"] = "WHEN"
    table.loc[table["label"] == "WHERE", "label"] = "WHO"
    table.loc[[1, 4], "label"] = "WHERE"
    splits = understood(KINDS, table).splits
    assert [int((split.labels == 1).sum()) for split in splits.values()] == [1, 1]
    number = replace(STS, text_columns=("text",), label_column="likes", low=None, high=None)
    splits = understood(number, frame(200)).splits
    means = [split.labels.mean() for split in splits.values()]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    few = understood(KINDS, frame(30)).splits["train"]
    few = replace(few, ids=few.ids[:3], texts=few.texts[:3], labels=few.labels[:3])
    with pytest.raises(InputError, match="too few to cut a dev set from"):
        cut_dev(KINDS, few)


def test_texts_that_are_scored_on_are_left_out_of_what_is_before():
    table = frame(90)
    data = understood(KINDS, table, dev=table[60:80], test=table[70:].drop(columns="label"))
    assert [len(split) for split in data.splits.values()] == [60, 10, 20]
    assert "left out of train: 10 whose texts are in dev too" in data.notes
    assert "left out of train: 20 whose texts are in test too" in data.notes
    assert "left out of dev: 10 whose texts are in test too" in data.notes
    assert data.splits["test"].labels is None
    with pytest.raises(InputError, match=r"all texts of .* are in .* too"):
        understood(KINDS, table, test=table)
    with pytest.raises(InputError, match="has no label in column 'label': the dev split needs"):
        understood(KINDS, table, dev=frame(9, 1).drop(columns="label"))


def test_what_is_understood_is_said(tiny_bert, tmp_path):
    table = frame(90)
    table.loc[[0, 1], "text"] = None
    table.loc[2, "label"] = None
    table.loc[5, "text"] = "word " * 200
    table.loc[8, "text"] = table.loc[9, "text"]
    data = understood(KINDS, write(tmp_path / "t.csv", table))
    lines = "\n".join(describe(data, str(tiny_bert), 32))
    for expected in (
        "text: 'text'; label: 'label', classes; metric: accuracy",
        "dropped 2 (no text; line 2, 3)",
        "dropped 1 (no label; line 4)",
        "1 records repeat the text of another one; 1 texts have more than one label",
        "3 classes in train: ",
        "times as frequent as",
        " are cut to 32 (--max_length)",
    ):
        assert expected in lines
    assert re.search(r"dev: \d+ of the records of train, cut at random", lines)
    lines = Path(data.write(tmp_path / "data")["train"]).read_text().splitlines()
    rows = list(map(json.loads, lines))
    assert list(rows[0]) == ["id", "text", "label"]
    assert len(rows) == len(data.splits["train"])


def plan_of(seconds=0.01, evaluated=0.3, texts=800):
    steps = texts // 8
    total = steps * seconds * (1 + evaluated)
    return Plan(1, 0, 1, 1, (1,), steps, steps, total, Cost(1, seconds, 0, 0))


def test_sizes_fit_the_time():
    plan = plan_of()

    def needed(size):
        return seconds(size, plan, 8)

    assert needed(Size(1, 1, 800)) == pytest.approx(plan.seconds)
    assert needed(Size(4, 3, 400)) == pytest.approx(12 * (50 * 0.01 + 0.3))
    limits = (1e9, 100, 20, 8, 5, 1, 0)
    found, times = zip(*(largest(sizes(800), needed, limit) for limit in limits), strict=True)
    assert found[0] == Size(16, 10, 800)
    assert all(time <= limit for time, limit in zip(times[:-1], limits[:-1], strict=True))
    assert list(times) == sorted(times, reverse=True)
    assert found[-1] == Size(2, 1, LEAST)
    assert largest(sizes(40), needed, 0)[0].texts == 40


def test_members_of_the_default_grid_differ():
    members = default_members(1e-3, 16)
    assert len({member.name for member in members}) == 16
    assert {member.lr for member in members} == {1e-3, 5e-4}
    assert len({member.lr for member in rate_members()}) == 4
    assert default_members(1e-3, 3) == members[:3]


@pytest.mark.slow
def test_build_from_the_command_line(run_command, fails, tiny_bert, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loraens.train.design.SIZES", ((3, 2),))
    table = frame(240)
    write(tmp_path / "questions.csv", table[:180])
    write(tmp_path / "test.csv", table[180:])
    command = ("build", "questions.csv", "--out", "out", "--backbone", tiny_bert)
    command = (*command, "--test", "test.csv", "--minutes", 5)
    assert run_command(*command) == 0
    printed = capsys.readouterr().out
    assert "text: 'text'; label: 'label', classes; metric: accuracy" in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("Deploy out/sweep/ensembles/recommended: ")
    assert re.search(r"accuracy 0\.\d+ \[.*\] on new texts \(\d\.\d+ \[.*\] on test\)", last)
    assert re.search(r"\d+\.\d ms a text on this machine\.$", last)
    assert {len(find_members(tmp_path / "out" / f"range-{p}")) for p in ("mean", "cls")} == {4}
    members = find_members(tmp_path / "out" / "sweep")
    assert len(members) == 3
    measured = json.loads((tmp_path / "out" / "build.json").read_text())["measured"]
    assert {MemberStore(m).manifest().settings.pooling for m in members} == {measured["pooling"]}
    assert (tmp_path / "out" / "sweep" / "report" / "index.html").is_file()

    # each step is a command with which one can go on
    steps = [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("$ ")]
    assert [words[0] for words in steps] == [
        *("sweep", "sweep", "sweep", "ensemble", "report", "evaluate", "predict")
    ]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    for words in steps[:-1]:
        assert run_command(*words) == 0, words
    assert run_command(*steps[-1][:-1], "questions.csv", "--output", "predicted.csv") == 0
    with open("predicted.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 180
    assert {row["prediction"] for row in rows} <= set(WORDS)

    # the same command goes on where it was: nothing is trained again
    capsys.readouterr()
    assert run_command(*command) == 0
    again = capsys.readouterr().out
    assert "resuming out: rate and size are known" in again
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert after == before
    assert "has a build with other minutes" in fails(*command, "--minutes", 6)
    write(tmp_path / "questions.csv", table[:170])
    assert "has a build with other data" in fails(*command)


@pytest.mark.slow
def test_an_interrupted_build_goes_on(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("loraens.train.design.SIZES", ((2, 1),))
    options = {"out": tmp_path / "out", "backbone": str(tiny_bert), "minutes": 5, "verbose": False}
    proved = []

    def interrupted(self, sweep):
        proved.append(sweep.directory)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("loraens.api.builder.Builder._prove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loraens.build(frame(150), "text", "likes", **options)
    assert proved == [tmp_path / "out" / "sweep"]
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.safetensors")}
    built = loraens.build(frame(150), "text", "likes", **options)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.safetensors")} == files
    assert built.test is None
    assert built.sentence.startswith(f"Deploy {built.path}: ")
    (row,) = built.load().predict(["who wrote the song"])
    assert isinstance(row["prediction"], float)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "levels"])
def test_build_of_several_labels_and_of_levels(kind, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("loraens.train.design.SIZES", ((2, 1),))
    lists = [["a", "b"], ["a"], [], ["c", "b"]]
    table = frame(160)
    table["label"] = [lists[i % 4] if kind == "labels" else i % 4 for i in range(160)]
    options = {"out": tmp_path / "out", "backbone": str(tiny_bert), "minutes": 5, "verbose": False}
    built = loraens.build(table[:120], "text", "label", kind=kind, test=table[120:], **options)
    assert built.test.examples == 40
    (row,) = built.load().predict(["who wrote the song"])
    if kind == "labels":
        assert set(row["prediction"]) <= {"a", "b", "c"}
    else:
        assert row["prediction"] in {"0", "1", "2", "3"}


def test_what_cannot_be_built(fails, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "notes.csv", frame()[["number", "text"]])
    command = ("build", "notes.csv", "--out", "out", "--backbone", tiny_bert)
    assert fails(*command) == (
        "loraens: notes.csv: no column looks like a label; its columns are 'number', 'text': name"
        " one (--label)"
    )
    assert "as texts, or ids: choose another column" in fails(
        *command, "--label", "text", "--text", "number"
    )
    assert fails(*command, "--minutes", 0).startswith("loraens: --minutes 0: more than 0")
    write(tmp_path / "whole.csv", frame())
    command = ("build", "whole.csv", "--out", "out", "--backbone", tiny_bert)
    assert "metric 'f2' is none of accuracy" in fails(*command, "--metric", "f2")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert fails(*command).startswith("loraens: --out out has something else: give another --out")
