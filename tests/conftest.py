"""A tiny random BERT with a tokenizer of its own, and a small made-up corpus; nothing is
downloaded.
"""

from __future__ import annotations

import gc
import os
import shutil
import string
import tempfile
from functools import cache
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/loraens-hypothesis")

# before transformers, as in a command: of equal unions, typing keeps the first, int or float first,
# and by that order the values of Lightning's options are read
import lightning.pytorch  # noqa: F401
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast

from loraens import cli
from loraens.data import made_up

torch.set_num_threads(1)  # the models are too small for more
settings.register_profile(
    "loraens", deadline=None, derandomize=True, max_examples=50, database=None
)
settings.load_profile("loraens")
CONFIGS = Path(__file__).parent.parent / "configs"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pytest_collection_finish():
    """Objects of the imported libraries live to the end: no collection of garbage visits them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    os.environ["LORAENS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    made_up.write_corpus(directory, {"train": 48, "dev": 24, "test": 10})
    return directory


def write_tiny_bert(directory: Path, corpus: Path) -> Path:
    """A BERT of two layers, 32 wide, with a WordPiece tokenizer of the corpus's words and of single
    letters.
    """
    tokenizer = Tokenizer(
        models.WordPiece({name: index for index, name in enumerate(SPECIAL)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    text = tokenizer.normalizer.normalize_str(
        " ".join(path.read_text() for path in sorted(corpus.glob("*.csv")))
    )
    words = {word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text) if word.isalpha()}
    letters = [
        f"{prefix}{letter}"
        for prefix in ("", "##")
        for letter in sorted({*text, *string.printable})
        if letter.strip()
    ]
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *sorted(words)])
    tokenizer.model = models.WordPiece(
        {name: index for index, name in enumerate(vocabulary)}, unk_token="[UNK]"
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=160).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, corpus) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"), corpus)


@pytest.fixture(scope="session")
def run_command():
    """Runs the command line in this process; returns the exit code."""

    def run(*args: object) -> int:
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def fails(run_command, capsys):
    """Runs a command that must end with exit code 2 and one sentence; returns the sentence."""

    def run(*args: object) -> str:
        assert run_command(*args) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture(scope="session")
def plant():
    """Writes a run whose members see the truth through noise: `helpers.planted.plant`."""
    from helpers.planted import plant

    return plant


@pytest.fixture(scope="session")
def make_pool():
    """Makes a pool whose members see the truth through noise: `helpers.pools.make_pool`."""
    from helpers.pools import make_pool

    return make_pool


@pytest.fixture(scope="session")
def trained_sweep(run_command, tiny_bert, corpus, tmp_path_factory):
    """Gives a copy of a swept task: four members and ensembles of them, trained once a session."""

    @cache
    def train(task: str) -> Path:
        root = tmp_path_factory.mktemp("trained")
        model = ("--model.backbone", tiny_bert, "--model.pooling", "cls", "--model.lr", 1e-2)
        grid = ("--grid.rank", "[2,5]", "--grid.seed", "[0,1]", "--sweep.pack_size", 4)
        trainer = ("--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false")
        files = ("--config", CONFIGS / f"{task}.yaml", "--data.root", corpus, "--store.root", root)
        options = (*files, *model, *grid, *trainer, "--trainer.logger", "false")
        assert run_command("sweep", *options) == 0
        sweep = root / f"{task}-sweep"
        methods = ("--method", "omni", "dicor", "weighted", "--size", 2)
        assert run_command("ensemble", "--runs", sweep, *methods) == 0
        return sweep

    def copy(task: str) -> Path:
        sweep = train(task)
        return Path(shutil.copytree(sweep, tmp_path_factory.mktemp("runs") / sweep.name))

    return copy


@pytest.fixture(scope="module", params=["sst", "sts"])
def trained(request, trained_sweep) -> tuple[str, Path]:
    """A task's name, and the directory of a sweep of it that the test file may change."""
    return request.param, trained_sweep(request.param)
