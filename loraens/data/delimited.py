"""Records of CSV and TSV files.

A record is one line, or, by RFC 4180, several where a quoted field contains line breaks. Many files
of texts, such as GLUE's, have quotes that mean nothing: a field begins with one that is never
closed. pandas and pyarrow take one meaning for the whole file: with the quotes of the RFC, such a
field swallows all lines up to the next quote; without, quoted fields are torn apart. Neither says
on which line a record begins. So lines are put together here, and Python's `csv` splits what was
put together.

A quote that opens a field and is not closed in its line is, by `Quoting`,

- "standard": the begin of several lines, if it closes later and the fields then have the right
  number; else an ordinary character;
- "lines": an ordinary character, since each line is one record;
- "none": an ordinary character, as all quotes are;
- "auto": as "standard" where the lines that follow are no records of their own, else as "lines"; an
  error where that is not certain.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from loraens.data.tables import MAX_RECORD, Format, Reading, Row, Table, check_distinct
from loraens.errors import InputError
from loraens.labels.classes import parse_number

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some texts
SAMPLE = 2**20  # characters at the start of a file that show how it quotes
FEW = 3  # lines of a quoted text that by chance look like records
FORMULAS = ("=", "+", "-", "@")  # how cells begin that spreadsheets compute
MORE = 20  # the same, where quotes follow the rules elsewhere

Numbered = tuple[int, str]  # a line and its number


class Records:
    """The records of a delimited file, as fields.

    Args:
        lines: Its lines with their ends.
        delimiter: One character.
        name: The file's name, for messages.
        reading: What quotes mean.

    Attributes:
        expected: Number of fields of a record; None before the header was read.
    """

    def __init__(
        self, lines: Iterable[Numbered], delimiter: str, name: str, reading: Reading
    ) -> None:
        self._lines = iter(lines)
        self._delimiter = delimiter
        self._name = name
        self._reading = reading
        self._ahead: deque[Numbered] = deque()
        self._standard: bool | None = None
        self.expected: int | None = None

    def header(self) -> list[str]:
        """The first record, which says how many fields the others have."""
        _, fields = self._next()
        self.expected = len(fields)
        if self._reading.quoting == "auto":
            self._standard = self._shown_by_sample()
        return fields

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while self._peek(0) is not None:
            yield self._next()

    def _peek(self, position: int) -> Numbered | None:
        """The line that comes so many after the next."""
        while len(self._ahead) <= position:
            line = next(self._lines, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[position]

    def _next(self) -> tuple[int, list[str]]:
        number, line = self._ahead.popleft() if self._ahead else next(self._lines)
        text = line.rstrip("\r\n")
        quoting = self._reading.quoting
        if quoting == "none" or '"' not in text:
            return number, text.split(self._delimiter)
        if quoting != "lines" and (joined := self._joined(line, 0)) is not None:
            span, fields = joined
            if self._is_one_record(number, span):
                for _ in span[1:]:
                    self._ahead.popleft()
                return number, fields
        return number, split_fields(text, self._delimiter, self.expected)

    def _joined(self, line: str, position: int) -> tuple[list[str], list[str]] | None:
        """The lines up to that which closes a quote that is open in the first, and their fields;
        None where none is open, or the fields have not the right number.

        Args:
            line: The first line.
            position: Of the one after it, as `_peek` takes it.
        """
        if not _is_open(line.rstrip("\r\n"), self._delimiter):
            return None
        span = [line]
        size = len(line)
        while len(span) == 1 or span[-1].count('"') % 2 == 0:
            following = self._peek(position + len(span) - 1)
            if following is None or (size := size + len(following[1])) > MAX_RECORD:
                return None
            span.append(following[1])
        fields = _parsed("".join(span).rstrip("\r\n"), self._delimiter)
        if fields is None or self.expected not in (None, len(fields)):
            return None
        return span, fields

    def _is_one_record(self, number: int, span: list[str]) -> bool:
        """Whether lines are one record, and not each a record with quotes that mean nothing.

        Raises:
            InputError: That is not certain.
        """
        if self._reading.quoting == "standard" or self.expected is None:
            return True
        delimiters = [line.count(self._delimiter) for line in span]
        if sum(delimiters) == self.expected - 1 > 0:
            return True  # all of them are between fields: none is in the quoted text
        fits = [count + 1 == self.expected for count in delimiters]
        looking = sum(fits[1:])
        standard = self._standard
        if any('""' in line for line in span):
            standard = True  # as writers double the quotes inside of quotes
        if 2 * looking < len(span) - 1:
            return True  # most of the lines would be no records
        if self.expected > 1:
            if self._delimiter == "\t":
                return False  # texts do not have just as many tabs in each line
            if looking <= (MORE if standard else FEW) and (standard or not fits[0]):
                return True
            if standard is False and fits[0]:
                return False
        elif standard is not None:
            return standard
        raise InputError(
            f"{self._name} line {number}: a quote opens that line {number + len(span) - 1} closes,"
            " but each of these lines could be a record of its own: give"
            f" --{self._reading.flag}quoting standard if quoted texts have line breaks, or lines if"
            " each line is a record"
        )

    def _fits(self, text: str) -> bool:
        """Whether a line has the right number of fields if its quotes mean nothing."""
        return text.count(self._delimiter) + 1 == self.expected

    def _shown_by_sample(self) -> bool | None:
        """Whether the first lines show quotes where RFC 4180 has them (True), quotes that break its
        rules (False), or neither or both.
        """
        needed = broken = False
        position = size = 0
        while size < SAMPLE and (numbered := self._peek(position)) is not None:
            position += 1
            size += len(numbered[1])
            text = numbered[1].rstrip("\r\n")
            if '"' not in text:
                continue
            fields = _parsed(text, self._delimiter)
            if fields is not None:
                whole = len(fields) == self.expected
                needed |= whole and ('""' in text or not self._fits(text))
            elif (joined := self._joined(numbered[1], position)) is not None:
                position += len(joined[0]) - 1  # its lines show nothing
            elif not _is_open(text, self._delimiter):
                broken |= self._fits(text)
        return None if needed == broken else needed


def open_delimited(
    lines: Iterable[Numbered], header: str, name: str, format: Format | None, reading: Reading
) -> Table:
    """The table of a delimited file.

    Args:
        lines: Its lines, from the header on.
        header: The first of them.
        name: The file's name, for messages.
        format: "tsv", or "csv", whose delimiter the header tells; a header with a tab is
            tab-separated in any case.
        reading: What quotes mean.

    Raises:
        InputError: Two columns have one name, or lines end in CR alone.
    """
    text = header.rstrip("\r\n")
    if "\r" in text:
        raise InputError(f"{name} has lines that end in CR alone: save it with ends LF or CRLF")
    delimiter = ";" if text.count(";") > text.count(",") else ","
    if format == "tsv" or "\t" in text:
        delimiter = "\t"
    records = Records(lines, delimiter, name, reading)
    columns = records.header()
    check_distinct(name, columns)

    def rows() -> Iterator[tuple[int, Row | None]]:
        for number, fields in records:
            if fields == [""] and len(columns) > 1:
                continue  # an empty line is a record only where there is one column
            whole = len(fields) == len(columns)
            yield number, dict(zip(columns, fields, strict=True)) if whole else None

    return Table(name, "tsv" if delimiter == "\t" else "csv", columns, rows())


def _parsed(text: str, delimiter: str) -> list[str] | None:
    """Fields by the rules of CSV; None where they do not apply."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True), None)
    except csv.Error:
        return None


def _is_open(text: str, delimiter: str) -> bool:
    """Whether a quoted field is open at the end of a line."""
    return _parsed(text, delimiter) is None and _parsed(f'{text}"', delimiter) is not None


def split_fields(line: str, delimiter: str, expected: int | None) -> list[str]:
    """Fields of one line: by the rules of CSV if they apply to it, else split at every delimiter.

    A quote that opens a field and is not closed, or is closed before the field ends, is an ordinary
    character.
    """
    fields = _parsed(line, delimiter)
    if fields and expected in (None, len(fields)):
        return fields
    return [_unquoted(text) for text in line.split(delimiter)]


def _unquoted(text: str) -> str:
    inner = text[1:-1].replace('""', "")
    if len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in inner:
        return text[1:-1].replace('""', '"')
    return text


class DelimitedWriter:
    """Writes rows to an open text stream, as `Records` reads them with quoting "standard"; the
    header comes first.

    Args:
        stream: The stream.
        delimiter: One character.
        columns: Names of the columns, in order.
        spreadsheet: Whether cells that a spreadsheet would take for formulas begin with an
            apostrophe, which has it take them for text.
    """

    def __init__(
        self,
        stream: io.TextIOBase,
        delimiter: str,
        columns: list[str],
        spreadsheet: bool = False,
    ) -> None:
        self._stream = stream
        self._delimiter = delimiter
        self._spreadsheet = spreadsheet
        self._columns = columns
        self._write(columns)

    def write(self, row: Row) -> None:
        """Write one row.

        Raises:
            ValueError: It has fields that are no columns.
        """
        if further := row.keys() - set(self._columns):
            raise ValueError(f"it has further fields {', '.join(sorted(further))}")
        self._write([row.get(column) for column in self._columns])

    def _write(self, values: list[Any]) -> None:
        cells = [self._cell(value) for value in values]
        line = self._delimiter.join(cells)
        self._stream.write((line or '""') + "\n")  # an empty line would be no record

    def _cell(self, value: Any) -> str:
        """A field, in quotes where it needs them: Python's writer leaves a single CR bare."""
        if isinstance(value, (list, dict)):
            value = json.dumps(value, ensure_ascii=False, default=str)
        text = "" if value is None else str(value)
        if self._spreadsheet and _is_formula(text):
            text = f"'{text}"
        if any(mark in text for mark in (self._delimiter, '"', "\n", "\r")):
            return '"' + text.replace('"', '""') + '"'
        return text


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would take a cell for a formula; numbers with a sign are none."""
    return text.lstrip()[:1] in FORMULAS and parse_number(text) is None
