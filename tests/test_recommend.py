"""One recommendation: the cheapest ensemble near the best, with an honest estimate."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import plant

from loraens.api.proofs import candidates
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.ensemble.recommend import pick, read_recommended, recommend, resolved
from loraens.errors import InputError
from loraens.tasks import QUORA, STS


def test_pick_by_hand():
    scores = np.array([0.80, 0.84, 0.85, 0.845])
    costs = np.array([1, 4, 10, 4])
    errors = np.full((4, 4), 0.008)
    assert pick(scores, errors, costs) == 3  # of two of cost 4 the better one
    assert pick(scores, np.full((4, 4), 0.06), costs) == 0
    assert pick(scores, np.zeros((4, 4)), costs) == 2
    assert pick(np.array([-np.inf, 0.1]), np.zeros((2, 2)), np.array([1, 2])) == 1


@pytest.mark.slow
def test_an_ensemble_is_recommended_where_it_gains(make_pool):
    pool = make_pool(STS, 8, 300)
    proofs = prove(pool, candidates(STS))
    index, found = recommend(pool, proofs)
    assert found.ensemble == proofs[index].candidate.name("sts")
    assert found.gain.low > 0
    assert found.gain.value <= proofs[index].to_best.value
    assert found.estimate.low < found.estimate.value <= proofs[index].interval.value
    assert f"{found.members} models run" in found.sentence
    limited = recommend(pool, proofs, max_members=1)[1]
    assert limited.ensemble == "sts-best-logits"
    assert limited.members == 1
    assert "use the best member alone" in limited.sentence
    with pytest.raises(InputError, match="at least 5 is expected"):
        recommend(pool, proofs, max_members=4, unit=5)


@pytest.mark.slow
def test_members_that_are_the_same_are_not_combined():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=200)
    one = labels + rng.normal(0, 0.3, 200)
    logits = (one + rng.normal(0, 1e-3, (6, 200)))[:, :, None]
    pool = Pool(STS, tuple("abcdef"), np.ones(6), logits, labels)
    found = recommend(pool, prove(pool, candidates(STS)))[1]
    assert found.members <= 4
    assert abs(found.gain.value) < 0.001


@pytest.mark.slow
def test_the_best_of_members_that_know_nothing_is_worth_nothing():
    """The largest of many held-out scores is too good; the corrected one is less so."""
    excess = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 150).astype(float)
        logits = rng.normal(size=(10, 150, 1))
        pool = Pool(QUORA, tuple("abcdefghij"), np.arange(1, 11), logits, labels)
        proofs = prove(pool, candidates(QUORA, ["omni", "topk", "greedy", "stacking", "bma"]))
        index, found = recommend(pool, proofs)
        assert found.estimate.value <= proofs[index].interval.value
        assert found.estimate.low < 0.5
        assert found.gain.low <= 0
        excess.append(proofs[index].interval.value - found.estimate.value)
    assert max(excess) > 0.005


def test_it_is_written_and_known_to_the_commands(tmp_path, monkeypatch, run_command, capsys):
    monkeypatch.chdir(tmp_path)
    plant(Path("run"), QUORA)
    given = ("--runs", "run", "--method", "omni", "--logger", "false")
    assert run_command("ensemble", *given) == 0
    path = Path("run/ensembles/recommended")
    (found,) = read_recommended(path).values()
    printed = capsys.readouterr().out
    assert found.sentence in printed
    assert "*: recommended" in printed.replace("\n", " ")
    assert resolved(path) == Path("run/ensembles") / found.ensemble
    assert run_command("compare", "run", "--filter", "recommended=yes", "--out", "rows.json") == 0
    assert [row["name"] for row in json.loads(Path("rows.json").read_text())] == [found.ensemble]
    assert run_command("report", "--runs", "run", "--out", "page") == 0
    assert found.sentence.split(":")[1] in Path("page/index.html").read_text()


def test_files_that_recommend_nothing(tmp_path):
    path = tmp_path / "recommended"
    for content, problem in (
        ("{", "is not JSON"),
        ("{}", "recommends no ensemble that this version reads"),
        ('{"format": 1, "tasks": {"t": {}}}', r"\(task t\) lacks the field"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=problem):
            read_recommended(path)
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    entry = {"ensemble": "x", "members": 1, "candidates": 2, "sentence": "s"}
    entry |= {"estimate": interval, "gain": interval}
    path.write_text(json.dumps({"format": 1, "tasks": {"t": entry}}))
    with pytest.raises(InputError, match="which is not there"):
        read_recommended(path)
    for name in "xy":
        (tmp_path / name).mkdir()
        (tmp_path / name / "ensemble.json").write_text("{}")
    path.write_text(
        json.dumps({"format": 1, "tasks": {"t": entry, "u": {**entry, "ensemble": "y"}}})
    )
    with pytest.raises(InputError, match="several tasks: give one of"):
        resolved(path)
