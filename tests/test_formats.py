"""The same records from each format, however they are kept."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import sys
import threading

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from helpers.pages import DOCS, blocks

from loraens.data import modules as data
from loraens.data import tables
from loraens.data.config import DataConfig
from loraens.data.files import open_table
from loraens.data.splits import read_split
from loraens.data.tables import Reading
from loraens.errors import InputError
from loraens.tasks import SST

ROWS = [
    {"id": "a", "sentence": 'He said, "no".\nTwice', "sentiment": 3},
    {"id": "b", "sentence": "ä; ö\tü", "sentiment": None},
    {"id": "c", "sentence": None, "sentiment": 1},
    {"id": "d", "sentence": "plain", "sentiment": 0},
]
FRAME = pandas.DataFrame(ROWS)


def zstd(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


def write_excel(path, rows):
    pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    pandas.DataFrame(rows).to_excel(path, index=False)


WRITERS = {
    "csv": lambda path: FRAME.to_csv(path, index=False),
    "tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "json": lambda path: FRAME.to_json(path, orient="records"),
    "pretty.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "parquet": lambda path: FRAME.to_parquet(path),
    "arrow": lambda path: FRAME.to_feather(path, compression="uncompressed"),
    "xlsx": lambda path: write_excel(path, ROWS),
}
COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def expect_rows(split, lines=None):
    assert split.ids == ["a", "d"]
    assert split.texts == [('He said, "no".\nTwice',), ("plain",)]
    assert split.labels.tolist() == [3, 0]
    assert {reason: len(found) for reason, found in split.dropped.items()} == {
        "no text": 1,
        "no label": 1,
    }
    if lines is not None:
        assert [split.dropped["no label"], split.dropped["no text"]] == [[n] for n in lines]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("csv", (4, 5)),
        ("tsv", (4, 5)),
        ("jsonl", (2, 3)),
        ("json", (1, 1)),
        ("pretty.json", (7, 12)),
        ("parquet", (2, 3)),
        ("arrow", (2, 3)),
        ("xlsx", (3, 4)),
    ],
)
def test_each_format_gives_the_same_records(tmp_path, name, lines):
    WRITERS[name](tmp_path / f"x.{name}")
    expect_rows(read_split(tmp_path / f"x.{name}", "train", SST), lines)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["csv", "tsv", "jsonl", "json"])
def test_compressed(tmp_path, name, suffix):
    WRITERS[name](tmp_path / "plain")
    content = COMPRESSORS[suffix]((tmp_path / "plain").read_bytes())
    path = tmp_path / f"x.{name}{suffix}"
    path.write_bytes(content)
    expect_rows(read_split(path, "train", SST))
    path.write_bytes(content[:-9])
    with pytest.raises(InputError, match=r"is damaged after line \d+ \("):
        read_split(path, "train", SST)


def test_frames_and_lists_in_memory():
    expect_rows(read_split(FRAME, "train", SST), (2, 3))
    expect_rows(read_split(ROWS, "train", SST), (2, 3))
    with pytest.raises(InputError, match="is set: a path, a DataFrame or a list of dicts"):
        read_split({1}, "train", SST)


def test_texts_in_memory_are_in_no_config(tiny_bert):
    module = data.TextFiles("t", ROWS, FRAME, ["sentence"], "sentiment", class_names=[0, 1, 2, 3])
    assert DataConfig.of(module) is None
    paths = data.TextFiles("t", "a.csv", "b.csv", ["sentence"], "sentiment", class_names=[0, 1])
    assert DataConfig.of(paths).init_args["train"] == "a.csv"


@pytest.mark.parametrize("pattern", ["data", "data/*.csv*", "d?ta/[ab].*"])
def test_files_of_a_directory_or_pattern(tmp_path, pattern):
    folder = tmp_path / "data"
    folder.mkdir()
    FRAME[["sentence", "sentiment"]].to_csv(folder / "b.csv", index=False)
    FRAME[["sentiment", "sentence"]].to_csv(folder / "a.csv.gz", index=False)
    (folder / "README").write_text("no table")
    split = read_split(str(tmp_path / pattern), "train", SST)
    assert split.ids == ["a.csv.gz:2", "a.csv.gz:6", "b.csv:2", "b.csv:6"]
    assert split.dropped["no text"] == ["a.csv.gz:5", "b.csv:5"]
    assert "line a.csv.gz:5, b.csv:5" in split.report()
    (folder / "b.csv").write_text("sentence,stars\nx,1\n")
    with pytest.raises(InputError, match=r"b\.csv has the columns 'sentence', 'stars'"):
        read_split(str(tmp_path / pattern), "train", SST)


def test_a_data_set_on_disk(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": saved, "validation": saved}).save_to_disk(tmp_path / "saved")
    expect_rows(read_split(tmp_path / "saved" / "train", "train", SST))
    with pytest.raises(InputError, match="holds the splits train, validation: give one of them"):
        read_split(tmp_path / "saved", "train", SST)


def test_a_data_set_by_path_and_split(tmp_path, tiny_bert):
    kinds = datasets.ClassLabel(names=["poor", "good"])
    texts = {"text": ["a", "b", "c", "d"], "label": [1, 0, 0, 1]}
    saved = datasets.Dataset.from_dict(texts).cast_column("label", kinds)
    hidden = datasets.Dataset.from_dict({**texts, "label": [-1] * 4}).cast_column("label", kinds)
    splits = {"train": saved, "validation": saved, "test": hidden}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    options = {"text_columns": ["text"], "label_column": "label", "backbone": str(tiny_bert)}
    module = data.HubTexts("t", str(tmp_path / "saved"), test="test", **options)
    module.setup("fit")
    assert module.tasks[0].class_names == ("good", "poor")
    assert module.splits["t", "dev"].split.labels.tolist() == [0, 1, 1, 0]
    assert module.splits["t", "test"].split.labels is None
    with pytest.raises(InputError, match="has no split 'dev': give one of"):
        data.HubTexts("t", str(tmp_path / "saved"), train="dev", **options)
    with pytest.raises(InputError, match=r"'no/such' could not be loaded from the hub .*connect"):
        data.HubTexts("t", "no/such", **options)


def test_the_yaml_of_the_page_with_files_in_place_of_the_hub(tmp_path, tiny_bert):
    (block,) = blocks(DOCS / "formats.md", "yaml")
    settings = yaml.safe_load(block)["data"]
    assert settings["init_args"].pop("path") == "fancyzhx/ag_news"
    frame = pandas.DataFrame({"text": [f"text {i}" for i in range(40)], "label": ["a", "b"] * 20})
    for split in ("train", "test"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    assert settings["class_path"] == "loraens.data.HubTexts"
    options = {**settings["init_args"], "path": str(tmp_path), "backbone": str(tiny_bert)}
    module = data.HubTexts(**options)
    module.setup("fit")
    sizes = [len(module.splits["news", split]) for split in ("train", "dev", "test")]
    assert sizes == [36, 4, 40]


@pytest.mark.parametrize("name", ["csv", "jsonl", "json"])
def test_standard_input_and_pipes_are_read_once(tmp_path, tiny_bert, monkeypatch, name):
    WRITERS[name](tmp_path / "train")
    FRAME.assign(sentiment=1).to_csv(tmp_path / "dev.csv", index=False)
    stdin = type("Stdin", (), {"buffer": io.BytesIO((tmp_path / "train").read_bytes())})
    monkeypatch.setattr(sys, "stdin", stdin)
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "dev.csv").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    module = data.TextFiles(
        "t",
        "-",
        str(tmp_path / "pipe"),
        ["sentence"],
        "sentiment",
        class_names=[0, 1, 2, 3],
        backbone=str(tiny_bert),
    )
    for _ in range(2):
        module.splits = {}
        module.setup("fit")
        expect_rows(module.splits["t", "train"].split)
        assert len(module.splits["t", "dev"]) == 3
    writer.join()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "latin-1", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "x.csv"
    path.write_bytes("sentence,sentiment\ncafé,1\n".encode(encoding))
    assert read_split(path, "train", SST, reading=Reading(encoding)).texts == [("café",)]
    if encoding != "utf-8-sig":
        with pytest.raises(InputError, match=r"give its encoding.*--data\.encoding"):
            read_split(path, "train", SST)


def test_a_bad_byte_is_named_by_its_line(tmp_path):
    lines = [b"sentence", *[b"plain words"] * 5000, b"caf\xe9", *[b"more"] * 10]
    (tmp_path / "x.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=r"line 5002 is not UTF-8 \(byte 0xe9\)"):
        read_split(tmp_path / "x.csv", "test", SST)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[]", "is an empty array"),
        ("x.json", '[{"sentence": "a"}, 3]', "line 1 is not a JSON object"),
        ("x.json", '[{"sentence": "a"},\n{"sentence": ', "line 2 is not JSON"),
        ("x.json", '{\n"sentence": ["a"]}', "line 1 is not JSON .*an array of objects"),
        ("x.json", '{"sentence": {"0": "a", "1": "b"}}', "column 'sentence' holds a dict"),
        ("x.csv", "sentence\rone\rtwo", "lines that end in CR alone"),
        ("x.xlsx", "sentence", "is not an Excel workbook"),
        ("x.arrow", "sentence", "is damaged, or not an Arrow file"),
        ("x.csv.gz", "sentence", "is damaged after line 0"),
        ("x.parquet.gz", "sentence", "is compressed twice: unpack it"),
        ("x.xls", "sentence", "has none of the known suffixes"),
        ("x.csv", "  \n\n", "is empty"),
    ],
)
def test_refused_with_one_sentence(tmp_path, name, content, message):
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_split(tmp_path / name, "test", SST)
    assert "\n" not in str(error.value)


def test_excel_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'loraens\[excel\]'"):
        read_split(tmp_path / "x.xlsx", "test", SST)


def test_sheets_of_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    book = openpyxl.Workbook()
    for row in ([], ["sentence", "sentiment"], ["a", 1.0], [], ["b", None], ["c", 2, "more"]):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "x.xlsx")
    split = read_split(tmp_path / "x.xlsx", "train", SST)
    assert (split.ids, split.labels.tolist()) == (["3"], [1])
    assert split.dropped == {"no label": [5], "not 2 fields": [6]}
    book["empty"].append(["sentence"])
    book.save(tmp_path / "x.xlsx")
    with pytest.raises(InputError, match=r"has 2 sheets with cells \(Sheet, empty\)"):
        read_split(tmp_path / "x.xlsx", "train", SST)


LONG = "word " * (tables.MAX_RECORD // 5 + 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "sentence\nfirst\n" + LONG),
        ("x.csv", LONG),
        ("x.csv", 'sentence,sentiment\n"' + LONG + '",1\n'),
        ("x.jsonl", json.dumps({"sentence": LONG})),
        ("x.json", json.dumps([{"sentence": "a"}, {"sentence": LONG}])),
    ],
)
def test_records_that_are_too_long(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="is longer than 4 MiB: records are expected"):
        read_split(tmp_path / name, "test", SST)


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_that_would_fill_the_memory(tmp_path, dictionary):
    """4,096 texts of 7 MiB each, in a file of a few kilobytes."""
    values = pyarrow.DictionaryArray.from_arrays(np.zeros(4096, np.int32), ["x" * 7 * 2**20])
    schema = pyarrow.schema([("sentence", values.type)])
    path = tmp_path / "x.parquet"
    with pyarrow.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=dictionary
    ) as writer:
        writer.write_table(pyarrow.table([values[: 4096 if dictionary else 4]], schema=schema))
    assert path.stat().st_size < 2**24
    with pytest.raises(InputError, match="is longer than 4 MiB"):
        read_split(path, "test", SST)


@pytest.mark.slow
def test_large_json_arrays_are_streamed(tmp_path):
    rows = [{"sentence": f"text {number}"} for number in range(200_000)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert (tmp_path / "x.json").stat().st_size > tables.MAX_RECORD
    with open_table(tmp_path / "x.json") as table:
        assert [row for _, row in table.rows] == rows


def test_the_stream_stays_open(tmp_path):
    stream = io.BytesIO(b"sentence\nfirst\n")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StopIteration):
        patch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stream}))
        with open_table("-") as table:
            next(table.rows)
    assert not stream.closed
