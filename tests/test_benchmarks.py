"""`benchmarks/gpu.py` on the CPU, the count of a small step, and the load on a server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run(*command):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_everything_about_a_gpu_on_the_cpu(tiny_bert, corpus, tmp_path):
    options = ["--device", "cpu", "--quick", "--backbone", tiny_bert, "--data", corpus]
    done = run(BENCHMARKS / "gpu.py", *options, "--out", tmp_path, "--minutes", 30)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == {
        "masks": True,
        "equality": True,
        "packs": True,
        "memory": None,
        "arms": None,
        "arms-bert": None,
        "grid": None,
    }
    assert not any("error" in part for part in parts.values())
    assert [row["member"] for row in parts["packs"]["rows"]] == [0, 1, 2, 3, 4]
    (grid,) = parts["grid"]["rows"]
    assert grid["members"] == 2
    assert "| masks of | tokens equal | attention equal |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulated device needs g++")
def test_counts_of_a_step(tmp_path):
    """Waits and launches that are promised, of a single member of MiniLM's shape."""
    pytest.importorskip("triton")
    options = ["--shape", "MiniLM", "--members", "1", "--out", tmp_path]
    done = run(BENCHMARKS / "count.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    by_kernels, without = json.loads((tmp_path / "count.json").read_text())
    before = json.loads((BENCHMARKS / "results" / "count-before.json").read_text())[0]
    assert by_kernels["waits"] == without["waits"] == []
    assert sum(by_kernels["launches"].values()) <= 700 < sum(without["launches"].values())
    assert by_kernels["launches"]["optimiser"] < 40
    assert sum(by_kernels["bytes"].values()) < 0.5 * sum(before["bytes"].values())


@pytest.mark.slow
def test_no_request_to_a_server_is_lost(trained_sweep, corpus, tmp_path):
    pytest.importorskip("litserve", reason="the extra serve is not installed")
    model = trained_sweep("sst") / "ensembles" / "sst-omni-logits"
    options = ["--quick", "--model", model, "--data", corpus, "--out", tmp_path]
    done = run(BENCHMARKS / "serve.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "serve.json").read_text())["table"]
    assert [row["lost"] for row in table] == [0, 0, 0, 0]
    assert all(row["answered"] > 0 and row["texts_per_second"] > 0 for row in table)
    arms = ("one by one", "8 clients", "FastAPI + PEFT, 8 clients", "overload")
    assert tuple(row["arm"] for row in table) == arms
    assert "| overload | " in (tmp_path / "serve.md").read_text()
