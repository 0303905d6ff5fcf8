import io
import json
import sys

import pytest

from loraens.data.delimited import split_fields
from loraens.data.files import open_table
from loraens.data.splits import read_split
from loraens.data.values import class_names_of
from loraens.errors import InputError
from loraens.tasks import QUORA, SST, STS


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a\tb\tc", ["a", "b", "c"]),
        ('a\t"say ""no"" now"\tc', ["a", 'say "no" now', "c"]),  # doubled quotes inside quotes
        (
            'a\t"No" means no\tc',
            ["a", '"No" means no', "c"],
        ),  # the quote closes before the field ends
        ('a\t"never closed\tc', ["a", '"never closed', "c"]),
        ('a\t5" nails\tc', ["a", '5" nails', "c"]),
        ('"x\ty"\tb\tc', ["x\ty", "b", "c"]),  # a quoted delimiter
        ('"x\t"y ""z"""\tc', ['"x', 'y "z"', "c"]),
        ("a\t\tc", ["a", "", "c"]),
    ],
)
def test_quotes(line, fields):
    assert split_fields(line, "\t", 3) == fields


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_each_line_is_a_record_and_drops_are_counted(tmp_path):
    text = (
        "\tid\tsentence1\tsentence2\tis_duplicate\r\n"
        "0\ta\tone?\ttwo?\t1.0\r\n"
        "\r\n"
        "1\tb\tone?\t\t0.0\n"
        "2\tc\tone?\ttwo?\t\n"
        "3\td\tone?\n"
        '4\te\tline\u2028sep\t"quo""ted"\t0.0\n'
    )
    split = read_split(write(tmp_path / "q.csv", text), "train", QUORA)
    assert split.ids == ["a", "e"]
    assert split.texts[1] == ("line\u2028sep", 'quo"ted')
    assert split.labels.tolist() == [1, 0]
    assert split.dropped == {"no text": [4], "no label": [5], "not 5 fields": [6]}
    assert "dropped 1 (no text; line 4)" in split.report()


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet"])
def test_formats_give_the_same_records(tmp_path, name):
    rows = [
        {"id": "a", "sentence": 'He said, "no".', "sentiment": 3},
        {"id": "b", "sentence": "ä; ö", "sentiment": 0},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith("jsonl"):
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "," if name.endswith("csv") else "\t"
        lines = [
            ["id", "sentence", "sentiment"],
            ["a", '"He said, ""no""."', "3"],
            ["b", '"ä; ö"', "0"],
        ]
        write(path, "\ufeff" + "\n".join(delimiter.join(line) for line in lines))
    split = read_split(path, "dev", SST)
    assert (split.ids, split.texts, split.labels.tolist()) == (
        ["a", "b"],
        [('He said, "no".',), ("ä; ö",)],
        [3, 0],
    )


def test_unlabelled_split_and_line_numbers_as_ids(tmp_path):
    split = read_split(write(tmp_path / "t.csv", "sentence\nfirst\nsecond\n"), "test", SST)
    assert split.labels is None
    assert split.ids == ["2", "3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("id\ttext\n1\tx\n", "no column 'sentence1'"),
        ("id\tsentence1\tsentence2\tsimilarity\n", "no usable record"),
        (
            "id\tsentence1\tsentence2\tsimilarity\n1\tx\ty\t6\n",
            "line 2: label '6' is not a number from 0.0 to 5.0",
        ),
        ("id\tsentence1\tsentence2\tsimilarity\n1\tx\ty\tmany\n", "line 2: label 'many'"),
        (
            "id\tsentence1\tsentence2\tsimilarity\n1\tx\ty\t1\n1\tz\ty\t1\n",
            "line 3 repeats the id '1' of line 2",
        ),
        ("id\tid\tsentence1\n", "two columns named 'id'"),
        (
            '{"sentence1": 1}\n[]\n',
            "no column 'sentence1'",
        ),  # the suffix says that it is tab-separated
    ],
)
def test_one_sentence_an_error(tmp_path, content, message):
    with pytest.raises(InputError, match="(?s)" + message.replace("(", r"\(")) as error:
        read_split(write(tmp_path / "bad.tsv", content), "train", STS)
    assert "bad.tsv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "latin.csv",
            "sentence\nok\ncaf\u00e9\n".encode("latin-1"),
            r"latin\.csv line 3 is not UTF-8 \(byte 0xe9\)",
            id="not-utf-8",
        ),
        pytest.param("none.csv", None, "does not exist", id="missing"),
        pytest.param("x.doc", b"a", "known suffixes", id="suffix"),
        pytest.param("x.parquet", b"nothing of the kind", "not a Parquet file", id="parquet"),
        pytest.param(
            "x.jsonl", b'{"sentence": "a"}\n{"sentence"\n', "line 2 is not JSON", id="json"
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path / name, "test", SST)


def test_blank_records_are_counted_where_they_are_records(tmp_path):
    one = read_split(write(tmp_path / "one.csv", "sentence\nfirst\n\nthird\n"), "test", SST)
    assert (one.ids, one.dropped) == (["2", "4"], {"no text": [3]})
    two = read_split(write(tmp_path / "two.tsv", "id\tsentence\na\tx\n\t\n\n"), "test", SST)
    assert (two.ids, two.dropped) == (["a"], {"no text": [3]})


def test_one_column_of_texts_with_commas(tmp_path):
    assert read_split(write(tmp_path / "x.tsv", "sentence\nHello, world\n"), "test", SST).texts == [
        ("Hello, world",)
    ]


def test_a_field_longer_than_the_csv_modules_default(tmp_path):
    text = "word, " * 40000
    split = read_split(write(tmp_path / "x.csv", f'sentence,sentiment\n"{text}",1\n'), "train", SST)
    assert split.texts == [(text.strip(),)]


def test_json_lines_that_differ(tmp_path):
    lines = '{"sentence": "a"}\n{"sentence": "b \\ud83d", "sentiment": 2}\n'
    split = read_split(write(tmp_path / "x.jsonl", lines), "test", SST)
    assert (split.texts, split.labels.tolist(), split.dropped) == (
        [("b ?",)],
        [2],
        {"no label": [1]},
    )


def test_standard_input(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b'{"sentence": "a b"}\n{"sentence": "c"}\n')

    monkeypatch.setattr(sys, "stdin", Stdin)
    with open_table("-") as table:
        assert (table.format, [row["sentence"] for _, row in table.rows]) == ("jsonl", ["a b", "c"])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "10.0", ""], ("9", "10")),
        (["1000001", "1000002"], ("1000001", "1000002")),
        (["WHO", "NUM"], ("NUM", "WHO")),
        (["true", "FALSE", "True"], ("False", "True")),
        (["true", "0", "1.0"], ("0", "1")),
        (["yes", "no"], ("no", "yes")),
        (["1.0", "1.1", "latest"], ("1.0", "1.1", "latest")),
    ],
)
def test_class_names_of_labels(labels, names):
    assert class_names_of(labels) == names
