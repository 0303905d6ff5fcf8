import csv
import json
import re
import shlex
from collections import Counter
from dataclasses import replace

import pytest

from loraens.api import ensembles
from loraens.api.quick import STATE, Asked, _directory
from loraens.data import made_up
from loraens.ensemble.recommend import Recommendation, read_recommended
from loraens.ensemble.significance import Interval
from loraens.errors import InputError
from loraens.report.quick import advice
from loraens.store import MemberStore, find_members
from loraens.train.cost import Cost
from loraens.train.plan import Plan
from loraens.train.sizing import Size, largest, seconds

LABELS = {"ids-sst": {"0", "1", "2", "3", "4"}, "quora": {"0.0", "1.0"}}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_corpus_is_the_same_every_time_and_varied(tmp_path):
    for name in ("a", "b"):
        made_up.write_corpus(tmp_path / name)
    made_up.write_corpus(tmp_path / "c", seed=1)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9
    for name in files:
        content = (tmp_path / "a" / name).read_bytes()
        assert (
            content == (tmp_path / "b" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
        )
    for stem, columns, label, _ in made_up.CORPUS:
        texts = [
            tuple(row[column] for column in columns)
            for split in ("train", "dev", "test-student")
            for row in rows(tmp_path / "a" / f"{stem}-{split}.csv")
        ]
        assert len(set(texts)) == len(texts) == sum(made_up.SIZES.values())
        labels = Counter(row[label] for row in rows(tmp_path / "a" / f"{stem}-train.csv"))
        if stem in LABELS:
            assert set(labels) == LABELS[stem]
            assert min(labels.values()) > 0.1 * sum(labels.values())
        else:
            assert (
                {0.0, 5.0} <= {float(text) for text in labels} <= {step / 5 for step in range(26)}
            )


def plan(step, evaluation):
    """Of two members that train for three epochs of ten steps each."""
    cost = Cost(size=2, seconds=step, member_bytes=1, backbone_bytes=1)
    steps = 2 * 3 * 10
    seconds = steps * step + 2 * 3 * evaluation
    return Plan(2, 0, 1, 2, (3,), 10, steps, seconds, cost)


def test_the_largest_size_that_fits_is_taken():
    plans = [plan(step=0.5, evaluation=2.0), plan(step=1.0, evaluation=1.0)]
    sizes = [Size(4, 3, 80), Size(4, 2, 33), Size(1, 1, 8)]
    times = []
    for size in sizes:
        total = 0.0
        for step, evaluation in ((0.5, 2.0), (1.0, 1.0)):
            for _ in range(size.members * size.epochs):
                total += evaluation + step * len(range(0, size.texts, 8))
        times.append(total)
    for limit, expected in ((1e9, 0), (times[0], 0), (times[0] - 1, 1), (times[1] - 1, 2), (-1, 2)):
        found = largest(sizes, lambda size: sum(seconds(size, p, 8) for p in plans), limit)
        assert found == (sizes[expected], times[expected])


def test_a_directory_is_resumed_by_what_was_asked_for(tmp_path):
    asked = Asked(None, 640, "minilm", 3.0)
    state = tmp_path / "quickstart" / STATE
    assert _directory(tmp_path, asked) == (state.parent, None)
    (state.parent / "data").mkdir(parents=True)  # killed while steps were timed
    assert _directory(tmp_path, asked) == (state.parent, None)
    size = Size(4, 3, 640)
    content = {"format": 1, "asked": asked.to_json(), "size": size.to_json()}
    state.write_text(json.dumps(content))
    assert _directory(tmp_path, asked) == (state.parent, size)
    longer = replace(asked, minutes=10.0)
    assert _directory(tmp_path, longer) == (tmp_path / "quickstart-2", None)
    state.write_text("{")
    with pytest.raises(InputError, match=r"quickstart\.json is not JSON .*: delete .* to begin"):
        _directory(tmp_path, asked)


def recommendation(members, gain):
    worth = Interval(0.8, 0.7, 0.9)
    return Recommendation("sst-omni-logits", members, 5, worth, Interval(*gain), "sst: ...")


def test_the_advice_is_one_sentence():
    given = {
        "sst": recommendation(1, (0.0, 0.0, 0.0)),
        "sts": recommendation(4, (0.02, 0.01, 0.03)),
    }
    assert advice(given) == (
        "In short: sst: deploy one model, no ensemble is proved better; sts: combine 4 models, a"
        " proved +0.020 [+0.010, +0.030] over the best one."
    )


def test_no_time_at_all_is_refused(fails, tmp_path):
    limit = ("--data.limit", 0, "--store.root", tmp_path / "runs")
    assert "--data.limit 0: at least 1" in fails("quickstart", *limit)
    assert "minutes 0: a number above 0" in fails(
        "quickstart", "--minutes", 0, "--store.root", tmp_path / "runs"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_quickstart_trains_proves_and_resumes(
    run_command, tiny_bert, corpus, tmp_path, capsys, monkeypatch, real
):
    """Interrupted after the first task it resumes, and what it prints runs."""
    command = ["quickstart", "--backbone", tiny_bert, "--store.root", tmp_path, "--data.limit", 24]
    command += ["--data.root", corpus, "--minutes", 10] if real else ["--minutes", 0.001]
    members = 6 if real else 2
    write = ensembles.write_ensembles
    tasks = []

    def interrupted(runs, **options):
        tasks.append(runs[0].name)
        if tasks == ["sst", "quora"]:
            raise KeyboardInterrupt
        return write(runs=runs, **options)

    monkeypatch.setattr(ensembles, "write_ensembles", interrupted)
    assert run_command(*command) == 130
    printed = capsys.readouterr().out
    assert ("made up" in printed) != real
    assert ("That is more than was asked for" in printed) != real
    epochs = "3 epochs" if real else "1 epoch"
    assert f"{members} members a task, {epochs} of at most so many texts: 18 of sst" in printed
    trained = {path: path.read_bytes() for path in tmp_path.rglob("manifest.json")}
    assert run_command(*command) == 0
    assert tasks == ["sst", "quora", "sst", "quora", "sts"]
    assert all(path.read_bytes() == content for path, content in trained.items())
    printed = capsys.readouterr().out
    assert "Resuming" in printed
    assert len(re.findall(r"\*-?0\.", printed)) == 3
    assert max(len(line) for line in printed.splitlines() if "─" in line) < 80
    for name in tasks[2:]:
        found = find_members(tmp_path / "quickstart" / name)
        assert {MemberStore(path).manifest().status for path in found} == {"finished"}
        assert len(found) == members
        recommended = read_recommended(tmp_path / "quickstart" / name / "ensembles" / "recommended")
        assert recommended[name].sentence in printed
    assert (tmp_path / "quickstart" / "data").exists() != real
    shown = [shlex.split(line)[1:] for line in re.findall(r"loraens (?:pre|rep).*", printed)]
    assert [words[0] for words in shown] == ["predict", "predict", "predict", "report"]
    for words in shown:
        assert run_command(*words, *(["--logger", "false"] if words[0] == "report" else [])) == 0
