"""Exported members and ensembles predict what `predict` does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.corpus import texts_of

from loraens.ensemble.combine import majority_vote
from loraens.export.graph import Graph
from loraens.export.onnx import run, write_tokenizer
from loraens.inference.combination import Combination
from loraens.inference.predictor import Predictor
from loraens.labels.base import LabelKind
from loraens.metrics import Outcome
from loraens.store import ENSEMBLE, find_members
from loraens.tasks import SST, STS, Task

LABELS = Task(
    "tags", ("text",), "label", "labels", "binary_cross_entropy", "macro_f1", ("a", "b", "c")
)
LEVELS = Task("levels", ("text",), "label", "levels", "corn", "quadratic_kappa", tuple("abcd"))
TASKS = {"classes": SST, "number": STS, "labels": LABELS, "levels": LEVELS}


def arguments(predictor, tmp_path, texts):
    """Padded tensors of texts, by the tokenizer that is exported."""
    write_tokenizer(predictor, tmp_path / "tokenizer.json")
    from tokenizers import Tokenizer

    given = [text if len(text) > 1 else text[0] for text in texts]
    encoded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(given)
    of = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {
        name: torch.tensor([getattr(one, field) for one in encoded]) for name, field in of.items()
    }


def test_the_graph_of_padded_texts_equals_the_packed_pass(trained, corpus, tmp_path):
    name, sweep = trained
    _, texts = texts_of(corpus, name)
    for folder in (*sorted((sweep / "ensembles").glob("*/")), find_members(sweep)[0]):
        predictor = Predictor.load(folder)
        task = predictor.task()
        region = predictor.region(task, 0.7)
        graph = Graph(predictor, task, region).eval()
        with torch.no_grad():
            found = graph(**arguments(predictor, tmp_path, texts))
        rows = predictor.rows(texts, task, region)
        if name == "sts":
            for column in ("prediction", "low", "high"):
                expected = [row[column] for row in rows]
                assert found[column].numpy() == pytest.approx(expected, abs=1e-5)
            continue
        classes = [task.class_names[place] for place in found["prediction"].tolist()]
        assert classes == [row["prediction"] for row in rows]
        shares = [[row[f"probability_{k}"] for k in task.class_names] for row in rows]
        np.testing.assert_allclose(found["probability"].numpy(), shares, atol=2e-6)
        sets = [
            [k for k, there in zip(task.class_names, row, strict=True) if there]
            for row in found["set"].tolist()
        ]
        assert sets == [row["set"] for row in rows]


@pytest.mark.parametrize("kind", TASKS)
def test_tensors_of_a_label_kind_equal_its_arrays(kind):
    task = TASKS[kind]
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(5, 60, task.num_outputs))
    logits[0, 0] *= 100
    given = torch.from_numpy(logits)
    found = task.label_kind.probability_tensor(task, given)
    outcomes = [task.outcome(one) for one in logits]
    if outcomes[0].probabilities is None:
        assert found is None
    else:
        expected = np.stack([outcome.probabilities for outcome in outcomes])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    predicted = task.label_kind.prediction_tensor(given if found is None else found).numpy()
    np.testing.assert_array_equal(predicted, [outcome.predictions for outcome in outcomes])
    shares = rng.dirichlet(np.ones(5))
    if predicted.ndim == 2:
        spread = task.label_kind.spread(predicted, shares)
        tensor = task.label_kind.spread_tensor(torch.from_numpy(predicted), torch.tensor(shares))
        np.testing.assert_allclose(tensor.numpy(), spread, atol=1e-12)
    outcome = outcomes[1]
    radius = rng.random(60)
    columns = task.label_kind.region(task, outcome, radius)
    probabilities = None if found is None else found[1]
    tensors = task.label_kind.region_tensors(
        torch.from_numpy(outcome.predictions), probabilities, torch.from_numpy(radius)
    )
    assert [*tensors] == [*task.label_kind.regions]
    for cells, tensor in zip(columns, tensors.values(), strict=True):
        if tensor.dtype == torch.bool:
            names = [[task.class_names[k] for k in np.flatnonzero(row)] for row in tensor.numpy()]
            assert names == cells
        else:
            assert tensor.numpy() == pytest.approx(np.array(cells), abs=1e-4)


def test_other_label_kinds_say_that_they_cannot():
    class Other(type(SST.label_kind)):
        probability_tensor = LabelKind.probability_tensor

    with pytest.raises(ValueError, match="task sst: label kinds of the class Other cannot be"):
        Other().probability_tensor(SST, torch.zeros(1, 5))


def test_votes_in_the_graph_break_ties_as_majority_vote():
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 3, (6, 200))
    ranks, standings = np.array([4, 8, 4, 8, 2, 2]), rng.permutation(6)
    weights = np.array([1, 1, 1, 2, 2, 1]) / 8
    graph = Graph.__new__(Graph)
    torch.nn.Module.__init__(graph)
    graph.combination = Combination("vote", weights, ranks, standings, None)
    graph.register_buffer("weights", torch.from_numpy(weights))
    given = torch.from_numpy(votes)
    found = graph._elected(given, torch.nn.functional.one_hot(given, 3).double())
    expected = majority_vote(votes, ranks, weights, standings)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("several", [False, True])
def test_temperatures_in_the_graph(several):
    from loraens.ensemble.calibration import scaled

    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 50)
    graph = Graph.__new__(Graph)
    torch.nn.Module.__init__(graph)
    graph.combination = Combination("probs", np.ones(1), np.ones(1), np.zeros(1), 1.7)
    predictions = np.zeros((50, 3)) if several else np.zeros(50)
    expected = scaled(Outcome(predictions, probabilities), 1.7).probabilities
    found = graph._scaled(torch.from_numpy(probabilities), several)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_an_onnx_file_runs_without_loraens_or_torch(
    trained, corpus, run_command, tmp_path, capsys, int8
):
    name, sweep = trained
    model = sorted((sweep / "ensembles").glob("*omni*"))[0]
    stem = {"sst": "ids-sst-dev", "sts": "sts-dev"}[name]
    out = tmp_path / "out"
    options = ["--coverage", 0.7, "--texts", corpus / f"{stem}.csv", *["--int8"][:int8]]
    assert run_command("export", model, "--out", out, *options) == 0
    said = capsys.readouterr().out
    if name == "sts":
        apart = float(re.search(r"predictions of 24 .* by up to (\S+) from", said)[1])
        assert apart < (1 if int8 else 1e-4)
        assert 'run.py "a text" "a text"' in said
    elif not int8:
        assert "100.0% of 24 texts of" in said
    assert "by the exported graph" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "model.json",
        "model.onnx",
        "run.py",
        "tokenizer.json",
    ]
    _, texts = texts_of(corpus, name)
    predictor = Predictor.load(model)
    task = predictor.task()
    for size in (1, 7):  # other numbers of texts and tokens than it was made with
        found = run(out, texts, size)
        rows = predictor.rows(texts, task, predictor.region(task, 0.7))
        if not int8 and name == "sts":
            assert found["low"] == pytest.approx([row["low"] for row in rows], abs=1e-4)
        if not int8 and name == "sst":
            classes = [task.class_names[place] for place in found["prediction"]]
            assert classes == [row["prediction"] for row in rows]
    moved = out.rename(tmp_path / "moved")
    blocked = "import sys; sys.modules['loraens'] = sys.modules['torch'] = None; import runpy;"
    words = [str(moved / "run.py"), *texts[0]]
    code = f"{blocked} sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("prediction")


@pytest.mark.parametrize("half", [False, True])
def test_a_moved_ensemble_predicts_alike(trained, corpus, run_command, tmp_path, tiny_bert, half):
    name, sweep = trained
    _, texts = texts_of(corpus, name)
    for model in (*sorted((sweep / "ensembles").glob("*/")), find_members(sweep)[0]):
        expected = Predictor.load(model)
        task = expected.task()
        out = tmp_path / model.name
        options = ["--half"][:half]
        command = ("export", model, "--format", "loraens", "--out", out, "--with_backbone")
        assert run_command(*command, *options) == 0
        found = Predictor.load(out)
        assert Path(found.backbone) == out / "backbone"
        np.testing.assert_allclose(
            found.logits(texts, task), expected.logits(texts, task), atol=2e-2 if half else 0
        )
        regions = [one.region(task, 0.7) for one in (found, expected)]
        assert regions[0] == regions[1]
        assert not list(out.rglob("*.part"))
        if (out / ENSEMBLE).is_file():
            paths = [
                member["directory"]
                for member in json.loads((out / ENSEMBLE).read_text())["members"]
            ]
            assert all(path.startswith("members/") for path in paths)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "loraens", "--int8"], "--int8 is not an option of --format loraens"),
        (["--format", "onnx", "--half"], "--half is not an option of --format onnx"),
        (["--format", "onnx", "--coverage", "1.5"], "coverage 1.5: a share between 0 and 1"),
    ],
)
def test_options_that_do_not_fit(trained, run_command, tmp_path, capsys, options, sentence):
    out = tmp_path / "out"
    assert run_command("export", find_members(trained[1])[0], "--out", out, *options) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_directory_that_exists_is_left_alone(trained, run_command, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert run_command("export", find_members(trained[1])[0], "--out", tmp_path) == 2
    assert "exists: give a new directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_peft_loads_exported_adapters(trained, corpus, run_command, tmp_path, tiny_bert):
    from peft import PeftModel
    from transformers import AutoModel

    name, sweep = trained
    ensemble = sorted((sweep / "ensembles").glob("*omni*"))[0]
    out = tmp_path / "out"
    assert run_command("export", ensemble, "--format", "peft", "--out", out) == 0
    names = [member["name"] for member in json.loads((ensemble / ENSEMBLE).read_text())["members"]]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    predictor = Predictor.load(ensemble)
    task = predictor.task()
    _, texts = texts_of(corpus, name)
    given = arguments(predictor, tmp_path, texts)
    features = predictor.features(texts, task)
    for index, member in enumerate(names):
        loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), out / member)
        with torch.no_grad():
            hidden = loaded.eval()(**given).last_hidden_state[:, 0]
        np.testing.assert_allclose(hidden.numpy(), features[index], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_other_libraries_load_a_merged_member(
    run_command, tmp_path, corpus, tiny_bert, pooling, capsys
):
    config = Path(__file__).parent.parent / "configs" / "sts.yaml"
    fit = ("fit", "--config", config, "--data.root", corpus, "--model.backbone", tiny_bert)
    fit += ("--model.pooling", pooling, "--trainer.max_epochs", 1, "--trainer.logger", "false")
    fit += ("--trainer.enable_progress_bar", "false", "--store.root", tmp_path / "runs")
    assert run_command(*fit) == 0
    (run_directory,) = (tmp_path / "runs").iterdir()
    out = tmp_path / "out"
    options = ("--format", "transformers", "--out", out, "--texts", corpus / "sts-dev.csv")
    assert run_command("export", run_directory, *options) == 0
    said = capsys.readouterr().out
    loader = {"pooler": "AutoModelForSequenceClassification", "mean": "SentenceTransformer"}
    assert f"load it: {loader[pooling]}" in said
    assert not list(tmp_path.glob(".*"))


def test_an_ensemble_of_several_is_not_one_model(trained, run_command, tmp_path, capsys):
    ensemble = sorted((trained[1] / "ensembles").glob("*omni*"))[0]
    options = ("--format", "transformers", "--out", tmp_path / "out")
    assert run_command("export", ensemble, *options) == 2
    assert "this ensemble runs 4" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
