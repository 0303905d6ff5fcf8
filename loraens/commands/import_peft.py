"""`loraens import`: adapters that PEFT trained become members of a run, scored on its texts.

They are pooled, combined and proved by `ensemble`, `report` and `predict` as if they had been
trained in the run. A new run is given settings as of `sweep`, after the options here.
"""

from __future__ import annotations

from pathlib import Path

from loraens.commands.parser import BACKBONE_HELP, Parser
from loraens.commands.training import checked
from loraens.errors import say

OWN = ("run", "task", "backbone", "same_backbone", "help")


def main(args: list[str]) -> None:
    """Run `import` with the options of the command line."""
    own, settings = _divided(args)
    parser = Parser("import", __doc__ or "", usage="loraens import PEFT_DIR... --run DIR [options]")
    parser.add_argument(
        "adapters",
        nargs="+",
        type=str,
        help="Directories with adapter_config.json and adapter_model.safetensors; the head is in"
        " modules_to_save, or in heads.safetensors beside.",
    )
    parser.add_argument(
        "--run",
        type=str,
        required=True,
        help="Directory of the run, of a sweep or a new one; a new one needs settings as of"
        " `sweep`: --config FILE, --data.*, --model.*.",
    )
    parser.add_argument(
        "--task", type=str | None, default=None, help="The task, where the run has several."
    )
    parser.add_argument("--backbone", type=str | None, default=None, help=BACKBONE_HELP)
    parser.add_argument(
        "--same_backbone",
        action="store_true",
        help="The model that the adapters name is not on this machine, and is known to have the"
        " weights of the run's backbone.",
    )
    given = parser.parse_args(own)

    from loraens.api.imported import import_members
    from loraens.commands.sweep import parsed

    run = Path(given.run)
    config = None
    if settings:
        place = [f"--store.root={run.parent}", f"--store.run={run.name}"]
        config = parsed(checked("sweep", [*settings, *place])).sweep_config()
    manifests = import_members(
        directories=given.adapters,
        run=run,
        config=config,
        task=given.task,
        backbone=given.backbone,
        same_backbone=given.same_backbone,
    )
    for name, manifest in manifests.items():
        (task,) = manifest.settings.tasks
        say(
            f"{name}: rank {manifest.member.rank}, scale {manifest.member.scale:g}, adapter"
            f" {manifest.settings.adapter}, {task.metric} on dev {manifest.score(task) or 0:.4f}"
        )
    say(f"the members are in {run}")


def _divided(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are of `import`, and the settings of a new run."""
    own: list[str] = []
    settings: list[str] = []
    into = own
    for argument in args:
        if argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            into = own if name in OWN or argument == "-h" else settings
        into.append(argument)
    return own, settings
