"""W&B mode without prompting, and stable run ids."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from loraens.errors import InputError


def wandb_mode() -> dict[str, str]:
    """Arguments of `wandb.init`: online if an account is set up, else offline; `WANDB_MODE` decides
    where it is set.

    Raises:
        InputError: The account's key is refused, or the server cannot be reached.
    """
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
    options: dict[str, Any] = {
        "project": "loraens",
        "group": group,
        "job_type": "ensemble",
        "name": f"{group} ensembles",
    }
    return {
        **options,
        "id": run_id(first, "ensembles"),
        "resume": "allow",
        "dir": folder,
        **wandb_mode(),
    }
