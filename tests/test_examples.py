"""The scripts in examples/ run, from a directory of the reader's own."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
GIVEN = {
    "own_csv": ("--minutes", "0.2"),
    "from_peft": ("--epochs", "1"),
    "scikit_learn": ("--epochs", "1"),
}
PRINTED = {
    "own_csv": r"on 60 new texts: [\d.]+ \[.*\]\n\w+ or one of \['",
    "from_peft": r"reviews: use .*\n.*\{'bad': \(([\d.]+), ([\d.]+)\), 'good'",
    "scikit_learn": r"TF-IDF: accuracy [\d.]+ in 2 folds\nLoRA ensemble: accuracy [\d.]+ in",
}


def test_all_are_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(GIVEN)


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_the_example_runs(name, tmp_path, tiny_bert, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [f"{name}.py", "--backbone", str(tiny_bert), *GIVEN[name]]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    found = re.search(PRINTED[name], capsys.readouterr().out)
    assert found
    if name == "from_peft":  # PEFT's probabilities and ours
        theirs, ours = map(float, found.groups())
        assert theirs == pytest.approx(ours, abs=2e-4)
