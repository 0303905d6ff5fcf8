"""Adapter kinds, targets and ratios of learning rates as axes of one grid."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from helpers.corpus import split_texts
from test_sweep import CONFIGS, QUIET, contents, manifests, run_in_child

from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.members import Grid, Member, packs
from loraens.store import MemberStore
from loraens.tasks import SST
from loraens.train.module import Population

KINDS = ["--grid.adapter", "[lora, dora]", "--grid.targets", "[[query, value], [attention]]"]
GRID = ["--grid.rank", "[2]", *KINDS, "--grid.loraplus_lr_ratio", "[1, 4]"]
BASE = Member(8, 3.0)


@pytest.fixture(scope="module")
def command(tiny_bert, corpus):
    """The arguments of a sweep on the tiny backbone."""

    def make(directory, *args, epochs=2, size=2):
        files = ["--config", CONFIGS / "sst.yaml", "--data.root", corpus]
        model = ["--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2]
        store = ["--store.root", directory.parent, "--store.run", directory.name]
        options = ["--trainer.max_epochs", epochs, "--sweep.pack_size", size, *QUIET, *args]
        return ["sweep", *map(str, [*files, *model, *store, *options])]

    return make


@pytest.fixture(scope="module")
def run(command, run_command, tmp_path_factory):
    """A sweep of two kinds on two lists of targets at two ratios, and all of it as an ensemble."""
    directory = tmp_path_factory.mktemp("axes") / "run"
    assert run_command(*command(directory, *GRID)) == 0
    rules = ("--method", "omni", "--rule", "logits", "probs", "--logger", "false")
    assert run_command("ensemble", "--runs", directory, *rules) == 0
    return directory


def test_settings_are_in_the_name_and_in_json_where_they_are_given():
    member = Member(8, 3.0, adapter="dora", targets=["query", "value"], fold=1)
    assert member.targets == ("query", "value")
    assert member.name == "r8-c3-s0-lr0.0001-dora-query+value-f1"
    assert member.to_json()["targets"] == ["query", "value"]
    assert Member(**member.to_json()) == member
    assert BASE.to_json().keys() == {
        *("rank", "scale", "seed", "lr", "weight_decay", "head_dropout")
    }


def test_packs_are_of_members_of_one_kind():
    grid = Grid(adapter=["lora", "dora"], targets=[["query"], ["key"]], rank=[1, 2], epochs=[1, 2])
    members = grid.expand(BASE)
    assert len(members) == 16
    made = packs(members, 4)
    assert [len(pack) for pack in made] == [2] * 8
    assert all(len({(m.kind, m.epochs) for m in pack}) == 1 for pack in made)
    own = [{"adapter": "dora", "lr": 1e-3}, {"targets": ["key"], "rank": 2.0}]
    assert [m.kind for m in Grid(members=own).expand(BASE)] == [("dora", ()), ("", ("key",))]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"adapter": 3}, "adapter 3 is not the name of an adapter kind"),
        ({"adapter": "../x"}, "adapter '../x' is not the name"),
        ({"targets": "query"}, "targets 'query' is not a list of names of layers"),
        ({"targets": []}, r"targets \(\) is not a list"),
        ({"targets": ["a/b"]}, r"targets \('a/b',\) is not a list"),
        ({"rank": "x"}, "rank 'x' is not a number"),
        ({"rank": float("inf")}, "rank inf is not a whole number"),
        ({"loraplus_lr_ratio": 0}, "positive scale, learning rate and ratio of learning rates"),
    ],
)
def test_settings_that_there_are_not(setting, message):
    with pytest.raises(ValueError, match=message):
        Grid(members=[setting]).expand(BASE)


def test_ratios_without_an_adapter_that_has_b(tiny_bert):
    for mode in ("frozen", "full"):
        with pytest.raises(
            InputError, match=f"lr_ratio of s0-lr0.0001-plus2: mode {mode} has no B"
        ):
            Population([Member(0, 1.0, loraplus_lr_ratio=2.0)], [SST], str(tiny_bert), mode)
    with pytest.raises(InputError, match="several adapter kinds or targets are no one population"):
        Population([BASE, replace(BASE, adapter="dora")], [SST], str(tiny_bert))


@pytest.mark.slow
def test_each_member_is_as_in_a_run_of_its_kind(run, command, run_command, tmp_path):
    found = manifests(run)
    assert len(found) == 8
    assert not (run / "packs").exists()
    options = ["--model.adapter", "dora", "--model.targets", "[attention]", *GRID[:2], *GRID[-2:]]
    assert run_command(*command(tmp_path / "dora", *options)) == 0
    for name, alone in manifests(tmp_path / "dora").items():
        of_sweep = found[f"{name}-dora-attention"]
        assert of_sweep.settings == alone.settings
        assert of_sweep.dev == alone.dev
        for file, digest in alone.files.items():
            assert of_sweep.files[file] == digest  # logits and weights
    lora = found["r2-c3-s0-lr0.01-lora-query+value"]
    assert (lora.settings.adapter, lora.settings.targets) == ("lora", ("query", "value"))
    plus = found["r2-c3-s0-lr0.01-plus4-lora-query+value"]
    assert plus.member.loraplus_lr_ratio == 4
    assert plus.dev != lora.dev


@pytest.mark.slow
def test_members_of_several_kinds_predict_together(run, run_command, corpus, tmp_path, capsys):
    ensemble = run / "ensembles" / "sst-omni-logits"
    predictor = Predictor.load(ensemble)
    assert sorted(len(members) for _, members in predictor.parts) == [2, 2, 2, 2]
    first, *others = (model.encoder.embeddings for model, _ in predictor.parts)
    for other in others:  # the backbone's weights exist once
        assert other.word_embeddings.weight is first.word_embeddings.weight
    texts = split_texts(corpus, "sst", "dev")
    logits = predictor.logits(texts, predictor.task())
    names = [member.name for member in EnsembleRecord.read(ensemble).members]
    stored = [MemberStore(run / name).logits("sst", "dev").logits for name in names]
    np.testing.assert_allclose(logits, stored, rtol=0, atol=1e-5)

    rows = []
    for columns in ((), ("--columns", "[prediction]")):
        out = tmp_path / "out.csv"
        given = ("--input", corpus / "ids-sst-dev.csv", "--output", out, *columns)
        assert run_command("predict", "--model", run / "ensembles" / "sst-omni-probs", *given) == 0
        with out.open(newline="") as stream:
            rows.append([row["prediction"] for row in csv.DictReader(stream)])
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_what_shows_the_settings(run, run_command, capsys, tmp_path):
    out = tmp_path / "rows.csv"
    shown = ("--filter", "adapter=dora", "loraplus_lr_ratio>1", "--out", out)
    assert run_command("compare", run, *shown) == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["targets"] for row in rows} == {"query+value", "attention"}
    assert {row["adapter"] for row in rows} == {"dora"}
    assert len(rows) == 2
    assert run_command("report", "--runs", run, "--texts", "false", "--out", tmp_path) == 0
    page = (tmp_path / "index.html").read_text()
    table = page.partition("Adapter kinds and targets")[2].partition("</table>")[0]
    assert table.count("query, value") == table.count("dora") == 4


@pytest.mark.slow
def test_what_takes_one_kind_or_low_ranks(run, fails, run_command, capsys, tmp_path):
    message = fails("ensemble", "--runs", run, "--method", "soup", "--logger", "false")
    assert "--method soup merges members of one adapter kind and targets, and " in message
    assert "differ in targets: choose another method" in message
    ensemble = run / "ensembles" / "sst-omni-logits"
    message = fails("export", ensemble, "--out", tmp_path / "dora")
    assert "--format onnx: adapters of kind dora cannot be combined into one model" in message
    assert not (tmp_path / "dora").exists()
    lora = [path for path in run.glob("*-lora-*") if path.is_dir()]
    chosen = ("--method", "omni", "--rule", "logits", "--logger", "false", "--out", run / "lora")
    assert run_command("ensemble", "--runs", *lora, *chosen) == 0
    (found,) = (run / "lora").glob("sst-omni-logits")
    capsys.readouterr()
    assert run_command("export", found, "--out", tmp_path / "lora") == 0
    assert "100.0% of 200 texts" in capsys.readouterr().out


@pytest.mark.slow
def test_dry_run_and_wrong_axes(command, run_command, fails, capsys, tmp_path):
    directory = tmp_path / "run"
    assert run_command(*command(directory, *GRID, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "8 members, of which 0 have ended" in said
    assert "4 packs of at most 2 members" in said
    assert "  dora on query, value: 2 members left, " in said
    assert "  lora on attention: 2 members left, " in said
    wrong = {
        ("--grid.adapter", "[lora, lorra]"): "--grid.adapter 'lorra' is none of lora, dora, rslora",
        ("--grid.targets", "[[query], [quary]]"): "--grid.targets: target 'quary' matches no",
        ("--grid.targets", "[query]"): "--grid.targets ['query']: a list of list of texts",
        ("--model.loraplus_lr_ratio", "0"): "positive scale, learning rate and ratio of learning",
    }
    for options, expected in wrong.items():
        assert expected in fails(*command(directory, *options))
    assert not directory.exists()


@pytest.mark.slow
def test_auto_size_halving_and_folds_of_kinds(command, run_command, tmp_path):
    """Members that continue are regrouped by kind."""
    grid = ["--grid.rank", "[1, 2]", "--grid.adapter", "[lora, dora]", "--grid.folds", 2]
    options = [*grid, "--sweep.halving_factor", 2]
    assert run_command(*command(tmp_path / "run", *options, epochs=2, size="auto")) == 0
    found = manifests(tmp_path / "run")
    assert len(found) == 8
    statuses = sorted(manifest.status for manifest in found.values())
    assert statuses == ["finished"] * 4 + ["stopped"] * 4


@pytest.mark.slow
def test_killed_and_grown_it_ends_with_the_same_contents(command, run_command, tmp_path):
    options = ["--grid.rank", "[1, 2]", "--grid.adapter", "[lora, dora]", "--sweep.patience", 1]
    whole = tmp_path / "whole"
    changes = run_in_child(command(whole, *options), whole)
    expected = contents(whole)
    directory = tmp_path / "run"
    for kill_at in (changes // 3, changes // 3):
        assert run_in_child(command(directory, *options), directory, kill_at) is None
    assert run_command(*command(directory, *options)) == 0
    assert contents(directory) == expected
    grown = [*options, "--grid.adapter", "[lora, dora, rslora]"]
    assert run_command(*command(directory, *grown)) == 0
    now = contents(directory)
    assert len(now) == len(expected) * 3 // 2
    assert all(now[name] == content for name, content in expected.items())
