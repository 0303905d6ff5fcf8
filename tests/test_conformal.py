"""Prediction sets and intervals: their coverage on planted data, and what `predict` gives."""

import csv
import json
import re
from fractions import Fraction
from functools import partial
from math import ceil

import numpy as np
import pytest

import loraens
from loraens.ensemble.calibration import fit_temperature
from loraens.ensemble.combine import combine
from loraens.ensemble.conformal import LEVELS, Conformal
from loraens.ensemble.cross_validation import Candidate, cross_validate, folds
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.inference.combination import Combination
from loraens.labels.classes import vote_shares
from loraens.metrics import Outcome
from loraens.store import MemberStore, find_members
from loraens.tasks import SST, STS

TEXTS = {"sst": ["a film"], "sts": [("a film", "a plot")]}


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("count", [1, 9, 19, 99, 100, 400])
def test_quantiles_against_a_plain_search(count, repeats):
    rng = np.random.default_rng(count)
    distances = rng.integers(0, 30, (repeats, count)) / 10  # with ties
    conformal = Conformal.of(distances, np.zeros((repeats, count)))
    assert (conformal.examples, conformal.offset) == (count, 1.0)
    for level in LEVELS:
        needed = ceil((count + 1) * Fraction(level, 1000))
        below = [q for q in distances.ravel() if (distances <= q).sum() >= repeats * needed]
        if needed > count:
            with pytest.raises(InputError, match=f"and there are {count}, so ask for less"):
                conformal.at(level / 1000)
        else:
            assert conformal.at(level / 1000).quantile == min(below)


def test_spreads_scale_the_scores():
    distances = np.array([[1.0, 2.0, 3.0, 9.0]])
    spreads = np.array([[0.0, 1.0, 1.0, 4.0]])
    region = Conformal.of(distances, spreads).at(0.5)
    assert region.offset == 1.5  # the mean spread
    assert region.quantile == sorted(distances[0] / (spreads[0] + 1.5))[2]  # ceil(5 * 0.5) = 3
    np.testing.assert_allclose(
        region.radius(np.array([0.0, 2.0])), [region.quantile * 1.5, region.quantile * 3.5]
    )


def test_a_coverage_between_two_levels_is_that_of_the_upper():
    conformal = Conformal.of(np.arange(2000.0)[None], np.zeros((1, 2000)))
    for given, level in ((0.001, 0.5), (0.9, 0.9), (0.901, 0.91), (0.9901, 0.991), (0.999, 0.999)):
        assert conformal.at(given).quantile == ceil(2001 * Fraction(str(level))) - 1


@pytest.mark.parametrize(
    ("coverage", "message"),
    [
        (0.9, "coverage 0.9: at least 9 held-out examples are expected, and there are 8"),
        (0.955, "coverage 0.955: at least 24 held-out examples"),
        (0.9999, "coverage 0.9999: at most 0.999 is expected"),
        *((bad, "a share between 0 and 1") for bad in (0.0, 1.0, -0.5, 90.0, float("nan"))),
    ],
)
def test_a_coverage_that_cannot_be_given(coverage, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Conformal.of(np.arange(8.0)[None], np.zeros((1, 8))).at(coverage)
    assert LEVELS[-1] == 999


def test_coverage_of_exchangeable_scores():
    """Of continuous scores it is ceil((n + 1) level) / (n + 1), exactly."""
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(4000, 51))
    for level in (0.5, 0.8, 0.9, 0.98):
        quantiles = [
            Conformal.of(d[None, :50], np.zeros((1, 50))).at(level).quantile for d in draws
        ]
        expected = ceil(51 * Fraction(str(level))) / 51
        error = 3 * np.sqrt(expected * (1 - expected) / len(draws))
        assert (draws[:, 50] <= quantiles).mean() == pytest.approx(expected, abs=error)


def regions(pool, candidate, count, level):
    """Cells of the regions of all examples but the first, on which the ensemble is chosen, as
    `predict` gives them, and the pool of these examples.
    """
    inside, outside = pool.at(np.arange(count)), pool.at(np.arange(count, len(pool.labels)))
    (held_out,) = cross_validate(inside, [candidate])
    conformal = Conformal.of(held_out.distances, held_out.spreads)
    weights = candidate.weights(inside)
    fitted_on = combine(inside, weights, candidate.rule, inside.standings)
    combination = Combination(
        rule=candidate.rule,
        weights=weights,
        ranks=pool.ranks,
        standings=inside.standings,
        temperature=None
        if fitted_on.probabilities is None
        else fit_temperature(fitted_on, inside.labels),
    )
    radius = conformal.at(level).radius(combination.spread(outside))
    return pool.kind.region(pool.task, combination.outcome(outside), radius), outside


def covered(pool, cells):
    """Whether each region holds the label, and its size."""
    if pool.kind.categorical:
        sets = cells[0]
        names = [pool.task.format_label(label) for label in pool.labels]
        return [n in s for n, s in zip(names, sets, strict=True)], [len(s) for s in sets]
    low, high = map(np.array, cells)
    return (low <= pool.labels) & (pool.labels <= high), high - low


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize(
    ("task", "rule"), [(SST, "probs"), (SST, "vote"), (STS, "logits")], ids=["sst", "vote", "sts"]
)
def test_coverage_on_planted_data(make_pool, task, rule, members):
    """The whole way, the choice repeated in each draw. The standard error of the mean coverage is
    that of 40 draws of 150 held-out and 300 new examples.
    """
    level = 0.9
    error = np.sqrt(level * (1 - level) * (1 / 150 + 1 / 300) / 40)
    for method in ("omni", "weighted") if members > 1 else ("best",):
        candidate = Candidate(method, rule, Options())
        shares = []
        for draw in range(40):
            pool = make_pool(task, members, 450, noise=2.0, seed=draw)
            cells, outside = regions(pool, candidate, 150, level)
            holds, sizes = covered(outside, cells)
            assert min(sizes) > 0
            shares.append(np.mean(holds))
        assert np.mean(shares) > level - 3 * error, method
        if rule != "vote":  # votes are ties: their sets are larger than need be
            assert np.mean(shares) < level + 1 / 151 + 3 * error, method
            assert min(shares) < level  # the promise is of the mean, and the sets are not all


def test_intervals_are_wide_where_members_disagree(make_pool):
    """Where the error grows with the members' noise, each half of the examples is covered."""
    pool = make_pool(STS, 5, 3000, seed=1)
    loud = np.arange(3000) % 2
    noise = np.random.default_rng(2).normal(0, 1, (5, 3000, 1)) * np.where(loud, 1.5, 0.1)[:, None]
    pool = Pool(STS, pool.names, pool.ranks, pool.labels[None, :, None] + noise, pool.labels)
    cells, outside = regions(pool, Candidate("omni", "logits", Options()), 1000, 0.9)
    holds, widths = covered(outside, cells)
    for part in (loud[1000:] == 0, loud[1000:] == 1):
        assert 0.8 < np.mean(holds[part]) <= 1
    assert np.mean(widths[loud[1000:] == 1]) > 2 * np.mean(widths[loud[1000:] == 0])


def test_the_predicted_class_is_always_in():
    flat = np.array([[0.3, 0.25, 0.2, 0.15, 0.1], [0.9, 0.05, 0.03, 0.02, 0.0]])
    kind = SST.label_kind
    radius = np.array([0.1, 0.1])  # no class has 0.9 in the first row
    assert kind.region(SST, Outcome(np.array([1.0, 0.0]), flat), radius) == [[["1"], ["0"]]]
    wide = np.array([0.75, 0.97])
    assert kind.region(SST, Outcome(np.array([0.0, 0.0]), flat), wide) == [
        [["0", "1"], ["0", "1", "2"]]
    ]


@pytest.mark.parametrize("rule", ["vote", "probs"])
def test_held_out_distances_are_of_what_predict_shows(make_pool, rule):
    """Of probabilities at the temperature of the fold, and of shares of the votes."""
    pool = make_pool(SST, 4, 60)
    candidate = Candidate("weighted", rule, Options())
    (held_out,) = cross_validate(pool, [candidate])
    shown = held_out.calibrated
    if rule == "vote":
        shown = np.full((5, 60, 5), np.nan)
        for repeat, chosen_on, scored_on in folds(pool):
            weights = candidate.weights(pool.at(chosen_on))
            shown[repeat, scored_on] = vote_shares(pool.at(scored_on).predictions, weights, 5)
    for repeat in range(5):
        for example, label in enumerate(pool.labels.astype(int)):
            expected = 1 - shown[repeat, example, label]
            assert held_out.distances[repeat, example] == pytest.approx(expected)
    assert (held_out.spreads == 0).all()


def test_the_spread_of_folds_is_the_mean_of_theirs(make_pool):
    """Two configurations of three folds: out of fold an example has two members, of one fold."""
    pool = make_pool(STS, 6, 20)
    weights = np.repeat([0.25, 0.75], 3) / 3
    combination = Combination("logits", weights, pool.ranks, pool.standings, None, folds=3)
    for example, found in enumerate(combination.spread(pool)):
        of_folds = []
        for fold in range(3):
            first, second = pool.predictions[[fold, fold + 3], example]
            mean = 0.25 * first + 0.75 * second
            of_folds.append(np.sqrt(0.25 * (first - mean) ** 2 + 0.75 * (second - mean) ** 2))
        assert found == pytest.approx(np.mean(of_folds))


def write_texts(path, name):
    columns = {"sst": "sentence", "sts": "sentence1,sentence2"}[name]
    lines = {"sst": ["a film", "", "the plot"], "sts": ["a film,a plot", ",", "b,c"]}[name]
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


def read_rows(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.slow
def test_predict_writes_regions(run_command, trained, tmp_path, capsys):
    name, sweep = trained
    folder = next(
        (sweep / "ensembles").glob(f"{name}-omni-{'logits' if name == 'sts' else 'probs'}")
    )
    source = write_texts(tmp_path / "in.csv", name)
    region = EnsembleRecord.read(folder).conformal.at(0.9)
    found = {}
    for suffix in ("csv", "tsv", "jsonl"):
        out = tmp_path / f"out.{suffix}"
        given = ("--input", source, "--output", out, "--coverage", 0.9)
        assert run_command("predict", "--model", folder, *given) == 0
        rows = read_rows(out)
        assert [not row[list(row)[-1]] for row in rows] == [False, True, False]
        found[suffix] = rows
    for row in found["csv"] + found["tsv"] + found["jsonl"]:
        if name == "sst" and row["prediction"]:
            names = row["set"] if isinstance(row["set"], list) else json.loads(row["set"])
            near = [k for k in "01234" if 1 - float(row[f"probability_{k}"]) <= region.quantile]
            assert set(names) == {*near, row["prediction"]}
        elif row["prediction"]:
            radius = region.quantile * (float(row["spread"]) + region.offset)
            low, high = float(row["low"]), float(row["high"])
            assert float(row["prediction"]) - low == pytest.approx(radius, abs=1e-4)
            assert high - float(row["prediction"]) == pytest.approx(radius, abs=1e-4)
    texts = ["--text", "a film", *(["--text2", "a plot"] if name == "sts" else [])]
    capsys.readouterr()
    assert run_command("predict", "--model", folder, *texts, "--coverage", 0.9) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = loraens.Ensemble.load(folder).predict(TEXTS[name], coverage=0.9)
    assert printed == row
    assert list(row)[-len(STS.label_kind.regions) :] == ["low", "high"] or name == "sst"


@pytest.mark.slow
def test_a_member_has_regions_of_its_dev_scores(trained):
    name, sweep = trained
    task = {"sst": SST, "sts": STS}[name]
    path = find_members(sweep)[0]
    stored = MemberStore(path).logits(name, "dev")
    outcome = task.outcome(stored.logits)
    if name == "sst":
        scores = 1 - outcome.probabilities[np.arange(24), stored.labels.astype(int)]
    else:
        scores = np.abs(outcome.predictions - stored.labels)
    quantile = np.sort(scores)[22]  # ceil(25 * 0.9) = 23
    (row,) = loraens.Ensemble.load(path).predict(TEXTS[name], coverage=0.9)
    if name == "sst":
        near = [k for k in "01234" if 1 - row[f"probability_{k}"] <= quantile]
        assert set(row["set"]) == {*near, row["prediction"]}
    else:
        assert row["high"] - row["low"] == pytest.approx(2 * quantile, abs=1e-5)


@pytest.mark.slow
def test_a_soup_has_the_regions_of_its_record(trained, run_command):
    name, sweep = trained
    arguments = ("--runs", sweep, "--method", "soup", "--logger", "false")
    assert run_command("ensemble", *arguments) == 0
    folder = sweep / "ensembles" / f"{name}-soup-merged"
    region = EnsembleRecord.read(folder).conformal.at(0.9)
    assert region.offset == 1.0
    predictor = loraens.Ensemble.load(folder)
    assert predictor.region(predictor.task(), 0.9) == region
    (row,) = predictor.predict(TEXTS[name], coverage=0.9)
    if name == "sts":
        assert row["high"] - row["low"] == pytest.approx(2 * region.quantile, abs=1e-5)


@pytest.mark.parametrize(
    ("coverage", "message"),
    [
        ("0", "--coverage 0.0: a share between 0 and 1"),
        ("1", "--coverage 1.0: a share between 0 and 1"),
        ("0.99", "--coverage 0.99: at least 99 held-out examples are expected, and there are 24"),
    ],
)
def test_a_coverage_that_is_refused_leaves_nothing(trained, fails, tmp_path, coverage, message):
    name, sweep = trained
    source = write_texts(tmp_path / "in.csv", name)
    given = ("--input", source, "--output", tmp_path / "out.csv", "--coverage", coverage)
    for model in (next((sweep / "ensembles").glob(f"{name}-omni-*")), find_members(sweep)[0]):
        assert message in fails("predict", "--model", model, *given)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_records_of_older_versions_have_no_regions(trained, run_command, fails):
    name, sweep = trained
    folder = next((sweep / "ensembles").glob(f"{name}-dicor-*"))
    path = folder / "ensemble.json"
    whole = path.read_text()
    fields = json.loads(whole)
    del fields["conformal"], fields["sha256"]
    texts = ["--text", "a film", *(["--text2", "a plot"] if name == "sts" else [])]
    run = partial(run_command, "predict", "--model", folder, *texts)
    try:
        path.write_text(json.dumps(fields))
        assert run() == 0
        message = fails("predict", "--model", folder, *texts, "--coverage", 0.9)
    finally:
        path.write_text(whole)
    assert "make the ensemble again with `loraens ensemble`" in message
    assert run("--coverage", 0.9) == 0
