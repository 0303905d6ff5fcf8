"""Texts of more tokens than are read: head and tail."""

import csv

import numpy as np
import pytest

import loraens
from loraens.data.long_texts import HEAD, shares
from loraens.data.tokens import tokenise
from loraens.model.tokenizer import load_tokenizer
from loraens.store import MemberStore

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def texts_of(tokens, tokenizer):
    """The words of an example, special tokens in brackets."""
    part = slice(tokens.offsets[0], tokens.offsets[1])
    return " ".join(tokenizer.id_to_token(token) for token in tokens.ids[part])


def test_head_and_tail_of_a_text_are_kept(tiny_bert):
    tokenizer = load_tokenizer(str(tiny_bert))
    text = " ".join(LETTERS)
    tokens = tokenise([(text,)], tokenizer, 10, "head_tail")
    assert texts_of(tokens, tokenizer) == "[CLS] a b u v w x y z [SEP]"
    assert tokens.truncated == 1
    whole = [tokenise([(text,)], tokenizer, 28, long) for long in ("cut", "head_tail")]
    assert np.array_equal(whole[0].ids, whole[1].ids)
    assert whole[1].truncated == 0
    # and the tokenizer is as it was for the next text
    cut = tokenise([(text,)], tokenizer, 10)
    assert texts_of(cut, tokenizer) == "[CLS] a b c d e f g h [SEP]"


def test_of_a_pair_the_longer_text_is_shortened(tiny_bert):
    tokenizer = load_tokenizer(str(tiny_bert))
    tokens = tokenise([("x y z", " ".join(LETTERS))], tokenizer, 14, "head_tail")
    assert texts_of(tokens, tokenizer) == "[CLS] x y z [SEP] a b u v w x y z [SEP]"
    assert tokens.types.tolist() == [0] * 5 + [1] * 9
    both = tokenise([(" ".join(LETTERS), " ".join(LETTERS[:20]))], tokenizer, 15, "head_tail")
    assert texts_of(both, tokenizer) == "[CLS] a v w x y z [SEP] a p q r s t [SEP]"


@pytest.mark.parametrize("sizes", [[1], [30], [3, 40], [40, 3], [12, 13], [13, 12], [2, 2]])
def test_as_many_tokens_are_kept_as_when_they_are_cut(tiny_bert, sizes):
    tokenizer = load_tokenizer(str(tiny_bert))
    example = tuple(" ".join((LETTERS * 2)[:size]) for size in sizes)
    for length in (9, 12, 17):
        cut, kept = (tokenise([example], tokenizer, length, x) for x in ("cut", "head_tail"))
        assert len(cut.ids) == len(kept.ids)
        assert cut.truncated == kept.truncated
        room = length - len(sizes) - 1
        assert sum(shares(list(sizes), room)) == min(room, sum(sizes))
        assert sorted(kept.types.tolist()) == kept.types.tolist()
    assert HEAD == 4


@pytest.mark.slow
def test_the_end_of_long_texts_is_learned_and_predicted(tiny_bert, tmp_path, run_command):
    """The word that tells the class is behind the maximum length."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 120), ("dev", 60)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(size):
                filler = " ".join(rng.choice([*LETTERS[:20]], 30))
                writer.writerow([f"{filler} {'xy'[number % 2]}", "XY"[number % 2]])
    files = [part for x in ("train", "dev") for part in (f"--data.{x}", tmp_path / f"{x}.csv")]
    columns = ("--data.text_columns", "[text]", "--data.label_column", "label")
    length = ("--data.max_length", 12, "--model.backbone", tiny_bert, "--model.pooling", "mean")
    trainer = ("--trainer.max_epochs", 6, "--trainer.enable_progress_bar", "false")
    data = ("--data", "loraens.data.TextFiles", "--data.name", "ends", *files, *columns)
    given = (*data, *length, *trainer, "--model.lr", 1e-2, "--trainer.logger", "false")
    found = {}
    for long in ("cut", "head_tail"):
        root = tmp_path / long
        assert run_command("fit", *given, "--data.long", long, "--store.root", root) == 0
        (path,) = root.glob("*/*/manifest.json")
        member = path.parent
        manifest = MemberStore(member).manifest()
        assert manifest.settings.long == long
        found[long] = manifest.dev["best"]["ends"]["accuracy"]
        rows = loraens.Ensemble.load(member).predict([f"{' '.join(LETTERS[:20])} y"] * 2)
        assert long == "cut" or rows[0]["prediction"] == "Y"
    assert found["head_tail"] > 0.9
    assert found["cut"] < 0.75
