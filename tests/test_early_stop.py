"""Members that cannot change a text's class do not run on it, and the predictions are the same."""

import csv

import numpy as np
import pytest
from helpers.corpus import STEMS

from loraens.ensemble.pool import Pool
from loraens.inference.combination import Combination
from loraens.inference.early_stop import InTurn, run_in_turn, stops_early
from loraens.inference.predictor import Predictor
from loraens.tasks import SST, STS


def drawn(rng, members, texts):
    """Logits of members that agree in part, some of them with equal probabilities."""
    shared = 2 * rng.normal(size=(1, texts, 5))
    logits = shared + rng.normal(size=(members, texts, 5))
    logits[:, ::7] = np.round(logits[:, ::7])
    return logits


def of_all(combination):
    def combine(logits):
        pool = Pool(
            task=SST,
            names=tuple(map(str, range(len(logits)))),
            ranks=combination.ranks,
            logits=logits,
            labels=np.full(logits.shape[1], np.nan),
        )
        return combination.outcome(pool).predictions

    return combine


@pytest.mark.parametrize("rule", ["vote", "probs"])
@pytest.mark.parametrize("weights", ["equal", "unequal", "one"])
def test_predictions_are_those_of_all_members(rule, weights):
    rng = np.random.default_rng(len(weights))
    logits = drawn(rng, 8, 500)
    of = {
        "equal": np.full(8, 1 / 8),
        "unequal": rng.dirichlet(np.ones(8)),
        "one": np.array([0.6, *[0.4 / 7] * 7]),
    }[weights]
    temperature = None if rule == "vote" else 1.3
    combination = Combination(rule, of, rng.choice([2, 4], 8), rng.permutation(8), temperature)
    assert stops_early(SST, combination)
    asked = []

    def logits_of(member, indices):
        asked.append((member, len(indices)))
        return logits[member, indices]

    found = run_in_turn(logits_of, 500, SST, combination, of_all(combination))
    np.testing.assert_array_equal(found.predictions, of_all(combination)(logits))
    assert found.ran.sum() == sum(count for _, count in asked)
    assert [of[member] for member, _ in asked] == sorted(of, reverse=True)[: len(asked)]
    assert found.ran.mean() < {"equal": 8, "unequal": 7, "one": 8}[weights]
    if (weights, rule) == ("one", "vote"):
        assert (found.ran == 1).all()


def test_a_member_that_could_change_the_class_runs():
    """Three votes: two that agree are enough, two that differ are not."""
    logits = np.full((3, 2, 5), -9.0)
    logits[[0, 1, 2], 0, [1, 1, 2]] = 9
    logits[[0, 1, 2], 1, [1, 2, 2]] = 9
    third = np.full(3, 1 / 3)
    combination = Combination("vote", third, np.ones(3), np.arange(3), None)
    found = run_in_turn(
        lambda member, indices: logits[member, indices], 2, SST, combination, of_all(combination)
    )
    assert (found.predictions.tolist(), found.ran.tolist()) == ([1, 2], [2, 3])


def test_only_classes_that_are_voted_on_are_certain_early():
    third = np.full(3, 1 / 3)
    assert not stops_early(SST, Combination("logits", third, third, third, 1.0))
    assert not stops_early(STS, Combination("logits", third, third, third, None))
    assert not stops_early(SST, Combination("vote", np.ones(1), np.ones(1), np.ones(1), None))


@pytest.mark.slow
def test_each_member_in_turn_is_the_member_alone(trained_sweep):
    sweep = trained_sweep("sst")
    predictor = Predictor.load(sweep / "ensembles" / "sst-omni-probs")
    task = predictor.task()
    texts = [("a fine film",), ("no",)]
    expected = predictor.logits(texts, task)
    turn = InTurn(predictor.model)
    for index in (2, 0, 3, 3, 1):
        turn.choose(index)
        np.testing.assert_allclose(predictor.logits(texts, task)[0], expected[index], atol=1e-5)


@pytest.mark.parametrize("rule", ["vote", "probs", "logits"])
def test_predictions_alone(trained_sweep, run_command, corpus, tmp_path, capsys, rule):
    ensemble = trained_sweep("sst") / "ensembles" / f"sst-omni-{rule}"
    file = corpus / f"{STEMS['sst']}-dev.csv"
    rows = {}
    for name, options in {"all": (), "one": ("--columns", "[prediction]")}.items():
        out = tmp_path / f"{name}.csv"
        command = ("predict", "--model", ensemble, "--input", file, "--output", out)
        assert run_command(*command, *options) == 0
        with out.open(newline="") as stream:
            rows[name] = list(csv.DictReader(stream))
    said = capsys.readouterr().err
    assert ("of 4 members ran on a text" in said) == (rule != "logits")
    assert [*rows["one"][0]][-1] == "prediction"
    assert [row["prediction"] for row in rows["one"]] == [row["prediction"] for row in rows["all"]]


@pytest.mark.slow
def test_columns_that_there_are(trained, run_command, capsys):
    name, sweep = trained
    ensemble = sorted((sweep / "ensembles").glob("*omni*"))[0]
    texts = ["--text", "a", *(["--text2", "b"] if name == "sts" else [])]
    options = ("--columns", "[prediction,spread]" if name == "sts" else "[entropy,prediction]")
    assert run_command("predict", "--model", ensemble, *texts, *options) == 0
    assert '"prediction"' in capsys.readouterr().out
    assert run_command("predict", "--model", ensemble, *texts, "--columns", "[nothing]") == 2
    assert "--columns nothing: one of prediction, " in capsys.readouterr().err
