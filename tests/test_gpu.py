"""What a GPU has to do as a CPU does: on an emulated one, in a process of its own, and on a real one
where there is one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulated device needs g++")
@pytest.mark.parametrize("file", sorted(path.name for path in (TESTS / "gpu").glob("*.py")))
def test_on_the_emulated_device(file):
    options = ["-p", "helpers.second_device", "-p", "no:cacheprovider", "-x", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / "gpu" / file)],
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
