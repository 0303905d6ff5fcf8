import inspect
import json
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from jsonargparse._link_arguments import ActionLink

from loraens import __version__, cli
from loraens.commands import signature, training

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


def printed_help(monkeypatch, command, *args):
    """The parser that prints a command's help."""
    seen = []
    monkeypatch.setattr(ArgumentParser, "print_help", lambda self, *_: seen.append(self))
    monkeypatch.setattr(sys, "argv", ["loraens"])
    with suppress(SystemExit):
        cli.main([command, *args])
    return seen[-1]


@pytest.mark.parametrize(
    "args",
    [
        *((command, "--help") for command in cli.COMMANDS),
        *((command, "--help-all") for command in cli.TRAINING),
        *(("fit", "--data.help", name) for name in training.DATA),
    ],
)
def test_every_option_has_a_help_text(monkeypatch, args):
    parser = printed_help(monkeypatch, *args)
    assert len(parser._actions) > 2
    assert options_without_help(parser) == []


@pytest.mark.parametrize("name", ["SST", "Quora", "STS", "Multitask", "TextFiles", "HubTexts"])
def test_every_option_of_the_data_has_a_help_text(name):
    from loraens.data import modules as data

    parser = ArgumentParser()
    parser.add_class_arguments(getattr(data, name), "data")
    assert options_without_help(parser) == []


# Start-up

TYPOS = {
    "quickstart": ("--data.rot", "--data.root"),
    "fit": ("--model.rnk", "--model.rank"),
    "sweep": ("--grid.rnk", "--grid.rank"),
    "ensemble": ("--rns", "--runs"),
    "report": ("--txts", "--texts"),
    "compare": ("--filtr", "--filter"),
    "validate": ("--ckpt_pth", "--ckpt_path"),
    "test": ("--trainer.acelerator", "--trainer.accelerator"),
    "predict": ("--modell", "--model"),
    "wandb-sync": ("--dry-rnu", "--dry-run"),
}


def run_in_child(*lines):
    """Runs commands in a new process; its last line of output, and its seconds of CPU."""
    code = [
        "import contextlib, io, json, sys",
        "from loraens.cli import main",
        "def run(*args):",
        "    text = io.StringIO()",
        "    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):",
        "        main(list(args))",
        "    return text.getvalue()",
        *lines,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), seconds


LOADED = "print(json.dumps(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules))))"


@pytest.mark.slow
def test_help_and_refusals_load_neither_torch_nor_lightning():
    refused = [["fit", "--data", "SST", "--model.rank", "x"], ["fitt"], ["fit", "--config", "no"]]
    lines = [f"run({command!r}, '--help')" for command in cli.COMMANDS]
    lines += [f"run({command!r}, {option!r})" for command, (option, _) in TYPOS.items()]
    lines += [f"run(*{args!r})" for args in refused]
    lines += [f"run('fit', '--data.help', {name!r})" for name in training.DATA]
    lines += ["assert '--data.label_column' in run('fit', '--data.help')"]
    lines += ["assert '--data.root' in run('fit', '--data.help', 'loraens.data.SST')"]
    assert run_in_child(*lines, LOADED)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize("args", ["'fit', '--help'", "'sweep', '--model.rnk', '3'"])
def test_help_and_refusals_take_less_than_a_second(args):
    assert min(run_in_child(f"run({args})", "print(0)")[1] for _ in range(2)) < 1.5  # 0.4 s here


@pytest.mark.slow
def test_a_prediction_loads_neither_lightning_nor_transformers(trained_sweep):
    run = trained_sweep("sst")
    for model in (run / "ensembles" / "recommended", next(run.glob("r2-*"))):
        lines = [
            f"row = run('predict', '--model', {str(model)!r}, '--text', 'a man carried a boat')",
            "assert 'prediction' in json.loads(row)",
            "print(json.dumps(sorted({'lightning', 'transformers', 'scipy'} & set(sys.modules))))",
        ]
        assert run_in_child(*lines)[0] == []


# Help and suggestions


@pytest.mark.parametrize("command", TYPOS)
def test_a_typo_is_answered_by_what_was_meant(fails, command):
    given, meant = TYPOS[command]
    message = fails(command, given, "x")
    assert f"loraens: {given} is not an option of {command}, did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["swep"], "'swep' is not a command, did you mean sweep?", id="command"),
        pytest.param(["xyz"], "'xyz' is not a command: use one of", id="no-command"),
        pytest.param(["fit", "--xyz", "3"], "--xyz is not an option of fit:", id="nothing-near"),
        pytest.param(
            ["fit", "--trainer.max_epoch=3"], "did you mean --trainer.max_epochs?", id="trainer"
        ),
        pytest.param(
            ["fit", "--data", "SST", "--data.train", "a.csv"],
            "--data.train is not an option of SST: `loraens fit --data.help SST` lists them",
            id="another-class",
        ),
        pytest.param(
            ["fit", "--data", "loraens.data.SST", "--data.init_args.root=a", "--data.limt", "3"],
            "did you mean --data.limit?",
            id="class-path",
        ),
        pytest.param(["predict"], "--model is missing", id="missing"),
        pytest.param(
            ["predict", "--model", "a", "--batch_size", "many"],
            "--batch_size many: a whole number is expected",
            id="number",
        ),
        pytest.param(
            ["ensemble", "--runs", "a", "--epoch", "first"],
            "--epoch first: best or last is expected",
            id="choice",
        ),
        pytest.param(
            ["fit", "--model.mode", "bert"], "lora or frozen or full is expected", id="mode"
        ),
        pytest.param(
            ["sweep", "--grid.rank", "[1,x]"], "a list of whole numbers is expected", id="list"
        ),
        pytest.param(["fit", "--config", "no.yaml"], "no.yaml: there is no such file", id="config"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(
    fails, monkeypatch, args, message
):
    monkeypatch.setattr(training, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert message in fails(*args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "model: {rnk: 3}", "model.rnk is not an option of fit, did you mean model.rank?"
        ),
        pytest.param("data: {class_path: SST, init_args: {limt: 3}}", "did you mean data.limit?"),
        pytest.param("trainr: {max_epochs: 3}", "did you mean trainer.max_epochs?"),
    ],
)
def test_a_typo_in_a_configuration_file_is_named_with_the_file(fails, tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    sentence = fails("fit", "--config", tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in sentence
    assert message in sentence


@pytest.mark.parametrize(
    "args",
    [
        ["--data", "my.package.Texts", "--data.anything", "3"],
        ["--data", "{class_path: my.Texts}", "--data.anything", "3"],
        ["--data", "SST", "--data.init_args.root", "a", "--data.limit=3"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patience", "3"],
        ["--trainer.logger.init_args.save_dir", "a", "--seed_everything", "3"],
        ["--model.targets+", "key", "--print_config=skip_default", "--config", "{}"],
    ],
)
def test_what_only_lightning_can_judge_is_let_through(args, tmp_path):
    (tmp_path / "a.yaml").write_text("{}")
    training.check("fit", [str(tmp_path / "a.yaml") if arg == "{}" else arg for arg in args])


def test_help_shows_our_own_options_in_words(run_command, capsys):
    for command in cli.COMMANDS:
        assert run_command(command, "--help") == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 80
        for internal in (
            "<function",
            "lambda",
            "Literal",
            "default: null",
            "class_path",
            "Optional",
            "SIZES",
        ):
            assert internal not in printed
    run_command("sweep", "--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--model.pooling {pooler,cls,mean,last}" in printed
    assert "There are: in_process, ray." in printed
    assert "There are: accuracy, macro_f1" in printed
    assert "--trainer.accelerator" not in printed
    assert "max_epochs" in printed.partition("Lightning's Trainer")[2]


@pytest.mark.slow
@pytest.mark.parametrize("command", cli.TRAINING)
def test_every_option_that_lightning_takes_is_known(monkeypatch, command):
    """The options that are read from the sources are those of the parser that trains."""
    parser = printed_help(monkeypatch, command, "--help-all")
    options = training.Options(command)
    taken = {
        name.removeprefix("--").rstrip("+")
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not isinstance(action, ActionLink)
    }
    assert len(taken) > 60
    assert {name for name in taken if not options.has(name)} == {"model.tasks.help"}
    ours = set(options.own) - {name for name in options.own if name.startswith("data.")}
    assert ours <= taken


@pytest.mark.parametrize("name", training.DATA)
def test_the_signatures_that_are_read_are_those_that_python_sees(name):
    from loraens.data import modules

    found = {p.name: p for p in signature.parameters("loraens.data.modules", name)}
    kinds = inspect.signature(getattr(modules, name)), inspect.signature(modules.TextData)
    seen = {n: p.default for kind in reversed(kinds) for n, p in kind.parameters.items()}
    del seen["kwargs"]
    assert set(found) == set(seen)
    empty = inspect.Parameter.empty
    assert {n: p.default for n, p in found.items()} == {
        n: None if default is empty else default for n, default in seen.items()
    }
    assert found["limit"].type == (int | None)
