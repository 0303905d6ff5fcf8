"""`loraens export`: a member or an ensemble in one directory, for loraens or for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from loraens.commands.parser import Parser
from loraens.errors import InputError

OF_FORMATS = {  # options that not all formats have
    "int8": ("onnx",),
    "coverage": ("onnx",),
    "texts": ("onnx", "transformers"),
    "task": ("onnx", "transformers"),
    "half": ("loraens",),
    "with_backbone": ("loraens",),
    "backbone": ("onnx", "transformers", "loraens"),
}


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
        type=Literal["onnx", "transformers", "peft", "loraens"],
        default="onnx",
        help="onnx: one graph of everything, its tokenizer, and a script that runs it without"
        " loraens or torch. transformers: one member or soup merged with the backbone, a sequence"
        " classifier or a SentenceTransformer whose embeddings are the logits. peft: the members'"
        " adapters. loraens: what `predict`, `evaluate` and `serve` need, movable.",
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
        help="With onnx or transformers: the task, where the member was trained on several.",
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
        help="With onnx or transformers: file whose texts it is checked on, and with labels scored"
        " on; 200 texts of random words by default.",
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
    for name, formats in OF_FORMATS.items():
        if given.format not in formats and given[name] not in (None, False):
            raise InputError(f"--{name} is not an option of --format {given.format}: leave it out")
    out = Path(given.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out {out} exists: give a new directory", option="out")
    if given.format in ("onnx", "transformers"):
        _graph(given, out)
    elif given.format == "peft":
        from loraens.export.bundle import export_peft

        export_peft(Path(given.model), out, given.epoch)
    else:
        from loraens.export.bundle import export_bundle
        from loraens.export.card import CARD, model_card
        from loraens.files import write_atomically

        export_bundle(
            model=Path(given.model),
            directory=out,
            epoch=given.epoch,
            half=given.half,
            with_backbone=given.with_backbone,
            backbone=given.backbone,
        )
        write_atomically(out / CARD, model_card(out, str(out)).encode())
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>12,} bytes  {path}")


def _graph(given: Namespace, out: Path) -> None:
    """Export to ONNX or `transformers`, and say how the predictions compare."""
    from loraens.data.splits import read_split
    from loraens.export.merged import export_merged
    from loraens.export.onnx import check_packages, export_onnx, probes
    from loraens.inference.predictor import Predictor

    if given.format == "onnx":
        check_packages()
    predictor = Predictor.load(given.model, given.epoch, device="cpu", backbone=given.backbone)
    task = predictor.task(given.task)
    region = predictor.region(task, given.coverage)
    split = None if given.texts is None else read_split(given.texts, "test", task)
    texts = probes(predictor, task) if split is None else split.texts
    kind = "texts of random words" if split is None else f"texts of {split.origin}"
    if given.format == "transformers":
        loads, apart = export_merged(predictor, task, out, texts)
        print(f"logits of {len(texts)} {kind} differ by up to {apart:.2g} from those of `predict`")
        print(f"load it: {loads}")
        return
    labels = None if split is None else split.labels
    check = export_onnx(predictor, task, out, texts, region, given.int8, labels)
    if task.label_kind.categorical:
        print(
            f"{check.agreement:.1%} of {check.texts} {kind} are predicted as by `predict`; the"
            f" largest difference of a probability is {check.largest:.2g}"
        )
    else:
        print(
            f"predictions of {check.texts} {kind} differ by up to {check.largest:.2g} from those of"
            " `predict`"
        )
    if check.scores is not None:
        before, after = check.scores
        print(f"{task.metric}: {before:.4f} by `predict`, {after:.4f} by the exported graph")
    text = " ".join('"a text"' for _ in task.text_columns)
    print(f"try it: {Path(sys.executable).name} {out / 'run.py'} {text}")
