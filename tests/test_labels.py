"""What labels and missing values mean, in every format."""

import json

import pandas
import pytest

from loraens.data import modules as data
from loraens.data.classes import checked_classes
from loraens.data.splits import Columns, Records, read_records, read_split, split_of
from loraens.data.tables import Table
from loraens.errors import InputError
from loraens.tasks import STS, Task

COLUMNS = Columns(("text",), "label")


def task_of(names, **fields):
    options = {"kind": "classes", "loss": "cross_entropy", "metric": "accuracy", **fields}
    return Task("t", ("text",), "label", class_names=tuple(names), **options)


def split_labels(values, task, missing=frozenset()):
    """Labels of a split whose label column has these values, and lines without one."""
    rows = [{"text": "x", "label": value} for value in values]
    table = Table("x", "memory", ["text", "label"], iter(enumerate(rows, start=1)))
    split = split_of(read_records(table, COLUMNS, missing), "test", task)
    labels = None if split.labels is None else split.labels.tolist()
    return labels, split.dropped.get("no label", [])


COLUMN_KINDS = {
    "bool": pandas.Series([True, False, True, False]),
    "int": pandas.Series([1, 0, 1, 0]),
    "float": pandas.Series([1.0, 0.0, 1.0, 0.0]),
    "nullable": pandas.Series([True, False, True, False], dtype="boolean"),
    "category": pandas.Series(["1", "0", "1", "0"], dtype="category"),
    "words": pandas.Series(["true", "FALSE", "True", "false"]),
    "decimals": pandas.Series(["1.0", "0.0", "1", "0"]),
}


@pytest.mark.parametrize("kind", COLUMN_KINDS)
@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "xlsx", "memory"])
def test_labels_mean_the_same_in_every_format(tmp_path, kind, format):
    frame = pandas.DataFrame({"text": list("abcd"), "label": COLUMN_KINDS[kind]})
    path = tmp_path / f"x.{format}"
    if format == "csv":
        frame.to_csv(path, index=False)
    elif format == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif format == "parquet":
        frame.to_parquet(path)
    elif format == "xlsx":
        pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
        frame.to_excel(path, index=False)
    source = frame if format == "memory" else str(path)
    inferred = ["False", "True"] if kind in ("bool", "nullable", "words") else ["0", "1"]
    for names in (["0", "1"], ["False", "True"], None):
        module = data.TextFiles("t", source, source, ["text"], "label", class_names=names)
        (read,) = module.sources
        assert read.read("train").labels.tolist() == [1, 0, 1, 0]
        assert read.task.class_names == tuple(names or inferred)


@pytest.mark.parametrize(
    ("values", "names", "expected", "lines"),
    [
        ([1, None, float("nan"), pandas.NA, pandas.NaT, "", " "], "01", [1], [2, 3, 4, 5, 6, 7]),
        (["1", "NA", "nan", "N/A", "null", "0"], "01", [1, 0], [2, 3, 4, 5]),
        (["DE", "NA", ""], ["DE", "NA"], [0, 1], [3]),
        ([0.0, 2.0, "2.0", "2"], "012", [0, 2, 2, 2], []),
        ([-1, -1, None], "01", None, []),
        ([-1, 1], ["-1", "1"], [0, 1], []),
        ([-1, -1], ["-1", "1"], [0, 0], []),
        (["NA", "NA"], "01", None, []),
    ],
)
def test_missing_is_missing(values, names, expected, lines):
    assert split_labels(values, task_of(names)) == (expected, lines)


def test_further_marks_are_missing_where_they_are_named():
    assert split_labels(["a", "-", "b"], task_of("ab"), frozenset("-")) == ([0, 1], [2])
    with pytest.raises(InputError, match="line 2: label '-' is not one of the classes a, b"):
        split_labels(["a", "-", "b"], task_of("ab"))


def test_hidden_labels_of_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("sentence1,sentence2,similarity\na,b,-1.0\nc,d,-1.0\n")
    assert read_split(tmp_path / "x.csv", "test", STS).labels is None


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_cells_that_hold_no_single_value(value):
    table = Table("x", "memory", ["text"], iter([(1, {"text": "x"}), (2, {"text": value})]))
    kind = type(value).__name__
    with pytest.raises(InputError, match=rf"x line 2: column 'text' holds a {kind}, and one text"):
        read_records(table, COLUMNS)


def records_of(labels):
    return Records("x.csv", positions=list(range(2, len(labels) + 2)), labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a", "b"], r"x\.csv line 4 is the only example of class 'b': correct the label"),
        (["1", "1.0", "2", "3"], "line 4 is the only example of class '2', and 1 more classes"),
        ([f"title {i // 2}" for i in range(80)], None),
        ([f"title {i}" for i in range(30)], "has 30 values in 30 records, as texts, or ids"),
        ([f"{i / 3}" for i in range(30)], r"as numbers \(--data.kind number\)"),
        (["many words " * 12, "more words " * 12] * 5, "holds texts and no classes"),
        (["0"] * 5 + ["1"] * 2, None),
    ],
)
def test_labels_that_look_like_no_classes_are_refused(labels, message):
    records = records_of(labels)
    if message is None:
        assert checked_classes(records, "label", None)
        return
    with pytest.raises(InputError, match=message) as error:
        checked_classes(records, "label", None)
    assert "name all classes to insist (--data.class_names)" in str(error.value)


def test_names_of_classes_are_insisting(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,x\nb,y\nc,y\n")
    path = str(tmp_path / "x.csv")
    with pytest.raises(InputError, match="the only example of class 'x'"):
        data.TextFiles("t", path, path, ["text"], "label")
    module = data.TextFiles("t", path, path, ["text"], "label", class_names=["x", "y"])
    assert module.sources[0].read("train").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["0", "1"], "[0, 1]", ("0", "1")),
        (["1.5", "2"], "[1.5, 2.0]", ("1.5", "2")),
        (["true", "False"], "[false, true]", ("False", "True")),
        (["0", "1"], "[false, true]", ("False", "True")),
        (["yes", "no", "maybe"], "[yes, no, maybe]", None),
        (["no", "yes"], '["no", "yes"]', ("no", "yes")),
        (["no", "yes"], "[no, yes]", None),
    ],
)
def test_class_names_that_yaml_takes_for_something_else(tmp_path, labels, names, expected):
    from jsonargparse import ArgumentParser

    rows = [{"text": f"{label} {i}", "label": label} for label in labels for i in range(2)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(data.TextFiles, "data")
    path = str(tmp_path / "x.jsonl")
    options = ["--data.name=t", f"--data.train={path}", f"--data.dev={path}"]
    options += ["--data.text_columns=[text]", "--data.label_column=label"]
    parsed = parser.parse_args([*options, f"--data.class_names={names}"])
    if expected is None:
        with pytest.raises(InputError, match=r"YAML reads yes, no.*quote them"):
            parser.instantiate(parsed)
        return
    (task,) = parser.instantiate(parsed).data.tasks
    assert task.class_names == expected
    again = parser.parse_string(parser.dump(parsed))
    assert parser.instantiate(again).data.tasks == [task]


def test_classes_are_counted_in_the_report(tmp_path, tiny_bert):
    lines = [f"text {i},{'abc'[i % 3 % 2]}" for i in range(9)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]))
    path = str(tmp_path / "x.csv")
    module = data.TextFiles("t", path, path, ["text"], "label", backbone=str(tiny_bert))
    module.setup("fit")
    report = module.splits["t", "train"].report()
    assert report == "t train: 9 records from x.csv; 2 classes: a 6, b 3"
