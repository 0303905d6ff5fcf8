"""`benchmarks/gpu.py` on the CPU, and the count of a small step."""

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
