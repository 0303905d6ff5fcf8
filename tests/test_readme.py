"""What the README shows is what works; its Python runs in test_docs.py."""

import pytest
from helpers.pages import README, ROOT, commands, words_of, write_questions

from loraens.store import find_members


def test_length_and_the_two_commands():
    assert len(README.read_text().splitlines()) <= 150
    setup = [command for command in commands(README) if command.startswith("python3 -m venv")]
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
    write_questions(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_commands_run_as_they_stand(run_command, directory, tiny_bert):
    """Only the backbone and the number of epochs are made small, and the logger is off."""
    shown = words_of(README, tiny_bert)
    assert {words[0] for words in shown} == {
        "build",
        "fit",
        "predict",
        "sweep",
        "ensemble",
        "evaluate",
        "report",
        "compare",
    }
    for words in shown:
        assert run_command(*words) == 0, words
    assert len((directory / "predictions.csv").read_text().splitlines()) == 11
    run = directory / "checkpoints" / "sts-r29-c3-s0-lr0.0003"
    resumed = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    for command in ("fit", "validate"):
        assert run_command(command, *resumed) == 0
    assert len(find_members(directory / "checkpoints" / "sts-sweep")) == 6
