import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.records import make_manifest

from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.records import EpochRecord
from loraens.store import (
    Logits,
    MemberStore,
    find_member,
    in_16_bits,
    logits_to_bytes,
    write_examples,
)


@pytest.fixture
def store(tmp_path):
    store = MemberStore(tmp_path / "run" / "r4")
    logits = Logits(np.ones((3, 2), np.float32), np.array(["a", "b", "ü"]), np.arange(3.0))
    store.write(
        {"epoch-001": {"sst-dev.npz": logits_to_bytes(logits), "x.json": b"{}"}},
        manifest_of("epoch-001", "epoch-001"),
    )
    return store


def manifest_of(best, last):
    dev = {epoch: {"sts": {"pearson": float("nan")}} for epoch in ("best", "last")}
    return make_manifest(epochs={"best": best, "last": last}, dev=dev)


def test_logits_come_back_and_bytes_repeat(store):
    found = store.logits("sst", "dev")
    assert found.example_id.tolist() == ["a", "b", "ü"]
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.logits == 1).all()
    assert np.isnan(store.manifest().dev["best"]["sts"]["pearson"])
    on_disk = json.loads((store.directory / "manifest.json").read_text())
    assert on_disk["dev"]["best"] == {"sts": {"pearson": None}}  # JSON has no NaN
    unlabelled = Logits(found.logits, found.example_id, None)
    path = store.directory / "epoch-001" / "sst-dev.npz"
    path.write_bytes(logits_to_bytes(unlabelled))
    assert store.logits_of(store.read(), "epoch-001", "sst", "dev").labels is None
    assert logits_to_bytes(unlabelled) == path.read_bytes()
    path.write_bytes(logits_to_bytes(found))
    with pytest.raises(InputError, match="no logits of this split"):
        store.logits("sst", "test")


def test_only_best_and_last_remain(store):
    for epoch, best in ((2, 2), (3, 2), (4, 2)):
        store.write(
            {f"epoch-{epoch:03d}": {"x.json": str(epoch).encode()}},
            manifest_of(f"epoch-{best:03d}", f"epoch-{epoch:03d}"),
        )
    assert sorted(path.name for path in store.directory.glob("epoch-*")) == [
        "epoch-002",
        "epoch-003",
        "epoch-004",
    ]
    store.write(
        {}, manifest_of("epoch-002", "epoch-004")
    )  # what the manifest before named goes one write later
    assert sorted(path.name for path in store.directory.glob("epoch-*")) == [
        "epoch-002",
        "epoch-004",
    ]
    assert set(store.manifest().files) == {"epoch-002/x.json", "epoch-004/x.json"}


def test_a_killed_writers_files_are_cleared(store):
    (store.directory / "epoch-001" / ".x.json.123.part").write_bytes(b"{")
    store.write({"epoch-002": {"x.json": b"{}"}}, manifest_of("epoch-001", "epoch-002"))
    assert set(store.manifest().files) == {
        "epoch-001/x.json",
        "epoch-001/sst-dev.npz",
        "epoch-002/x.json",
    }
    assert list(store.directory.rglob("*.part")) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("epoch-001/x.json", "[]", r"x\.json was altered", id="altered"),
        pytest.param("epoch-001/x.json", None, r"x\.json is missing", id="missing"),
        pytest.param("manifest.json", '{"format": 99}', "not of format 1", id="format"),
        pytest.param(
            "manifest.json",
            '{"format": 1}',
            r"manifest\.json lacks the field 'name': restore it or train the member again",
            id="no-name",
        ),
        pytest.param("manifest.json", "{", "is not JSON", id="not-json"),
        pytest.param("manifest.json", None, "is not a member", id="no-manifest"),
    ],
)
def test_altered_missing_and_foreign_files_are_named(store, name, content, message):
    path = store.directory / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        store.manifest()


def test_find_member(store):
    assert find_member(store.directory) == find_member(store.directory.parent) == store.directory
    other = MemberStore(store.directory.parent / "r8")
    other.write({"epoch-001": {"x": b""}}, manifest_of("epoch-001", "epoch-001"))
    with pytest.raises(InputError, match=r"has 2 members: give one of them, such as .*r4"):
        find_member(store.directory.parent)


def test_a_directory_without_a_member(tmp_path):
    with pytest.raises(InputError, match="has no member of a run"):
        find_member(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as raised:
        write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def history(*names):
    return tuple(EpochRecord(name, 1, 1, train_loss=0.0, dev={}, score=0.0) for name in names)


def test_logits_of_the_history_remain_and_others_go(store):
    for number in (1, 2, 3):
        name = f"epoch-{number:03d}"
        files = {name: {"x.json": b"{}"}, f"logits/{name}": {"x.npz": str(number).encode()}}
        names = [f"epoch-{n:03d}" for n in range(1, number + 1)]
        manifest = replace(manifest_of("epoch-001", name), history=history(*names))
        store.write(files, manifest)
    assert set(store.manifest().files) == {
        *(f"epoch-{n:03d}/x.json" for n in (1, 3)),
        *(f"logits/epoch-{n:03d}/x.npz" for n in (1, 2, 3)),
    }
    # resumed from the checkpoint of the first epoch, the second is trained again
    again = replace(manifest_of("epoch-001", "epoch-002"), history=history(*names[:2]))
    store.write({"epoch-002": {"x.json": b"[]"}, "logits/epoch-002": {"x.npz": b"new"}}, again)
    assert (store.directory / "logits" / "epoch-002" / "x.npz").read_bytes() == b"new"
    assert (store.directory / "logits" / "epoch-003").is_dir()  # once more, as the manifest was
    store.update(seconds=1.0)
    assert sorted(path.name for path in (store.directory / "logits").iterdir()) == names[:2]
    assert [n for n in store.manifest().files if n.startswith("logits")] == [
        f"logits/{name}/x.npz" for name in names[:2]
    ]


def test_16_bits_keep_eleven_of_the_mantissa():
    rng = np.random.default_rng(0)
    logits = (10.0 ** rng.uniform(-4, 4.8, (500, 5)) * rng.choice([-1, 1], (500, 5))).astype(
        np.float32
    )
    half = in_16_bits(logits)
    assert half.dtype == np.float16
    assert (np.abs(half.astype(np.float64) - logits) <= 2.0**-11 * np.abs(logits)).all()
    tiny = np.float32(2.0) ** np.arange(-40, -14)[:, None]
    assert np.abs(in_16_bits(tiny).astype(np.float64) - tiny).max() <= 2.0**-25


@pytest.mark.parametrize(
    ("value", "kind"), [(65504.0, np.float16), (-65520.0, np.float32), (1e30, np.float32)]
)
def test_logits_beyond_16_bits_stay_as_they_are(value, kind):
    logits = np.array([[1.1, value]], np.float32)
    kept = in_16_bits(logits)
    assert kept.dtype == kind
    assert kept[0, 1] == value


def test_the_same_examples_are_written_once(tmp_path):
    first = write_examples(tmp_path, "sst-dev.npz", ["a", "b"], np.arange(2.0))
    path = tmp_path / "examples" / "sst-dev.npz"
    inode = path.stat().st_ino
    assert write_examples(tmp_path, "sst-dev.npz", ["a", "b"], np.arange(2.0)) == first
    assert path.stat().st_ino == inode
    path.write_bytes(b"")
    assert write_examples(tmp_path, "sst-dev.npz", ["a", "b"], np.arange(2.0)) == first
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first
    assert write_examples(tmp_path, "sst-dev.npz", ["a", "c"], np.arange(2.0)) != first
