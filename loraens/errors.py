"""The one error that the user can fix, and how texts of strangers are shown."""

from __future__ import annotations

import json
import unicodedata

UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that are not seen


def escaped(text: str) -> str:
    """A text whose control characters, which could command a terminal, are escaped.

    Examples:
        >>> print(escaped("a" + chr(27) + "[2J").replace(chr(92), "/"))
        a/x1b[2J
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if character != "\n" and _is_unsafe(character)
        else character
        for character in text
    )


def in_json(text: str) -> str:
    """A text in JSON whose control characters are escaped as JSON has it.

    Examples:
        >>> print(in_json('"a' + chr(155) + '"').replace(chr(92), "/"))
        "a/u009b"
    """
    return "".join(
        json.dumps(character)[1:-1] if _is_unsafe(character) else character for character in text
    )


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE


def say(sentence: str) -> None:
    """Print a sentence, which may have names of strangers in it."""
    print(escaped(sentence), flush=True)


class InputError(ValueError):
    """An argument, file or line that cannot be used.

    The message is one sentence: what it is about, what was expected, what to do.

    Args:
        message: The sentence. If it is about an argument, it begins with the argument's name.
        option: The same argument on the command line, without dashes, such as "model.rank"; its
            last part is the argument's name.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option

    def in_command(self) -> str:
        """The sentence as a command prints it: with the option in place of the argument."""
        message = " ".join(str(self).split())
        if self.option is None:
            return message
        return f"--{self.option}{message.removeprefix(self.option.rpartition('.')[2])}"
