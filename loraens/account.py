"""Whether W&B can be reached, found out without a question, and by which id a run is met again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def wandb_mode() -> dict[str, str]:
    """Arguments of `wandb.init`: online if an account is set up, else offline; `WANDB_MODE` decides where it is set."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    return {} if "WANDB_MODE" in os.environ or wandb.login(prompt=False) else {"mode": "offline"}


def run_id(directory: Path, name: str) -> str:
    """W&B's id of a run, the same whenever it is written again."""
    return hashlib.sha256(f"{directory.resolve()} {name}".encode()).hexdigest()[:12]
