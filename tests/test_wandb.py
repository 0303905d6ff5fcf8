"""What a run logs to W&B without an account, read back from the offline run's own file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.wandb_runs import read_run, run_offline

from loraens.commands import wandb_sync
from loraens.errors import InputError
from loraens.store import find_member
from loraens.train.account import run_options

CONFIGS = Path(__file__).parent.parent / "configs"


def check_member(directory, found, job_type):
    """Compares the W&B run of a member with its manifest."""
    manifest = json.loads((directory / "manifest.json").read_text())
    tasks = [task["name"] for task in manifest["settings"]["tasks"]]
    assert found.run.job_type == job_type
    wanted = {name: manifest["settings"][name] for name in ("backbone", "mode")}
    wanted |= {name: manifest["member"][name] for name in ("rank", "scale", "seed", "lr")}
    wanted |= {"task": "-".join(tasks)}
    assert {name: found.config[name] for name in wanted} == wanted
    best = {
        f"best/{task}/{name}": value
        for task in tasks
        for name, value in manifest["dev"]["best"][task].items()
    }
    best |= {"best/epoch": manifest["epochs"]["best"], "status": "finished"}
    best |= {name: manifest[name] for name in ("trainable_parameters", "seconds")}
    assert {name: found.summary[name] for name in best} == best
    assert found.summary["trainable_parameters"] > 0
    assert found.summary["seconds"] > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert, corpus):
    home = tmp_path_factory.mktemp("home")
    command = [
        "fit",
        "--config",
        CONFIGS / "sst.yaml",
        "--model.backbone",
        tiny_bert,
        "--data.root",
        corpus,
    ]
    command += [
        "--trainer.max_epochs",
        2,
        "--trainer.log_every_n_steps",
        2,
        "--data.max_length",
        40,
    ]
    return run_offline(home, *command, "--store.root", home / "runs")


@pytest.mark.slow
def test_offline_run_holds_settings_curves_scores_and_table(run):
    (offline,) = (run / "wandb").glob("offline-run-*")
    found = read_run(offline)
    assert (found.run.project, found.run.display_name) == ("loraens", run.name)
    assert [found.config[name] for name in ("rank", "scale", "mode", "batch_size")] == [
        12,
        3.0,
        "lora",
        8,
    ]
    check_member(find_member(run), found, "member")
    assert len(found.curves["train/loss"]) >= 4
    assert len(found.curves["dev/sst/accuracy"]) == 2
    best = np.float32(found.summary["best/sst/accuracy"])  # Lightning logs in single precision
    assert max(found.curves["dev/sst/accuracy"]) == best
    (table,) = offline.glob("files/media/table/dev/sst/predictions*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][:4] == ["id", "sentence", "label", "prediction"]
    assert len(rows["data"]) == 24
    assert all(sum(row[4:]) == pytest.approx(1) for row in rows["data"])


@pytest.mark.slow
def test_fit_is_the_program_of_an_agent(tmp_path, tiny_bert, corpus):
    """The command as W&B's agent words it, once for each of two trials of a sweep."""
    from wandb.sdk.launch.sweeps import utils

    fixed = [
        *("fit", "--config", CONFIGS / "sst.yaml", "--model.backbone", tiny_bert),
        *("--data.root", corpus, "--trainer.max_epochs", 1, "--store.root", tmp_path / "runs"),
    ]
    for trial, batch_size in (("first", 8), ("second", 16)):
        parameters = {"model.rank": {"value": 2}, "data.batch_size": {"value": batch_size}}
        parameters |= {"model.lr": {"value": 3e-4}, "data.pool_dev": {"value": False}}
        words = utils.create_sweep_command_args({"args": parameters})["args"]
        variables = {"WANDB_RUN_ID": trial, "WANDB_SWEEP_ID": "sweep"}
        run = run_offline(tmp_path, *fixed, *words, **variables)
        (offline,) = (run / "wandb").glob("offline-run-*")
        found = read_run(offline)
        assert found.run.run_id == trial
        assert (found.config["rank"], found.config["batch_size"]) == (2, batch_size)
        assert "best/sst/accuracy" in found.summary
    assert len(list((tmp_path / "runs").iterdir())) == 2


def sweep_command(tiny_bert, corpus, tmp_path, epochs):
    """A sweep of two members."""
    data = ("--config", CONFIGS / "sts.yaml", "--model.backbone", tiny_bert, "--data.root", corpus)
    grid = ("--trainer.max_epochs", epochs, "--grid.rank", "[2,3]", "--sweep.pack_size", 2)
    return ["sweep", *data, *grid, "--store.root", tmp_path / "runs"]


@pytest.mark.slow
def test_a_sweep_logs_one_run_a_member_in_one_group(tmp_path, tiny_bert, corpus):
    command = sweep_command(tiny_bert, corpus, tmp_path, epochs=2)
    sweep = run_offline(tmp_path, *command)
    found = [read_run(offline) for offline in sorted((sweep / "wandb").glob("offline-run-*"))]
    assert sorted(entry.run.display_name for entry in found) == [
        "r2-c3-s0-lr0.0001",
        "r3-c3-s0-lr0.0001",
    ]
    assert len({entry.run.run_id for entry in found}) == 2
    for entry in found:
        check_member(sweep / entry.run.display_name, entry, "member")
        manifest = json.loads((sweep / entry.run.display_name / "manifest.json").read_text())
        assert (entry.run.project, entry.run.run_group, entry.run.job_type) == (
            "loraens",
            "sts-sweep",
            "member",
        )
        wanted = {
            **manifest["member"],
            "task": "sts",
            "mode": "lora",
            "sweep": "sts-sweep",
            "backbone": str(tiny_bert),
        }
        assert {name: entry.config[name] for name in wanted} == wanted
        assert entry.curves["dev/sts/pearson"] == pytest.approx(
            [e["dev"]["sts"]["pearson"] for e in manifest["history"]]
        )
        assert entry.curves["train/loss"] == pytest.approx(
            [e["train_loss"] for e in manifest["history"]]
        )
    run_offline(tmp_path, *command)
    assert (
        len(list((sweep / "wandb").glob("offline-run-*"))) == 2
    )  # a repetition logs nothing twice
    run_offline(tmp_path, "ensemble", "--runs", sweep, "--method", "omni")
    (offline,) = (sweep / "ensembles" / "wandb").glob("offline-run-*")
    found = read_run(offline)
    assert (found.run.project, found.run.run_group, found.run.job_type) == (
        "loraens",
        "sts-sweep",
        "ensemble",
    )
    assert {"sts/omni/logits/held_out", "sts/best/logits/to_best"} <= set(found.summary)
    assert found.summary["sts/recommended/goal"] == "score"
    (table,) = offline.glob("files/media/table/ensembles*.json")
    rows = json.loads(table.read_text())
    assert [dict(zip(rows["columns"], row, strict=True))["method"] for row in rows["data"]] == [
        "best",
        "omni",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_baselines_are_of_job_type_baseline(tmp_path, tiny_bert, corpus, mode):
    command = [
        "fit",
        "--config",
        CONFIGS / "sts.yaml",
        "--config",
        CONFIGS / f"{mode}.yaml",
        "--model.backbone",
        tiny_bert,
    ]
    command += ["--data.root", corpus, "--trainer.max_epochs", 1, "--store.root", tmp_path / "runs"]
    directory = run_offline(tmp_path, *command)
    (offline,) = wandb_sync.offline_runs(directory)
    check_member(find_member(directory), read_run(offline), "baseline")


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger"])
@pytest.mark.slow
def test_other_loggers_get_a_directory_a_member(run_command, tmp_path, tiny_bert, corpus, kind):
    command = sweep_command(tiny_bert, corpus, tmp_path, epochs=1)
    command += [
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.logger",
        kind,
        "--trainer.logger.save_dir",
        tmp_path / "logs",
    ]
    assert run_command(*command) == 0
    for name in ("r2-c3-s0-lr0.0001", "r3-c3-s0-lr0.0001"):
        (file,) = (
            path
            for path in (tmp_path / "logs" / name).iterdir()
            if not path.name.startswith("hparams")
        )
        if kind == "CSVLogger":
            assert {"dev/sts/pearson", "train/loss", "epoch"} <= set(
                file.read_text().splitlines()[0].split(",")
            )


@pytest.mark.slow
def test_config_beside_the_run_is_the_one_that_was_used(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["rank"] == 12


def test_an_account_that_is_refused_is_one_sentence(monkeypatch, tmp_path):
    import wandb

    def refuse(**options):
        raise wandb.errors.AuthenticationError("no such key")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", refuse)
    with pytest.raises(
        InputError,
        match=r"W&B rejected the API key .no such key.: fix it, or set WANDB_MODE=offline",
    ):
        run_options(tmp_path, "one")


def test_variables_of_wandb_hold(monkeypatch, tmp_path):
    names = ("PROJECT", "NAME", "RUN_GROUP", "DIR")
    for name in names:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = {"project": "loraens", "name": "r4", "dir": tmp_path}
    assert run_options(tmp_path, "r4") == plain
    assert run_options(tmp_path, "r4", group="sweep") == {**plain, "group": "sweep"}
    for name in names:
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    assert run_options(tmp_path, "r4") == {
        "project": "project",
        "name": "name",
        "dir": Path("dir"),
    }
    of_group = run_options(tmp_path, "r4", group="sweep")
    assert (of_group["name"], of_group["group"]) == ("name r4", "run_group")


LOGS_A_TABLE = """
import sys
from pathlib import Path
import wandb
from loraens.train.account import run_options
options = run_options(Path(sys.argv[1]), "one")
options["dir"].mkdir()
with wandb.init(**options) as run:
    run.log({"table": wandb.Table(["a"], [[1]])})
"""


@pytest.mark.slow
def test_a_home_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        kept.pop(name, None)
    environment = {**kept, "HOME": str(tmp_path / "file" / "home"), "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", LOGS_A_TABLE, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    homes = "WANDB_DATA_DIR, WANDB_CACHE_DIR, WANDB_CONFIG_DIR"
    assert done.stderr.count(f"cannot be written: {homes} are ") == 1
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert read_run(offline).run.display_name == "one"
    assert list(offline.glob("files/media/table/table*.json"))
