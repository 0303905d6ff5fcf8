"""Configurations of folds, trained once more on all labelled texts."""

import json
import shutil

import numpy as np
import pytest
from helpers.planted import plant
from test_fold_sweeps import command_in, finished  # noqa: F401
from test_sweep import contents

from loraens.api.proofs import prove
from loraens.ensemble.read import read_runs
from loraens.ensemble.recommend import read_recommended
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.store import MemberStore
from loraens.tasks import SST
from loraens.train.worker import PackWatch, Worker

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(finished, tmp_path):  # noqa: F811
    """A sweep with folds, which a test may change."""

    def copy(task="sst"):
        shutil.copytree(finished[task], tmp_path / "run")
        return tmp_path / "run"

    return copy


def test_a_refit_member_is_the_one_that_fit_trains(copied, run_command, command_in, tmp_path):  # noqa: F811
    """On the same texts, for as many epochs as the folds chose."""
    run = copied()
    best = prove(run, methods=["best"])["best"]
    again = best.refit()
    (path,) = again.members.directories
    manifest = MemberStore(path).manifest()
    assert path.parent == run / "refit"
    assert manifest.member.fold is None
    assert manifest.status == "finished"
    folds = best.members.manifests[int(np.argmax(best.proof.weights))]
    until = next(e.epoch for e in folds.history if e.name == folds.epochs["best"])
    assert manifest.history[-1].epoch == until
    assert np.isnan(manifest.history[-1].score)
    assert not (run / "refit" / "packs").exists() or not list((run / "refit" / "packs").iterdir())

    sweep = command_in(tmp_path, "--model.rank", folds.member.rank, grid=[], epochs=until)
    at = sweep.index("--sweep.pack_size")
    fit = ["fit", *sweep[1:at], *sweep[at + 2 :]]
    fit[fit.index("--store.run") + 1] = "alone"
    assert run_command(*fit) == 0
    (alone,) = read_runs([tmp_path / "alone"])["sst"].directories
    for file in ("adapter_model.safetensors", "heads.safetensors"):
        ours = path / manifest.epochs["last"] / file
        theirs = alone / MemberStore(alone).manifest().epochs["last"] / file
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_the_recommended_ensemble_refit_end_to_end(copied, run_command, capsys, tmp_path):
    run = copied("sts")
    given = ("ensemble", "--runs", run, "--method", "omni", "--logger", "false", "--refit", "true")
    assert run_command(*map(str, given)) == 0
    printed = capsys.readouterr().out
    recommended = read_recommended(run / "ensembles" / "recommended")["sts"]
    assert recommended.refit
    assert recommended.ensemble.endswith("-refit")
    assert recommended.sentence in printed
    record = EnsembleRecord.read(run / "ensembles" / recommended.ensemble)
    folds = EnsembleRecord.read(run / "ensembles" / recommended.ensemble.removesuffix("-refit"))
    assert record.refit
    assert not folds.refit
    assert len(record.members) * 3 == len(folds.members)
    assert len(record.members) == recommended.members
    assert (record.interval, record.dev, record.pool_size) == (
        folds.interval,
        folds.dev,
        folds.pool_size,
    )
    assert sum(m.weight for m in record.members) == pytest.approx(
        sum(m.weight for m in folds.members)
    )
    out = tmp_path / "out.csv"
    texts = tmp_path / "texts.csv"
    texts.write_text("sentence1,sentence2\na dog,a cat\n")
    model = run / "ensembles" / "recommended"
    arguments = ("predict", "--model", model, "--input", texts, "--output", out)
    assert run_command(*map(str, arguments)) == 0
    assert len(out.read_text().splitlines()) == 2
    assert run_command("compare", str(run), "--out", str(tmp_path / "rows.json")) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows if row["recommended"]] == [recommended.ensemble]


def test_intervals_of_a_refit_ensemble_have_the_spread_of_its_members(copied, tmp_path):
    run = copied("sts")
    omni = prove(run, methods=["omni"])["omni"].refit()
    assert len(omni.members.units) == 3
    alone = Predictor.load(omni.members.directories[0])
    with pytest.raises(InputError, match="has no held-out examples, which coverage needs: it was"):
        alone.predict([("a dog", "a cat")], coverage=0.5)
    predictor = Predictor.load(omni.save(tmp_path / "omni"))
    (row,) = predictor.predict([("a dog", "a cat")], coverage=0.5)
    region = predictor.region(predictor.task(), 0.5)
    radius = region.radius(row["spread"])
    assert radius > 0
    assert row["low"] == pytest.approx(row["prediction"] - radius, abs=1e-5)
    assert row["high"] == pytest.approx(row["prediction"] + radius, abs=1e-5)


def test_it_trains_on_all_labelled_texts_with_dev_where_it_is_pooled(copied, monkeypatch):
    run = copied("sts")
    seen = []
    monkeypatch.setattr(
        Worker, "train", lambda self, pack, report=None: seen.append((self, pack)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        prove(run, methods=["omni"])["omni"].refit()
    worker, pack = seen[0]
    data = worker.data
    sampler = data.sampler(pack.members)
    examples = np.unique(np.concatenate([part[0] for _, part in sampler]))
    assert len(examples) == len(data.splits["sts", "train"]) == len(data.splits["sts", "oof"])
    assert ("sts", "dev") not in data.splits
    assert all(member.fold is None for member in pack.members)


def test_an_interrupted_refit_goes_on_and_a_finished_one_is_not_trained_again(copied, monkeypatch):
    run = copied()
    omni = prove(run, methods=["omni"], epoch="last")["omni"]
    omni.refit()
    whole = contents(run / "refit")
    monkeypatch.setattr(Worker, "train", lambda *args: 1 / 0)
    omni.refit()  # nothing is left
    monkeypatch.undo()

    shutil.rmtree(run / "refit")
    saved = PackWatch.on_train_epoch_end

    def killed(self, trainer, module):
        saved(self, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(PackWatch, "on_train_epoch_end", killed)
    with pytest.raises(SystemExit):  # Lightning's answer to it
        omni.refit()
    assert list((run / "refit" / "packs").glob("*.ckpt"))
    monkeypatch.undo()
    epochs = []
    train = Worker.train

    def watched(self, pack, report=None):
        epochs.append(pack.epochs_done)
        return train(self, pack, report)

    monkeypatch.setattr(Worker, "train", watched)
    omni.refit()
    assert epochs == [1]
    assert contents(run / "refit") == whole


def test_what_does_not_fit_in_memory_is_halved(copied, monkeypatch):
    run = copied()
    omni = prove(run, methods=["omni"], epoch="last")["omni"]
    sizes = []
    fit = Worker._fit

    def short(self, pack, members, report):
        sizes.append(len(members))
        if len(members) > 1:
            return "out_of_memory", "asked for too much"
        return fit(self, pack, members, report)

    monkeypatch.setattr(Worker, "_fit", short)
    assert len(omni.refit().members.units) == 3
    assert sizes == [3, 1, 1, 1]
    monkeypatch.setattr(Worker, "_fit", lambda *args: ("out_of_memory", "asked for too much"))
    shutil.rmtree(run / "refit")
    with pytest.raises(InputError, match=r"alone does not fit in memory \(asked for too much\)"):
        omni.refit()


def test_refit_is_refused_without_folds_or_with_other_texts(copied, tmp_path, fails, corpus):
    plain = plant(tmp_path / "plain", SST)
    message = fails("ensemble", "--runs", plain, "--logger", "false", "--refit", "true")
    assert message.startswith("loraens: --refit is of configurations with folds")
    assert not (plain / "ensembles").exists()
    run = copied()
    omni = prove(run, methods=["omni"])["omni"]
    omni.refit()
    message = fails("ensemble", "--runs", run / "refit", "--logger", "false")
    assert "has no member that did not fail" in message
    shutil.copytree(corpus, tmp_path / "other")
    texts = tmp_path / "other" / "ids-sst-train.csv"
    texts.write_text("\n".join(texts.read_text().splitlines()[:-1]) + "\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(corpus), str(tmp_path / "other")))
    with pytest.raises(InputError, match="has changed since its members were trained"):
        omni.refit()
