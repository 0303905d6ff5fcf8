"""The harness of faults, `tests/faults`, with few trials: nothing is lost, misread or run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts calls of Linux's C library")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a library")
def test_a_few_faults_of_each_kind(tmp_path):
    page = tmp_path / "page.md"
    args = ["--quick", "--counts", str(tmp_path / "counts"), "--out", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, str(ROOT / "tests" / "faults"), *args]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in page.read_text()
    assert page.read_text().count("| 0 |") >= 6
