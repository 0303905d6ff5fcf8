"""wandb and datasets are imported only where they are used, and missed before anything is done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraens.data.hub import load_hub
from loraens.errors import InputError

CONFIG = Path(__file__).parent.parent / "configs" / "sts.yaml"
WITHOUT = (
    "import sys; sys.modules.update(wandb=None, datasets=None)\n"
    "from loraens.cli import main\n"
    "main(sys.argv[1:])"
)
MISSING = "logger: the package wandb is missing: pip install wandb, or give false"


@pytest.fixture
def options(corpus, tiny_bert, tmp_path):
    files = ["--config", CONFIG, "--data.root", corpus, "--store.root", tmp_path / "store"]
    model = ["--model.backbone", tiny_bert, "--model.pooling", "cls", "--trainer.max_epochs", 1]
    return [*files, *model, "--trainer.enable_progress_bar", "false"]


@pytest.mark.slow
def test_a_sweep_without_them(options, tmp_path):
    arguments = ["sweep", *options, "--grid.rank", "[2]", "--trainer.logger", "false"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "sts-sweep" / "sweep.json").is_file()


@pytest.mark.parametrize("command", ["sweep", "fit"])
def test_logging_without_wandb(fails, monkeypatch, options, tmp_path, command):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fails(command, *options) == f"loraens: --trainer.{MISSING}"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["ensemble", "report"])
def test_logging_of_ensembles_without_wandb(fails, monkeypatch, tmp_path, command):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fails(command, "--runs", tmp_path) == f"loraens: --{MISSING}"


def test_data_sets_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="data set 'some/set' needs the package datasets: pip"):
        load_hub("some/set", None, "train", "give files")
