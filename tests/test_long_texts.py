"""Texts of more tokens than are read: head and tail, and windows."""

import csv

import numpy as np
import pytest
import torch
from helpers.batches import batch_of, one_member, step

import loraens
from loraens.data.long_texts import HEAD, shares
from loraens.data.tokens import cached_tokens, tokenise
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.batch import pack
from loraens.model.population import MemberModel
from loraens.model.tokenizer import load_tokenizer
from loraens.store import MemberStore
from loraens.tasks import SST

LETTERS = "abcdefghijklmnopqrstuvwxyz"


STARTS = np.array([0, 1, 4, 5, 7, 11, 12])  # of six examples of one to four windows


def texts_of(tokens, tokenizer, sequence=0):
    """The words of a sequence, special tokens in brackets."""
    part = slice(tokens.offsets[sequence], tokens.offsets[sequence + 1])
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


def test_windows_of_a_text(tiny_bert):
    tokenizer = load_tokenizer(str(tiny_bert))
    texts = [("x",), (" ".join(LETTERS[:17]),), ("y z",)]
    tokens = tokenise(texts, tokenizer, 10, "windows")
    assert tokens.starts.tolist() == [0, 1, 4, 5]
    assert [texts_of(tokens, tokenizer, sequence) for sequence in range(5)] == [
        "[CLS] x [SEP]",
        "[CLS] a b c d e f g h [SEP]",
        "[CLS] g h i j k l m n [SEP]",
        "[CLS] j k l m n o p q [SEP]",
        "[CLS] y z [SEP]",
    ]
    assert tokens.lengths.tolist() == [3, 30, 4]
    assert tokens.truncated == 1
    for _ in range(2):  # made, and read from the cache
        again = cached_tokens(texts, tokenizer, 10, "windows")
        for name, value in vars(tokens).items():
            assert np.array_equal(getattr(again, name), value)
    assert cached_tokens(texts, tokenizer, 10).starts is None


def test_windows_of_a_pair_are_of_the_longer_text(tiny_bert):
    tokenizer = load_tokenizer(str(tiny_bert))
    tokens = tokenise([("x y z", " ".join(LETTERS[:10]))], tokenizer, 13, "windows")
    assert [texts_of(tokens, tokenizer, sequence) for sequence in range(2)] == [
        "[CLS] x y z [SEP] a b c d e f g [SEP]",
        "[CLS] x y z [SEP] d e f g h i j [SEP]",
    ]
    assert tokens.types.tolist() == ([0] * 5 + [1] * 8) * 2
    both = tokenise([(" ".join(LETTERS[:9]), " ".join(LETTERS[:8]))], tokenizer, 11, "windows")
    assert texts_of(both, tokenizer, 0) == "[CLS] a b c d [SEP] a b c d [SEP]"
    assert texts_of(both, tokenizer, 2) == "[CLS] f g h i [SEP] a b c d [SEP]"


PATHS = {"fast": {}, "packed": {"fast": False}, "padded": {}, "in turn": {}}
MEMBERS = [Member(2, 3.0, seed=5), Member(1, 1.0, seed=6), Member(4, 2.0, seed=7)]


def build(directory, path, members=MEMBERS, pooling="mean"):
    encoder = load_encoder(str(directory), pooler=False, packed=path in ("fast", "packed"))
    model = MemberModel(encoder, [SST], members, pooling=pooling, **PATHS[path]).double()
    assert (model.fast is not None, model.padded is None) == (
        path == "fast",
        path in ("fast", "packed"),
    )
    if path == "in turn":
        model.padded._shared_input = True
    return model


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("path", PATHS)
def test_windows_train_together_as_alone(tiny_bert, path, pooling):
    """Members have different examples, and so different numbers of sequences in a batch."""
    data = batch_of(3, starts=STARTS)
    assert len(set(data.sequences)) > 1
    together = step(build(tiny_bert, path, pooling=pooling), data)
    for index, member in enumerate(MEMBERS):
        own = one_member(data, index)
        alone = step(build(tiny_bert, path, [member], pooling), own)
        torch.testing.assert_close(alone(own)[0], together(data)[index], rtol=0, atol=1e-10)
        for name, layer in alone.adapters.items():
            for end, tensor in layer.member_tensors(0).items():
                expected = together.adapters[name].member_tensors(index)[end]
                torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", ["fast", "padded"])
def test_features_are_means_over_windows(tiny_bert, path):
    model = step(build(tiny_bert, path), batch_of(3))
    rng = np.random.default_rng(1)
    tokens, offsets = rng.integers(5, 100, 60), np.arange(0, 61, 5)
    given = (None, "sst", "dev")
    indices = np.array([[4, 0], [1, 3], [3, 5]])
    features = model.pooled(pack(tokens, tokens * 0, offsets, indices, *given, starts=STARTS))
    every = np.tile(np.arange(12), (3, 1))
    of_windows = model.pooled(pack(tokens, tokens * 0, offsets, every, *given))
    for member, row in enumerate(indices):
        for got, example in zip(features[member], row, strict=True):
            expected = of_windows[member, STARTS[example] : STARTS[example + 1]].mean(0)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


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
    for long in ("cut", "head_tail", "windows"):
        root = tmp_path / long
        assert run_command("fit", *given, "--data.long", long, "--store.root", root) == 0
        (path,) = root.glob("*/*/manifest.json")
        member = path.parent
        manifest = MemberStore(member).manifest()
        assert manifest.settings.long == long
        found[long] = manifest.dev["best"]["ends"]["accuracy"]
        rows = loraens.Ensemble.load(member).predict([f"{' '.join(LETTERS[:20])} y"] * 2)
        assert long == "cut" or rows[0]["prediction"] == "Y"
        predictor = Predictor.load(member)
        with (tmp_path / "dev.csv").open(newline="") as file:
            texts = [(row["text"],) for row in csv.DictReader(file)]
        stored = MemberStore(member).logits("ends", "dev").logits
        logits = predictor.logits(texts, predictor.task())[0]
        np.testing.assert_allclose(logits, stored, rtol=0, atol=1e-5)
    assert found["windows"] > 0.9
    assert found["head_tail"] > 0.9
    assert found["cut"] < 0.75
