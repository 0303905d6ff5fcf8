"""Whether W&B can be reached, found out without a question."""

from __future__ import annotations

import os


def wandb_mode() -> dict[str, str]:
    """Arguments of `wandb.init`: online if an account is set up, else offline; `WANDB_MODE` decides where it is set."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    return {} if "WANDB_MODE" in os.environ or wandb.login(prompt=False) else {"mode": "offline"}
