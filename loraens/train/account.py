"""Arguments of W&B's runs: as its environment variables say, and never a question."""

from __future__ import annotations

import hashlib
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loraens.errors import InputError


def check_wandb(option: str = "logger") -> None:
    """Refuse to log to W&B without its package, before anything is done that would be logged.

    Args:
        option: The option that switches it off.

    Raises:
        InputError: The package is missing.
    """
    if find_spec("wandb") is None:
        raise InputError(
            "logger: the package wandb is missing: pip install wandb, or give false", option=option
        )


def run_options(
    directory: Path,
    name: str,
    project: str = "loraens",
    group: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `wandb.init`. The variables `WANDB_PROJECT`, `WANDB_RUN_GROUP`, `WANDB_NAME` and
    `WANDB_DIR` decide where they are set; of a group's runs, which have names of their own, the
    name in the variable is the beginning.

    Args:
        directory: Where W&B's files go.
        name: The run's.
        project: Its project.
        group: Its group.
        options: Further arguments.

    Raises:
        InputError: The package is missing, the account's key is refused, or the server cannot be
            reached.
    """
    check_wandb("trainer.logger")
    given = os.environ.get("WANDB_NAME")
    if given:
        name = given if group is None else f"{given} {name}"
    if group is not None:
        options["group"] = os.environ.get("WANDB_RUN_GROUP") or group
    return {
        "project": os.environ.get("WANDB_PROJECT") or project,
        "name": name,
        "dir": Path(os.environ.get("WANDB_DIR") or directory),
        **options,
        **_mode(directory),
    }


def _mode(directory: Path) -> dict[str, str]:
    """Online if an account is set up, else offline; `WANDB_MODE` decides where it is set."""
    _leave_home(directory)
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        return (
            {} if "WANDB_MODE" in os.environ or wandb.login(prompt=False) else {"mode": "offline"}
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"W&B rejected the API key ({error}): fix it, or set WANDB_MODE=offline"
        ) from None


def _leave_home(directory: Path) -> None:
    """Have W&B keep data, cache and settings below a directory where the home cannot be written,
    which would end a run that has trained.
    """
    from wandb import env

    homes = {
        env.DATA_DIR: Path(env.get_data_dir()),
        env.CACHE_DIR: env.get_cache_dir(),
        env.CONFIG_DIR: Path("~/.config/wandb").expanduser(),
    }
    left = [name for name, path in homes.items() if name not in os.environ and not _writable(path)]
    if left:
        instead = str(directory.resolve() / "wandb" / "home")
        os.environ.update(dict.fromkeys(left, instead))
        warnings.warn(
            f"{homes[left[0]]} cannot be written: {', '.join(left)} are {instead}", stacklevel=2
        )


def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(path, os.W_OK)


def run_id(directory: Path, name: str) -> str:
    """W&B's id of a run, the same whenever it is written again."""
    return hashlib.sha256(f"{directory.resolve()} {name}".encode()).hexdigest()[:12]


def ensembles_run(first: Path, folder: Path) -> dict[str, Any]:
    """Arguments of `wandb.init` for the run of a sweep's ensembles, met again by what is logged of
    them later.

    Args:
        first: The sweep, or the first of several.
        folder: Where W&B's files go.
    """
    group = first.resolve().name
    return run_options(
        folder,
        f"{group} ensembles",
        group=group,
        job_type="ensemble",
        id=run_id(first, "ensembles"),
        resume="allow",
    )
