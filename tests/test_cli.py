import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from loraens import __version__, cli
from loraens.commands import compare, predict, quickstart
from loraens.commands import fit as training

CONSOLE = Path(sys.executable).parent / "loraens"


@pytest.mark.slow
def test_help_loads_no_library():
    """What costs time is loading libraries; the help needs the standard library alone."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from importlib.metadata import packages_distributions\n"
        "from loraens.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert loaded & set(packages_distributions()) == {'loraens'}, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([CONSOLE, "--help"], capture_output=True).returncode == 0


def test_help_lists_every_command(run_command, capsys):
    assert run_command("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert run_command("--version") == 0
    assert capsys.readouterr().out == f"loraens {__version__}\n"


def options_without_help(parser: ArgumentParser):
    return [
        "/".join(action.option_strings) or action.dest
        for action in parser._actions
        if not isinstance(action.help, str) or not action.help.strip()
    ]


def printed_help(monkeypatch, function, *args):
    """The parser that prints a command's help."""
    seen = []
    monkeypatch.setattr(ArgumentParser, "print_help", lambda self, *_: seen.append(self))
    with pytest.raises(SystemExit):
        function([*args, "--help"])
    return seen[-1]


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (compare.main, []),
        (predict.main, []),
        (quickstart.main, []),
        *((training.main, [name]) for name in cli.TRAINER_COMMANDS),
    ],
)
def test_every_option_has_a_help_text(monkeypatch, function, args):
    monkeypatch.setattr(sys, "argv", ["loraens"])
    parser = printed_help(monkeypatch, function, *args)
    assert len(parser._actions) > 4
    assert options_without_help(parser) == []


@pytest.mark.parametrize("name", ["SST", "Quora", "STS", "Multitask", "TextFiles", "HubTexts"])
def test_every_option_of_the_data_has_a_help_text(name):
    from loraens.data import modules as data

    parser = ArgumentParser()
    parser.add_class_arguments(getattr(data, name), "data")
    assert options_without_help(parser) == []
