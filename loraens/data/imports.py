"""What may be imported by a name that stands in the settings of a run: a run may be a stranger's.

Settings that the user gives may name any class. Those that come with a run may name classes of
lightning, torch and loraens, and what the user allows; functions are refused even of these, as some
run code that they are told, such as `torch.hub.load`.
"""

from __future__ import annotations

import pydoc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from loraens.errors import InputError

TRUSTED = ("lightning", "torch", "loraens")
OURS = "loraens.data."  # data modules, whose other arguments are names of files and columns
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
FILES = (".yaml", ".yml", ".json", ".jsonnet", ".toml")

_allowed: set[str] = set()


def allow(modules: Iterable[str]) -> None:
    """Set which modules, with all that is in them, the settings of runs may name, too."""
    _allowed.clear()
    _allowed.update(modules)


def check_imports(settings: Any, origin: object) -> None:
    """Refuse settings of a run that name what is not to be imported; nothing of it is.

    Args:
        settings: As YAML has them.
        origin: Where they are from, for the message.

    Raises:
        InputError: It names the class or function, and how it is allowed.
    """
    for name in _names(settings):
        head = name.partition(".")[0]
        if any(name == module or name.startswith(f"{module}.") for module in _allowed):
            continue
        if _is_own_data(name):
            continue
        if name.endswith(FILES):
            raise InputError(
                f"{origin} names the file {name}, and settings of a run are in one file: restore it"
            )
        if head not in TRUSTED:
            raise InputError(
                f"{origin} names {name}, and settings that come with a run may name classes of"
                f" {', '.join(TRUSTED)} alone: if you trust it, give --allow {head}"
            )
        if not isinstance(pydoc.locate(name), type):
            raise InputError(
                f"{origin} names {name}, which is no class: if you trust it, give --allow {name}"
            )


def untrusted_modules(settings: Any) -> list[str]:
    """Modules that settings name, and that have to be allowed where these come with a run."""
    heads = (name.partition(".")[0] for name in _names(settings) if not name.endswith(FILES))
    return sorted(set(heads) - set(TRUSTED))


def resume_options(config: Path) -> str:
    """The options of a command that goes on with a training, by the config.yaml of its run."""
    modules = untrusted_modules(yaml.safe_load(config.read_text()))
    return " ".join([f"--config {config}", *(f"--allow {module}" for module in modules)])


def _names(settings: Any) -> Iterator[str]:
    """What settings may have imported or read, by section; the texts of `model`, and of our data
    modules, are names of layers, files and columns.
    """
    for section, value in settings.items() if isinstance(settings, Mapping) else ():
        path = str(value.get("class_path", "")) if isinstance(value, Mapping) else ""
        plain = section == "model" or (section == "data" and path.startswith(OURS))
        yield from _in(value, plain and isinstance(value, Mapping))


def _in(value: Any, plain: bool, key: str = "") -> Iterator[str]:
    """Class paths and, unless all other texts are plain ones, dotted names of modules that are
    there, and files of further settings.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _in(item, plain, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _in(item, plain, key)
    elif isinstance(value, str) and (key == "class_path" or not plain):
        if value.endswith(FILES) and Path(value).is_file():
            yield value
        elif key == "class_path" or "[" in value or _DOTTED.fullmatch(value):
            named = _DOTTED.findall(value)
            yield from (n for n in named if key == "class_path" or _is_module(n.partition(".")[0]))


def _is_module(name: str) -> bool:
    """Whether there is a module of that name at the top; it is not imported."""
    try:
        return find_spec(name) is not None
    except (ValueError, ImportError):  # such as __main__
        return True


def _is_own_data(name: str) -> bool:
    """Whether a program has imported that data module itself."""
    if name.rpartition(".")[0] not in sys.modules:
        return False
    from loraens.data.modules import TextData

    found = pydoc.locate(name)
    return isinstance(found, type) and issubclass(found, TextData)
