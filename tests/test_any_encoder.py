"""Directories of other types than BERT's, as `transformers` saved them, in every command."""

import csv
import json

import numpy as np
import pytest
from helpers.stock import plain_tokenizer, write_stock
from transformers import AutoTokenizer

from loraens.data.tokens import tokenise
from loraens.errors import InputError
from loraens.model.tokenizer import load_tokenizer
from loraens.store import MemberStore

WORDS = {"WHO": "wrote painted sang", "WHERE": "lies stands flows", "WHEN": "began ended opened"}
THINGS = ("house", "river", "song", "war")


def write_questions(path, size, seed):
    """Questions whose verb tells their kind."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(size):
            kind = [*WORDS][number % 3]
            verb, thing = rng.choice(WORDS[kind].split()), rng.choice(THINGS)
            writer.writerow([f"{kind.lower()} {verb} the {thing}", kind])
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_bert):
    """Directory of a type, with the tokenizer that suits it."""

    def write(name):
        words = " ".join(["the", *WORDS.values(), *map(str.lower, WORDS), *THINGS]).split()
        decoder = name == "qwen3"
        tokenizer = plain_tokenizer(words) if decoder else AutoTokenizer.from_pretrained(tiny_bert)
        return write_stock(name, tokenizer, tmp_path_factory.mktemp(name))

    return write


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modernbert", "qwen3"])
def test_every_command_takes_another_type(name, backbone, run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loraens.train.design.SIZES", ((2, 1),))
    directory = backbone(name)
    sizes = {"train": 120, "dev": 48, "test": 24}
    for seed, (split, size) in enumerate(sizes.items()):
        write_questions(tmp_path / f"{split}.csv", size, seed)
    files = [part for split in sizes for part in (f"--data.{split}", f"{split}.csv")]
    columns = ("--data.text_columns", "[text]", "--data.label_column", "label")
    data = ("--data", "loraens.data.TextFiles", "--data.name", "kinds", *files, *columns)
    pooling = "last" if name == "qwen3" else "mean"
    model = ("--model.backbone", directory, "--model.pooling", pooling, "--model.lr", 1e-2)
    trainer = ("--trainer.max_epochs", 3, "--trainer.enable_progress_bar", "false")
    given = (*data, *model, *trainer, "--trainer.logger", "false")

    assert run_command("fit", *given, "--store.root", "one") == 0
    (member,) = (tmp_path / "one").glob("*/*/manifest.json")
    scores = MemberStore(member.parent).manifest().dev["best"]["kinds"]
    assert scores["accuracy"] > 0.6
    grid = ("--grid.rank", "[2,4]", "--grid.seed", "[0,1]", "--sweep.pack_size", 4)
    assert run_command("sweep", *given, *grid, "--store.root", "many") == 0
    sweep = tmp_path / "many" / "kinds-sweep"
    methods = ("--method", "omni", "soup", "--size", 2)
    assert run_command("ensemble", "--runs", sweep, *methods) == 0
    for ensemble in ("kinds-omni-vote", "kinds-soup-merged"):
        chosen = ("--model", sweep / "ensembles" / ensemble)
        predict = ("predict", *chosen, "--input", "test.csv", "--output", f"{ensemble}.csv")
        assert run_command(*predict) == 0
        with (tmp_path / f"{ensemble}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert np.mean([row["prediction"] == row["label"] for row in rows]) > 0.6
        scored = ("evaluate", *chosen, "--input", "test.csv", "--output", "scores.json")
        assert run_command(*scored) == 0
        assert json.loads((tmp_path / "scores.json").read_text())["examples"] == 24
    build = ("build", "train.csv", "--out", "built", "--backbone", directory, "--minutes", 5)
    assert run_command(*build) == 0
    assert (tmp_path / "built" / "sweep" / "ensembles" / "recommended").exists()
    assert (tmp_path / "built" / f"range-{'last' if name == 'qwen3' else 'cls'}").is_dir()


def test_texts_of_a_decoder_end(backbone):
    """Its tokenizer adds nothing: between two texts, behind the last and in an empty one there is
    the token that ends texts.
    """
    tokenizer = load_tokenizer(str(backbone("qwen3")))
    tokens = tokenise([("the war", "the song"), ("", "")], tokenizer, 16)
    the, war, song = (tokenizer.token_to_id(word) for word in ("the", "war", "song"))
    assert tokens.ids.tolist() == [the, war, 0, the, song, 0, 0, 0]
    assert tokens.types.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    cut = tokenise([("the war the war the war",)], tokenizer, 3)
    assert cut.ids.tolist() == [the, war, 0]


def test_a_tokenizer_that_cannot_end_texts_is_refused(tmp_path):
    tokenizer = plain_tokenizer(["a"])
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="adds no token to texts, and has none that ends them"):
        load_tokenizer(str(write_stock("qwen3", tokenizer, tmp_path)))
