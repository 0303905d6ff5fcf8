import os
from collections import Counter

import numpy as np
import pytest

from loraens.data import modules as data
from loraens.data import tokens
from loraens.data.sampling import TrainSampler
from loraens.errors import InputError


def places(sampler, epoch):
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_every_record_once_an_epoch_in_an_order_of_the_members_own():
    sampler = TrainSampler([21], 8, seeds=[0, 1])
    first = places(sampler, 0)
    assert [rows.shape for _, rows in first] == [(2, 8), (2, 8), (2, 5)]
    orders = np.concatenate([rows for _, rows in first], axis=1)
    assert (np.sort(orders) == np.arange(21)).all()
    assert not (orders[0] == orders[1]).all()
    again = np.concatenate([rows for _, rows in places(sampler, 1)], axis=1)
    assert not (orders == again).all()
    alone = np.concatenate(
        [rows for _, rows in places(TrainSampler([21], 8, seeds=[1]), 0)], axis=1
    )
    assert (alone[0] == orders[1]).all()


def test_grouped_by_length_a_batch_is_of_similar_lengths():
    lengths = np.random.default_rng(0).integers(3, 60, 803)
    grouped = TrainSampler([803], 4, seeds=[0, 1], lengths=[lengths])
    found = [rows for _, rows in places(grouped, 0)]
    assert (np.sort(np.concatenate(found, axis=1)) == np.arange(803)).all()  # once, each member
    plain = [rows for _, rows in places(TrainSampler([803], 4, seeds=[0, 1]), 0)]

    def padded(batches):
        """Tokens of batches whose members are all padded to the longest."""
        return sum(lengths[rows].max() * rows.size for rows in batches)

    assert padded(found) < 1.15 * 2 * lengths.sum() < padded(plain)
    alone = [rows for _, rows in places(TrainSampler([803], 4, [1], lengths=[lengths]), 0)]
    assert all((own[0] == rows[1]).all() for own, rows in zip(alone, found, strict=True))
    assert not (found[0] == places(grouped, 1)[0][1]).all()


@pytest.mark.parametrize(
    ("temperature", "batches"), [(1.0, [100, 10, 1]), (2.0, [78, 25, 8]), (1e9, [37, 37, 37])]
)
def test_share_of_each_task(temperature, batches):
    sizes = [800, 80, 8]
    sampler = TrainSampler(sizes, 8, [0], temperature)
    found = places(sampler, 0)
    assert [Counter(index for index, _ in found)[task] for task in range(3)] == batches
    if temperature == 1:
        for task, size in enumerate(sizes):
            assert sorted(
                np.concatenate([rows[0] for index, rows in found if index == task])
            ) == list(range(size))
    assert [index for index, _ in found] != [index for index, _ in places(sampler, 1)]


def test_modules_read_the_courses_files(corpus, tiny_bert):
    for kind, widths in (
        (data.SST, (1,)),
        (data.Quora, (2,)),
        (data.STS, (2,)),
        (data.Multitask, (1, 2, 2)),
    ):
        module = kind(root=str(corpus), backbone=str(tiny_bert))
        module.setup("fit")
        for task, width in zip(module.tasks, widths, strict=True):
            sizes = [len(module.splits[task.name, split]) for split in ("train", "dev", "test")]
            assert sizes == [48, 24, 10]
            assert module.splits[task.name, "test"].split.labels is None
            assert {len(texts) for texts in module.splits[task.name, "dev"].split.texts} == {width}


def test_pairs_are_joined_by_separators_and_cut(corpus, tiny_bert):
    module = data.STS(root=str(corpus), backbone=str(tiny_bert), max_length=12)
    module.setup("fit")
    part = module.splits["sts", "train"]
    start, stop = part.tokens.offsets[:2]
    ids = part.tokens.ids[start:stop]
    types = part.tokens.types[start:stop]
    assert ids[0] == 2  # [CLS]
    assert (ids == 3).sum() == 2  # [SEP]
    assert ids[-1] == 3
    assert types.tolist() == [0] * (ids.tolist().index(3) + 1) + [1] * (
        len(ids) - ids.tolist().index(3) - 1
    )
    assert part.tokens.lengths.max() == 12
    whole = data.STS(root=str(corpus), backbone=str(tiny_bert))
    whole.setup("fit")
    expected = int((whole.splits["sts", "train"].tokens.lengths > 12).sum())
    assert part.tokens.truncated == expected > 0
    assert f"{expected} cut to the maximum length" in part.report()


def test_tokens_are_cached_by_content(tiny_bert, monkeypatch, tmp_path):
    from loraens.model.tokenizer import load_tokenizer

    monkeypatch.setitem(os.environ, "LORAENS_CACHE", str(tmp_path))
    tokenizer = load_tokenizer(str(tiny_bert))
    texts = [("a man", "a dog"), ("two kids", "a cook")]
    first = tokens.cached_tokens(texts, tokenizer, 16)
    (file,) = (tmp_path / "tokens").iterdir()
    monkeypatch.setattr(tokens, "tokenise", lambda *_: pytest.fail("tokenised again"))
    assert (tokens.cached_tokens(texts, tokenizer, 16).ids == first.ids).all()
    monkeypatch.undo()
    monkeypatch.setitem(os.environ, "LORAENS_CACHE", str(tmp_path))
    tokens.cached_tokens(texts, tokenizer, 15)
    tokens.cached_tokens(texts[::-1], tokenizer, 16)
    assert len(list((tmp_path / "tokens").iterdir())) == 3
    file.write_bytes(b"half a fi")
    assert (tokens.cached_tokens(texts, tokenizer, 16).ids == first.ids).all()


def test_limit_draws_the_same_records(corpus, tiny_bert):
    ids = []
    for _ in range(2):
        module = data.SST(root=str(corpus), backbone=str(tiny_bert), limit=7)
        module.setup("fit")
        ids.append(module.splits["sst", "train"].split.ids)
    assert len(ids[0]) == 7
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "nowhere"}, "data.root nowhere has no ids-sst-train.csv"),
        ({"batch_size": 0}, "^batch_size 0 is too small"),
        ({"temperature": 0.5}, r"^temperature 0\.5 is too small"),
    ],
)
def test_one_sentence_an_error(options, message, corpus, tiny_bert):
    with pytest.raises(InputError, match=message):
        data.SST(**{"root": str(corpus), "backbone": str(tiny_bert), **options}).setup("fit")


def test_dev_without_labels(tmp_path, tiny_bert):
    (tmp_path / "a.csv").write_text("text,label\nx,1\ny,2\nz,1\nu,2\n")
    (tmp_path / "b.csv").write_text("text\nx\n")
    module = data.TextFiles(
        "t",
        str(tmp_path / "a.csv"),
        str(tmp_path / "b.csv"),
        ["text"],
        "label",
        backbone=str(tiny_bert),
    )
    assert module.tasks[0].class_names == ("1", "2")
    with pytest.raises(
        InputError, match=r"b\.csv has no label in a column 'label': the dev split needs labels"
    ):
        module.setup("fit")
