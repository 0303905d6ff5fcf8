import json

import numpy as np
import pytest

from loraens.errors import InputError
from loraens.store import (
    Logits,
    MemberStore,
    find_member,
    logits_to_bytes,
    read_logits,
    write_atomically,
)


@pytest.fixture
def store(tmp_path):
    store = MemberStore(tmp_path / "run" / "r4")
    logits = Logits(np.ones((3, 2), np.float32), np.array(["a", "b", "ü"]), np.arange(3.0))
    store.write(
        {"epoch-001": {"sst-dev.npz": logits_to_bytes(logits), "x.json": b"{}"}},
        epochs("epoch-001", "epoch-001"),
    )
    return store


def epochs(best, last):
    return {
        "epochs": {"best": best, "last": last},
        "settings": {},
        "member": {},
        "dev": {"sts": {"pearson": float("nan")}},
    }


def test_logits_come_back_and_bytes_repeat(store):
    found = store.logits("sst", "dev")
    assert found.example_id.tolist() == ["a", "b", "ü"]
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.logits == 1).all()
    assert store.manifest()["dev"] == {"sts": {"pearson": None}}  # JSON has no NaN
    unlabelled = Logits(found.logits, found.example_id, None)
    path = store.directory / "x.npz"
    path.write_bytes(logits_to_bytes(unlabelled))
    assert read_logits(path).labels is None
    assert logits_to_bytes(unlabelled) == path.read_bytes()
    with pytest.raises(InputError, match="no logits of this split"):
        store.logits("sst", "test")


def test_only_best_and_last_remain(store):
    for epoch, best in ((2, 2), (3, 2), (4, 2)):
        store.write(
            {f"epoch-{epoch:03d}": {"x.json": str(epoch).encode()}},
            epochs(f"epoch-{best:03d}", f"epoch-{epoch:03d}"),
        )
    assert sorted(path.name for path in store.directory.glob("epoch-*")) == [
        "epoch-002",
        "epoch-003",
        "epoch-004",
    ]
    store.write(
        {}, epochs("epoch-002", "epoch-004")
    )  # what the manifest before named goes one write later
    assert sorted(path.name for path in store.directory.glob("epoch-*")) == [
        "epoch-002",
        "epoch-004",
    ]
    assert set(store.manifest()["files"]) == {"epoch-002/x.json", "epoch-004/x.json"}


def test_a_killed_writers_files_are_cleared(store):
    (store.directory / "epoch-001" / ".x.json.123.part").write_bytes(b"{")
    store.write({"epoch-002": {"x.json": b"{}"}}, epochs("epoch-001", "epoch-002"))
    assert set(store.manifest()["files"]) == {
        "epoch-001/x.json",
        "epoch-001/sst-dev.npz",
        "epoch-002/x.json",
    }
    assert list(store.directory.rglob("*.part")) == []


def test_altered_missing_and_foreign_files_are_named(store, tmp_path):
    file = store.directory / "epoch-001" / "x.json"
    file.write_bytes(b"[]")
    with pytest.raises(InputError, match=r"x\.json was altered"):
        store.manifest()
    file.unlink()
    with pytest.raises(InputError, match=r"x\.json is missing"):
        store.manifest()
    manifest = store.directory / "manifest.json"
    manifest.write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="not of format 1"):
        store.manifest()
    manifest.write_text(json.dumps({"format": 1, "files": None}))
    with pytest.raises(InputError, match="lacks the field 'files'"):
        store.manifest()
    manifest.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        store.manifest()
    with pytest.raises(InputError, match="is not a member"):
        MemberStore(tmp_path).manifest()


def test_find_member(store, tmp_path):
    assert find_member(store.directory) == find_member(store.directory.parent) == store.directory
    other = MemberStore(store.directory.parent / "r8")
    other.write({"epoch-001": {"x": b""}}, epochs("epoch-001", "epoch-001"))
    with pytest.raises(InputError, match=r"holds 2 members: give one of them, such as .*r4"):
        find_member(store.directory.parent)
    with pytest.raises(InputError, match="holds no member"):
        find_member(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
