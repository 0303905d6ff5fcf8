"""Parts of the labelled examples: what is in which, and that no member of a fold sees its own."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from loraens.data import modules as data
from loraens.data.folds import Folds, cut, group_numbers, pooled, strata
from loraens.data.sampling import EvalSampler, TrainSampler
from loraens.data.splits import Split
from loraens.errors import InputError
from loraens.members import Grid, Member, configurations, packs
from loraens.seeding import derive_seed
from loraens.tasks import QUORA, SST, STS

BASE = Member(rank=4, scale=1.0)


def make_split(texts, labels, groups=None, name="train"):
    ids = [str(number) for number in range(len(texts))]
    return Split(name, ids, texts, np.array(labels, float), "a file", {}, groups)


def naive_groups(split):
    """Groups by repeated passes over all pairs of examples."""

    def key(texts):
        return sorted(" ".join(text.lower().split()) for text in texts)

    groups = list(range(len(split)))
    names = split.groups or [""] * len(split)
    for _ in split.ids:
        for i in range(len(split)):
            for j in range(i):
                same_name = names[i] and names[i] == names[j]
                if key(split.texts[i]) == key(split.texts[j]) or same_name:
                    groups[i] = groups[j] = min(groups[i], groups[j])
    return groups


WORDS = st.sampled_from(["a dog", "A  dog", "a cat", "two kids ", "a cook"])
PAIRS = st.tuples(WORDS, WORDS)


@given(texts=st.lists(PAIRS, min_size=1, max_size=10), data=st.data())
def test_groups_are_connected_components_of_equal_texts_and_names(texts, data):
    names = st.sampled_from(["", "", "", "u", "v"])
    groups = data.draw(
        st.none() | st.lists(names, min_size=len(texts), max_size=len(texts)), label="groups"
    )
    split = make_split(texts, np.zeros(len(texts)), groups)
    found = group_numbers(split)
    expected = naive_groups(split)
    assert (np.equal.outer(found, found) == np.equal.outer(expected, expected)).all()
    first = [found.tolist().index(group) for group in range(found.max() + 1)]
    assert first == sorted(first)  # numbered in the order of the examples


@pytest.mark.parametrize("task", [SST, QUORA, STS], ids=lambda task: task.name)
def test_parts_are_those_of_scikit_learn_and_never_separate_equal_texts(task):
    rng = np.random.default_rng(0)
    two = len(task.text_columns) == 2
    texts = [tuple(f"text {rng.integers(400)}" for _ in range(1 + two)) for _ in range(300)]
    texts += [tuple(reversed(pair)) for pair in texts[:20]]  # swapped pairs, and duplicates
    texts += [tuple(f"  {text.upper()} " for text in pair) for pair in texts[20:40]]
    classes = len(task.class_names)
    size = len(texts)
    labels = rng.integers(0, classes, size) if classes else rng.uniform(0, 5, size).round(1)
    split = make_split(texts, labels, [rng.choice(["", "", "u", "v"]) for _ in texts])
    split.groups[40:] = [""] * (size - 40)
    folds = cut(task, split, 5)
    assert (folds.groups == group_numbers(split)).all()
    if not classes:
        classes_of = np.digitize(labels, np.quantile(labels, [k / 10 for k in range(1, 10)]))
        assert (strata(task, labels, 5) == classes_of).all()
    else:
        classes_of = labels
    seed = derive_seed(0, "parts", 5) % 2**32
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for fold, (outside, inside) in enumerate(splitter.split(texts, classes_of, folds.groups)):
        assert (folds.inside[fold] == inside).all()
        assert (folds.outside[fold] == outside).all()
    for group in range(folds.groups.max() + 1):
        assert len(set(folds.parts[folds.groups == group])) == 1
    for pair, twin in zip(range(20), range(300, 320), strict=True):
        assert folds.parts[pair] == folds.parts[twin]
    for text, twin in zip(range(20, 40), range(320, 340), strict=True):
        assert folds.parts[text] == folds.parts[twin]
    assert folds.trained == size - max(map(len, folds.inside))
    assert (cut(task, split, 5).parts == folds.parts).all()


@pytest.mark.parametrize(
    ("texts", "folds", "message"),
    [
        pytest.param(["a", "b", "A "], 3, "2 groups of equal texts, at most", id="few-groups"),
        pytest.param(["a", "b", "c"], 4, "3 groups of equal texts, at most", id="few-texts"),
    ],
)
def test_too_many_folds(texts, folds, message):
    split = make_split([(text,) for text in texts], np.zeros(len(texts)))
    with pytest.raises(InputError, match=message):
        cut(SST, split, folds)


def test_pooled_ids_are_unique():
    train = make_split([("a",), ("b",)], [0, 1], ["u", ""])
    dev = make_split([("c",), ("a",)], [1, 0], ["", "v"], "dev")
    dev.dropped["no text"] = [7]
    both = pooled(train, dev)
    assert both.ids == ["train/0", "train/1", "dev/0", "dev/1"]
    assert both.texts == [("a",), ("b",), ("c",), ("a",)]
    assert both.labels.tolist() == [0, 1, 1, 0]
    assert both.groups == ["u", "", "", "v"]
    assert both.dropped == {"dev: no text": [7]}


def test_a_grid_of_folds():
    members = Grid(rank=[1, 2], folds=3).expand(BASE)
    assert [member.name for member in members[:4]] == [
        *(f"r1-c1-s0-lr0.0001-f{fold}" for fold in range(3)),
        "r2-c1-s0-lr0.0001-f0",
    ]
    assert {member.configuration for member in members[:3]} == {"r1-c1-s0-lr0.0001"}
    assert [len(unit) for unit in configurations(members)] == [3, 3]
    assert "fold" not in BASE.to_json()
    assert Member(**members[1].to_json()) == members[1]
    assert len(Grid(members=[{"rank": 1}, {"rank": 2}], folds=2).expand(BASE)) == 4


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(folds=1), "folds 1 is too small: at least 2 is expected"),
        (Grid(members=[{"fold": 0}]), "a fold is not a setting of one member"),
        (Grid(members=[{"fold": 0}], folds=2), "a fold is not a setting of one member"),
    ],
)
def test_grids_of_folds_that_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        grid.expand(BASE)


@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    folds=st.integers(2, 12),
    size=st.integers(1, 30),
)
def test_packs_never_separate_a_configuration(ranks, folds, size):
    members = Grid(members=[{"rank": r, "seed": s} for s, r in enumerate(ranks)], folds=folds)
    expanded = members.expand(BASE)
    made = packs(expanded, size)
    assert Counter(member for pack in made for member in pack) == Counter(expanded)
    for pack in made:
        assert len(pack) <= max(size, folds)
        for unit in configurations(pack):
            assert [member.fold for member in unit] == list(range(folds))


def test_without_folds_the_order_is_that_of_a_permutation():
    sampler = TrainSampler([21, 9], 4, seeds=[3, 5])
    sampler.set_epoch(2)
    for task, size in enumerate([21, 9]):
        rows = np.concatenate([rows for number, rows in sampler if number == task], axis=1)
        for seed, row in zip([3, 5], rows, strict=True):
            rng = np.random.default_rng(derive_seed(seed, "order", task, 2, 0))
            assert row.tolist() == rng.permutation(size).tolist()


@given(
    parts=st.lists(st.integers(0, 2), min_size=3, max_size=40),
    batch=st.integers(1, 7),
    members=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_every_member_is_evaluated_on_its_part_by_length(parts, batch, members):
    parts[:3] = [0, 1, 2]
    lengths = np.random.default_rng(len(parts)).integers(3, 20, len(parts))
    folds = Folds(3, np.array(parts), np.arange(len(parts)))
    own = [folds.inside[fold] for fold in members]
    batches = list(EvalSampler(lengths, batch, len(members), own))
    longest = max(map(len, own))
    assert len(batches) == -(-longest // batch)  # no more than one pass
    rows = np.concatenate([rows for _, rows in batches], axis=1)
    for row, part in zip(rows, own, strict=True):
        assert (np.diff(lengths[row]) >= 0).all()
        counts = Counter(row.tolist())
        assert sorted(counts) == part.tolist()
        shortest = row[0]
        assert all(count == 1 for example, count in counts.items() if example != shortest)


@pytest.fixture
def write(tmp_path):
    """Writes train, dev and test of a made-up task with duplicates and groups; returns the
    arguments of `TextFiles`.
    """

    def make(columns=("text", "label", "user"), **options):
        rng = np.random.default_rng(1)
        rows = [(f"text {rng.integers(150)}", rng.integers(2), rng.integers(30)) for _ in range(50)]
        rows += [(text.upper(), label, "") for text, label, _ in rows[:9]]
        for name, part in (("train", rows[:40]), ("dev", rows[40:]), ("test", rows[:5])):
            lines = ["\t".join(columns)]
            lines += ["\t".join(map(str, row[: len(columns)])) for row in part]
            (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        paths = {name: str(tmp_path / f"{name}.tsv") for name in ("train", "dev", "test")}
        return {
            "name": "t",
            "text_columns": ["text"],
            "label_column": "label",
            "batch_size": 4,
            **paths,
            **options,
        }

    return make


@pytest.mark.parametrize("pool_dev", [False, True])
def test_no_member_sees_its_part(write, tiny_bert, pool_dev):
    """Through the sampler and the batches of two epochs, the second time from cached tokens."""
    files = write(group_column="user", pool_dev=pool_dev)
    grid = Grid(seed=[0, 1], folds=4).expand(BASE)
    for _ in range(2):
        module = data.TextFiles(**files, backbone=str(tiny_bert))
        module.cut(4)
        module.setup("fit")
        train = module.splits["t", "train"]
        folds = module.splits["t", "oof"].folds
        assert len(train) == (59 if pool_dev else 40)
        assert ("t", "dev") in module.splits or pool_dev
        texts = np.array([texts[0].lower() for texts in train.split.texts])
        users = np.array(train.split.groups)
        sampler = module.sampler(grid)
        seen = [[] for _ in grid]
        for epoch in range(2):
            sampler.set_epoch(epoch)
            of_epoch = [[] for _ in grid]
            for _, rows in sampler:
                batch = train.batch(rows)
                for member, row in zip(of_epoch, batch.indices.tolist(), strict=True):
                    member += row
            for member, row in zip(grid, of_epoch, strict=True):
                assert len(row) == len(set(row)) == folds.trained
                own = folds.inside[member.fold]
                assert not set(row) & set(own)
                assert not set(texts[row]) & set(texts[own])
                assert not (set(users[row]) & set(users[own])) - {""}
            for member, row in zip(seen, of_epoch, strict=True):
                member.append(row)
        for member, (first, second) in zip(grid, seen, strict=True):
            assert first != second
            alone = module.sampler([member])
            alone.set_epoch(1)
            assert np.concatenate([rows[0] for _, rows in alone]).tolist() == second
        evaluated = [set(folds.inside[member.fold]) for member in grid[:4]]
        assert sorted(example for part in evaluated for example in part) == list(range(len(train)))


@pytest.mark.parametrize("column", ["train", "dev"])
def test_a_missing_group_column_is_named(write, tiny_bert, column):
    files = write(group_column="user")
    path = files[column]
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("user", "writer", 1))
    with pytest.raises(InputError, match=rf"{column}\.tsv has no column 'user' \(group_column\)"):
        data.TextFiles(**files, backbone=str(tiny_bert)).setup("fit")


def test_the_courses_files_have_groups(corpus, tiny_bert):
    module = data.SST(root=str(corpus), group_column="user", backbone=str(tiny_bert))
    with pytest.raises(InputError, match="has no column 'user'"):
        module.setup("fit")
    module = data.SST(root=str(corpus), group_column="id", backbone=str(tiny_bert), limit=20)
    module.cut(2)
    module.setup("fit")
    assert module.splits["sst", "train"].split.groups == module.splits["sst", "train"].split.ids


def test_pool_dev_needs_folds(write, tiny_bert):
    module = data.TextFiles(**write(pool_dev=True), backbone=str(tiny_bert))
    with pytest.raises(InputError, match="pool_dev is of folds, and there are none"):
        module.setup("fit")


def test_other_parts_are_other_data(write, tiny_bert):
    """The fingerprint of the parts tells other groups and other numbers of folds apart."""
    prints = set()
    for options in ({}, {"group_column": "user"}):
        module = data.TextFiles(**write(**options), backbone=str(tiny_bert))
        for folds in (2, 3):
            module.cut(folds)
            module.setup("fit")
            prints.add(module.splits["t", "oof"].fingerprint)
        assert module.splits["t", "train"].fingerprint not in prints
    assert len(prints) == 4


def test_members_and_data_of_other_folds_are_refused(write, tiny_bert):
    module = data.TextFiles(**write(), backbone=str(tiny_bert))
    module.cut(2)
    module.setup("fit")
    for members in ([BASE, Member(4, 1.0, fold=0)], [Member(4, 1.0, fold=2)]):
        with pytest.raises(InputError, match="folds 2: the data is not cut for member r4"):
            module.sampler(members)
    assert module.sampler([BASE]).sizes == (len(module.splits["t", "train"]),)  # for a refit
    module.cut(None)
    module.setup("fit")
    assert ("t", "oof") not in module.splits
    with pytest.raises(InputError, match="folds None: the data is not cut for member r4"):
        module.sampler([Member(4, 1.0, fold=0)])
