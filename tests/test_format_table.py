"""The table of docs/formats.md: what is read of each format, and with which sentence it is refused.

`python tests/test_format_table.py` writes it again.
"""

import bz2
import gzip
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pandas
import pyarrow
import pytest

from loraens.data.classes import checked_classes
from loraens.data.files import open_table
from loraens.data.splits import Columns, read_records, require
from loraens.errors import InputError

PAGE = Path(__file__).parent.parent / "docs" / "formats.md"
FRAME = pandas.DataFrame({"text": ["one, two", "three\nlines", "x", "y"], "label": [1, 0, 1, 0]})
CSV = FRAME.to_csv(index=False)
LINES = FRAME.to_json(orient="records", lines=True)
ARRAY = FRAME.to_json(orient="records")
HEADER = "text,label\n"


class Case(NamedTuple):
    """An input: format, what is special about it, its name, and how it is written."""

    format: str
    what: str
    name: str
    write: Callable[[Path], object]


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode(encoding))


def packed(compress: Callable[[bytes], bytes], size: int | None = None) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(compress(CSV.encode())[:size])


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, "zstd", asbytes=True)


def sheets(*names: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with pandas.ExcelWriter(path) as writer:
            for name in names:
                FRAME.to_excel(writer, sheet_name=name, index=False)

    return write


def folder(*headers: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        path.mkdir()
        for number, header in enumerate(headers):
            (path / f"{number}.csv").write_text(f"{header}\na,1\nb,1\n")

    return write


def saved(**splits: pandas.DataFrame) -> Callable[[Path], object]:
    tables = {name: datasets.Dataset.from_pandas(frame) for name, frame in splits.items()}
    return lambda path: datasets.DatasetDict(tables).save_to_disk(path)


def parquet(**columns: list[object]) -> Callable[[Path], object]:
    return lambda path: pandas.DataFrame(columns).to_parquet(path)


CASES = [
    Case("CSV", "comma, quoted line breaks", "x.csv", text(CSV)),
    Case("CSV", "semicolon", "x.csv", text(FRAME.to_csv(index=False, sep=";"))),
    Case("CSV", "a quote that is never closed", "x.csv", text(HEADER + '"a,1\nb,1\n')),
    Case("CSV", "a quote that may close later", "x.csv", text(HEADER + '"a,1\nb",1\n')),
    Case("CSV", "Latin-1", "x.csv", text(HEADER + "café,1\nb,1\n", "latin-1")),
    Case("CSV", "UTF-16", "x.csv", text(CSV, "utf-16")),
    Case("CSV", "lines that end in CR", "x.csv", text("text,label\ra,1\rb,1\r")),
    Case("CSV", "no text column", "x.csv", text("words,label\na,1\n")),
    Case("CSV", "two columns of one name", "x.csv", text("text,text\na,1\n")),
    Case("CSV", "an id twice", "x.csv", text("id,text,label\n7,a,1\n7,b,1\n")),
    Case("CSV", "a text of 5 MiB", "x.csv", text(HEADER + "word " * 2**20 + ",1\n")),
    Case("CSV", "a class with one example", "x.csv", text(HEADER + "a,1\nb,1\nc,2\n")),
    Case(
        "CSV",
        "labels that are texts",
        "x.csv",
        text(HEADER + "".join(f"a,title {number}\n" for number in range(30))),
    ),
    Case("CSV", "empty", "x.csv", text("")),
    Case("TSV", "tab, whatever the suffix", "x.csv", text(FRAME.to_csv(index=False, sep="\t"))),
    Case("JSON lines", "one object a line", "x.jsonl", text(LINES)),
    Case("JSON lines", "a line that is broken", "x.jsonl", text(LINES + '{"text": ')),
    Case("JSON", "an array of objects", "x.json", text(ARRAY)),
    Case("JSON", "one object a line", "x.json", text(LINES)),
    Case("JSON", "an object of columns", "x.json", text(FRAME.to_json())),
    Case("gzip", ".csv.gz", "x.csv.gz", packed(gzip.compress)),
    Case("bzip2", ".csv.bz2", "x.csv.bz2", packed(bz2.compress)),
    Case("xz", ".csv.xz", "x.csv.xz", packed(lzma.compress)),
    Case("Zstandard", ".csv.zst", "x.csv.zst", packed(zstd)),
    Case("xz", "damaged", "x.csv.xz", packed(lzma.compress, -9)),
    Case("Parquet", "", "x.parquet", FRAME.to_parquet),
    Case("Parquet", "no Parquet", "x.parquet", text(CSV)),
    Case("Parquet", "lists in a text column", "x.parquet", parquet(text=[["a"]], label=[1])),
    Case("Arrow", "", "x.arrow", FRAME.to_feather),
    Case("Excel", "one sheet", "x.xlsx", sheets("a")),
    Case("Excel", "two sheets", "x.xlsx", sheets("a", "b")),
    Case("Excel", "of before 2007", "x.xls", text("")),
    Case("directory", "of files", "x", folder("text,label", "text,label")),
    Case("directory", "columns differ", "x", folder("text,label", "text,stars")),
    Case("directory", "without files", "x", folder()),
    Case("`datasets`", "a split on disk", "x/train", lambda path: saved(train=FRAME)(path.parent)),
    Case("`datasets`", "all splits on disk", "x", saved(train=FRAME, test=FRAME)),
    Case("other", "", "x.doc", text("")),
    Case("other", "missing", "x.csv", lambda path: None),
]


def outcome(case: Case, directory: Path) -> str:
    """What the table says of a case."""
    path = directory / case.name
    case.write(path)
    columns = Columns(("text",), "label")
    try:
        with open_table(path) as table:
            require(table, columns, "train")
            records = read_records(table, columns)
        checked_classes(records, "label", None)
    except InputError as error:
        sentence = str(error).replace(str(path), path.name).replace(str(directory) + "/", "")
        return f"refused: {sentence}"
    return f"read, {len(records.ids)} records"


def table(directory: Path) -> str:
    lines = ["| format | input | outcome |", "| --- | --- | --- |"]
    for number, case in enumerate(CASES):
        inside = directory / str(number)
        inside.mkdir()
        lines.append(f"| {case.format} | {case.what} | {outcome(case, inside)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}-{case.what}")
def test_the_page_says_what_happens(tmp_path, case):
    """But for the wording of other packages, which is in parentheses."""
    if case.format == "Excel":
        pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
    found = outcome(case, tmp_path).partition("(")[0]
    assert f"| {case.format} | {case.what} | {found}" in PAGE.read_text()


if __name__ == "__main__":
    head, _, _ = PAGE.read_text().partition("| format |")
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(f"{head}{table(Path(name))}\n")
