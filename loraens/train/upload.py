"""Upload of runs that were logged to W&B offline, with W&B's own `sync`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraens.errors import InputError


def offline_runs(directory: Path) -> list[Path]:
    """Offline runs of W&B anywhere below a directory.

    Raises:
        InputError: There is none.
    """
    runs = sorted({file.parent for file in directory.rglob("offline-run-*/run-*.wandb")})
    if not runs:
        raise InputError(
            f"{directory} has no offline run of W&B: give a directory of runs that were logged"
            " offline"
        )
    return runs


def is_uploaded(run: Path) -> bool:
    """Whether W&B has left its mark beside the run's file: it ends with exit code 0 also where it
    was refused.
    """
    return all(file.with_suffix(".wandb.synced").exists() for file in run.glob("run-*.wandb"))


def wandb(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run W&B's command, online, without questions."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("WANDB_MODE", "WANDB_SILENT")
    }
    command = [sys.executable, "-m", "wandb", *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, env=environment, text=True, check=False, **options
    )


def upload(runs: Sequence[Path]) -> None:
    """Upload offline runs.

    Raises:
        InputError: No account is set up or the server refuses it or cannot be reached, or runs were
            not uploaded.
    """
    login = wandb(
        "login", "--verify", capture_output=True
    )  # `sync` would try an unreachable server for ever
    if login.returncode:
        reasons = [line for line in login.stderr.splitlines() if line.startswith("Error: ")]
        raise InputError(
            f"W&B cannot be logged in to ({' '.join(reasons).removeprefix('Error: ')}): run `wandb"
            " login` first"
        )
    wandb("sync", *runs)
    if left := [str(run) for run in runs if not is_uploaded(run)]:
        raise InputError(
            f"{len(left)} of {len(runs)} runs were not uploaded, see above and try again:"
            f" {', '.join(left)}"
        )
