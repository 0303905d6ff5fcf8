"""Members stop running where the class is clear, and how often it then differs is bounded."""

import csv

import numpy as np
import pytest
from helpers.corpus import STEMS

from loraens.errors import InputError
from loraens.inference.cascade import chosen_cascade, lower_bound
from loraens.inference.combination import Combination
from loraens.inference.early_stop import run_in_turn
from loraens.inference.predictor import Predictor
from loraens.tasks import QUORA, SST


def drawn(task, members, texts, seed=0):
    """Logits of members that agree in part."""
    rng = np.random.default_rng(seed)
    shared = 2 * rng.normal(size=(1, texts, task.num_outputs))
    return shared + rng.normal(size=(members, texts, task.num_outputs))


def combination(rule, members=8):
    weights = np.random.default_rng(1).dirichlet(np.full(members, 9.0))
    return Combination(rule, weights, np.ones(members), np.arange(members), None)


def run(task, of, logits, threshold):
    return run_in_turn(
        lambda member, indices: logits[member, indices],
        logits.shape[1],
        task,
        of,
        lambda some: of.outcome(of.pool(task, some)).predictions,
        threshold,
    )


@pytest.mark.parametrize("task", [SST, QUORA], ids=["sst", "quora"])
@pytest.mark.parametrize("rule", ["vote", "probs", "logits"])
def test_the_bound_is_kept_on_new_texts(task, rule):
    """Fewer members run than until classes are certain, and on many new texts the classes are those
    of all as often as was proved.
    """
    of = combination(rule)
    logits = drawn(task, 8, 12_000)
    held_out, new = logits[:, :2000], logits[:, 2000:]
    cascade = chosen_cascade(task, of, held_out, 0.98)
    assert 0.98 <= cascade.bound < cascade.agreeing / cascade.texts
    assert cascade.bound == lower_bound(cascade.agreeing, 2000)
    found = run(task, of, new, cascade.threshold)
    whole = of.outcome(of.pool(task, new)).predictions
    assert (found.predictions == whole).mean() >= cascade.bound
    assert found.ran.mean() == pytest.approx(cascade.ran, abs=0.15)
    assert found.ran.mean() < (run(task, of, new, 1.0).ran.mean() if rule != "logits" else 6)
    # the next lower threshold has no such bound, and lower ones were not asked
    step = 0.1 if rule == "logits" else 0.01
    lower = run(task, of, held_out, cascade.threshold - step).predictions
    all_of_them = of.outcome(of.pool(task, held_out)).predictions
    assert lower_bound(int((lower == all_of_them).sum()), 2000) < 0.98


@pytest.mark.slow
def test_the_choice_keeps_its_confidence():
    """Of 60 draws of held-out texts, about 5 % at most choose a threshold of lower agreement."""
    of = combination("probs", 4)
    logits = drawn(SST, 4, 18_000)
    whole = of.outcome(of.pool(SST, logits)).predictions
    true = {}
    missed = 0
    for number in range(60):
        part = logits[:, 300 * number : 300 * number + 300]
        threshold = chosen_cascade(SST, of, part, 0.9).threshold
        if threshold not in true:
            true[threshold] = (run(SST, of, logits, threshold).predictions == whole).mean()
        missed += true[threshold] < 0.9
    assert missed <= 9  # 0.998 quantile of a binomial of 60 and 0.05


def test_too_few_texts_prove_nothing():
    logits = drawn(SST, 4, 298)
    logits[:] = logits[:1]
    with pytest.raises(InputError, match="at least 299 are needed"):
        chosen_cascade(SST, combination("logits", 4), logits, 0.99)
    exact = chosen_cascade(SST, combination("probs", 4), logits, 0.99)
    assert (exact.threshold, exact.bound) == (1, 1)
    assert exact.sentence == "the classes are those of all members"


@pytest.mark.slow
def test_the_command(trained_sweep, corpus, run_command, fails, tmp_path, capsys):
    ensemble = trained_sweep("sst") / "ensembles" / "sst-omni-logits"
    predictor = Predictor.load(ensemble)
    task = predictor.task()
    held_out = predictor.held_out()
    cascade = chosen_cascade(task, predictor.combination, held_out, 0.6)
    file = corpus / f"{STEMS['sst']}-dev.csv"
    out = tmp_path / "out.csv"
    command = ("predict", "--model", ensemble, "--input", file, "--output", out)
    assert run_command(*command, "--cascade", 0.6) == 0
    said = capsys.readouterr().err
    assert f"{cascade.ran:.1f} of 4 members ran on a text, on average: {cascade.sentence}" in said
    found = run(task, predictor.combination, held_out, cascade.threshold)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["prediction"] for row in rows] == [task.format_label(k) for k in found.predictions]
    assert "probability_0" not in rows[0]
    assert run_command("predict", "--model", ensemble, "--text", "fine", "--cascade", 0.6) == 0

    assert "24 held-out texts prove no more than" in fails(*command, "--cascade", 0.99)
    assert "a share between 0 and 1" in fails(*command, "--cascade", 1)
    message = fails(*command, "--cascade", 0.9, "--columns", "[entropy]")
    assert "for the column prediction alone" in message
    member = next(ensemble.parent.parent.glob("r*-*"))
    message = fails("predict", "--model", member, "--input", file, "--cascade", 0.9)
    assert "for several LoRA members" in message
