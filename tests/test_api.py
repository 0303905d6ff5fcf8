"""The Python interface: a sweep, its proofs and its ensembles, and the public names."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import loraens
from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.prove import prove
from loraens.tasks import SST

QUIET = {"enable_progress_bar": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions of two kinds, as CSV."""
    directory = tmp_path_factory.mktemp("questions")
    words = {"WHO": ("Who wrote", "Who painted"), "WHEN": ("When began", "In which year was")}
    things = ["Emma", "the war", "that picture", "the fair", "a song", "the bridge", "it"]
    for name, seed in (("train", 0), ("dev", 1)):
        rng = np.random.default_rng(seed)
        lines = ["text,type"]
        for _ in range(48):
            label = str(rng.choice(list(words)))
            number = rng.integers(1000)
            lines.append(f"{rng.choice(words[label])} {rng.choice(things)} {number}?,{label}")
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="module")
def sweep(files, tiny_bert, tmp_path_factory):
    data = loraens.TextFiles(
        name="questions",
        train=str(files / "train.csv"),
        dev=str(files / "dev.csv"),
        text_columns=["text"],
        label_column="type",
    )
    return loraens.Sweep(
        data,
        loraens.Grid(rank=[1, 4], scale=[1.0, 3.0]),
        tmp_path_factory.mktemp("runs") / "questions",
        backbone=str(tiny_bert),
        epochs=3,
        lr=1e-2,
        pooling="mean",
        trainer=QUIET,
    ).fit()


@pytest.mark.slow
def test_a_sweep_leaves_members_with_scores(sweep):
    frame = sweep.to_frame()
    assert len(frame) == len(sweep.members) == 4
    assert frame["questions accuracy"].max() > 0.7
    assert set(frame["status"]) == {"finished"}
    assert sorted(frame["rank"]) == [1, 1, 4, 4]


def test_a_sweep_that_is_done_trains_nothing(sweep, files):
    before = {path: path.stat().st_mtime_ns for path in sweep.directory.rglob("*.safetensors")}
    again = loraens.Sweep(
        sweep.data,
        loraens.Grid(rank=[1, 4], scale=[1.0, 3.0]),
        sweep.directory,
        backbone=sweep.data.backbone,
        epochs=3,
        lr=1e-2,
        pooling="mean",
        trainer=QUIET,
    )
    assert again.plan().ended == 4
    assert again.fit().manifests == sweep.manifests
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_proofs_print_and_make_a_frame(sweep):
    proofs = loraens.prove(sweep, methods=["dicor"])
    assert list(proofs) == ["best-vote", "omni-vote", "dicor-vote"]
    text = str(proofs)
    assert all(word in text for word in ("dicor", "held out", "minus best"))
    frame = proofs.to_frame()
    assert frame["method"].tolist() == ["best", "omni", "dicor"]
    assert frame["to_best"][0] == 0
    assert proofs["dicor"] is proofs["dicor-vote"]


def test_an_ensemble_is_saved_and_predicts(sweep, tmp_path):
    proofs = loraens.prove(sweep, methods=["omni"], rules=["probs"])
    saved = proofs["omni"].save(tmp_path / "omni")
    ensemble = loraens.Ensemble.load(saved)
    rows = ensemble.predict(["Who wrote Emma?", "In which year was the fair 3?"])
    assert [row["prediction"] for row in rows] == ["WHO", "WHEN"]
    total = [row["probability_WHO"] + row["probability_WHEN"] for row in rows]
    assert total == pytest.approx([1, 1], abs=1e-5)


def test_the_commands_read_a_sweep_made_in_python(sweep, run_command, tmp_path, capsys):
    assert run_command("compare", sweep.directory) == 0
    assert "questions" in capsys.readouterr().out
    options = ("--runs", sweep.directory, "--method", "omni", "--out", tmp_path / "ensembles")
    assert run_command("ensemble", *options, "--logger", "false") == 0
    assert (tmp_path / "ensembles" / "questions-omni-vote" / "ensemble.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"methods": ["nothing"]}, "^method nothing is unknown"),
        ({"rules": ["nothing"]}, "^rule nothing does not apply to task questions"),
        ({"task": "nothing"}, "^task nothing: the members have questions"),
        ({"options": loraens.Options(measure="nothing")}, "^measure nothing is unknown"),
        ({"options": loraens.Options(size=3, max_size=2)}, "^size 3: at most 2 is expected"),
    ],
    ids=["method", "rule", "task", "measure", "size"],
)
def test_errors_name_arguments_not_options(sweep, arguments, sentence):
    with pytest.raises(loraens.InputError, match=sentence) as error:
        loraens.prove(sweep, **arguments)
    assert isinstance(error.value, ValueError)
    assert error.value.in_command().startswith("--")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"warmup": 2}, "warmup 2 is not a share"),
        ({"epochs": 0}, "max_epochs 0|epochs 0"),
        ({"grid": loraens.Grid(rank=[0])}, "rank must be at least 1"),
        ({"grid": loraens.Grid(rank=[])}, "at least one member"),
    ],
    ids=["warmup", "epochs", "rank", "empty"],
)
def test_a_sweep_refuses_bad_arguments(sweep, tmp_path, arguments, sentence):
    given = {"grid": loraens.Grid(rank=[2]), "epochs": 1, **arguments}
    with pytest.raises(loraens.InputError, match=sentence):
        loraens.Sweep(
            sweep.data, directory=tmp_path / "x", backbone=sweep.data.backbone, **given
        ).fit()
    assert not (tmp_path / "x" / "sweep.json").exists()


def test_public_names_are_there():
    for name in loraens.__all__:
        assert getattr(loraens, name) is not None
    assert set(loraens.__all__) <= set(dir(loraens))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loraens.nothing


def test_the_module_is_the_command_line():
    command = [sys.executable, "-m", "loraens", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"loraens {loraens.__version__}\n"
    )


def test_importing_the_package_imports_no_torch():
    modules = "loraens, loraens.cli, loraens.tasks, loraens.store"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.slow
def test_public_names_are_typed(tmp_path):
    (tmp_path / "user.py").write_text(
        "from loraens import Ensemble, Grid, Sweep, TextFiles, prove\n"
        "data = TextFiles('q', 'a.csv', 'b.csv', ['text'], 'type')\n"
        "sweep: Sweep = Sweep(data, Grid(rank=[1]), backbone='minilm').fit()\n"
        "prove(sweep, methods=['dicor'])['dicor'].save('x')\n"
        "rows: list[dict[str, object]] = Ensemble.load('x').predict(['Who?'])\n"
    )
    others = ("torch", "transformers", "lightning", "scipy", "sklearn", "pandas", "jsonargparse")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        f"[mypy-{','.join(f'{name}.*' for name in others)}]\n"
        "follow_imports = skip\n"  # which take minutes
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    # mypy does not follow the hooks of editable installs
    environment = {**os.environ, "MYPYPATH": str(Path(loraens.__file__).parent.parent)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("examples", [5, 7])
def test_few_examples_are_enough(make_pool, examples):
    methods = ("best", "omni", "dicor", "topk")
    candidates = [Candidate(name, "vote", loraens.Options()) for name in methods]
    proofs = prove(make_pool(SST, examples=examples), candidates)
    assert [proof.candidate.method for proof in proofs] == list(methods)
