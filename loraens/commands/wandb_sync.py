"""`loraens wandb-sync`: upload runs that were logged to W&B offline."""

from __future__ import annotations

from pathlib import Path

from loraens.commands.parser import Parser
from loraens.errors import say
from loraens.train.upload import is_uploaded, offline_runs, upload


def main(args: list[str]) -> None:
    """Run `wandb-sync` with the options of the command line."""
    parser = Parser("wandb-sync", __doc__)
    parser.add_argument("directory", type=str, help="Directory of runs, at any depth.")
    parser.add_argument(
        "--dry-run", action="store_true", help="List what would be uploaded, and upload nothing."
    )
    given = parser.parse_args(args)
    offline = offline_runs(Path(given.directory))
    runs = [run for run in offline if not is_uploaded(run)]
    if not runs:
        say(f"all {len(offline)} offline runs below {given.directory} were uploaded before")
    elif given.dry_run:
        say("\n".join(map(str, runs)))
    else:
        upload(runs)
        say(f"runs uploaded: {len(runs)}")
