"""The tables of docs/encoders.md: what each type of encoder can, as the tests of the padded path
and of the others find it.

    PYTHONPATH=. python tests/test_encoders_table.py     makes it again
"""

import re
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import test_padded as checks
import torch
from helpers.stock import CONFIGS, DECODERS, TARGETS, bracketing_tokenizer
from transformers import AutoModel

from loraens.errors import InputError
from loraens.export.graph import Graph
from loraens.export.merged import export_merged
from loraens.export.onnx import export_onnx, probes
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.model.adapters import ADAPTERS
from loraens.model.architectures import architecture_of
from loraens.model.backbone import load_encoder
from loraens.model.classifier import pooling_of_classifier
from loraens.model.population import MemberModel
from loraens.model.routing import Routing
from loraens.model.tokenizer import load_tokenizer
from loraens.tasks import SST

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
HEAD = (
    "| type | path | default targets | members | trains, exact | predict | PEFT out | PEFT in |"
    " classifier of PEFT | export |"
)
WORDS = ["man", "dog", "guy", "boat", "kid", "wall", "river", "today"]
# types whose graphs are exported in tests, too: each takes another branch; others when the page is
# made
EXPORTED = ("longformer", "qwen3", "xlnet")


def save(name: str, directory: Path) -> Path:
    """A small random model of a type, and a tokenizer."""
    torch.manual_seed(1)
    AutoModel.from_config(deepcopy(CONFIGS[name])).save_pretrained(directory)
    bracketing_tokenizer(WORDS).save_pretrained(directory)
    return directory


def row(name: str, directory: Path, out: Path, export: bool = True) -> str:
    """The table's row of a type, of which `directory` has a small model.

    Args:
        name: The type.
        directory: Where the model is.
        out: Empty, for adapters and exports.
        export: Whether to export to ONNX; it is taken to work else.
    """
    encoder = load_encoder(str(directory), pooler=False)
    targets = TARGETS.get(name, ("query", "value"))
    model = MemberModel(encoder, [SST], checks.MEMBERS, targets=targets, pooling="last")
    path = "padded" if model.padded else "fast, packed" if model.fast else "packed"
    names = model.architecture.linear_names(targets)
    in_turn = [model.train(mode).padded.in_turn for mode in (False, True) if model.padded]
    given = "none; " if name in TARGETS else ""

    def saved(_: str) -> Path:
        return directory

    checks.test_features_are_those_of_the_stock_model(saved, name)
    checks.test_members_together_are_those_alone(saved, name)
    for folder, check in (
        ("out", checks.test_peft_loads_a_member_with_the_same_logits),
        ("in", checks.test_a_member_is_what_peft_trained),
    ):
        (out / folder).mkdir()
        check(saved, name, out / folder)
    if path != "padded":
        checks.test_packed_and_padded_are_one(saved, name, "mean")
    members = {
        (True, True): "one by one",
        (False, True): "together, trained one by one",
    }.get(tuple(in_turn), "together")
    shown = ", ".join(f"`{layer}`" for layer in names)
    can = (
        f"yes | yes | yes | yes | {classifier(directory)} | {formats(name, directory, out, export)}"
    )
    return f"| `{name}` | {path} | {given}{shown} | {members} | {can} |"


def classifier(directory: Path) -> str:
    """Whether heads of PEFT's classifiers are taken, and given."""
    encoder = load_encoder(str(directory), pooler=False)
    reasons = []
    for head in ("classifier", "score"):
        try:
            pooling = pooling_of_classifier(str(directory), head)
        except InputError as error:
            reasons.append(str(error).rpartition("(")[2].rstrip(")"))
            continue
        given = architecture_of(encoder).classifier_prefix is not None
        return f"`{pooling}`, in and out" if given else f"`{pooling}`, in"
    return f"no: {', '.join(f'`{layer}`' for layer in reasons[0].split(', '))}"


def formats(name: str, directory: Path, out: Path, export: bool, kind: str = "lora") -> str:
    """Formats of `loraens export` of one member, each of which compares the logits itself."""
    pooler = classifier(directory).startswith("`pooler`")
    pooling = "pooler" if pooler else "last" if name in DECODERS else "mean"
    model = checks.build(directory, name, [Member(2, 2.0)], pooling=pooling, adapter=kind)
    model.float().eval()
    if kind == "dora":
        model.fold()
    predictor = Predictor(
        model, {"sst": SST}, load_tokenizer(str(directory)), 32, None, backbone=str(directory)
    )
    texts = probes(predictor, SST)[:20]
    can = ["onnx", "transformers", "peft"]
    if export:
        try:
            export_onnx(predictor, SST, out / "onnx", texts)
        except InputError as error:
            if f"PyTorch cannot export encoders of type {name}" not in str(error):
                raise
            can.remove("onnx")
    else:
        ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
        graph = Graph(predictor, SST).eval()
        types = torch.zeros_like(ids) if graph.reads_token_types else None
        with torch.no_grad():
            found = graph.logits(ids, (ids > 0).long(), types)
        expected = predictor.logits([("man dog",), ("guy",)], SST)
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-4)
    model.fold()
    export_merged(predictor, SST, out / "merged", texts)
    return ", ".join(can)


def test_the_page_has_every_type():
    _, head, rows = PAGE.read_text().partition(HEAD)
    assert head
    assert re.findall(r"^\| `([\w-]+)` \|", rows, re.MULTILINE) == [*CONFIGS]


@pytest.mark.slow
def test_the_page_has_every_kind_of_adapters(tmp_path):
    """What is in the other columns, `tests/test_adapter_kinds.py`, `tests/test_peft.py`,
    `tests/test_import.py` and `tests/test_export.py` show.
    """
    text = PAGE.read_text()
    directory = save("bert", tmp_path / "model")
    for kind in ("lora", "dora", "rslora"):
        ((fast, onnx, soup),) = re.findall(
            rf"^\| `{kind}` \|[^|]*\| (yes|no) \| yes \| yes \| yes \| (onnx|one member)[^|]*"
            r"\| (yes|no)\b",
            text,
            re.MULTILINE,
        )
        adapter = ADAPTERS[kind](torch.nn.Linear(4, 3), [2], [1.0], Routing())
        assert adapter.supports_fast == (fast == "yes")
        assert (onnx == "onnx") == (soup == "yes")
        assert formats("bert", directory, tmp_path / kind, False, kind).startswith("onnx")
        if soup == "yes":
            assert adapter.combined([1.0])[0].shape == (3, 2)
        else:
            with pytest.raises(InputError, match="of full rank"):
                adapter.combined([1.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_says_what_each_type_can(name, tmp_path):
    (tmp_path / "out").mkdir()
    found = row(name, save(name, tmp_path / "model"), tmp_path / "out", name in EXPORTED)
    assert found in PAGE.read_text()


if __name__ == "__main__":
    head, _, _ = PAGE.read_text().partition(HEAD)
    rows = []
    for kind in CONFIGS:
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as out:
            rows.append(row(kind, save(kind, Path(directory)), Path(out)))
            print(rows[-1], flush=True)
    line = "| --- " * HEAD.count(" | ") + "| --- |"
    PAGE.write_text("\n".join([f"{head}{HEAD}", line, *rows, ""]))
