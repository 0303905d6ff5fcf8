"""`loraens push`: a member or an ensemble to the Hugging Face hub, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from loraens.commands.parser import Parser


def main(args: list[str]) -> None:
    """Run `push` with the options of the command line."""
    parser = Parser("push", __doc__ or "")
    parser.add_argument(
        "model",
        type=str,
        help="Directory of a member, of a run with one member, or of an ensemble; or the file"
        " RUN/ensembles/recommended.",
    )
    parser.add_argument(
        "repository", type=str, help="Name on the hub, OWNER/NAME; made where it is not there."
    )
    parser.add_argument(
        "--epoch",
        type=Literal["best", "last"],
        default="best",
        help="Epoch of a member; an ensemble names its members' epochs itself.",
    )
    parser.add_argument("--half", action="store_true", help="Adapters and heads in float16.")
    parser.add_argument(
        "--public", action="store_true", help="Have a new repository be public, not private."
    )
    given = parser.parse_args(args)

    from loraens.export.hub import push

    url = push(Path(given.model), given.repository, given.epoch, given.half, not given.public)
    print(f"{url}\nloraens predict --model hub:{given.repository}")
