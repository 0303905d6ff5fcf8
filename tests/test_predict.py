import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from loraens.store import find_member

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def runs(run_command, tiny_bert, corpus, tmp_path_factory):
    """One trained member a task."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("sst", "quora", "sts"):
        command = [
            "fit",
            "--config",
            CONFIGS / f"{name}.yaml",
            "--model.backbone",
            tiny_bert,
            "--data.root",
            corpus,
        ]
        command += [
            "--data.max_length",
            40,
            "--model.lr",
            1e-2,
            "--trainer.max_epochs",
            1,
            "--store.root",
            root,
        ]
        command += [
            "--store.run",
            name,
            "--trainer.logger",
            "false",
            "--trainer.enable_progress_bar",
            "false",
        ]
        assert run_command(*command) == 0
    return root


def read(path, delimiter="\t"):
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter=delimiter))


@pytest.mark.parametrize(
    ("name", "stem", "classes"), [("sst", "ids-sst", 5), ("quora", "quora", 2), ("sts", "sts", 0)]
)
def test_one_row_a_row_with_columns_and_order_kept(
    run_command, runs, corpus, tmp_path, name, stem, classes
):
    source = corpus / f"{stem}-test-student.csv"
    assert (
        run_command(
            "predict", "--model", runs / name, "--input", source, "--output", tmp_path / "out.tsv"
        )
        == 0
    )
    before = read(source)
    after = read(tmp_path / "out.tsv")
    assert len(after) == len(before) == 10
    for old, new in zip(before, after, strict=True):
        assert list(new) == [
            *old,
            "prediction",
            *(f"probability_{index}" for index in range(classes)),
        ]
        assert {column: new[column] for column in old} == old
        if classes:
            shares = [float(new[f"probability_{index}"]) for index in range(classes)]
            assert sum(shares) == pytest.approx(1, abs=1e-5)
            assert shares[int(new["prediction"])] == max(shares)
    assert len({row["prediction"] for row in after}) > 1 or name != "sts"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tsv"]


def test_formats_agree_and_chunks_do_not_matter(
    run_command, runs, corpus, tmp_path, monkeypatch, capsys
):
    source = corpus / "sts-test-student.csv"
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        assert (
            run_command(
                "predict", "--model", runs / "sts", "--input", source, "--output", tmp_path / name
            )
            == 0
        )
    expected = [row["prediction"] for row in read(tmp_path / "a.tsv")]
    assert [row["prediction"] for row in read(tmp_path / "a.csv", ",")] == expected
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [str(line["prediction"]) for line in lines] == expected
    monkeypatch.setattr("loraens.inference.predict_file.CHUNK", 3)
    inputs = tmp_path / "in.jsonl"
    inputs.write_text(
        "".join(json.dumps({"n": i, **line}) + "\n" for i, line in enumerate(strip(lines)))
    )
    assert (
        run_command("predict", "--model", runs / "sts", "--input", inputs, "--batch_size", 2) == 0
    )
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["n"] for line in printed] == list(range(10))
    assert [line["prediction"] for line in printed] == pytest.approx(
        [float(value) for value in expected], abs=2e-5
    )


def strip(lines):
    return [
        {key: value for key, value in line.items() if key not in ("prediction", "")}
        for line in lines
    ]


LINES = ["a dull , dull film", 'two\nlines, "quoted"', "carriage\rreturn", "ends\r\nso"]


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.csv.gz", "in.json", "in.xlsx", "parts"])
def test_line_breaks_come_back_from_every_input(run_command, runs, tmp_path, name):
    frame = pandas.DataFrame({"id": [7, 8, 9, 10], "sentence": LINES})
    source = tmp_path / name
    if name == "parts":
        source.mkdir()
        frame[:2].to_csv(source / "1.csv", index=False)
        frame[2:].to_parquet(source / "2.parquet")
    elif name == "in.json":
        frame.to_json(source, orient="records")
    elif name == "in.xlsx":
        pytest.importorskip("openpyxl", reason="the extra `excel` is not installed")
        frame.to_excel(source, index=False)
    else:
        frame.to_csv(source, index=False, sep="\t" if name == "in.tsv" else ",")
    command = ["predict", "--model", runs / "sst", "--input", source]
    assert run_command(*command, "--output", tmp_path / "out.csv") == 0
    written = pandas.read_csv(tmp_path / "out.csv")
    if name != "in.xlsx":  # which keeps no CR
        assert written["sentence"].tolist() == LINES
    assert written["id"].tolist() == [7, 8, 9, 10]
    assert written["prediction"].notna().all()


def test_missing_texts_and_their_lines(run_command, runs, tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_bytes('id,sentence\n1,"two\nlines"\n2,\n3,NA\n4,caf\xe9\n'.encode("latin-1"))
    command = ["predict", "--model", runs / "sst", "--input", source, "--encoding", "latin-1"]
    assert run_command(*command, "--missing", "[NA]", "--output", tmp_path / "out.csv") == 0
    printed = capsys.readouterr().err
    assert "2 rows have no text and got an empty prediction: line 4, 5" in printed
    rows = read(tmp_path / "out.csv", ",")
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, True]
    assert [row["sentence"] for row in rows] == ["two\nlines", "", "NA", "caf\xe9"]


@pytest.mark.slow
def test_pipe(runs):
    command = [
        sys.executable,
        "-c",
        "from loraens.cli import main; main()",
        "predict",
        "--model",
        str(runs / "sst"),
    ]
    text = 'id,sentence\n7,"a dull , dull film"\n8,\n9,charming\n'
    done = subprocess.run(
        [*command, "--input", "-"], input=text, capture_output=True, text=True, check=True
    )
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert [bool(row["prediction"]) for row in rows] == [True, False, True]
    assert "1 rows have no text and got an empty prediction: line 3" in done.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away(runs, tmp_path):
    (tmp_path / "long.csv").write_text("sentence\n" + "fine\n" * 20000)
    command = (
        f"{sys.executable} -c 'from loraens.cli import main; main()' predict --model {runs / 'sst'}"
        f" --input {tmp_path}/long.csv"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sentence,prediction")
    assert "Traceback" not in done.stderr


def test_one_text(run_command, runs, capsys):
    assert (
        run_command("predict", "--model", runs / "quora", "--text", "Why?", "--text2", "What for?")
        == 0
    )
    row = json.loads(capsys.readouterr().out)
    assert row["prediction"] in ("0", "1")
    assert row["probability_0"] + row["probability_1"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            "--input {tmp}/bad.tsv --output {tmp}/out.csv",
            "bad.tsv line 3 does not have 2 fields",
            id="fields",
        ),
        pytest.param(
            "--input {corpus}/ids-sst-dev.csv --output {tmp}/out.csv",
            "no column 'sentence1'",
            id="column",
        ),
        pytest.param(
            "--input {tmp}/taken.tsv --output {tmp}/out.csv",
            "line 2 already has a field 'prediction'",
            id="taken",
        ),
        pytest.param("", "either --input FILE or --text", id="no-input"),
        pytest.param("--text one", "--text and --text2", id="one-text"),
        pytest.param(
            "--input {good} --output {tmp}/x.doc", "ends in .csv, .tsv or .jsonl", id="suffix"
        ),
        pytest.param(
            "--input {good} --output {tmp}/no/x.csv",
            "directory does not exist",
            id="no-directory",
        ),
        pytest.param(
            "--input {tmp}/bad.tsv --output {tmp}/bad.tsv", "is the input", id="same-file"
        ),
        pytest.param("--input {good} --text2 x", "--text2 goes with --text", id="text2"),
        pytest.param(
            "--input {good} --output {tmp}/folder.csv",
            "a file name that ends in",
            id="directory",
        ),
        pytest.param("--input {good} --model {tmp}", "has no member of a run", id="no-member"),
        pytest.param(
            "--input {tmp}/open.csv --output {tmp}/out.csv",
            "open.csv line 2: a quote opens that line 3 closes, but each of these lines could be a"
            " record of its own: give --quoting standard",
            id="quoting",
        ),
        pytest.param(
            "--input {corpus}/none-*.csv --output {tmp}/out.csv", "does not exist", id="pattern"
        ),
        pytest.param("--input {good} --task other", "--task other", id="task"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    fails, runs, corpus, tmp_path, args, message
):
    (tmp_path / "bad.tsv").write_text("sentence1\tsentence2\na\tb\nonly one\n")
    (tmp_path / "taken.tsv").write_text("sentence1\tsentence2\tprediction\na\tb\tc\n")
    (tmp_path / "open.csv").write_text('sentence1,sentence2\na,"b\nc,d"\n')
    (tmp_path / "folder.csv").mkdir()
    values = {"tmp": tmp_path, "corpus": corpus, "good": corpus / "sts-dev.csv"}
    given = [part.format(**values) for part in args.split()]
    model = [] if "--model" in given else ["--model", runs / "sts"]
    assert message in fails("predict", *model, *given)
    names = {"bad.tsv", "taken.tsv", "open.csv", "folder.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_altered_weights_are_refused(fails, runs):
    directory = find_member(runs / "quora")
    file = next(directory.glob("epoch-*/adapter_model.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert "was altered" in fails(
            "predict", "--model", directory, "--text", "a", "--text2", "b"
        )
    finally:
        file.write_bytes(content)
