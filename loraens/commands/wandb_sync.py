"""`loraens wandb-sync`: upload what runs logged to W&B while offline, with W&B's own `sync`."""

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
    found = sorted({file.parent for file in directory.rglob("offline-run-*/run-*.wandb")})
    if not found:
        raise InputError(
            f"{directory} holds no offline run of W&B: give a directory of runs that were logged"
            " offline"
        )
    return found


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


def main(args: list[str]) -> None:
    """Run `wandb-sync` with the options of the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="loraens wandb-sync", description=__doc__, exit_on_error=False)
    parser.add_argument("directory", type=str, help="Directory that holds runs, at any depth.")
    parser.add_argument(
        "--dry-run", action="store_true", help="List what would be uploaded, and upload nothing."
    )
    given = parser.parse_args(args)
    found = offline_runs(Path(given.directory))
    runs = [run for run in found if not is_uploaded(run)]
    if not runs:
        print(f"all {len(found)} offline runs below {given.directory} were uploaded before")
    elif given.dry_run:
        print("\n".join(map(str, runs)))
    else:
        upload(runs)
        print(f"runs uploaded: {len(runs)}")
