import json

import numpy as np
import pytest
from helpers.records import make_manifest

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
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
