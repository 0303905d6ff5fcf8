import csv
from collections import Counter

import pytest

from loraens.data import made_up
from loraens.store import MemberStore, find_members

LABELS = {"ids-sst": {"0", "1", "2", "3", "4"}, "quora": {"0.0", "1.0"}}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_corpus_is_the_same_every_time_and_varied(tmp_path):
    for name in ("a", "b"):
        made_up.write_corpus(tmp_path / name)
    made_up.write_corpus(tmp_path / "c", seed=1)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert (
            content == (tmp_path / "b" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
        )
    for stem, columns, label, _ in made_up.CORPUS:
        texts = [
            tuple(row[column] for column in columns)
            for split in ("train", "dev", "test-student")
            for row in rows(tmp_path / "a" / f"{stem}-{split}.csv")
        ]
        assert len(set(texts)) == len(texts) == sum(made_up.SIZES.values())
        labels = Counter(row[label] for row in rows(tmp_path / "a" / f"{stem}-train.csv"))
        if stem in LABELS:
            assert set(labels) == LABELS[stem]
            assert min(labels.values()) > 0.1 * sum(labels.values())
        else:
            assert (
                {0.0, 5.0} <= {float(text) for text in labels} <= {step / 5 for step in range(26)}
            )


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_quickstart_trains_joins_and_prints(run_command, tiny_bert, corpus, tmp_path, capsys, real):
    command = ["quickstart", "--backbone", tiny_bert, "--store.root", tmp_path, "--data.limit", 24]
    assert run_command(*command, *(["--data.root", corpus] if real else [])) == 0
    printed = capsys.readouterr().out
    assert ("made-up" in printed) != real
    assert "Omni-LoRA: all combined" in printed
    assert printed.count("rank 16 and scale 3") == 4  # three times in training, once in the table
    for task in ("sst", "quora", "sts"):
        members = find_members(tmp_path / "quickstart" / task)
        assert len(members) == 4
        assert {MemberStore(path).manifest().status for path in members} == {"finished"}
    assert (tmp_path / "quickstart" / "data").exists() != real
