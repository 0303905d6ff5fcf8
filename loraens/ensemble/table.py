"""The table of the ensembles that were made together, and what of them is not there any more."""

from __future__ import annotations

import json
from pathlib import Path

from loraens.ensemble.recommend import RECOMMENDED
from loraens.errors import InputError
from loraens.store import ENSEMBLE

TABLE = "ensembles.json"
FIX = "make it again with `loraens ensemble`"


def _names(folder: Path) -> list[str] | None:
    """Names of the ensembles in the table of a directory; None where it cannot be read."""
    try:
        entries = json.loads((folder / TABLE).read_bytes())
        return [f"{entry['task']['name']}-{entry['method']}-{entry['rule']}" for entry in entries]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def missing_ensembles(folder: Path) -> str | None:
    """A sentence that names what the last `loraens ensemble` wrote into a directory, by its table,
    and is not there; None where all is.

    Raises:
        InputError: The table cannot be read.
    """
    if not (folder / TABLE).is_file():
        return None
    if (names := _names(folder)) is None:
        raise InputError(f"{folder / TABLE} is no table of ensembles: {FIX}")
    files = [*(f"{name}/{ENSEMBLE}" for name in names), RECOMMENDED]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        return None
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    return f"{folder} lacks {missing[0]}{more} of its ensembles: restore it, or make them again"


def check_listed(directory: Path, task: str, method: str, rule: str, refit: bool) -> None:
    """Refuse a record in the directory of another ensemble, where the table beside it has that; a
    table that cannot be read is no obstacle.

    Args:
        directory: The ensemble's.
        task: Name of the record's task.
        method: Its method.
        rule: Its combination rule.
        refit: Whether its members are refit.

    Raises:
        InputError: It is of another one.
    """
    directory = directory.resolve()
    name = f"{task}-{method}-{rule}"
    listed = _names(directory.parent) or ()
    if directory.name in listed and (refit or directory.name != name):
        raise InputError(f"{directory / ENSEMBLE} is the record of another ensemble, {name}: {FIX}")
