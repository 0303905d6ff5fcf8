"""One recommendation: the cheapest ensemble near the best, with an honest estimate."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import plant

from loraens.api.proofs import candidates
from loraens.ensemble.cross_validation import nll_of_bags
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.ensemble.recommend import pick, read_recommended, recommend, resolved
from loraens.ensemble.significance import OutOfBag
from loraens.errors import InputError
from loraens.metrics import NLL
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
    assert found.members == 1
    assert found.alone


def naive(proofs, scores, errors):
    """Index of the cheapest proof that is within an error of the best one's score, of equally cheap
    ones the best.
    """
    top = max(scores, key=scores.get)
    near = [index for index in scores if scores[index] >= scores[top] - errors(top, index)]
    return min(near, key=lambda index: (proofs[index].members, -scores[index]))


@pytest.fixture(scope="module")
def quora(make_pool):
    """A pool and its proofs."""
    pool = make_pool(QUORA, 7, 150, 1.2, 3)
    methods = ["best", "omni", "topk", "random"]
    return pool, prove(pool, candidates(QUORA, methods, options=Options(size=3)))


@pytest.mark.slow
def test_the_goal_calibration_goes_by_nll(quora):
    pool, proofs = quora
    index, found = recommend(pool, proofs, goal="calibration")
    picked = proofs[index]
    eligible = [
        i
        for i, proof in enumerate(proofs)
        if proof.candidate.rule != "vote" and proof.candidate.method != "random"
    ]
    rules = [proofs[i].candidate.rule for i in eligible]
    chosen = [proofs[i].chosen for i in eligible]
    nll = dict(zip(eligible, nll_of_bags(pool, rules, chosen, picked.drawn).T, strict=True))
    scores = {i: -proofs[i].calibrated["nll"] for i in eligible}

    def of_bags(outcome):
        drawn = [outside for _, outside in picked.drawn]
        return np.array([NLL(outcome.at(outside), pool.labels[outside]) for outside in drawn])

    def errors(one, other):
        fixed = [of_bags(proofs[i].outcomes.outcome(0, calibrated=True)) for i in (one, other)]
        bagged = OutOfBag(nll[one] - nll[other], (fixed[0] - fixed[1])[None], picked.bagged.ratio)
        return bagged.standard_error()

    assert index == naive(proofs, scores, errors)
    assert found.candidates == len(eligible)
    assert found.nll.value >= picked.calibrated["nll"]  # corrected for the pick
    assert found.nll_gain.low > 0
    assert found.estimate.value <= picked.interval.value
    assert found.ensemble == picked.candidate.name("quora")
    for words in ("NLL", "at the fitted temperature and accuracy", "(goal calibration)"):
        assert words in found.sentence


def test_the_goal_cost_goes_by_intervals(make_pool):
    cheaper = unproved = 0
    for seed in range(3):
        pool = make_pool(QUORA, 7, 200, 2.0, seed)
        proofs = prove(pool, candidates(QUORA, ["omni", "topk"], ["probs"], Options(size=3)))
        scores = {i: proof.interval.value for i, proof in enumerate(proofs)}

        def half(one, other, proofs=proofs):
            return (proofs[one].bagged - proofs[other].bagged).interval(0.0).high

        index, found = recommend(pool, proofs, goal="cost")
        near = naive(proofs, scores, half)
        if found.alone and proofs[near].candidate.method != "best":
            near = [proof.candidate.method for proof in proofs].index("best")
            assert "is proved to beat it, not " in found.sentence
            unproved += 1
        assert index == near
        assert found.goal == "cost"
        assert found.sentence.endswith("(goal cost).")
        assert found.nll is None
        cheaper += found.members < recommend(pool, proofs)[1].members
    assert cheaper
    assert unproved < 3


def test_goals_and_bounds_that_do_not_apply_are_refused(quora, make_pool):
    pool, proofs = quora
    with pytest.raises(InputError, match=r"^goal low is unknown: give one of score, calibration"):
        recommend(pool, proofs, goal="low")
    votes = [proof for proof in proofs if proof.candidate.rule == "vote"]
    with pytest.raises(InputError, match=r"^goal calibration is by probabilities, which votes"):
        recommend(pool, votes, goal="calibration")
    with pytest.raises(InputError, match=r"^max_size 0: at least 1 is expected"):
        candidates(QUORA, options=Options(max_size=0))
    pool = make_pool(STS, 3, 40)
    with pytest.raises(InputError, match=r"^goal calibration .* and task sts has none: give score"):
        recommend(pool, prove(pool, candidates(STS, ["omni"])), goal="calibration")


@pytest.mark.slow
def test_a_bounded_recommendation_by_calibration_end_to_end(tmp_path, run_command, capsys, fails):
    run = plant(tmp_path / "run", QUORA)
    given = ("--runs", run, "--logger", "false", "--goal", "calibration", "--max_members", 2)
    message = fails("ensemble", *given, "--rule", "vote")
    assert message.startswith("loraens: --goal calibration is by probabilities")
    assert not (run / "ensembles").exists()
    methods = ("--method", "topk", "dicor", "--rule", "probs")
    assert run_command("ensemble", *given, *methods) == 0
    folder = run / "ensembles"
    (found,) = read_recommended(folder / "recommended").values()
    assert found.goal == "calibration"
    assert found.sentence in capsys.readouterr().out
    assert found.members <= 2
    entries = json.loads((folder / "ensembles.json").read_text())
    sizes = {f"{entry['method']}-{entry['rule']}": len(entry["members"]) for entry in entries}
    expected = {"best-vote": 1, "omni-vote": 6, "best-probs": 1, "topk-probs": 2, "dicor-probs": 2}
    assert sizes == expected
    assert {entry["options"]["max_size"] for entry in entries} == {2}
    out = tmp_path / "rows.json"
    assert run_command("compare", run, "--filter", "goal=calibration", "--out", out) == 0
    assert [row["name"] for row in json.loads(out.read_text())] == [found.ensemble]


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
        assert found.alone
        excess.append(proofs[index].interval.value - found.estimate.value)
    assert max(excess) > 0.005


@pytest.mark.slow
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
    assert {one.goal for one in read_recommended(path).values()} == {"score"}  # of older versions
