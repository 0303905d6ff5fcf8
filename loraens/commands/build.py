"""`loraens build`: from one labelled file to an ensemble to deploy, within a given time."""

from __future__ import annotations

from typing import Literal

from loraens.commands.parser import Parser
from loraens.data.tables import Quoting


def main(args: list[str]) -> None:
    """Run `build` with the options of the command line."""
    parser = Parser("build", __doc__ or "")
    text = str | None
    parser.add_argument("train", type=str, help="File of labelled texts.")
    parser.add_argument("--out", type=str, required=True, help="Directory of all that is written.")
    parser.add_argument(
        "--text", nargs="+", type=str, default=None, help="The text column, or the two of a pair."
    )
    parser.add_argument("--label", type=text, default=None, help="The label column.")
    parser.add_argument(
        "--kind",
        type=Literal["classes", "number", "labels", "levels"] | None,
        default=None,
        help="What labels are. By default lists, or names between a delimiter, are labels, numbers"
        " of many values or with decimals numbers, and all else classes.",
    )
    parser.add_argument(
        "--delimiter",
        type=text,
        default=None,
        help="What is between the names of several labels in a cell.",
    )
    parser.add_argument(
        "--class_names",
        nargs="+",
        type=str,
        default=None,
        help="All classes, where labels are refused that are meant; of levels from the lowest.",
    )
    parser.add_argument(
        "--dev",
        type=text,
        default=None,
        help="File of texts that choose epochs and ensembles; a fifth of the texts by default.",
    )
    parser.add_argument(
        "--test",
        type=text,
        default=None,
        help="File of texts that are predicted at the end, and scored where they have labels.",
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="About how long it may take on this machine."
    )
    parser.add_argument(
        "--backbone",
        type=text,
        default=None,
        help="Hub name or directory of the encoder; minilm where its package is installed, else"
        " bert-base-uncased, by default.",
    )
    parser.add_argument(
        "--metric", type=text, default=None, help="Score that chooses, such as macro_f1."
    )
    parser.add_argument("--max_length", type=int, default=128, help="Longest sequence in tokens.")
    parser.add_argument(
        "--encoding", type=str, default="utf-8", help="Encoding of files that are text."
    )
    parser.add_argument(
        "--quoting",
        type=Quoting,
        default="auto",
        help="What quotes mean in CSV and TSV, as of `predict`.",
    )
    given = parser.parse_args(args)

    from loraens.api.build import build

    build(**given.as_dict())
