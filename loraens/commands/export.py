"""`loraens export`: a member or an ensemble in one directory, for loraens or for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from loraens.commands.parser import Parser
from loraens.errors import InputError

ONNX = ("int8", "coverage", "texts", "task")
BUNDLE = ("half", "with_backbone")


def main(args: list[str]) -> None:
    """Run `export` with the options of the command line."""
    parser = Parser("export", __doc__ or "")
    text = str | None
    parser.add_argument(
        "model",
        type=str,
        help="Directory of a member, of a run with one member, or of an ensemble; or the file"
        " RUN/ensembles/recommended.",
    )
    parser.add_argument("--out", type=str, required=True, help="Directory to write; a new one.")
    parser.add_argument(
        "--format",
        type=Literal["onnx", "loraens"],
        default="onnx",
        help="onnx: one graph of everything, its tokenizer, and a script that runs it without"
        " loraens or torch. loraens: what `predict`, `evaluate` and `serve` need, movable.",
    )
    parser.add_argument(
        "--epoch",
        type=Literal["best", "last"],
        default="best",
        help="Epoch of a member; an ensemble names its members' epochs itself.",
    )
    parser.add_argument(
        "--backbone",
        type=text,
        default=None,
        help="Where the backbone is now, if it was moved: a directory or hub name of the same"
        " weights.",
    )
    parser.add_argument(
        "--task",
        type=text,
        default=None,
        help="With onnx: the task, where the member was trained on several.",
    )
    parser.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="With onnx: share of new texts, such as 0.9, whose label is in the prediction set or"
        " interval that the graph then gives.",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="With onnx: weights of the backbone in 8 bits, a quarter of the size.",
    )
    parser.add_argument(
        "--texts",
        type=text,
        default=None,
        help="With onnx: file whose texts the graph is checked on, and with labels scored on; 200"
        " texts of random words by default.",
    )
    parser.add_argument(
        "--half", action="store_true", help="With loraens: adapters and heads in float16."
    )
    parser.add_argument(
        "--with_backbone",
        action="store_true",
        help="With loraens: the backbone's files, too.",
    )
    given = parser.parse_args(args)
    others = BUNDLE if given.format == "onnx" else ONNX
    for name in others:
        if given[name] not in (None, False):
            raise InputError(f"--{name} is not an option of --format {given.format}: leave it out")
    out = Path(given.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out {out} exists: give a new directory", option="out")
    if given.format == "onnx":
        _onnx(
            model=given.model,
            out=out,
            epoch=given.epoch,
            backbone=given.backbone,
            task=given.task,
            coverage=given.coverage,
            int8=given.int8,
            texts=given.texts,
        )
    else:
        from loraens.export.bundle import export_bundle

        export_bundle(
            model=Path(given.model),
            directory=out,
            epoch=given.epoch,
            half=given.half,
            with_backbone=given.with_backbone,
            backbone=given.backbone,
        )
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>12,} bytes  {path}")


def _onnx(
    model: str,
    out: Path,
    epoch: Literal["best", "last"],
    backbone: str | None,
    task: str | None,
    coverage: float | None,
    int8: bool,
    texts: str | None,
) -> None:
    """Export to ONNX, and say how its predictions compare."""
    from loraens.data.splits import read_split
    from loraens.export.onnx import check_packages, export_onnx, probes
    from loraens.inference.predictor import Predictor

    check_packages()
    predictor = Predictor.load(model, epoch, device="cpu", backbone=backbone)
    chosen = predictor.task(task)
    region = predictor.region(chosen, coverage)
    split = None if texts is None else read_split(texts, "test", chosen)
    checked = probes(predictor, chosen) if split is None else split.texts
    labels = None if split is None else split.labels
    check = export_onnx(predictor, chosen, out, checked, region, int8, labels)
    kind = "texts of random words" if split is None else f"texts of {split.origin}"
    quantity = "probability" if chosen.label_kind.categorical else "prediction"
    print(
        f"{check.agreement:.1%} of {check.texts} {kind} are predicted as by `predict`; the largest"
        f" difference of a {quantity} is {check.largest:.2g}"
    )
    if check.scores is not None:
        before, after = check.scores
        print(f"{chosen.metric}: {before:.4f} by `predict`, {after:.4f} by the exported graph")
    print(f'try it: {Path(sys.executable).name} {out / "run.py"} "a text"')
