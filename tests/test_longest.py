"""The control `longest`: one member that was trained longer than others, beside ensembles."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.planted import plant

from loraens.api.proofs import candidates, prove
from loraens.ensemble.combine import combine
from loraens.ensemble.cross_validation import Candidate, cross_validate, folds
from loraens.ensemble.methods import METHODS, names
from loraens.ensemble.options import Options, equal_weights
from loraens.ensemble.prove import prove as prove_pool
from loraens.ensemble.read import read_runs
from loraens.ensemble.recommend import recommend
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.select import longest
from loraens.errors import InputError
from loraens.records import EpochRecord
from loraens.report.content import read as read_content
from loraens.report.tables import scores
from loraens.store import ENSEMBLE, MemberStore, find_members
from loraens.tasks import QUORA, STS


def plant_epochs(directory, task, trained, **fields):
    """A run of members that were trained for some numbers of epochs, the last of which is stored;
    `fields` are further ones of their manifests.
    """
    plant(directory, task, members=len(trained))
    for index, epochs in enumerate(trained):
        store = MemberStore(directory / f"r{index + 1}")
        dev = store.read().dev["last"]
        store.update(history=(EpochRecord("epoch-001", epochs, epochs, 0.5, dev, 0.5),), **fields)
    return directory


def of_epochs(pool, trained, planned=None):
    trained = np.array(trained)
    return replace(pool, trained=trained, planned=trained if planned is None else np.array(planned))


def test_it_is_the_best_of_those_that_were_to_be_trained_longest(make_pool):
    pool = of_epochs(make_pool(STS), [3, 3, 3, 7, 12, 3], [3, 3, 3, 12, 12, 3])
    chosen = longest(pool, Options(), np.random.default_rng(0))
    long = max((3, 4), key=lambda member: pool.scores[member])
    assert chosen.tolist() == equal_weights(pool, [long]).tolist()
    part = pool.of([0, 4, 2])
    assert part.trained.tolist() == part.planned.tolist() == [3, 12, 3]
    assert np.flatnonzero(longest(part, Options(), np.random.default_rng(0))).tolist() == [1]


def test_it_is_chosen_again_in_every_fold(make_pool):
    pool = of_epochs(make_pool(QUORA, 5, 60, 2.0), [1, 2, 2, 2, 2])
    found = cross_validate(pool, [Candidate("longest", "probs", Options())])[0]
    chosen = set()
    for repeat, chosen_on, scored_on in folds(pool):
        inside = pool.at(chosen_on)
        best = max(range(1, 5), key=lambda member: inside.scores[member])
        chosen.add(best)
        expected = combine(
            pool.at(scored_on), equal_weights(pool, [best]), "probs", inside.standings
        )
        np.testing.assert_array_equal(found.predictions[repeat, scored_on], expected.predictions)
    assert len(chosen) > 1


def test_it_is_a_row_only_where_epochs_differ(make_pool):
    pool = make_pool(STS)
    equal = of_epochs(pool, [3] * 6)
    stopped = of_epochs(pool, [3, 2, 1, 3, 3, 3], [3] * 6)
    differ = of_epochs(pool, [3, 3, 3, 3, 3, 12])
    for one in (None, pool, equal, stopped):
        assert "longest" not in names(merges=False, pool=one)
        assert "longest" not in {c.method for c in candidates(STS, pool=one)}
    assert set(names(merges=False, pool=differ)) == {*names(merges=False), "longest"}
    assert names(merges=True) == names(merges=True, pool=differ) == ["soup", "greedy_soup"]
    assert "longest" in {c.method for c in candidates(STS, pool=differ)}
    assert "longest" not in {c.method for c in candidates(STS, ["soup"], pool=differ)}
    with pytest.raises(InputError, match="longest does not apply to task sts: all members were"):
        candidates(STS, ["longest"], pool=equal)
    with pytest.raises(InputError, match="it is not known of each member"):
        candidates(STS, ["longest"], pool=pool)
    assert METHODS["best"].applies(pool)


@pytest.mark.parametrize(
    ("trained", "compared"),
    [
        ([3, 3, 3, 3, 12], r"12 epochs, as long as the 4 x 3 of the ensemble's members together"),
        ([3, 3, 3, 3, 15], r"15 epochs, more than the 4 x 3 of the .* so not at equal training"),
        ([3, 3, 3, 2, 10], r"10 epochs, less than the 11 of the .* so not at equal training"),
    ],
)
def test_the_recommendation_says_what_it_is_worth(make_pool, trained, compared):
    pool = make_pool(STS, 5, 200)
    noise = pool.logits - pool.labels[None, :, None]
    noise *= (np.array([1, 1, 1, 1, 2]) / noise.std(axis=(1, 2)))[:, None, None]
    pool = of_epochs(replace(pool, logits=pool.labels[None, :, None] + noise), trained)
    wanted = [("best", None), ("omni", None), ("topk", 4), ("longest", None)]
    methods = [Candidate(method, "logits", Options(size=size)) for method, size in wanted]
    proofs = prove_pool(pool, methods)
    index, found = recommend(pool, proofs)
    assert (proofs[index].candidate.method, found.candidates) == ("topk", 3)
    value = re.escape(f"{proofs[3].interval.value:.4f} [{proofs[3].interval.low:.4f}")
    assert re.search(
        rf" One member trained for {compared}, has {value}, .*\] held out\.", found.sentence
    )
    without = recommend(pool, proofs[:3])[1]
    assert found.sentence.startswith(without.sentence)
    assert replace(found, sentence=without.sentence) == without


def test_where_the_recommended_one_is_the_longest_nothing_is_added(make_pool):
    pool = of_epochs(make_pool(STS, 3), [9, 3, 3])
    methods = [Candidate(m, "logits", Options()) for m in ("best", "omni", "longest")]
    proofs = prove_pool(pool, methods)
    assert proofs[0].weights.tolist() == proofs[2].weights.tolist()
    limited = recommend(pool, proofs, max_members=1)[1]
    assert limited.ensemble == "sts-best-logits"
    assert "One member" not in limited.sentence
    second = of_epochs(pool, [3, 9, 3])
    limited = recommend(second, prove_pool(second, methods), max_members=1)[1]
    assert "for 9 epochs, more than the 3 of the recommended one, so not" in limited.sentence


def test_from_runs_to_tables_and_records(tmp_path, monkeypatch, run_command, capsys):
    monkeypatch.chdir(tmp_path)
    plant_epochs(Path("run"), QUORA, [3, 3, 3, 12])
    pool = read_runs([Path("run")])["quora"].dev
    assert pool.trained.tolist() == pool.planned.tolist() == [3, 3, 3, 12]
    given = ("--runs", "run", "--method", "omni", "longest", "--rule", "probs", "--logger", "false")
    assert run_command("ensemble", *given) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "train epochs: of its members together" in printed
    assert re.search(r"One member trained for 12 epochs, (more|less) than the", printed)
    with Path("run/ensembles/ensembles.csv").open(newline="") as file:
        cost = {row["method"]: row["train_epochs"] for row in csv.DictReader(file)}
    assert cost == {"best": "3", "omni": "21", "longest": "12"}
    folder = Path("run/ensembles/quora-longest-probs")
    record = EnsembleRecord.read(folder)
    assert [member.name for member in record.members] == ["r4"]
    fields = json.loads((folder / ENSEMBLE).read_text())
    assert fields.pop("train_epochs") == record.train_epochs == 12
    del fields["sha256"]  # as older versions wrote it
    (folder / ENSEMBLE).write_text(json.dumps(fields))
    assert EnsembleRecord.read(folder) == replace(record, train_epochs=None)


def test_the_report_has_its_row(tmp_path):
    run = plant_epochs(tmp_path / "run", QUORA, [3, 3, 12])
    for ensemble in prove(run, ["longest", "omni"]).ensembles:
        ensemble.save(run / "ensembles" / ensemble.name)
    content = read_content([run])["quora"]
    rows = scores(content)
    (row,) = (row for row in rows.rows if row[0] == "best of the members trained longest")
    assert row[rows.columns.index("train epochs")] == 12
    assert content.winner().method == "omni"


def test_pools_of_equal_epochs_have_no_such_row(tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    equal = plant_epochs(Path("equal"), QUORA, [2, 3, 3], status="stopped", max_epochs=3)
    pool = read_runs([equal])["quora"].dev
    assert (pool.trained.tolist(), pool.planned.tolist()) == ([2, 3, 3], [3, 3, 3])
    assert "longest" not in prove(equal, ["omni"])
    given = ("--runs", "equal", "--method", "longest", "--logger", "false")
    assert "--method longest does not apply to task quora: all members" in fails("ensemble", *given)
    assert not Path("equal/ensembles").exists()
    MemberStore(find_members(equal)[0]).update(max_epochs=None)
    pool = read_runs([equal])["quora"].dev
    assert pool.planned is None  # a run of an older version
    assert pool.trained.tolist() == [2, 3, 3]
    plant(Path("older"), QUORA)
    older = read_runs([Path("older")])["quora"].dev
    assert older.trained is older.planned is None
    assert prove(Path("older"), ["omni"]).records()[0].train_epochs is None


def test_the_table_has_the_epochs_where_the_members_do_not_tell_them(tmp_path):
    differ, equal = (plant_epochs(tmp_path / f"{n}", QUORA, [n, 3, 3]) for n in (9, 3))
    for run, shown in ((differ, True), (equal, False)):
        proofs = prove(run, ["omni"])
        assert ("train epochs: of its members together" in str(proofs)) == shown
        assert proofs["omni"].record(run).train_epochs == (15 if shown else 9)
