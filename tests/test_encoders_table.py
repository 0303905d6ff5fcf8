"""The table of docs/encoders.md: what each type of encoder can, as the tests of the padded path and
of the others find it.

    PYTHONPATH=. python tests/test_encoders_table.py     makes it again
"""

import re
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import test_padded as checks
import torch
from helpers.stock import CONFIGS, TARGETS
from transformers import AutoModel

from loraens.errors import InputError
from loraens.model.adapters import ADAPTERS
from loraens.model.backbone import load_encoder
from loraens.model.population import MemberModel
from loraens.model.routing import Routing
from loraens.tasks import SST

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
HEAD = "| type | path | default targets | members | trains, exact | predict | PEFT out | PEFT in |"


def row(name: str, directory: Path, out: Path) -> str:
    """The table's row of a type, of which `directory` has a small model.

    Args:
        name: The type.
        directory: Where the model is.
        out: Empty, for adapters.
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
    checks.test_peft_loads_a_member_with_the_same_logits(saved, name, out)
    if path != "padded":
        checks.test_packed_and_padded_are_one(saved, name, "mean")
    members = {
        (True, True): "one by one",
        (False, True): "together, trained one by one",
    }.get(tuple(in_turn), "together")
    shown = ", ".join(f"`{layer}`" for layer in names)
    return f"| `{name}` | {path} | {given}{shown} | {members} | yes | yes | yes | not yet |"


def test_the_page_has_every_type():
    _, head, rows = PAGE.read_text().partition(HEAD)
    assert head
    assert re.findall(r"^\| `([\w-]+)` \|", rows, re.MULTILINE) == [*CONFIGS]


def test_the_page_has_every_kind_of_adapters():
    """What is in the other columns, `tests/test_adapter_kinds.py` and `tests/test_peft.py` show."""
    text = PAGE.read_text()
    for kind in ("lora", "dora", "rslora"):
        ((fast, soup),) = re.findall(
            rf"^\| `{kind}` \|[^|]*\| (yes|no) \| yes \| yes \| (yes|no)\b", text, re.MULTILINE
        )
        adapter = ADAPTERS[kind](torch.nn.Linear(4, 3), [2], [1.0], Routing())
        assert adapter.supports_fast == (fast == "yes")
        if soup == "yes":
            assert adapter.combined([1.0])[0].shape == (3, 2)
        else:
            with pytest.raises(InputError, match="of full rank"):
                adapter.combined([1.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_says_what_each_type_can(name, tmp_path):
    torch.manual_seed(1)
    AutoModel.from_config(deepcopy(CONFIGS[name])).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    assert row(name, tmp_path / "model", tmp_path / "out") in PAGE.read_text()


if __name__ == "__main__":
    head, _, _ = PAGE.read_text().partition(HEAD)
    rows = []
    for kind, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as adapters:
            torch.manual_seed(1)
            AutoModel.from_config(deepcopy(config)).save_pretrained(model)
            rows.append(row(kind, Path(model), Path(adapters)))
            print(rows[-1], flush=True)
    line = "| --- | --- | --- | --- | --- | --- | --- | --- |"
    PAGE.write_text("\n".join([f"{head}{HEAD}", line, *rows, ""]))
