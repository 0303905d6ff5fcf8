"""What is left behind by what was killed, formulas in cells, and headers of many columns."""

import io
import os
import subprocess
import sys
import time
import zipfile

import openpyxl
import pytest

from loraens import files
from loraens.data.delimited import DelimitedWriter
from loraens.data.files import open_table
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.table import missing_ensembles
from loraens.errors import InputError
from loraens.files import replacing, write_atomically
from loraens.report.comparison import read_rows
from loraens.tasks import QUORA
from loraens.train.state import LOCK, MARK, SweepState, is_ours, locked


def ended():
    """The number of a process that does not run any more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_writer_removes_what_killed_ones_left_of_its_file_alone(tmp_path):
    mine = [f".out.csv.{ended()}.part", f".out.csv.{files._HOST}-{ended()}.part"]
    others = [
        f".out.csv.{os.getppid()}.part",  # it still runs
        f".out.csv.0123abcd-{ended()}.part",  # of another host
        f".other.csv.{ended()}.part",
        ".out.csv.99999999999999999999.part",
        f".out.csv.a.{ended()}.part",  # of out.csv.a
        ".out.csv.x.part",
    ]
    for name in mine + others:
        (tmp_path / name).write_text("half")
    write_atomically(tmp_path / "out.csv", b"whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "out.csv"])
    with replacing(tmp_path / "out.csv") as file:
        file.write(b"half")
        assert len(os.listdir(tmp_path)) == len(others) + 2


def test_a_directory_that_was_killed_before_its_mark_is_ours(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / f".{MARK}.{ended()}.part").touch()
    assert is_ours(tmp_path)
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [LOCK, MARK]
    (tmp_path / MARK).unlink()
    (tmp_path / ".notes.7.part").touch()
    assert not is_ours(tmp_path)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1+1", "' =1+1"),
        ('=HYPERLINK("x",1)', '"\'=HYPERLINK(""x"",1)"'),
        ("-1.5", "-1.5"),
        ("+2e3", "+2e3"),
        (-0.25, "-0.25"),
        ("a=b", "a=b"),
        (None, ""),
        ("it's", "it's"),
    ],
)
def test_formulas_are_text_in_a_spreadsheet(cell, written):
    stream = io.StringIO()
    DelimitedWriter(stream, ",", ["a", "=b"], spreadsheet=True).write({"a": 1, "=b": cell})
    assert stream.getvalue() == f"a,'=b\n1,{written}\n"


def test_a_header_of_many_columns_is_read_in_linear_time(tmp_path):
    columns = [f"c{number}" for number in range(40_000)]
    path = tmp_path / "a.csv"
    path.write_text(",".join(columns) + "\n" + ",".join(columns) + "\n")
    started = time.process_time()
    with open_table(str(path)) as table:
        assert [row["c39999"] for _, row in table.rows] == ["c39999"]
        with pytest.raises(InputError, match=r"'c19' and 39980 more$"):
            table.require(["text"], "--text")
    assert time.process_time() - started < 5  # 20 where each is compared with all others
    path.write_text(",".join([*columns, "c7"]) + "\n")
    with (
        pytest.raises(InputError, match="two columns named 'c7': rename one"),
        open_table(str(path)),
    ):
        pass


def test_compare_says_which_members_of_a_sweep_are_missing(plant, tmp_path):
    run = plant(tmp_path / "run", QUORA, members=3)
    state = SweepState.new({})
    state.members = ["r1", "r2", "r3"]
    state.write(run)
    assert len(read_rows([tmp_path], pytest.fail)) == 3
    (run / "r2" / "manifest.json").unlink()
    said = []
    assert len(read_rows([tmp_path], said.append)) == 2
    (sentence,) = said
    assert sentence.startswith(f"{run} lacks members of its sweep, r2:")


def test_spreadsheet_is_for_tables(fails, corpus, tmp_path):
    texts = corpus / "ids-sst-dev.csv"
    command = ("predict", "--model", "no", "--spreadsheet", "true")
    assert "--spreadsheet goes with --input" in fails(*command, "--text", "a")
    message = fails(*command, "--input", texts, "--output", tmp_path / "a.jsonl")
    assert message.startswith("loraens: --spreadsheet is for CSV and TSV, and jsonl would be")


def test_compare_says_which_ensembles_are_missing(run_command, plant, tmp_path):
    run = plant(tmp_path / "run", QUORA, members=2, examples=(30, 10))
    command = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false")
    assert run_command(*command) == 0
    folder = run / "ensembles"
    assert missing_ensembles(folder) is None
    (folder / "recommended").unlink()
    said = []
    read_rows([tmp_path], said.append)
    (sentence,) = said
    assert sentence.startswith(f"{folder} lacks recommended of its ensembles: restore")
    (folder / "quora-omni-probs" / "ensemble.json").unlink()
    assert "lacks quora-omni-probs/ensemble.json and 1 more" in missing_ensembles(folder)
    (folder / "ensembles.json").write_text("[1]")
    with pytest.raises(InputError, match="is no table of ensembles"):
        missing_ensembles(folder)


def test_the_record_of_another_ensemble_is_refused(run_command, plant, tmp_path):
    run = plant(tmp_path / "run", QUORA, members=2, examples=(30, 10))
    command = ("ensemble", "--runs", run, "--method", "omni", "best", "--logger", "false")
    assert run_command(*command, "--rule", "probs") == 0
    folder = run / "ensembles"
    record = (folder / "quora-omni-probs" / "ensemble.json").read_bytes()
    path = folder / "quora-best-probs" / "ensemble.json"
    path.write_bytes(record)
    with pytest.raises(InputError, match="is the record of another ensemble, quora-omni-probs"):
        EnsembleRecord.read(path.parent)
    (folder / "mine").mkdir()
    (folder / "mine" / "ensemble.json").write_bytes(record)  # copied, as anyone may
    assert EnsembleRecord.read(folder / "mine").method == "omni"
    (folder / "ensembles.json").write_text("damaged")
    assert run_command(*command, "--rule", "probs") == 0
    assert EnsembleRecord.read(path.parent).method == "best"


@pytest.mark.parametrize("damage", ["types", "sheet", "archive"])
def test_a_damaged_workbook_is_refused(tmp_path, damage):
    path = tmp_path / "a.xlsx"
    book = openpyxl.Workbook()
    for row in (["text"], ["a"], ["b"]):
        book.active.append(row)
    book.save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts["[Content_Types].xml"] = b" " if damage == "types" else parts["[Content_Types].xml"]
    sheet = parts["xl/worksheets/sheet1.xml"]
    parts["xl/worksheets/sheet1.xml"] = sheet[:-40] if damage == "sheet" else sheet
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    if damage == "archive":
        path.write_bytes(path.read_bytes()[:-30])
    with (
        pytest.raises(InputError, match="is not an Excel workbook"),
        open_table(str(path)) as table,
    ):
        list(table.rows)


@pytest.mark.slow
def test_predictions_for_a_spreadsheet(run_command, trained_sweep, tmp_path):
    model = trained_sweep("sst") / "ensembles" / "sst-omni-logits"
    texts, output = tmp_path / "in.csv", tmp_path / "out.csv"
    texts.write_text("=id,sentence\n=1+1,-a charming film\n-7,b\n")
    command = ("predict", "--model", model, "--input", texts, "--output", output)
    assert run_command(*command, "--spreadsheet", "true") == 0
    header, first, second = output.read_text().splitlines()
    assert header.startswith("'=id,sentence,")
    assert first.startswith("'=1+1,'-a charming film,")
    assert second.startswith("-7,b,")
