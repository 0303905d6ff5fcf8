"""The command line: one table from command to function, each imported only when it runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Any

from loraens import __version__
from loraens.errors import InputError, escaped

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module, function of the remaining arguments, what it does)
    "quickstart": (
        "loraens.commands.quickstart",
        "main",
        "train a few members on a small made-up corpus and combine them",
    ),
    "build": (
        "loraens.commands.build",
        "main",
        "make an ensemble to deploy from one file of labelled texts",
    ),
    "fit": ("loraens.commands.training", "main", "train one member"),
    "sweep": (
        "loraens.commands.training",
        "main",
        "train a grid of members at once on one backbone",
    ),
    "import": (
        "loraens.commands.import_peft",
        "main",
        "take adapters that PEFT trained into a run, as its members",
    ),
    "ensemble": (
        "loraens.commands.ensemble",
        "main",
        "choose members, combine them, and prove what that is worth",
    ),
    "distil": (
        "loraens.commands.distil",
        "main",
        "train members on what an ensemble predicts, so that one is worth nearly all of it",
    ),
    "report": ("loraens.commands.report", "main", "show members and ensembles on one page"),
    "compare": (
        "loraens.commands.compare",
        "main",
        "print or write the table of members, baselines and ensembles of runs",
    ),
    "validate": ("loraens.commands.training", "main", "score a checkpoint on dev"),
    "test": ("loraens.commands.training", "main", "score a checkpoint on a labelled test split"),
    "predict": (
        "loraens.commands.predict",
        "main",
        "write a trained member's predictions for a file or a text",
    ),
    "evaluate": (
        "loraens.commands.evaluate",
        "main",
        "score a trained member or an ensemble on a labelled file",
    ),
    "export": (
        "loraens.commands.export",
        "main",
        "write a member or an ensemble for another program, or to be moved",
    ),
    "serve": (
        "loraens.commands.serve",
        "main",
        "answer requests for predictions over HTTP",
    ),
    "push": (
        "loraens.commands.push",
        "main",
        "upload a member or an ensemble to the Hugging Face hub",
    ),
    "wandb-sync": ("loraens.commands.wandb_sync", "main", "upload what was logged to W&B offline"),
}
OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TRAINING = ("fit", "sweep", "validate", "test")  # one function, which is told the command


class Stopped(SystemExit):
    """A signal ends the command, with the exit code by which shells tell that: 128 and its number.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.sentence = "interrupted" if number == signal.SIGINT else "terminated"


def _stop_by_signals() -> None:
    """Have SIGINT and SIGTERM raise `Stopped`, once: a second one does not disturb the end of what
    is under way, and a third one ends the process at once. What is ignored, as SIGINT by `nohup`
    and in the background of a script, stays so.
    """
    received = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            raise Stopped(number)
        if received > 2:
            os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def usage() -> str:
    """What `loraens --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: loraens COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "`loraens COMMAND --help` lists a command's options.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends in one sentence and exit code 2, as a full disk does, SIGINT in
    130 and SIGTERM in 143.

    Args:
        argv: Arguments without the program's name; those of the process by default, whose signals
            are then handled, too.
    """
    if argv is None:
        _stop_by_signals()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"loraens {__version__}")
        return
    name = arguments[0]
    rest = arguments[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f", did you mean {near[0]}?" if near else ":"
        _fail(f"{name!r} is not a command{meant} use one of {', '.join(COMMANDS)}")
    module, function, _ = COMMANDS[name]
    try:
        run: Callable[[list[str]], Any] = getattr(import_module(module), function)
        run([name, *rest] if name in TRAINING else rest)
        sys.stdout.flush()  # here, as an error of it at the very end would be none of ours
    except Stopped as stop:
        for number in SIGNALS:  # the interpreter's end would give them their defaults back
            signal.signal(number, signal.SIG_IGN)
        _fail(stop.sentence, code=int(str(stop.code)))
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except Exception as error:
        if (sentence := _of_output(error)) is not None:
            _fail(sentence, code=1)
        if (sentence := _fixable(error)) is not None:
            _fail(sentence)
        if not isinstance(error, ArgumentError):
            raise
        _fail(f"{name}: {_option_error(str(error))}: see `loraens {name} --help`")


def _of_output(error: Exception) -> str | None:
    """The sentence of standard output that cannot be written any more, as its disk is full or its
    reader, such as `head`, has gone; None where that is not the error. Nothing more is written.
    """
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        output = sys.stdout.fileno()
    except ValueError:  # it is in memory
        return None
    if error.errno != errno.EPIPE:  # of output, or of a library's file that it does not name
        try:
            os.write(output, b"\n")
        except OSError as of_output:
            error = of_output
        else:
            return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return f"standard output: {error.strerror}"


def _fixable(error: BaseException | None) -> str | None:
    """The sentence of an error that the user can fix, among an error and its causes: jsonargparse
    wraps what the constructor of a class raises.
    """
    while error is not None:
        if isinstance(error, InputError):
            return error.in_command()
        if _is_refusal_of_lightning(error):
            return f"Lightning: {' '.join(str(error).split())}"
        if isinstance(error, ModuleNotFoundError):
            return " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.errno in OF_STORAGE:  # of a library's file
            return f"a file could not be written ({error.strerror})"
        error = error.__cause__
    return None


def _is_refusal_of_lightning(error: BaseException) -> bool:
    """Whether Lightning itself has refused an option; it raises several kinds of errors then."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("lightning.")
    named = type(error).__name__ == "MisconfigurationException"  # whose module takes seconds
    return inside and (named or isinstance(error, (ValueError, TypeError)))


def _option_error(message: str) -> str:
    """The parser's message on one line; of the alternatives that failed for a nested class, the
    first one's reason.
    """
    key, _, details = message.partition("Does not validate against any of the Union subtypes")
    if details:
        reasons = details.partition("Errors:")[2].partition("Given value type:")[0]
        message = key + reasons.strip().removeprefix("- ").partition("\n    - ")[0]
    return " ".join(message.split())


def _fail(message: str, code: int = 2) -> None:
    print(f"loraens: {escaped(message)}", file=sys.stderr)
    sys.exit(code)
