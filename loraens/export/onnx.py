"""One ONNX file of a member or an ensemble, the tokenizer beside it, and a script that runs both
without loraens or torch.

Shape letters: N texts, L tokens of the longest text.
"""

from __future__ import annotations

import json
import logging
import random
import runpy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from loraens.ensemble.conformal import Region
from loraens.errors import InputError
from loraens.files import new_directory, write_atomically
from loraens.inference.predictor import Predictor
from loraens.metrics import Outcome
from loraens.tasks import Task

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
ABOUT = "model.json"
SCRIPT = "run.py"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-3  # of probabilities, and of numbers in units of their range; float32 gives 1e-5
PROBED = 200

SOURCE = '''"""Predictions of model.onnx without loraens: python run.py TEXT, or two of a pair."""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).parent
about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
session = onnxruntime.InferenceSession(str(HERE / "model.onnx"))
tensors = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
outputs = [output.name for output in session.get_outputs()]


def predict(texts):
    """Arrays by name, one row a text; each text is a string, or a pair of them."""
    encoded = tokenizer.encode_batch(texts)
    given = {
        node.name: np.array([getattr(e, tensors[node.name]) for e in encoded], np.int64)
        for node in session.get_inputs()
    }
    return dict(zip(outputs, session.run(None, given)))


if __name__ == "__main__":
    texts = [tuple(sys.argv[1:]) if len(sys.argv) > 2 else sys.argv[1]]
    for name, (value,) in predict(texts).items():
        print(name, value.tolist())
    print("classes", about["classes"])
'''


@dataclass(frozen=True)
class Check:
    """How the exported graph's predictions of some texts differ from those of `predict`.

    Args:
        texts: Number of the texts.
        agreement: Share of them with the same predicted class or labels; of numbers, within
            `TOLERANCE`.
        largest: The largest difference of a probability; of numbers, of a prediction.
        scores: The task's metric by `predict` and by the graph, where the texts have labels.
    """

    texts: int
    agreement: float
    largest: float
    scores: tuple[float, float] | None = None


def check_packages() -> None:
    """Refuse to export without the packages that are needed, before anything is computed.

    Raises:
        InputError: One is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"format onnx needs the package {missing[0]}: pip install 'loraens[onnx]'",
            option="format",
        )


def export_onnx(
    predictor: Predictor,
    task: Task,
    directory: Path,
    texts: Sequence[tuple[str, ...]],
    region: Region | None = None,
    int8: bool = False,
    labels: np.ndarray | None = None,
) -> Check:
    """Write a directory of `model.onnx`, `tokenizer.json`, `model.json` and `run.py`, after the
    graph's predictions of some texts were compared with `predictor`'s.

    The graph takes `input_ids`, `attention_mask` and, where the encoder reads them,
    `token_type_ids`, `(N, L)` int64 each, and gives what `graph.Graph` does.

    Args:
        predictor: The member or ensemble, on the CPU.
        task: Its task.
        directory: Where to write; it must be new or empty.
        texts: Texts to compare.
        region: The rule of prediction sets or intervals; none by default.
        int8: Whether to store and multiply weights as 8-bit integers (dynamic quantisation).
        labels: Labels of the texts, by which graph and `predictor` are scored.

    Raises:
        InputError: A package is missing, something cannot be exported, or the graph predicts
            otherwise than `predictor`.
    """
    check_packages()
    with new_directory(directory) as work:
        write_graph(predictor, task, region, work / MODEL)
        if int8:
            _quantise(work / MODEL)
        write_tokenizer(predictor, work / TOKENIZER)
        about = json.dumps(_about(predictor, task, int8), indent=2, ensure_ascii=False)
        write_atomically(work / ABOUT, f"{about}\n".encode())
        write_atomically(work / SCRIPT, SOURCE.encode())
        check = _compare(predictor, task, work, texts, labels)
        if not int8 and (check.agreement < 1 or check.largest > TOLERANCE):
            raise InputError(
                f"the exported graph predicts otherwise than `predict`: {check.agreement:.1%} of"
                f" {check.texts} texts alike, by up to {check.largest:.2g}; nothing was written"
            )
    return check


def write_graph(predictor: Predictor, task: Task, region: Region | None, path: Path) -> None:
    """Write the ONNX graph alone, its numbers of texts and tokens free.

    Raises:
        InputError: The backbone, label kind or adapters cannot be exported.
    """
    import torch

    from loraens.export.graph import Graph

    graph = Graph(predictor, task, region).eval()
    ids = torch.ones(2, 8, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids.clone()}
    if graph.reads_token_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quiet():
        outputs = list(graph(**inputs))
        try:
            torch.onnx.export(
                graph,
                kwargs=inputs,
                f=path,
                input_names=list(inputs),
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(inputs, free),
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError:
            raise InputError(
                "format onnx: PyTorch cannot export encoders of type"
                f" {predictor.model.encoder.config.model_type} with any number of tokens: give"
                " --format transformers or loraens",
                option="format",
            ) from None


def _quantise(path: Path) -> None:
    """Quantise the embeddings and the weights of matrix products in place, per output channel, but
    for those of members (adapters and heads), which are small.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    shared = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    of_members = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and not shared.intersection(node.input)
    ]
    with _quiet():
        quantize_dynamic(
            model_input=path,
            model_output=path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            nodes_to_exclude=of_members,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    names = ("torch", "torch.onnx", "onnxscript", "onnx_ir", "")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # PyTorch prints graphs that it cannot export
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def write_tokenizer(predictor: Predictor, path: Path) -> None:
    """Write the tokenizer, cut to the members' length and padding to the longest text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(predictor.tokenizer.to_str())
    side = (tokenizer.truncation or {"direction": "right"})["direction"]
    tokenizer.enable_truncation(predictor.max_length, strategy="longest_first", direction=side)
    pad = int(predictor.model.encoder.config.pad_token_id or 0)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    write_atomically(path, tokenizer.to_str().encode())


def _about(predictor: Predictor, task: Task, int8: bool) -> dict[str, Any]:
    """What a program must know beside the graph."""
    combination = predictor.combined(task)
    return {
        "task": task.name,
        "kind": task.kind,
        "text_columns": list(task.text_columns),
        "classes": list(task.class_names),
        "rule": combination.rule,
        "members": len(combination.weights),
        "max_length": predictor.max_length,
        "int8": int8,
    }


def probes(predictor: Predictor, task: Task, count: int = PROBED) -> list[tuple[str, ...]]:
    """Texts of random words of the tokenizer's vocabulary, of 1 to 40 words, the same ones always;
    one is longer than `max_length`.
    """
    words = sorted(word for word in predictor.tokenizer.get_vocab() if word.isalpha())
    chance = random.Random(0)
    lengths = [chance.randint(1, 40) for _ in range(count * len(task.text_columns))]
    lengths[0] = predictor.max_length + 8
    made = [" ".join(chance.choices(words, k=length)) for length in lengths]
    return list(zip(*[iter(made)] * len(task.text_columns), strict=True))


def _compare(
    predictor: Predictor,
    task: Task,
    directory: Path,
    texts: Sequence[tuple[str, ...]],
    labels: np.ndarray | None,
) -> Check:
    """Run the exported graph and `predictor` on texts."""
    arrays = run(directory, texts)
    found = Outcome(arrays["prediction"], arrays.get("probability"))
    pool = predictor.pool(predictor.logits(texts, task), task)
    expected = predictor.combined(task).outcome(pool)
    apart = np.abs(found.predictions - expected.predictions)
    same = apart <= TOLERANCE
    if expected.probabilities is not None:
        assert found.probabilities is not None
        apart = np.abs(found.probabilities - expected.probabilities)
    return Check(
        texts=len(texts),
        agreement=float((same.all(axis=1) if same.ndim == 2 else same).mean()),
        largest=float(apart.max()),
        scores=(
            None
            if labels is None
            else (task.main_metric(expected, labels), task.main_metric(found, labels))
        ),
    )


def run(directory: Path, texts: Sequence[tuple[str, ...]], size: int = 32) -> dict[str, np.ndarray]:
    """Outputs of an exported directory for texts, by name, as `run.py` computes them."""
    predict = runpy.run_path(str(directory / SCRIPT))["predict"]
    given = [text if len(text) > 1 else text[0] for text in texts]
    parts = [predict(given[start : start + size]) for start in range(0, len(given), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
