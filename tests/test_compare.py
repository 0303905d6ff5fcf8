"""`loraens compare` on planted runs; what it writes is read back."""

import csv
import json
import operator
import subprocess
import sys
from dataclasses import replace
from math import nan

import pytest

from loraens.members import Member
from loraens.report.comparison import COLUMNS, TEXTS
from loraens.store import MemberStore, find_members
from loraens.tasks import QUORA, SST, STS

SIGNS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def amend(path, **fields):
    """Gives a planted member what a trained one's manifest holds."""
    store = MemberStore(path)
    member = replace(store.manifest().member, seed=0, lr=3e-4)
    cost = {"seconds": 12.5, "trainable_parameters": 7}
    store.update(**{"member": member, **cost, **fields})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_command, plant):
    """A sweep with ensembles and a failed member, a run of two tasks, and a baseline, at different
    depths.
    """
    root = tmp_path_factory.mktemp("checkpoints")
    sweep = plant(root / "deep" / "down" / "sts-sweep", STS, mode="lora")
    for index, path in enumerate(find_members(sweep)):
        amend(path, dev={"best": {"sts": {"pearson": 0.9 - index / 7, "mse": 1.0}}})
    reason = "step 3: the loss is nan"
    amend(sweep / "r3", status="failed", ended=reason, epochs={}, dev={})
    command = ["ensemble", "--runs", sweep, "--method", "omni", "dicor", "--logger", "false"]
    assert run_command(*command) == 0
    both = plant(root / "both", SST, members=1, tasks=(SST, QUORA), mode="lora")
    amend(both / "r1", dev={"best": {"sst": {"accuracy": 0.5}, "quora": {"accuracy": nan}}})
    frozen = plant(root / "frozen", STS, members=1, mode="frozen", backbone="a|b")
    amend(frozen / "r1", dev={"best": {"sts": {"pearson": 0.4}}}, member=Member(0, 1.0))
    return root


@pytest.fixture
def rows(run_command, tmp_path):
    """Runs the command and reads its JSON."""

    def run(*args):
        assert run_command("compare", *args, "--out", tmp_path / "out.json") == 0
        return json.loads((tmp_path / "out.json").read_text())

    return run


def test_every_member_and_ensemble_at_any_depth_is_a_row(rows, runs):
    found = rows(runs)
    assert all(tuple(row) == COLUMNS for row in found)
    assert sorted((row["kind"], row["run"], row["name"], row["task"]) for row in found) == sorted(
        [("member", "sts-sweep", f"r{rank}", "sts") for rank in range(1, 7)]
        + [
            ("ensemble", "sts-sweep", f"sts-{method}-logits", "sts")
            for method in ("best", "dicor", "omni")
        ]
        + [
            ("member", "both", "r1", "sst"),
            ("member", "both", "r1", "quora"),
            ("baseline", "frozen", "r1", "sts"),
        ]
    )
    by_name = {(row["run"], row["name"], row["task"]): row for row in found}
    row = by_name["sts-sweep", "r2", "sts"]
    manifest = json.loads(
        (runs / "deep" / "down" / "sts-sweep" / "r2" / "manifest.json").read_text()
    )
    own = {name: value for name, value in manifest["member"].items() if name in COLUMNS}
    assert {name: row[name] for name in ("rank", "scale", "seed", "lr")} == own
    assert row["dev"] == manifest["dev"]["best"]["sts"]["pearson"]
    expected = ("finished", "lora", "minilm", 1, "pearson", 1, 7, 12.5)
    names = (
        "status",
        "mode",
        "backbone",
        "members",
        "metric",
        "best_epoch",
        "trainable_parameters",
        "seconds",
    )
    assert tuple(row[name] for name in names) == expected
    failed = by_name["sts-sweep", "r3", "sts"]
    assert (failed["status"], failed["dev"], failed["best_epoch"], failed["rank"]) == (
        "failed",
        None,
        None,
        3,
    )
    assert by_name["both", "r1", "quora"]["dev"] is None
    for entry in json.loads(
        (runs / "deep" / "down" / "sts-sweep" / "ensembles" / "ensembles.json").read_text()
    ):
        row = by_name["sts-sweep", f"sts-{entry['method']}-{entry['rule']}", "sts"]
        assert (row["method"], row["rule"], row["members"]) == (
            entry["method"],
            entry["rule"],
            len(entry["members"]),
        )
        assert (row["dev"], row["test"]) == (entry["dev"]["pearson"], entry["test"])
        assert {"value": row["held_out"], "low": row["low"], "high": row["high"]} == entry[
            "interval"
        ]


def test_a_soup_is_one_row_and_a_directory_given_twice_counts_once(
    rows, tmp_path, run_command, plant
):
    sweep = plant(tmp_path / "sweep", STS)
    assert run_command("ensemble", "--runs", sweep, "--method", "omni", "--logger", "false") == 0
    soup = sweep / "ensembles" / "sts-omni-logits"
    (soup / "manifest.json").write_bytes((sweep / "r1" / "manifest.json").read_bytes())
    found = rows(sweep, tmp_path, "--runs", sweep / "r1", sweep / "ensembles")
    assert [row["kind"] for row in found].count("ensemble") == 2
    assert len(found) == 8


def test_weights_and_logits_are_not_read(rows, tmp_path, plant):
    sweep = plant(tmp_path / "sweep", STS)
    for path in sweep.glob("*/epoch-*/*"):
        path.unlink()
    assert len(rows(sweep)) == 6


@pytest.mark.parametrize(
    "filters",
    [
        ["task=sts", "rank>=2"],
        ["kind=ensemble"],
        ["kind!=ensemble", "status!=failed"],
        ["dev>0.5", "dev<=0.9"],
        ["rank<1"],
        ["rank=2.0"],
        ["held_out!=0"],
    ],
    ids=" ".join,
)
def test_filters_against_plain_python(rows, runs, filters):
    def holds(row, text):
        sign = next(sign for sign in ("!=", "<=", ">=", "=", "<", ">") if sign in text)
        column, _, given = text.partition(sign)
        if row[column] is None:
            return sign == "!="
        return SIGNS[sign](row[column], given if column in TEXTS else float(given))

    every = rows(runs)
    expected = [row for row in every if all(holds(row, text) for text in filters)]
    assert 0 < len(expected) < len(every) or filters == ["held_out!=0"]
    assert rows(runs, "--filter", *filters) == expected
    assert rows(runs, *(word for text in filters for word in ("--filter", text))) == expected


@pytest.mark.parametrize("column", ["dev", "rank", "name", "held_out"])
def test_sorting_against_plain_python(rows, runs, column):
    every = rows(runs)
    missing = [row for row in every if row[column] is None]
    known = [row for row in every if row[column] is not None]
    assert rows(runs, f"--sort={column}") == sorted(known, key=lambda row: row[column]) + missing
    assert (
        rows(runs, f"--sort=-{column}")
        == sorted(known, key=lambda row: row[column], reverse=True) + missing
    )


def test_csv_and_markdown_hold_the_same_rows(rows, runs, run_command, tmp_path):
    every = rows(runs, "--sort=-dev")
    columns = ["kind", "backbone", "dev", "held_out", "seconds", "lr"]
    assert run_command("compare", runs, "--sort=-dev", "--out", tmp_path / "new" / "all.csv") == 0
    with (tmp_path / "new" / "all.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    for line, row in zip(read, every, strict=True):
        assert list(line) == list(COLUMNS)
        for name, text in line.items():
            assert (
                (text or None) == row[name]
                if name in TEXTS
                else (float(text) if text else None) == row[name]
            )
    out = tmp_path / "some.md"
    assert (
        run_command(
            "compare",
            runs,
            "--sort=-dev",
            "--columns",
            "kind,backbone",
            "dev,held_out,seconds,lr",
            "--out",
            out,
        )
        == 0
    )
    lines = [line[2:-2].split(" | ") for line in out.read_text().splitlines()]
    assert lines[0] == columns
    assert lines[1] == ["---", "---", "---:", "---:", "---:", "---:"]
    for cells, row in zip(lines[2:], every, strict=True):
        score = ["" if row[name] is None else f"{row[name]:.4f}" for name in ("dev", "held_out")]
        rest = ["" if row[name] is None else f"{row[name]:g}" for name in ("seconds", "lr")]
        assert cells == [row["kind"], row["backbone"].replace("|", r"\|"), *score, *rest]


def test_the_terminal_leaves_out_what_says_nothing(run_command, runs, capsys):
    assert (
        run_command("compare", runs, "--filter", "run=sts-sweep", "kind=member", "--sort=-dev") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [word for word in lines[1].replace("┃", " ").split() if word] == [
        "name",
        "status",
        "rank",
        "dev",
        "best",
        "epoch",
    ]
    body = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]
    assert [cells[0] for cells in body] == ["r1", "r2", "r4", "r5", "r6", "r3"]
    assert body[0] == ["r1", "finished", "1", "0.9000", "1"]
    assert body[-1] == ["r3", "failed", "3", "", ""]
    caption = " ".join(" ".join(lines).split())
    assert (
        "The same in all rows: kind member, run sts-sweep, task sts, mode lora, backbone minilm,"
        " scale 1, seed 0" in caption
    )
    assert run_command("compare", runs, "--columns", "metric,name") == 0
    assert capsys.readouterr().out.splitlines()[1].replace("┃", " ").split() == ["metric", "name"]
    assert run_command("compare", runs, "--filter", "rank>99") == 0
    assert capsys.readouterr().out == "--filter leaves none of 12 rows\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param("", "no directory is given", id="no-directory"),
        pytest.param("{runs} {tmp}", "{tmp} has no member and no ensemble", id="empty"),
        pytest.param("--runs {tmp}/none", "{tmp}/none is not a directory", id="missing"),
        pytest.param(
            "{runs} --filter size=3", "'size' is not a column: give one of kind, run", id="filter"
        ),
        pytest.param("{runs} --sort=-size", "'size' is not a column", id="sort"),
        pytest.param("{runs} --columns dev,size", "'size' is not a column", id="columns"),
        pytest.param("{runs} --filter rank>=big", "rank is a number", id="not-a-number"),
        pytest.param("{runs} --out {tmp}/table.xlsx", "ends in .csv, .json, .md", id="suffix"),
    ],
)
def test_what_is_refused(fails, runs, tmp_path, args, message):
    values = {"runs": runs, "tmp": tmp_path}
    given = [part.format(**values) for part in args.split()]
    assert message.format(**values) in fails("compare", *given)


@pytest.mark.parametrize("text", ["rank", "rank==3", "rank~3", "rank=>3", "=3"])
def test_filters_that_cannot_be_read(fails, runs, text):
    assert f"--filter '{text}': a column, one of = != < <= > >= and a value" in fails(
        "compare", runs, "--filter", text
    )


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("ensemble.json", "{", "is not JSON"),
        ("ensemble.json", "{}", "is not an ensemble"),
        ("manifest.json", "{", "is not JSON"),
        ("manifest.json", "{}", "is not of format 1"),
    ],
)
def test_broken_files_are_named(fails, tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    assert f"{tmp_path / name} {fault}" in fails("compare", tmp_path)


@pytest.mark.slow
def test_it_needs_neither_torch_nor_lightning_nor_transformers(runs):
    code = (
        "import sys; from loraens.cli import main; main(sys.argv[1:]); "
        "found = {'lightning', 'transformers', 'torch'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(runs)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
