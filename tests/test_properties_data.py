"""Properties of delimited fields, tables and splits that hold whatever the text."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraens.data.delimited import split_fields
from loraens.data.files import RowWriter, open_table
from loraens.data.splits import Columns, collect_split
from loraens.data.tables import Table
from loraens.errors import InputError
from loraens.tasks import SST

DELIMITERS = st.sampled_from([",", "\t", ";"])
# no halves of characters, which UTF-8 cannot hold, and no ends of lines, which end a record
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")
# what fields are made of is likelier here than among all characters
TEXTS = st.text(st.sampled_from('a" ,;\t') | CHARACTERS, max_size=12)
# a header that a delimiter is read from, or whose first character marks UTF-8, is another header
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\t;\ufeff"), min_size=1
).filter(str.strip)


def bare(text, delimiter):
    """The text without quotes and delimiters."""
    return text.replace('"', "").replace(delimiter, "")


@given(row=st.lists(TEXTS, min_size=1, max_size=6), delimiter=DELIMITERS)
def test_fields_that_were_written_come_back(row, delimiter):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="").writerow(row)
    assert split_fields(stream.getvalue(), delimiter, len(row)) == row
    assert split_fields(stream.getvalue(), delimiter, None) == row


@given(line=TEXTS, delimiter=DELIMITERS, expected=st.none() | st.integers(1, 6))
def test_no_character_is_lost_and_the_number_of_fields_is_one_of_two(line, delimiter, expected):
    fields = split_fields(line, delimiter, expected)
    assert bare("".join(fields), delimiter) == bare(line, delimiter)
    assert 1 <= len(fields) <= line.count(delimiter) + 1
    if expected is not None:
        assert len(fields) in (expected, line.count(delimiter) + 1)


@given(line=TEXTS, delimiter=DELIMITERS)
def test_a_line_without_quotes_is_split_at_every_delimiter(line, delimiter):
    line = line.replace('"', "")
    assert split_fields(line, delimiter, None) == line.split(delimiter)


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
@given(data=st.data())
def test_rows_that_were_written_are_read(tmp_path_factory, format, data):
    columns = data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    values = st.lists(TEXTS, min_size=len(columns), max_size=len(columns))
    rows = [
        dict(zip(columns, row, strict=True))
        for row in data.draw(st.lists(values, min_size=1, max_size=5))
    ]
    path = tmp_path_factory.mktemp("table") / f"rows.{format}"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = RowWriter(stream, format, columns)
        for row in rows:
            writer.write(row)
    with open_table(path) as table:
        assert (table.format, table.columns) == (format, columns)
        assert list(table.rows) == list(enumerate(rows, start=1 if format == "jsonl" else 2))


COLUMNS = Columns(SST.text_columns, SST.label_column)
RECORDS = st.sampled_from(["good", "unlabelled", "blank", "short"])


@given(kinds=st.lists(RECORDS, max_size=12))
def test_every_record_is_kept_or_counted(kinds):
    rows = {
        "good": {"sentence": " fine ", "sentiment": "3"},
        "unlabelled": {"sentence": "fine", "sentiment": " "},
        "blank": {"sentence": " ", "sentiment": "3"},
        "short": None,
    }
    lines = [(number, rows[kind]) for number, kind in enumerate(kinds, start=2)]
    table = Table("texts.tsv", "tsv", ["sentence", "sentiment"], iter(lines))
    labelled = "good" in kinds
    kept = [
        number
        for number, kind in enumerate(kinds, start=2)
        if kind == "good" or (kind == "unlabelled" and not labelled)
    ]
    if not kept:
        with pytest.raises(InputError, match="no usable record of the train split"):
            collect_split(table, "train", SST, COLUMNS)
        return
    split = collect_split(table, "train", SST, COLUMNS)
    assert split.ids == [str(number) for number in kept]
    assert set(split.texts) == {("fine",)}
    assert (split.labels is not None) == labelled
    reasons = {"short": "not 2 fields", "blank": "no text"}
    reasons |= {"unlabelled": "no label"} if labelled else {}
    assert split.dropped == {
        reason: [number for number, other in enumerate(kinds, start=2) if other == kind]
        for kind, reason in reasons.items()
        if kind in kinds
    }
    assert len(split) + sum(map(len, split.dropped.values())) == len(kinds)
