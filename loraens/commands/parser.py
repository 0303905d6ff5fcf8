"""The parser of the commands: help and errors in plain words, and suggestions."""

from __future__ import annotations

import inspect
import re
import types
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, auto_cli

from loraens.errors import InputError

ALLOW = "Modules that settings which come with a run may name, beside lightning, torch and loraens."
BACKBONE_HELP = (
    "Where the backbone is now, if it was moved: a directory or hub name of the same weights."
)
UNFINISHED = "Use members whose training has not ended, too."
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "mapping"}


def in_words(kind: Any) -> str:
    """A type as users know it; empty where there is nothing to say.

    Examples:
        >>> in_words(list[int] | None), in_words(Literal["cls", "mean"]), in_words(str)
        ('list of whole numbers', 'cls or mean', 'text')
    """
    origin = get_origin(kind)
    arguments = get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        words = [in_words(part) for part in arguments if part is not type(None)]
        return " or ".join(dict.fromkeys(words)) if all(words) else ""
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        item = in_words(arguments[0]) if arguments else ""
        plural = f"{item}s" if item in WORDS.values() else item
        return f"list of {plural}" if item else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return WORDS[dict]
    return WORDS.get(kind, "")


def unknown_option(command: str, name: str, known: Iterable[str]) -> InputError:
    """The error of an option that a command does not have.

    Args:
        command: The command.
        name: The option as it was given.
        known: Those that it has, likewise.
    """
    near = get_close_matches(name, list(known), n=1)
    meant = f", did you mean {near[0]}?" if near else ":"
    return InputError(
        f"{name} is not an option of {command}{meant} `loraens {command} --help` lists them"
    )


class HelpFormatter(DefaultHelpFormatter):
    """Help without names of classes: type and default in words."""

    def _get_help_string(self, action: Action) -> str:
        parts = ["required"] if action.required and action.option_strings else []
        kind = in_words(getattr(action, "_typehint", action.type))
        listed = f"{{{kind.replace(' or ', ',')}}}"
        if kind not in ("", WORDS[str]) and action.metavar != listed:
            parts.append(kind)
        default = action.default
        if action.option_strings and action.nargs != 0 and default not in (None, SUPPRESS, []):
            value = ", ".join(default) if isinstance(default, (list, tuple)) else str(default)
            parts.append(f"default: {value.lower() if isinstance(default, bool) else value}")
        return (action.help or "") + (f" ({'; '.join(parts)})" if parts else "")

    def _format_action_invocation(self, action: Action) -> str:
        strings = action.option_strings
        action.option_strings = [name for name in strings if not name.endswith("+")]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = strings

    def _get_type_str(self, action: Action) -> None:
        """Types are in the help string."""


class Parser(ArgumentParser):
    """The parser of one command.

    Args:
        command: The command's name.
        description: What it does.
    """

    def __init__(self, command: str = "", description: str = "", **kwargs: Any) -> None:
        super().__init__(
            **{
                "prog": f"loraens {command}",
                "description": description,
                "formatter_class": HelpFormatter,
                "exit_on_error": False,
                **kwargs,
            }
        )
        self.command = command

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Parse arguments.

        Raises:
            InputError: An option is unknown or missing, or its value is of another type.
            ArgumentError: Something else is wrong.
        """
        for argument in args or ():
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                raise unknown_option(self.command, name, self._option_string_actions)
        try:
            return super().parse_args(args, *rest, **options)
        except ArgumentError as error:
            raise self._in_words(str(error)) or error from None

    def _in_words(self, message: str) -> InputError | None:
        """The error of a value that is missing or of another type, without names of classes."""
        options = {a.dest: a for a in self._actions if a.option_strings}
        missing = re.match(r"the following arguments are required: (\S+)$", message)
        if missing and missing[1] in options:
            return InputError(
                f"--{missing[1]} is missing: `loraens {self.command} --help` tells what it is"
            )
        pattern = r'Parser key "([^"]+)".*(?:Got|Given) value: (.*)'
        wrong = re.match(pattern, message, re.DOTALL)
        if wrong is None or wrong[1] not in options:
            return None
        expected = in_words(getattr(options[wrong[1]], "_typehint", None)) or "another value"
        article = "" if " or " in expected or expected.startswith("another") else "a "
        return InputError(f"--{wrong[1]} {wrong[2]}: {article}{expected} is expected")


def call(function: Callable[..., Any], command: str, args: Sequence[str]) -> None:
    """Call a function with the options of the command line.

    Args:
        function: Its parameters are the options.
        command: The command's name.
        args: The command line after it.
    """
    auto_cli(
        function,
        args=list(args),
        as_positional=False,
        parser_class=Parser,
        command=command,
        description=inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0],
    )
