"""What a GPU has to do as a CPU does: on an emulated one, in a process of its own, and on a real
one where there is one.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.corpus import split_texts
from helpers.masks import masked_model, masks_of

from loraens import Sweep
from loraens.data.modules import SST
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.model import kernels
from loraens.model.device import allow_tf32, records_together, usable_device
from loraens.store import MemberStore, find_members
from loraens.train.config import SweepConfig
from loraens.train.device import in_words
from loraens.train.module import Population

TESTS = Path(__file__).parent


EAGER = {"LORAENS_KERNELS": "0"}
KERNELS = {"TRITON_INTERPRET": "1"}
ON_EMULATED = [
    pytest.param("autocast.py", EAGER, "", id="autocast"),
    pytest.param("autocast.py", KERNELS, "equals_stock", id="autocast, kernels"),
    pytest.param("compiled.py", {}, "", id="compiled kernels"),
    pytest.param("kernels.py", KERNELS, "", id="kernels"),
    pytest.param("masks.py", EAGER, "", id="masks"),
    pytest.param("steps.py", EAGER, "", id="steps"),
    pytest.param("steps.py", KERNELS, "[sts]", id="steps, kernels"),  # the interpreter is slow
]


def test_every_file_is_run():
    files = {case.values[0] for case in ON_EMULATED}
    assert files == {path.name for path in (TESTS / "gpu").glob("*.py")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulated device needs g++")
@pytest.mark.parametrize(("file", "variables", "chosen"), ON_EMULATED)
def test_on_the_emulated_device(tmp_path, file, variables, chosen):
    if variables is not EAGER and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    options = ["-p", "helpers.second_device", "-p", "no:cacheprovider", "-x", "-q", "-k", chosen]
    cache = {"TRITON_CACHE_DIR": str(tmp_path)}
    path = f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / "gpu" / file)],
        # without options for all tests, such as coverage
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", **cache, **variables},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def half(run_command, tiny_bert, corpus, tmp_path_factory):
    """A sweep of STS in bfloat16, with a soup."""
    root = tmp_path_factory.mktemp("half")
    files = ("--config", TESTS.parent / "configs" / "sts.yaml", "--data.root", corpus)
    model = ("--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2)
    trainer = ("--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 2)
    quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
    grid = ("--grid.rank", "[2,5]", "--store.root", root, "--sweep.pack_size", 2)
    assert run_command("sweep", *files, *model, *trainer, *quiet, *grid) == 0
    soup = ("--method", "soup", "omni", "--logger", "false")
    assert run_command("ensemble", "--runs", root / "sts-sweep", *soup) == 0
    return root / "sts-sweep"


@pytest.mark.slow
def test_predictions_in_bfloat16_are_the_stored_ones(half, corpus):
    """Of members and a soup alone, and of an ensemble; in float32 they differ by some 1e-2."""
    texts = split_texts(corpus, "sts", "dev")
    paths = [*find_members(half), *(half / "ensembles").glob("sts-soup-*")]
    assert len(paths) >= 3
    for path in paths:
        predictor = Predictor.load(path)
        logits = predictor.logits(texts, predictor.task())[0]
        stored = MemberStore(path).logits("sts", "dev").logits
        np.testing.assert_allclose(logits, stored, rtol=0, atol=1e-5)
        assert len(np.unique(stored)) > 20
    (folder,) = (half / "ensembles").glob("sts-omni-*")
    predictor = Predictor.load(folder)
    assert predictor.precision == "bf16-mixed"


@pytest.fixture
def of_80_gib(monkeypatch):
    """A GPU's memory."""
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    return torch.device("cuda:0")


def test_evaluation_batches_scale_with_the_device(of_80_gib):
    """Of 186 members of MiniLM's shape, a record of each is 186 sequences."""
    minilm = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
    config = SimpleNamespace(**minilm)
    assert records_together(config, 50, torch.device("cpu")) == 64
    assert records_together(config, 50, of_80_gib) // 186 >= 8
    short, long = (records_together(config, longest, of_80_gib) for longest in (50, 500))
    assert short > 10 * long > 0
    assert records_together(config, 100_000, of_80_gib) == 1


def test_batches_of_dev_on_a_gpu(of_80_gib, tiny_bert, corpus):
    texts = SST(root=str(corpus), backbone=str(tiny_bert))
    texts.setup("fit")
    members = [Member(1, 1.0, seed=seed) for seed in range(100)]
    module = Population(members, texts.tasks, backbone=str(tiny_bert), pooling="cls")
    module.build(texts.max_length)
    sizes = []
    for device in (torch.device("cpu"), of_80_gib):
        strategy = SimpleNamespace(root_device=device)
        texts.trainer = SimpleNamespace(strategy=strategy, lightning_module=module)
        (loader,) = texts.eval_loaders("dev")
        sizes.append([batch.indices.shape[1] for batch in loader])
    assert sizes == [[1] * 24, [24]]
    texts.eval_batch_size = 300  # as it was given
    (loader,) = texts.eval_loaders("dev")
    assert {batch.indices.shape[1] for batch in loader} == {3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_masks_and_start_are_the_same_bits_on_a_gpu(monkeypatch, tmp_path, half):
    expected = masks_of(monkeypatch, masked_model(tmp_path), "cpu")
    start = masked_model(tmp_path)
    model = masked_model(tmp_path).to("cuda")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), start.state_dict()[name]), name
    context = torch.autocast("cuda", torch.bfloat16, enabled=half)
    found = masks_of(monkeypatch, model, "cuda", context)
    assert len(found) == len(expected) > 6
    assert all(map(torch.equal, found, expected))


def test_kernels_that_cannot_be_launched():
    """As tensors are on the CPU and there is no interpreter."""
    pytest.importorskip("triton")
    assert kernels.failure(torch.device("cpu")).startswith("Triton cannot launch them here (")


@pytest.mark.parametrize("command", ["sweep", "fit", "validate"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        pytest.param("devices", "2", "devices 2: members are trained side by side", id="two"),
        pytest.param("devices", "0,1", "devices 0,1: members are", id="names"),
        pytest.param("devices", "[0, 1]", "devices [0, 1]: members are", id="list"),
        pytest.param("num_nodes", "2", "num_nodes 2: members are", id="nodes"),
        pytest.param("accelerator", "mps", "on a CUDA GPU or on the CPU, give cpu", id="mps"),
        pytest.param(
            "accelerator",
            "gpu",
            "there is no CUDA GPU that PyTorch can use, give cpu",
            id="gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_other_devices_are_refused_before_a_process_starts(
    fails, monkeypatch, tmp_path, corpus, tiny_bert, command, option, value, message
):
    def started(*args, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    files = ("--config", TESTS.parent / "configs" / "sts.yaml", "--data.root", corpus)
    options = ("--model.backbone", tiny_bert, "--store.root", tmp_path / "store")
    said = fails(command, *files, *options, f"--trainer.{option}", value)
    assert said.startswith(f"loraens: --trainer.{option} ")
    assert message in said
    assert not (tmp_path / "store").exists()


def test_devices_in_python(corpus, tiny_bert, tmp_path):
    data = SST(root=str(corpus))
    with pytest.raises(InputError, match="devices 4: members are trained side by side on one"):
        Sweep(data, [Member(1, 1.0)], tmp_path, backbone=str(tiny_bert), trainer={"devices": 4})


@pytest.fixture
def gpus(monkeypatch):
    """Has PyTorch say that there are GPUs, without any."""

    def make(count, bfloat16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return make


def test_a_gpu_computes_in_bfloat16_unless_told_otherwise(gpus, corpus, tiny_bert, tmp_path):
    def precision(**trainer):
        data = SST(root=str(corpus))
        options = {"backbone": str(tiny_bert), "epochs": 1, "trainer": trainer}
        config = SweepConfig.from_objects(data, [Member(1, 1.0)], tmp_path, **options)
        assert (
            config.train.trainer["precision"] == yaml.safe_load(config.text)["trainer"]["precision"]
        )
        return config.train.trainer["precision"]

    assert precision() == "32-true"
    gpus(1, bfloat16=True)
    assert precision() == "bf16-mixed"
    assert precision(precision="32-true") == "32-true"
    assert precision(accelerator="cpu") == "32-true"
    gpus(1, bfloat16=False)
    assert precision() == "32-true"
    gpus(2, bfloat16=True)
    assert precision() == "bf16-mixed"  # on one of them
    for devices in ("auto", -1):
        with pytest.raises(InputError, match=f"devices {devices}: members are"):
            precision(devices=devices)


def test_what_it_computes_on_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")

    def said(device, precision):
        strategy = SimpleNamespace(root_device=torch.device(device))
        return in_words(SimpleNamespace(strategy=strategy, precision=precision))

    assert said("cpu", "32-true") is None
    by_kernels = "precision 32-true, with Triton kernels"
    monkeypatch.setattr(kernels, "why_not", lambda: None)
    assert said("cuda:0", "32-true") == f"on H100, {by_kernels}"
    assert "(--trainer.precision 32-true for float32)" in said("cuda:0", "bf16-mixed")
    monkeypatch.setattr(kernels, "why_not", lambda: "the package triton is missing")
    without = ", without kernels: the package triton is missing"
    assert said("cuda:0", "32-true") == f"on H100, precision 32-true{without}"


def test_when_kernels_are_used(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(kernels, "why_not", lambda: None)
    assert kernels.usable(gpu, torch.bfloat16)
    assert not kernels.usable(cpu, torch.bfloat16)
    assert not kernels.usable(gpu, torch.float64)
    assert kernels.low_rank_usable(gpu, torch.float32, 64)
    assert not kernels.low_rank_usable(gpu, torch.float32, 65)
    monkeypatch.undo()
    reasons = []
    for value, there in (("0", True), ("1", True), ("1", False)):
        monkeypatch.setenv(kernels.SWITCH, value)
        monkeypatch.setattr(kernels, "find_spec", lambda name, there=there: there or None)
        kernels.why_not.cache_clear()
        reasons.append(kernels.why_not())
    kernels.why_not.cache_clear()
    assert reasons == ["LORAENS_KERNELS is 0", None, "the package triton is missing"]


def test_tf32_is_for_gpus_only():
    before = torch.get_float32_matmul_precision()
    try:
        allow_tf32(torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == before == "highest"
        allow_tf32(torch.device("cuda:0"))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_the_precision_is_kept_in_the_settings(half, trained_sweep):
    for run, expected in ((half, "bf16-mixed"), (trained_sweep("sts"), "32-true")):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["trainer"]["precision"] == expected
        assert MemberStore(find_members(run)[0]).manifest().settings.precision == expected


@pytest.mark.parametrize("name", ["mps", "nonsense", "cuda:7"])
def test_devices_to_predict_on(name):
    assert usable_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=f"device {name} is not here: one of cpu"):
        usable_device(name)
