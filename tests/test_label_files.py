"""Labels of several names, weights of examples and of classes, as files hold them."""

import json

import datasets
import numpy as np
import pandas
import pytest

import loraens
from loraens.data import modules as data
from loraens.data.splits import read_split
from loraens.errors import InputError

ROWS = [
    ("a b", ["x", "y"]),
    ("b", ["y"]),
    ("c a", []),
    ("d", ["x"]),
    ("e", ["x", "z"]),
    ("f", ["z"]),
]
EXPECTED = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]]


def write(path, form):
    """A file whose labels are written in one of the ways."""
    texts, labels = zip(*ROWS, strict=True)
    flags = {name: [int(name in of_row) for of_row in labels] for name in "xyz"}
    if form == "lists":
        rows = [{"text": text, "label": label} for text, label in ROWS]
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        path = path.with_suffix(".parquet")
        pandas.DataFrame({"text": texts, "label": labels}).to_parquet(path)
    else:
        cells = {
            "json": {"label": [json.dumps(of_row) for of_row in labels]},
            "delimiter": {"label": ["; ".join(of_row) or ";" for of_row in labels]},
            "flags": flags,
            "truths": {name: [bool(flag) for flag in column] for name, column in flags.items()},
        }[form]
        pandas.DataFrame({"text": texts, **cells}).to_csv(path, index=False)
    return str(path)


def module(path, **options):
    fields = {"label_column": "label", "kind": "labels", "text_columns": ["text"], **options}
    return data.TextFiles("t", path, path, **fields)


@pytest.mark.parametrize("form", ["lists", "parquet", "json", "delimiter", "flags", "truths"])
@pytest.mark.parametrize("given", [True, False])
def test_labels_are_lists_names_between_delimiters_or_columns(tmp_path, form, given):
    options = {"class_names": ["x", "y", "z"]} if given else {}
    if form == "delimiter":
        options["delimiter"] = ";"
    if form in ("flags", "truths"):
        options["label_column"] = ["x", "y", "z"]
    made = module(write(tmp_path / "x.csv", form), **options)
    assert made.tasks[0].class_names == ("x", "y", "z")
    split = made.sources[0].read("train")
    assert split.labels.tolist() == EXPECTED
    assert split.dropped == {}
    again = read_split(tmp_path / split.origin, "test", made.tasks[0])  # as `evaluate` reads it
    assert again.labels.tolist() == EXPECTED


def test_lists_of_named_classes_in_a_data_set(tmp_path):
    names = datasets.ClassLabel(names=["x", "y", "z"])
    features = datasets.Features({"text": datasets.Value("string"), "label": [names]})
    rows = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "train")
    options = {"text_columns": ["text"], "label_column": "label", "kind": "labels"}
    made = data.HubTexts("t", str(tmp_path / "train"), **options)
    assert made.tasks[0].class_names == ("x", "y", "z")
    assert made.sources[0].read("train").labels.tolist() == EXPECTED


def test_a_row_without_labels_is_dropped_and_a_split_without_any_has_none():
    rows = [{"text": "a", "label": "x|y"}, {"text": "b", "label": ""}, {"text": "c", "label": "|"}]
    options = {"class_names": ["x", "y"], "delimiter": "|"}
    split = module(rows, **options).sources[0].read("train")
    assert split.labels.tolist() == [[1, 1], [0, 0]]
    assert split.dropped == {"no label": [2]}
    bare = [{"text": "a", "x": "", "y": ""}]
    made = module(bare, label_column=["x", "y"])
    assert made.sources[0].read("train").labels is None


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["x|y", "x"], {}, "line 1: label 'x|y' is no JSON list of names: write one, or give the"),
        (["x", "w"], {"delimiter": "|", "class_names": ["x", "y"]}, "line 2: label 'w' is not one"),
        (["x|y", "x"], {"delimiter": "|"}, "line 1 is the only example of class 'y'"),
        (["x", "x"], {"delimiter": "|"}, "two label names or more are expected, got ['x']"),
        ([["x"], ["x"]], {"kind": "classes"}, "column 'label' holds a list"),
        (["x", "y"], {"kind": "levels", "class_names": ["x"]}, "two class names or more"),
        (
            ["1", "2", "2", "1"],
            {"kind": "number", "class_weights": [1.0]},
            "class_weights does not",
        ),
    ],
)
def test_cells_that_are_refused(rows, options, message):
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(rows)]
    with pytest.raises(InputError) as caught:
        module(rows, **options).sources[0].read("train")
    assert message in str(caught.value)


def test_columns_that_are_refused(tmp_path):
    path = write(tmp_path / "x.csv", "flags")
    with pytest.raises(InputError, match=r"one column is expected for kind 'classes'"):
        module(path, label_column=["x", "y"], kind="classes")
    with pytest.raises(InputError, match=r"has no column 'w' \(label_column\)"):
        module(path, label_column=["x", "w"]).sources[0].read("train")
    rows = [{"text": "a", "x": 1, "y": 2}]
    with pytest.raises(InputError, match="line 1: column 'y' has '2', and 0 or 1 is expected"):
        module(rows, label_column=["x", "y"]).sources[0].read("train")
    rows = [{"text": "a", "x": 1, "y": None}]
    with pytest.raises(InputError, match="line 1: column 'y' has '', and 0 or 1 is expected"):
        module(rows, label_column=["x", "y"]).sources[0].read("train")


def test_the_order_of_levels_is_given_or_that_of_numbers():
    words = [{"text": f"t{n}", "label": ("low", "high")[n % 2]} for n in range(4)]
    with pytest.raises(InputError, match="the order of the levels high, low is not known"):
        module(words, kind="levels")
    made = module(words, kind="levels", class_names=["low", "high"])
    assert made.sources[0].read("train").labels.tolist() == [0, 1, 0, 1]
    numbers = [{"text": f"t{n}", "label": (10, 9)[n % 2]} for n in range(4)]
    assert module(numbers, kind="levels").tasks[0].class_names == ("9", "10")


def test_balanced_weights_are_those_of_the_labels_in_train():
    counted = [{"text": f"t{n}", "label": "ab"[n > 5]} for n in range(8)]
    made = module(counted, kind="classes", class_weights="balanced")
    assert made.tasks[0].class_weights == pytest.approx((8 / 12, 2))
    assert len(made.sources[0].read("train")) == 8
    several = [
        {"text": f"t{n}", "label": ["x", "y"] if n < 2 else ["y"] * (n < 5)} for n in range(8)
    ]
    made = module(several, class_weights="balanced")
    assert made.tasks[0].class_weights == pytest.approx((3, 3 / 5))
    names = ["a", "b", "c"]
    with pytest.raises(InputError, match="class 'c' has no example"):
        module(counted, kind="classes", class_names=names, class_weights="balanced")
    numbers = [{"text": f"t{n}", "label": n} for n in range(4)]
    with pytest.raises(InputError, match="there are no classes to weight"):
        module(numbers, kind="number", class_weights="balanced")
    with pytest.raises(InputError, match="label_smoothing does not apply to kind 'number'"):
        module(numbers, kind="number", label_smoothing=0.1)


def weighted(**options):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2], "w": 1 + n} for n in range(4)]
    return module(rows, kind="classes", **options)


def test_weights_of_examples_are_divided_by_their_mean_and_change_the_data(tiny_bert):
    split = weighted(weight_column="w").sources[0].read("train")
    assert split.weights == pytest.approx(np.array([1, 2, 3, 4]) / 2.5)
    prints = []
    for options in ({}, {"weight_column": "w"}):
        made = weighted(backbone=str(tiny_bert), **options)
        made.setup("fit")
        part = made.splits["t", "train"]
        prints.append(part.fingerprint)
        batch = part.batch(np.array([[3, 0]]))
        assert (batch.weights is None) == (not options)
    assert batch.weights.tolist() == [[1.6, 0.4]]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("weight", ["", "0", "-1", "inf", "nan", "heavy"])
def test_weights_that_are_refused(weight):
    rows = [{"text": "a", "label": "x", "w": 1}, {"text": "b", "label": "y", "w": weight}]
    made = module(rows, kind="classes", class_names=["x", "y"], weight_column="w")
    with pytest.raises(InputError, match=r"line 2: column 'w' has .*, and a positive weight"):
        made.sources[0].read("train")
    with pytest.raises(InputError, match=r"has no column 'v' \(weight_column\)"):
        weighted(weight_column="v")


@pytest.mark.slow
def test_examples_of_weight_nought_in_all_but_name_teach_nothing(tiny_bert, tmp_path):
    """A member that is trained on true and false labels ends as the false ones' weights say."""
    true = [
        {"text": f"{'ab'[n % 2]} {'cdefg'[n % 5]}", "label": "ab"[n % 2], "w": 1} for n in range(40)
    ]
    false = [{**row, "label": "ab"[row["label"] == "a"]} for row in true]
    scores = {}
    for name, weight in (("true", 1e-6), ("false", 1e6)):
        rows = [*true, *({**row, "w": weight} for row in false)]
        options = {"kind": "classes", "text_columns": ["text"], "label_column": "label"}
        texts = loraens.TextFiles("t", rows, true, weight_column="w", **options)
        sweep = loraens.Sweep(
            texts,
            loraens.Grid(rank=[4]),
            tmp_path / name,
            backbone=str(tiny_bert),
            epochs=4,
            lr=1e-2,
            pooling="mean",
            trainer={"enable_progress_bar": False},
        ).fit()
        (manifest,) = sweep.manifests.values()
        scores[name] = manifest.dev["last"]["t"]["accuracy"]
    assert scores["true"] > 0.8
    assert scores["false"] < 0.2
