import io
import os
import re

import pytest
from rich.table import Table
from tqdm import tqdm

from loraens.ensemble.record import EnsembleRecord
from loraens.report import ensembles as tables
from loraens.report.terminal import show
from loraens.train.bar import FORMAT

NUMBER = re.compile(r"[+-]?\d+\.\d+")


def made_up_table():
    table = Table(title="a title", caption="a caption")
    for name in ("member", "kind"):
        table.add_column(name)
    for index in range(9):
        table.add_column(f"score number {index}", justify="right")
    for row in range(3):
        numbers = [f"{row}.{index}234 [{row}.1, {row}.9]" for index in range(9)]
        table.add_row(f"r{row}", "lora", *numbers)
    return table


def printed(table, width, keys=1):
    text = io.StringIO()
    show(table, keys=keys, file=text, width=width)
    return text.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_wide_table_is_printed_in_parts_whose_numbers_are_whole(width):
    text = printed(made_up_table(), width, keys=2)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for row in range(3):
        of_row = [line for line in lines if line.startswith(f"│ r{row}")]
        assert len(of_row) > 1
        assert all("lora" in line for line in of_row)
        cells = [cell for line in of_row for cell in line.split("│")[3:-1]]
        expected = [f"{row}.{index}234 [{row}.1, {row}.9]" for index in range(9)]
        assert [cell.strip() for cell in cells] == expected
    assert (text.count("a title"), text.count("a caption")) == (1, 1)


def test_a_table_that_fits_is_left_as_it_is():
    text = printed(made_up_table(), 400)
    assert text.count("member") == 1
    assert "score number 8" in text


def test_in_a_file_a_row_is_a_line(monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
    lines = printed(made_up_table(), None).splitlines()
    assert len([line for line in lines if "2.8234 [2.1, 2.9]" in line and "2.0234" in line]) == 1


def test_a_long_name_is_folded_and_no_number_is_cut():
    table = Table()
    table.add_column("name")
    table.add_column("score")
    table.add_row("n" * 200, "0.12345")
    text = printed(table, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("n") == 200 + 1  # the heading's
    assert "0.12345" in text


@pytest.mark.slow
def test_the_tables_of_ensembles_are_whole_at_80_columns(trained):
    records = [EnsembleRecord.read(path.parent) for path in trained[1].rglob("ensemble.json")]
    for make, keys in ((tables.score_table, 2), (tables.diversity_table, 1)):
        narrow, wide = printed(make(records), 80, keys), printed(make(records), None, keys)
        assert max(map(len, narrow.splitlines())) <= 80
        body = [line for line in wide.splitlines() if line.startswith("│")]
        assert sorted(NUMBER.findall("\n".join(body))) == sorted(
            NUMBER.findall("\n".join(x for x in narrow.splitlines() if x.startswith("│")))
        )


def test_the_bar_of_a_sweep_is_kept_at_80_columns():
    line = tqdm.format_meter(
        n=12000,
        total=24000,
        elapsed=100,
        ncols=80,
        prefix="sst-quora-sts: ",
        unit=" member-steps",
        postfix="r16-c3-s0-lr0.0005 and 31 more",
        bar_format=FORMAT,
    )
    assert len(line) <= 80
    assert "█" * 8 in line
    assert " 50%" in line
