"""`loraens ensemble` on planted members, and what it refuses."""

import csv
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from loraens.ensemble.combine import combine
from loraens.ensemble.methods import METHODS, names
from loraens.ensemble.options import Options
from loraens.ensemble.read import read_runs
from loraens.errors import InputError
from loraens.store import MemberStore
from loraens.tasks import QUORA, SST, STS


@pytest.fixture
def ensemble(run_command, capsys):
    """Runs the command; returns what it wrote, and what it printed."""

    def run(*args, expect=0):
        assert run_command("ensemble", *args) == expect
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "task",
    [*(pytest.param(task, marks=pytest.mark.slow) for task in (SST, QUORA)), STS],
    ids=lambda task: task.name,
)
@pytest.mark.slow
def test_all_methods_leave_ensembles_that_can_be_used(ensemble, tmp_path, task, plant):
    run = plant(tmp_path / "run", task)
    printed = ensemble("--runs", run, "--method", "all", "--size", 3)
    entries = json.loads((run / "ensembles" / "ensembles.json").read_text())
    rules = {"logits"} if task is STS else {"vote", "logits", "probs"}
    assert {(entry["method"], entry["rule"]) for entry in entries} == {
        (m, r) for m in names(merges=False) for r in rules
    }
    found = read_runs([run])[task.name]
    for entry in entries:
        assert entry["method"] in printed
        folder = run / "ensembles" / f"{task.name}-{entry['method']}-{entry['rule']}"
        stored = json.loads((folder / "ensemble.json").read_text())
        del stored["sha256"]
        assert stored == {"format": 2, **entry}
        weights = np.zeros(6)
        for member in entry["members"]:
            directory = folder / member["directory"]
            assert (directory / member["epoch"] / f"{task.name}-dev.npz").is_file()
            weights[found.dev.names.index(directory.resolve().name)] = member["weight"]
        for split, pool in (("dev", found.dev), ("test", found.test)):
            outcome = combine(pool, weights, entry["rule"], found.dev.standings)
            score = entry["dev"][task.metric] if split == "dev" else entry["test"]
            if task is STS:
                assert score == pytest.approx(np.corrcoef(outcome.predictions, pool.labels)[0, 1])
            else:
                assert score == pytest.approx((outcome.predictions == pool.labels).mean())
        assert entry["interval"]["low"] <= entry["interval"]["value"] <= entry["interval"]["high"]
        assert (entry["temperature"] is None) == (task is STS or entry["rule"] == "vote")
        assert set(entry["diversity"]) >= {"mean_errors"}
    with (run / "ensembles" / "ensembles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries)
    assert float(rows[0]["held_out"]) == pytest.approx(entries[0]["interval"]["value"])
    assert float(rows[0]["dev"]) == pytest.approx(entries[0]["dev"][task.metric])
    assert f"{task.name}: diversity on dev" in printed
    assert (f"{task.name}: calibration, held out" in printed) == (task is not STS)
    for row, entry in zip(rows, entries, strict=True):
        for name, value in entry["calibrated"].items():
            assert float(row[f"{name}_calibrated"]) == pytest.approx(value)
            assert float(row[name]) == pytest.approx(entry["held_out"][name])
        assert bool(row["nll_calibrated"]) == bool(entry["calibrated"])


@pytest.mark.slow
def test_three_tasks_have_an_overall_score(ensemble, tmp_path, plant):
    runs = [plant(tmp_path / task.name, task) for task in (SST, QUORA, STS)]
    printed = ensemble("--runs", *runs, "--method", "omni", "--out", tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "ensembles.json").read_text())
    paper = {"sst": "vote", "quora": "vote", "sts": "logits"}
    omni = [e for e in entries if (e["method"], e["rule"]) == ("omni", paper[e["task"]["name"]])]
    dev = {e["task"]["name"]: e["dev"][e["task"]["metric"]] for e in omni}
    held_out = {e["task"]["name"]: e["interval"]["value"] for e in omni}
    totals = [(v["sst"] + v["quora"] + (1 + v["sts"]) / 2) / 3 for v in (dev, held_out)]
    assert f"overall, omni: dev {totals[0]:.4f}, held out {totals[1]:.4f}" in printed
    assert "overall, best: " in printed


@pytest.mark.slow
def test_runs_may_be_pooled_and_test_labels_may_be_missing(ensemble, tmp_path, plant):
    first = plant(tmp_path / "a", STS, test_labels=False)
    second = plant(tmp_path / "b", STS, members=3, test_labels=False)
    ensemble("--runs", first, second, "--method", "omni")
    entry = next(
        e
        for e in json.loads((first / "ensembles" / "ensembles.json").read_text())
        if e["method"] == "omni"
    )
    assert len(entry["members"]) == 9
    assert {"a/r1", "b/r1", "r6"} <= {member["name"] for member in entry["members"]}
    assert entry["test"] is None


def test_failed_members_are_left_out(ensemble, tmp_path, plant):
    run = plant(tmp_path / "run", STS)
    store = MemberStore(run / "r2")
    reason = "step 3: the loss is nan"
    store.update(status="failed", ended=reason, epochs={}, dev={})
    printed = ensemble("--runs", run, "--method", "omni")
    assert "r2 is skipped: it failed (step 3: the loss is nan)" in printed
    assert (
        len(
            json.loads((run / "ensembles" / "sts-omni-logits" / "ensemble.json").read_text())[
                "members"
            ]
        )
        == 5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"data": {"sts-dev": "x"}}, "differ in their dev data", id="dev"),
        pytest.param({"data": {"sts-train": "x"}}, "differ in their training data", id="train"),
        pytest.param({"backbone_fingerprint": "x"}, "differ in their backbone", id="backbone"),
        pytest.param({"tasks": (replace(STS, high=10.0),)}, "differ in their task", id="task"),
        pytest.param({"examples": (100, 60)}, "logits of other dev examples", id="examples"),
    ],
)
def test_runs_that_differ_are_refused(fails, tmp_path, plant, changes, message):
    run = plant(tmp_path / "run", STS)
    other = plant(tmp_path / "other", STS, **changes)
    assert message in fails("ensemble", "--runs", run, other, "--method", "omni")
    assert not (run / "ensembles").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param("{run} {run}", "names a member twice", id="twice"),
        pytest.param("{run}/nothing", "has no member of a run", id="no-member"),
        pytest.param(
            "{run} --method nonsense",
            "--method nonsense is unknown: give all, or some of best, omni",
            id="method",
        ),
        pytest.param("{run} --rule vote", "--rule vote does not apply to task sts", id="rule"),
        pytest.param("{run} --measure x", "--measure x is unknown", id="measure"),
        pytest.param("{run} --task sst", "--task sst: the members have sts", id="task"),
        pytest.param(
            "{run} --size 3 --max_members 2", "--size 3: at most 2 is expected", id="size"
        ),
        pytest.param("{run} --max_members 0", "--max_members 0: at least 1 is", id="max_members"),
        pytest.param(
            "{run} --goal x", "--goal x: score or calibration or cost is expected", id="goal"
        ),
        pytest.param(
            "{run} --goal calibration",
            "--goal calibration is by the probabilities of classes, and task sts has none",
            id="calibration",
        ),
    ],
)
def test_what_is_refused(fails, tmp_path, plant, args, message):
    run = plant(tmp_path / "run", STS)
    given = [part.format(run=run) for part in args.split()]
    assert message in fails("ensemble", "--runs", *given)
    assert not (run / "ensembles").exists()


@pytest.mark.parametrize("fault", ["was altered", "is missing"], ids=["altered", "missing"])
def test_damaged_logits_are_refused(fails, tmp_path, plant, fault):
    run = plant(tmp_path / "run", STS)
    victim = run / "r3" / "epoch-001" / "sts-dev.npz"
    if fault == "is missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes() + b"x")
    assert f"{victim} {fault}" in fails("ensemble", "--runs", run)
    assert not (run / "ensembles").exists()


@pytest.mark.slow
def test_it_needs_neither_torch_nor_lightning_nor_transformers(tmp_path, plant):
    run = plant(tmp_path / "run", STS, members=3, examples=(40, 20))
    code = (
        "import sys; from loraens.cli import main; main(sys.argv[1:]); "
        "found = {'lightning', 'transformers', 'torch'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ensemble", "--runs", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def calls(function, *args):
    """How many functions of Python and of C a call makes: arrays of any size are one each."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", names(merges=False))
def test_no_method_loops_over_examples(make_pool, name):
    few, many = (
        calls(
            METHODS[name].select,
            make_pool(SST, 12, size),
            Options(size=8),
            np.random.default_rng(0),
        )
        for size in (200, 2000)
    )
    assert many < 1.5 * few + 100


@pytest.mark.parametrize("name", names(merges=False))
@pytest.mark.slow
def test_a_large_pool_is_cheap(make_pool, name):
    """186 members: no method makes calls for each pair of members, and memory stays linear."""
    pool = make_pool(SST, 186, 500)
    assert calls(METHODS[name].select, pool, Options(size=8), np.random.default_rng(0)) < 50 * len(
        pool
    )
    pool = make_pool(SST, 186, 1000)
    tracemalloc.start()
    try:
        weights = METHODS[name].select(pool, Options(size=8), np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weights.sum() == pytest.approx(1)
    assert peak < 4 * pool.logits.nbytes


def test_reading_names_the_problem(tmp_path, plant):
    run = plant(tmp_path / "run", STS, members=1)
    store = MemberStore(run / "r1")
    store.update(status="failed", ended="x", epochs={}, dev={})
    with pytest.raises(InputError, match="has no member that did not fail"):
        read_runs([run])
