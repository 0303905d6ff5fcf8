"""A run that the version before this format wrote is compared, used, combined and gone on with."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from loraens.inference.predictor import Predictor
from loraens.store import find_members

ARCHIVE = Path(__file__).with_name("format1.zip")
CONFIGS = Path(__file__).parent.parent / "configs"
OMNI = "run/ensembles/sst-omni-probs"
TEST = "corpus/ids-sst-test-student.csv"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Backbone, corpus and run of the archive, in the working directory."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert json.loads(Path(OMNI, "ensemble.json").read_text())["format"] == 1
    return tmp_path


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def contents(run):
    """Bytes of every file of the members."""
    paths = [path for member in find_members(Path(run)) for path in member.rglob("*")]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_compare_shows_every_member_and_ensemble(directory, run_command):
    assert run_command("compare", "run", "--out", "all.json") == 0
    rows = json.loads(Path("all.json").read_text())
    paths = sorted(str(p.parent) for name in ("manifest", "ensemble") for p in jsons(name))
    assert sorted(row["path"] for row in rows) == sorted(set(paths))
    assert {row["kind"] for row in rows} == {"member", "ensemble"}
    for row in rows:
        if row["kind"] == "ensemble":
            record = json.loads(Path(row["path"], "ensemble.json").read_text())
            expected = (record["dev"]["accuracy"], record["interval"]["value"], record["test"])
            assert (row["dev"], row["held_out"], row["test"]) == expected
            assert row["members"] == len(record["members"])
        else:
            manifest = json.loads(Path(row["path"], "manifest.json").read_text())
            assert row["dev"] == manifest["dev"]["best"]["sst"]["accuracy"]
            assert row["rank"] == manifest["member"]["rank"]


def jsons(name):
    return Path("run").rglob(f"{name}.json")


def test_predictions_are_the_same(directory, run_command):
    given = ("--model", OMNI, "--input", TEST, "--output", "again.csv")
    assert run_command("predict", *given) == 0
    expected = read("predictions.csv")
    found = read("again.csv")
    assert len(found) == len(expected) == 10
    for new, old in zip(found, expected, strict=True):
        assert list(new) == list(old)
        for name, text in old.items():
            if name.startswith("probability_") or name in (
                "entropy",
                "mutual_information",
                "vote_share",
            ):
                assert float(new[name]) == pytest.approx(float(text), abs=1e-5), name
            else:
                assert new[name] == text, name


def test_soups_and_members_predict(directory):
    text = ["a charming film"]
    for path in (*find_members(Path("run")), Path("run/ensembles/sst-soup-merged")):
        (row,) = Predictor.load(path).predict(text)
        assert row["prediction"] in {"0", "1", "2", "3", "4"}


def test_its_members_are_combined_to_the_same_scores(directory, run_command):
    before = {
        path.name: json.loads((path / "ensemble.json").read_text())
        for path in Path("run/ensembles").glob("sst-*-*")
    }
    assert run_command("ensemble", "--runs", "run", "--method", "omni", "--logger", "false") == 0
    made = json.loads(Path("run/ensembles/ensembles.json").read_text())
    assert {(e["method"], e["rule"]) for e in made} == {
        ("best", "vote"),
        *(("omni", rule) for rule in ("vote", "logits", "probs")),
    }
    for entry in made:
        name = f"sst-{entry['method']}-{entry['rule']}"
        on_disk = json.loads(Path("run/ensembles", name, "ensemble.json").read_text())
        assert len(on_disk.pop("sha256")) == 64
        assert on_disk == {"format": 2, **entry}
        old = before[name]
        for field in ("dev", "held_out", "calibrated"):
            assert entry[field] == pytest.approx(old[field], abs=1e-9), field
        for field in ("interval", "to_best", "to_omni"):
            assert entry[field]["value"] == pytest.approx(old[field]["value"], abs=1e-9), field
        for member, was in zip(entry["members"], old["members"], strict=True):
            assert member.pop("standing") == was.pop("place")
            assert member == was
    assert run_command("predict", "--model", OMNI, "--input", TEST, "--output", "again.csv") == 0


@pytest.mark.slow
def test_a_sweep_finds_every_member_finished(directory, run_command, monkeypatch):
    before = contents("run")
    assert len(find_members(Path("run"))) == 2
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    files = ("--config", CONFIGS / "sst.yaml", "--data.root", "corpus")
    model = ("--model.backbone", "backbone", "--model.pooling", "mean", "--model.lr", 1e-2)
    grid = ("--grid.rank", "[1,2]", "--trainer.max_epochs", 2, "--trainer.logger", "false")
    store = ("--store.root", ".", "--store.run", "run")
    assert run_command("sweep", *files, *model, *grid, *store) == 0
    assert contents("run") == before
    assert run_command("sweep", "--config", "run/config.yaml") == 0
    assert contents("run") == before
