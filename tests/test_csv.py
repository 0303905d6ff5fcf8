"""CSV by RFC 4180, and files whose quotes mean nothing."""

import csv
import io
import random

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraens.data.files import RowWriter, open_table
from loraens.data.tables import Reading
from loraens.errors import InputError

NORMAL = st.characters(codec="utf-8", exclude_characters="\0")  # Python 3.10 refuses NUL
TEXTS = st.text(st.sampled_from('a" ,;\t\n\r') | NORMAL, max_size=12)


def rows_of(path, content=None, **reading):
    """Pairs of line number and fields of a file."""
    if content is not None:
        path.write_bytes(content.encode())
    with open_table(path, reading=Reading(**reading)) as table:
        return [
            (number, None if row is None else [row[column] for column in table.columns])
            for number, row in table.rows
        ]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("header", [["text"], ["text", "label"], ["id", "text", "label"]])
@given(data=st.data())
def test_what_python_writes_is_read_with_line_numbers(tmp_path_factory, delimiter, header, data):
    row = st.lists(TEXTS, min_size=len(header), max_size=len(header))
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    path = tmp_path_factory.mktemp("csv") / ("x.tsv" if delimiter == "\t" else "x.csv")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    expected = []
    for number, cells in enumerate([header, *rows]):
        if number:
            expected.append((stream.getvalue().count("\n") + 1, cells))
        writer.writerow(cells)
    if len(header) == 1 and delimiter == ";":
        return  # the header does not tell the delimiter
    expected = [pair for pair in expected if pair[1] != [""] or len(header) == 1]
    assert rows_of(path, stream.getvalue(), quoting="standard") == expected


@pytest.mark.parametrize("format", ["csv", "tsv"])
@given(data=st.data())
def test_rows_with_line_breaks_that_were_written_are_read(tmp_path_factory, format, data):
    cells = st.lists(TEXTS, min_size=2, max_size=2)
    rows = data.draw(st.lists(cells, min_size=1, max_size=5))
    path = tmp_path_factory.mktemp("table") / f"rows.{format}"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = RowWriter(stream, format, ["a", "b"])
        for row in rows:
            writer.write(dict(zip("ab", row, strict=True)))
    assert [fields for _, fields in rows_of(path, quoting="standard")] == rows
    separator = "," if format == "csv" else "\t"
    frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == rows


def test_a_file_of_pandas(tmp_path):
    """Paragraphs, quotes and delimiters, in all the ways that pandas quotes."""
    texts = [
        "plain",
        'two\nlines, "quoted"',
        "\n\nblank lines\r\n\r\n",
        '"',
        "a,b\n1,2\n3,4",
        'ends with a quote"\n"begins with one',
        "",
    ]
    frame = pandas.DataFrame({"text": texts, "label": range(len(texts))})
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        for columns in (["text", "label"], ["label", "text"]):
            frame[columns].to_csv(tmp_path / "x.csv", index=False, quoting=quoting)
            found = [fields for _, fields in rows_of(tmp_path / "x.csv")]
            assert found == frame[columns].astype(str).to_numpy().tolist()


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        pytest.param(
            'id\ttext\tlabel\n1\t"never closed\t0\n2\tplain\t1\n3\t"closed"\t0\n',
            [
                (2, ["1", '"never closed', "0"]),
                (3, ["2", "plain", "1"]),
                (4, ["3", "closed", "0"]),
            ],
            id="never-closed",
        ),
        pytest.param(
            'id\ttext\tlabel\n1\t"opened here\t0\n2\tplain\t1\n3\tclosed there"\t0\n',
            [
                (2, ["1", '"opened here', "0"]),
                (3, ["2", "plain", "1"]),
                (4, ["3", 'closed there"', "0"]),
            ],
            id="two-strays",
        ),
        pytest.param(
            'id\ttext\tlabel\n1\t"opened\t0\n2\tshort\n3\tplain\t1\n4\tclosed"\t0\n',
            [
                (2, ["1", '"opened', "0"]),
                (3, None),
                (4, ["3", "plain", "1"]),
                (5, ["4", 'closed"', "0"]),
            ],
            id="strays-about-a-short-line",
        ),
        pytest.param(
            'id,text,label\n1,"two\nlines",0\n2,plain,1\n',
            [(2, ["1", "two\nlines", "0"]), (4, ["2", "plain", "1"])],
            id="two-lines",
        ),
        pytest.param(
            'id\ttext\n1\t"two\r\nlines"\r\n2\tplain\r\n',
            [(2, ["1", "two\r\nlines"]), (4, ["2", "plain"])],
            id="crlf",
        ),
        pytest.param(
            'text\tlabel\n"two\nlines"\t0\nplain\t1\n',
            [(2, ["two\nlines", "0"]), (4, ["plain", "1"])],
            id="its-last-line-looks-like-a-record",
        ),
        pytest.param(
            'label,text\n0,"one, two\nthree, four"\n1,"a, b"\n',
            [(2, ["0", "one, two\nthree, four"]), (4, ["1", "a, b"])],
            id="its-first-line-is-no-record",
        ),
        pytest.param(
            'label,text\n0,"one\ntwo, three"\n1,"a, b"\n',
            [(2, ["0", "one\ntwo, three"]), (4, ["1", "a, b"])],
            id="other-lines-show-the-rule",
        ),
        pytest.param(
            'text\n"one\ntwo"\n"a, b"\n',
            [(2, ["one\ntwo"]), (4, ["a, b"])],
            id="one-column",
        ),
        pytest.param(
            'id,text,label\n1,"No" means no,0\n2,"open,1\n3,closed",0\n',
            [
                (2, ["1", '"No" means no', "0"]),
                (3, ["2", '"open', "1"]),
                (4, ["3", 'closed"', "0"]),
            ],
            id="other-lines-break-the-rule",
        ),
    ],
)
def test_told_apart_by_what_follows(tmp_path, content, rows):
    assert rows_of(tmp_path / "x.csv", content) == rows


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('label,text\n0,"one\n1,two"\n', "line 2: a quote opens that line 3 closes"),
        ('text\nfirst\n"one\ntwo"\n', "line 3: a quote opens that line 4 closes"),
        (
            'id,text\n1,"a, b"\n2,"never closed\n' + "3,x\n" * 20 + '4,end"\n',
            "line 3: a quote opens that line 24 closes",
        ),
    ],
)
def test_asked_where_it_is_not_certain(tmp_path, content, lines):
    with pytest.raises(InputError, match=lines) as error:
        rows_of(tmp_path / "x.csv", content)
    assert "give --data.quoting standard" in str(error.value)
    separate = [cells for _, cells in rows_of(tmp_path / "x.csv", quoting="lines")]
    assert len(separate) == content.count("\n") - 1
    joined = [cells for _, cells in rows_of(tmp_path / "x.csv", quoting="standard")]
    assert sum(cells[-1].count("\n") for cells in joined) == len(separate) - len(joined) > 0


def test_quoting_none_keeps_all_quotes(tmp_path):
    content = 'id,text\n1,"a"\n2,"b\n3,c"\n'
    assert [cells for _, cells in rows_of(tmp_path / "x.csv", content, quoting="none")] == [
        ["1", '"a"'],
        ["2", '"b'],
        ["3", 'c"'],
    ]


def test_a_header_with_line_breaks(tmp_path):
    assert rows_of(tmp_path / "x.csv", 'id,"text\n(English)"\n1,a\n') == [(3, ["1", "a"])]


def test_stray_quotes_take_no_time(tmp_path):
    """Each is looked for no further than the next, though none is closed."""
    content = "id\ttext\n" + '1\t"open\n2\tx\n' * 5_000
    assert len(rows_of(tmp_path / "x.tsv", content)) == 10_000


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"quoting": "some"}, "quoting 'some' is none of auto, standard, lines, none"),
        ({"encoding": "utf-99"}, "encoding 'utf-99' is not known"),
    ],
)
def test_options_that_there_are_not(reading, message):
    with pytest.raises(InputError, match=message):
        Reading(**reading)


WORDS = [
    *("the", "a", "cat", "said", "no", "dog", "runs"),
    "hello,",
    "world.",
    "yes,",
    '5"',
    '"quoted"',
    "and,",
]


def paragraph(draw):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))


@pytest.mark.parametrize("columns", [["text", "label"], ["label", "text"], ["id", "text", "label"]])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_what_pandas_writes_of_paragraphs_is_read_without_a_question(tmp_path, columns, delimiter):
    draw = random.Random(1)
    for size in (3, 20, 200):
        rows = [
            {
                "id": number,
                "text": "\n".join(paragraph(draw) for _ in range(draw.choice([1, 1, 2, 3, 6]))),
                "label": draw.randint(0, 1),
            }
            for number in range(size)
        ]
        frame = pandas.DataFrame(rows)[columns].astype(str)
        frame.to_csv(tmp_path / "x.csv", index=False, sep=delimiter)
        assert [cells for _, cells in rows_of(tmp_path / "x.csv")] == frame.to_numpy().tolist()


def test_stray_quotes_of_tab_separated_files_are_read_without_a_question(tmp_path):
    """As GLUE's files have them: one in thirty texts opens a quote, another closes one, and a few
    lines are short.
    """
    draw = random.Random(1)
    lines = ["id\ttext1\ttext2\tlabel"]
    for number in range(2000):
        texts = [paragraph(draw).replace('"', "") for _ in range(2)]
        texts = [f'"{text}' if draw.random() < 0.03 else text for text in texts]
        texts = [f'{text}"' if draw.random() < 0.03 else text for text in texts]
        short = draw.random() < 0.002
        lines.append(f"{number}\t{texts[0]}" if short else "\t".join([str(number), *texts, "1"]))
    expected = [
        (number, line.split("\t")[0] if line.count("\t") == 3 else None)
        for number, line in enumerate(lines[1:], start=2)
    ]
    found = rows_of(tmp_path / "x.tsv", "\n".join(lines))
    assert [(number, cells and cells[0]) for number, cells in found] == expected
