"""What the README shows is what works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from loraens.store import find_members

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
]


def test_length_and_the_two_commands():
    assert len(README.splitlines()) <= 150
    setup = [command for command in COMMANDS if command.startswith("python3 -m venv")]
    assert [command.rsplit("/", 1)[-1] for command in setup] == [
        "loraens quickstart",
        "python -m pytest",
    ]
    assert all("-c constraints.txt" in command for command in setup)
    assert (ROOT / ".ci" / "run").read_text().count("grep -m1 'python -m pytest' README.md") == 1


@pytest.fixture
def directory(tmp_path, corpus, monkeypatch):
    """A working directory as the README's reader has it: the configs, and the course's files in
    DIR.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "DIR").symlink_to(corpus)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_commands_run_as_they_stand(run_command, directory, tiny_bert):
    """Only the backbone and the number of epochs are made small, and the logger is off."""
    small = ["--model.backbone", tiny_bert, "--trainer.max_epochs", 1, "--trainer.logger", "false"]
    shown = [shlex.split(command) for command in COMMANDS if command.startswith("loraens ")]
    assert {words[1] for words in shown} == {
        "fit",
        "predict",
        "sweep",
        "ensemble",
        "report",
        "compare",
    }
    for words in shown:
        extra = []
        if words[1] in ("fit", "sweep"):
            extra = [
                *small,
                *([] if "DIR" in words else ["--data.root", "DIR"]),
                "--trainer.enable_progress_bar",
                "false",
            ]
        assert run_command(*words[1:], *extra) == 0, words
    assert len((directory / "predictions.csv").read_text().splitlines()) == 11
    run = directory / "checkpoints" / "sts-r29-c3-s0-lr0.0003"
    assert (
        run_command("fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt") == 0
    )
    assert (
        run_command("validate", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
        == 0
    )
    assert len(find_members(directory / "checkpoints" / "sts-sweep")) == 6


def test_the_task_of_the_users_own_runs(run_command, directory, tiny_bert):
    (block,) = (block for kind, block in BLOCKS if kind == "yaml")
    Path("questions.yaml").write_text(block)
    names = yaml.safe_load(block)["data"]["init_args"]["class_names"]
    for split in ("train", "dev"):
        Path(f"{split}.csv").write_text(
            "text,type\n"
            + "".join(f"what {i} {name}?,{name}\n" for i in range(4) for name in names)
        )
    command = [
        "fit",
        "--config",
        "questions.yaml",
        "--model.backbone",
        tiny_bert,
        "--trainer.max_epochs",
        1,
    ]
    assert (
        run_command(*command, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
        == 0
    )
