"""Texts are cut before they are tokenised, and have the tokens of whole texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraens.data import splits, tokens
from loraens.model.tokenizer import load_tokenizer
from loraens.tasks import SST

WORDS = st.sampled_from(
    ["a", "man", "plays", "x" * 120, "é", "日本", "\t", "  ", "[MASK]", "no-one's"]
)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(str(tiny_bert))


def whole(texts, tokenizer, max_length):
    """Tokens of texts that were not cut before."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encoded = [tokenizer.encode(*example) for example in texts]
    cut = sum(bool(encoding.overflowing) for encoding in encoded)
    return [one.ids for one in encoded], [one.type_ids for one in encoded], cut


def check(texts, tokenizer, max_length):
    ids, types, cut = whole(texts, tokenizer, max_length)
    found = tokens.tokenise(texts, tokenizer, max_length)
    starts = found.offsets[1:-1]
    assert [part.tolist() for part in np.split(found.ids, starts)] == ids
    assert [part.tolist() for part in np.split(found.types, starts)] == types
    assert found.truncated == cut


@given(data=st.data(), pairs=st.booleans(), max_length=st.integers(8, 13))
def test_tokens_are_those_of_the_whole_text(tokenizer, data, pairs, max_length):
    text = st.lists(WORDS, min_size=1, max_size=60).map(" ".join)
    text |= st.tuples(WORDS, st.integers(1, 40)).map(lambda drawn: drawn[0] * drawn[1])
    examples = st.tuples(text, text) if pairs else st.tuples(text)
    check(data.draw(st.lists(examples, min_size=1, max_size=4)), tokenizer, max_length)


def test_far_longer_texts_are_cut(tokenizer):
    long = "a man plays a guitar " * 300
    for texts in [(long,), (long, "a dog"), ("a dog " * 30, long)]:
        cut = tokens.shortened(texts, tokenizer, 16)
        assert sum(map(len, cut)) < 4000
        assert all(text.startswith(part) for text, part in zip(texts, cut, strict=True))
        check([texts], tokenizer, 16)
    assert tokens.shortened((long, long), tokenizer, 16) == (long, long)
    blank = " " * 2000 + "a man"
    assert tokens.shortened((blank,), tokenizer, 16) == (blank,)
    check([(blank,), (long,), ("a",)], tokenizer, 16)


def test_chunks_do_not_matter(tokenizer, monkeypatch):
    texts = [(f"a man {number}", "a dog " * number) for number in range(20)]
    expected = tokens.tokenise(texts, tokenizer, 12)
    monkeypatch.setattr(tokens, "CHUNK", 3)
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 60)
    found = tokens.tokenise(texts, tokenizer, 12)
    assert (found.ids == expected.ids).all()
    assert (found.types == expected.types).all()
    assert (found.offsets == expected.offsets).all()
    assert found.truncated == expected.truncated > 0


def test_a_bar_where_it_takes_long(tokenizer, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tokens.tokenise([("a",)], tokenizer, 8)
    assert "tokenise" not in capsys.readouterr().err
    for module in (tokens, splits):
        monkeypatch.setattr(module, "BAR_DELAY", 0)
    tokens.tokenise([("a",), ("b",), ("c",)], tokenizer, 8)
    assert "tokenise: 100%" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("sentence\na\n")
    splits.read_split(tmp_path / "x.csv", "test", SST)
    assert "read x.csv: " in capsys.readouterr().err


def test_tokens_are_made_where_they_cannot_be_cached(tokenizer, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("LORAENS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"tokens are not cached.*set LORAENS_CACHE"):
        found = tokens.cached_tokens([("a man",)], tokenizer, 8)
    assert (found.ids == tokens.tokenise([("a man",)], tokenizer, 8).ids).all()
