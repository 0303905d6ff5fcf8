"""Logits of every epoch and the examples that they refer to, from training to the pool."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback, Trainer

from loraens.data import modules as data
from loraens.ensemble.read import read_runs
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.members import Member
from loraens.store import MANIFEST, MemberStore, find_members, logits_file
from loraens.train.callbacks import MemberWriter
from loraens.train.module import Population

ARCHIVE = Path(__file__).with_name("format1.zip")
MEMBERS = [Member(2, 3.0, lr=1e-2), Member(4, 1.0, seed=1, lr=3e-2)]


class Recorder(Callback):
    """Keeps what was evaluated: a dictionary of logits `(M, N, C)` for each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append({k: np.stack(v) for k, v in pl_module.evaluation.logits.items()})


def train(directory, tiny_bert, corpus, epochs=3, eval_batch_size=64, **options):
    """Train the members; returns what was evaluated."""
    texts = data.SST(
        root=str(corpus),
        backbone=str(tiny_bert),
        eval_batch_size=eval_batch_size,
        test_logits=True,
    )
    recorder = Recorder()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    Trainer(
        **dict.fromkeys(quiet, False),
        max_epochs=epochs,
        num_sanity_val_steps=0,
        callbacks=[MemberWriter(directory), recorder],
        **options,
    ).fit(Population(MEMBERS, texts.tasks, backbone=str(tiny_bert), pooling="mean"), texts)
    return recorder.seen


@pytest.fixture(scope="module")
def run(tiny_bert, corpus, tmp_path_factory):
    """A run of two members and three epochs, which no test may change, and its evaluations."""
    directory = tmp_path_factory.mktemp("epochs") / "run"
    return directory, train(directory, tiny_bert, corpus)


def test_logits_of_every_epoch_are_what_was_evaluated(run):
    directory, seen = run
    assert len(seen) == 3
    for index, member in enumerate(MEMBERS):
        store = MemberStore(directory / member.name)
        manifest = store.manifest()
        kept = set(manifest.epochs.values())
        names = [entry.name for entry in manifest.history]
        assert sorted(path.name for path in (store.directory / "logits").iterdir()) == names
        for name, evaluated in zip(names, seen, strict=True):
            for (task, split), logits in evaluated.items():
                found = store.logits_of(manifest, name, task, split)
                assert found.indices is None
                if name in kept:
                    assert found.logits.dtype == np.float32
                    assert (found.logits == logits[index]).all()
                else:
                    assert found.logits.dtype == np.float16
                assert np.abs(found.logits - logits[index]).max() <= (
                    2.0**-11 * np.abs(logits[index]).max()
                )
                with np.load(store.directory / "logits" / name / f"{task}-{split}.npz") as file:
                    assert file.files == ["logits"]
                    assert (file["logits"] == logits[index].astype(np.float16)).all()


def test_ids_and_labels_are_stored_once_a_run(run, corpus):
    directory, _ = run
    files = sorted(path.name for path in (directory / "examples").iterdir())
    assert files == ["sst-dev.npz", "sst-test.npz"]
    split = data.SST(root=str(corpus)).sources[0].read("dev")
    for path in find_members(directory):
        assert sorted(MemberStore(path).read().examples) == files
        found = MemberStore(path).logits("sst", "dev")
        assert found.example_id.tolist() == split.ids
        assert found.labels.tolist() == split.labels.tolist()
        assert MemberStore(path).logits("sst", "test").labels is None
    assert {path.name for path in find_members(directory)} == {m.name for m in MEMBERS}


def test_the_pool_has_every_epoch(run):
    directory, seen = run
    said = []
    pool = read_runs([directory], report=said.append)["sst"].dev
    assert not said
    assert len(pool.epochs) == len(pool.epoch_names) == len(pool) == 2
    by_name = {member.name: index for index, member in enumerate(MEMBERS)}
    for index, name in enumerate(pool.names):
        manifest = MemberStore(directory / name).read()
        evaluated = np.stack([logits["sst", "dev"][by_name[name]] for logits in seen])
        epochs = pool.epochs[index]
        names = pool.epoch_names[index]
        assert epochs.dtype == np.float32
        assert names == tuple(entry.name for entry in manifest.history)
        np.testing.assert_allclose(epochs, evaluated, rtol=2.0**-11, atol=2.0**-25)
        for kept in manifest.epochs.values():
            assert (epochs[names.index(kept)] == evaluated[names.index(kept)]).all()
        assert (epochs[names.index(manifest.epochs["best"])] == pool.logits[index]).all()
    some = np.array([3, 3, 0])
    part = pool.at(some).of([1])
    assert part.epoch_names == pool.epoch_names[1:]
    assert (part.epochs[0] == pool.epochs[1][:, some]).all()
    last = read_runs([directory], epoch="last")["sst"].dev
    assert last.epochs is last.epoch_names is None
    assert last.at(some).of([1]).epochs is None


def test_members_may_have_different_numbers_of_epochs(run, tmp_path):
    directory = Path(shutil.copytree(run[0], tmp_path / "run"))
    store = MemberStore(directory / MEMBERS[0].name)
    manifest = store.manifest()
    kept = set(manifest.epochs.values())
    history = tuple(entry for entry in manifest.history if entry.name in kept)
    store.update(history=history)
    pool = read_runs([directory])["sst"].dev
    assert sorted(map(len, pool.epochs)) == sorted((len(history), 3))
    assert set(pool.epoch_names[pool.names.index(MEMBERS[0].name)]) == kept


def test_a_part_of_dev_is_named_by_its_indices(tiny_bert, corpus, tmp_path):
    sizes = {"epochs": 2, "eval_batch_size": 16, "limit_val_batches": 1}
    seen = train(tmp_path / "run", tiny_bert, corpus, **sizes)
    whole = data.SST(root=str(corpus)).sources[0].read("dev")
    limited = seen[0]["sst", "dev"].shape[1]
    assert limited == 8
    pool = read_runs([tmp_path / "run"])["sst"].dev
    for index, member in enumerate(MEMBERS):
        store = MemberStore(tmp_path / "run" / member.name)
        manifest = store.manifest()
        for entry, evaluated in zip(manifest.history, seen, strict=True):
            found = store.logits_of(manifest, entry.name, "sst", "dev")
            np.testing.assert_allclose(
                found.logits, evaluated["sst", "dev"][index], rtol=2.0**-11, atol=2.0**-25
            )
            places = found.indices.tolist()
            assert len(places) == limited
            assert found.example_id.tolist() == [whole.ids[place] for place in places]
            assert found.labels.tolist() == whole.labels[places].tolist()
    assert pool.epochs[0].shape == (2, limited, 5)
    assert pool.labels.tolist() == found.labels.tolist()


def test_a_copied_member_predicts_and_is_combined_beside_its_examples(run, tmp_path):
    source = run[0] / MEMBERS[0].name
    copy = Path(shutil.copytree(source, tmp_path / "elsewhere" / "member"))
    texts = ["a charming film"]
    assert Predictor.load(copy).predict(texts) == Predictor.load(source).predict(texts)
    examples = tmp_path / "elsewhere" / "examples"
    with pytest.raises(InputError) as error:
        read_runs([copy])
    assert f"{examples / 'sst-dev.npz'} is missing" in str(error.value)
    assert "for a copy of a member, copy its run's examples/ too" in str(error.value)
    shutil.copytree(run[0] / "examples", examples)
    assert read_runs([copy])["sst"].dev.logits.shape[0] == 1


def test_altered_examples_are_refused(run, tmp_path, monkeypatch):
    directory = Path(shutil.copytree(run[0], tmp_path / "run"))
    monkeypatch.chdir(directory / MEMBERS[0].name)  # a member given as "." finds its run too
    assert len(MemberStore(Path()).logits("sst", "test").example_id) == 10
    path = directory / "examples" / "sst-test.npz"
    path.write_bytes(path.read_bytes() + b"x")
    for member in (Path(), directory / MEMBERS[1].name):
        with pytest.raises(InputError, match=r"sst-test\.npz was altered \(its checksum"):
            MemberStore(member).manifest()


def test_older_runs_are_read_and_it_is_said_what_they_lack(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    said = []
    pool = read_runs([tmp_path / "run"], report=said.append)["sst"].dev
    lacking = 0
    for path in find_members(tmp_path / "run"):
        manifest = json.loads((path / MANIFEST).read_text())
        assert "examples" not in manifest
        names = {entry["name"] for entry in manifest["history"]}
        lacking += not names <= set(manifest["epochs"].values())
    assert lacking
    assert pool.epochs is pool.epoch_names is None
    (sentence,) = said
    assert f"task sst: {lacking} of 2 members lack logits of some of their epochs" in sentence
    assert not read_runs([tmp_path / "run"], epoch="last", report=pytest.fail)["sst"].dev.epochs


def test_files_of_epochs(run):
    manifest = MemberStore(run[0] / MEMBERS[0].name).read()
    for entry in manifest.history:
        for split in ("dev", "test"):
            assert logits_file(manifest, entry.name, "sst", split) in manifest.files
            assert f"logits/{entry.name}/sst-{split}.npz" in manifest.files
