"""Whole runs on a tiny backbone, through the command line."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from safetensors.torch import load_file

from loraens.inference.predictor import Predictor
from loraens.store import MemberStore, find_member

CONFIGS = Path(__file__).parent.parent / "configs"
QUIET = [
    "--trainer.logger",
    "false",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


@pytest.fixture
def fit(run_command, tiny_bert, corpus, tmp_path):
    """Runs `fit` with the tiny backbone in a new store; returns the run's directory."""

    def run(*args, config="sts", name="run", expect=0, epochs=2, extra=()):
        command = [
            "fit",
            "--config",
            CONFIGS / f"{config}.yaml",
            "--model.backbone",
            tiny_bert,
            "--data.root",
            corpus,
        ]
        command += [
            "--data.max_length",
            40,
            "--trainer.max_epochs",
            epochs,
            "--store.root",
            tmp_path,
            "--store.run",
            name,
        ]
        assert run_command(*command, *QUIET, *args, *extra) == expect
        return tmp_path / name

    return run


def test_a_run_leaves_a_whole_member(fit):
    run = fit("--model.lr", 1e-2, "--model.rank", 3)
    store = MemberStore(find_member(run))
    manifest = store.manifest()
    assert manifest["status"] == "finished"
    assert manifest["member"] == {
        "rank": 3,
        "scale": 3.0,
        "seed": 0,
        "lr": 0.01,
        "weight_decay": 0.01,
        "head_dropout": 0.3,
    }
    assert [entry["epoch"] for entry in manifest["history"]] == [1, 2]
    assert set(manifest["dev"]["last"]["sts"]) == {"pearson", "spearman", "mse"}
    best = max(manifest["history"], key=lambda entry: entry["dev"]["sts"]["pearson"])
    assert manifest["epochs"] == {"best": f"epoch-{best['epoch']:03d}", "last": "epoch-002"}
    assert manifest["trainable_parameters"] == 2 * 2 * 3 * 64 + 33
    for split, size in (("dev", 24), ("test", 10)):
        logits = store.logits("sts", split, "last")
        assert logits.logits.shape == (size, 1)
        assert len(set(logits.example_id.tolist())) == size
        assert (logits.labels is None) == (split == "test")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["rank"] == 3


def test_stored_logits_are_what_predict_gives(fit, corpus):
    run = fit("--model.lr", 1e-2, config="sst")
    for which in ("best", "last"):
        predictor = Predictor.load(run, which)
        stored = MemberStore(find_member(run)).logits("sst", "dev", which)
        lines = [
            line.split("\t") for line in (corpus / "ids-sst-dev.csv").read_text().splitlines()[1:]
        ]
        texts = {fields[1]: (fields[2].strip(),) for fields in lines}
        (got,) = predictor.logits(
            [texts[key] for key in stored.example_id.tolist()], predictor.task()
        )
        torch.testing.assert_close(
            torch.from_numpy(got), torch.from_numpy(stored.logits), rtol=0, atol=1e-5
        )


def weights(run, which="last"):
    directory = find_member(run)
    epoch = directory / MemberStore(directory).manifest()["epochs"][which]
    return {
        f"{path.name} {key}": value
        for path in sorted(epoch.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@pytest.mark.parametrize("mode", ["lora", "frozen", "full"])
def test_resume_equals_no_interruption(fit, tmp_path, caplog, mode):
    options = [
        "--model.mode",
        mode,
        "--model.lr",
        1e-2,
        "--model.schedule",
        "cosine",
        "--model.warmup",
        0.2,
    ]
    whole = fit(*options, epochs=3, name="whole")
    half = fit(*options, epochs=3, name="half", expect=1, extra=INTERRUPT)
    assert MemberStore(find_member(half)).manifest()["status"] == "training"
    assert (
        f"to go on: loraens fit --config {half / 'config.yaml'} --ckpt_path {half / 'last.ckpt'}"
        in caplog.text
    )
    again = fit(*options, epochs=3, name="ignored", extra=["--ckpt_path", half / "last.ckpt"])
    assert not again.exists()
    expected = weights(whole)
    got = weights(half)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    old, new = (MemberStore(find_member(run)).manifest() for run in (whole, half))
    assert (new["status"], new["history"]) == ("finished", old["history"])
    assert new["files"] == old["files"]


def test_several_validations_an_epoch(fit):
    run = fit("--trainer.val_check_interval", 0.5, "--model.lr", 1e-2, epochs=2)
    manifest = MemberStore(find_member(run)).manifest()
    assert [entry["name"] for entry in manifest["history"]] == [
        "epoch-001",
        "epoch-001-2",
        "epoch-002",
        "epoch-002-2",
    ]
    assert [entry["step"] for entry in manifest["history"]] == [3, 6, 9, 12]
    assert manifest["epochs"]["last"] == "epoch-002-2"
    best = max(manifest["history"], key=lambda entry: entry["dev"]["sts"]["pearson"])
    assert manifest["epochs"]["best"] == best["name"]


@pytest.mark.parametrize(
    ("option", "value", "last", "steps"),
    [
        ("max_steps", 2, "epoch-001", 2),
        ("max_steps", 8, "epoch-002", 8),
        ("check_val_every_n_epoch", 2, "epoch-003", 18),
    ],
)
def test_final_weights_are_saved_though_no_validation_was_due(fit, option, value, last, steps):
    run = fit(f"--trainer.{option}", value, epochs=3)
    manifest = MemberStore(find_member(run)).manifest()
    assert manifest["status"] == "finished"
    assert (manifest["epochs"]["last"], manifest["history"][-1]["step"]) == (last, steps)


class InterruptInThirdEpoch(Callback):
    """Presses Ctrl-C in the middle of the third epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 2:
            raise KeyboardInterrupt


INTERRUPT = ["--trainer.callbacks", f"{__name__}.InterruptInThirdEpoch"]


class KillInThirdEpoch(InterruptInThirdEpoch):
    """Kills the process in the middle of the third epoch."""

    def on_train_batch_end(self, trainer, *args):
        try:
            super().on_train_batch_end(trainer, *args)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_loses_the_running_epoch_alone(fit, tiny_bert, corpus, tmp_path):
    whole = fit(epochs=3, name="whole")
    command = [
        "fit",
        "--config",
        whole / "config.yaml",
        "--store.run",
        "half",
        "--trainer.callbacks",
        f"{__name__}.KillInThirdEpoch",
    ]
    code = (
        "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from loraens.cli import main;"
        " main()"
    )
    path = f"{Path(__file__).parent}:{Path(__file__).parent.parent}"
    one_thread = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # as here: sums in another order are other sums
    call = [sys.executable, "-c", code, path, *map(str, command)]
    done = subprocess.run(call, env=one_thread, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    half = tmp_path / "half"
    assert len(MemberStore(find_member(half)).manifest()["history"]) == 2
    fit(epochs=3, name="ignored", extra=["--ckpt_path", half / "last.ckpt"])
    assert (
        MemberStore(find_member(half)).manifest()["files"]
        == MemberStore(find_member(whole)).manifest()["files"]
    )


def test_checkpoint_holds_no_frozen_weight_and_no_pickle(fit):
    run = fit(epochs=1)
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert {name.rsplit(".", 1)[-1] for name in checkpoint["state_dict"]} == {
        *("lora_A", "lora_B", "weight", "bias"),
        *("step", "loss"),
    }
    assert all(
        "lora_" in name or ".head_sts." in name or name.startswith("failures.")
        for name in checkpoint["state_dict"]
    )


def test_resume_with_other_settings_is_refused(fit, fails, tiny_bert, corpus, tmp_path):
    run = fit(epochs=1)
    command = [
        "fit",
        "--config",
        CONFIGS / "sts.yaml",
        "--model.backbone",
        tiny_bert,
        "--data.root",
        corpus,
        *QUIET,
    ]
    command += ["--data.max_length", 40, "--store.root", tmp_path, "--ckpt_path", run / "last.ckpt"]
    assert "was written with members" in fails(*command, "--model.rank", 4)
    assert "was written with batch_size 8, now it is 4" in fails(*command, "--data.batch_size", 4)
    for schedule in (["--model.schedule", "linear"], ["--model.warmup", 0.5]):
        assert "was written with" in fails(*command, *schedule)
    assert "was written with limit_train_batches" in fails(
        *command, "--trainer.limit_train_batches", 2
    )


def test_length_of_a_scheduled_run_cannot_change(fit, fails, tiny_bert, corpus, tmp_path):
    run = fit("--model.schedule", "linear", epochs=1)
    command = ["fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt"]
    assert "was written with scheduled_steps 6, now it is 12" in fails(
        *command, "--trainer.max_epochs", 2
    )


def test_files_that_are_no_checkpoints_of_ours_are_refused(fit, fails, tmp_path):
    run = fit(epochs=1)
    command = ["fit", "--config", run / "config.yaml", "--ckpt_path"]
    checkpoint = run / "last.ckpt"
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    assert "is not in its run's directory" in fails(*command, copy)
    assert "does not exist" in fails(*command, "nowhere.ckpt")
    for content in (b"{}", checkpoint.read_bytes()[:-3000], pickle.dumps(print), b""):
        copy.write_bytes(content)
        assert "is not a whole checkpoint of loraens" in fails(*command, copy)
    torch.save({"state_dict": {}}, copy)
    assert "is not a whole checkpoint of loraens" in fails(*command, copy)
    for name in ("validate", "test"):
        assert "--ckpt_path is missing" in fails(name, "--config", run / "config.yaml")


def test_a_failed_start_leaves_nothing_and_takes_no_name(fit, fails, tiny_bert, tmp_path):
    root = tmp_path / "runs"
    command = [
        "fit",
        "--config",
        CONFIGS / "sts.yaml",
        "--store.root",
        root,
        "--store.run",
        "run",
        "--data.root",
        "nowhere",
    ]
    fails(*command, "--model.backbone", tiny_bert)  # with the logger on
    assert not root.exists()
    fails("quickstart", "--store.root", root, "--backbone", "nowhere")
    assert not root.exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        ""
    )  # all that a run leaves which is killed before its first epoch
    fit(epochs=1)


def test_backbones_that_cannot_be_used(fails, tiny_bert, corpus, tmp_path):
    def message(change, remove=()):
        directory = tmp_path / "backbone"
        shutil.copytree(tiny_bert, directory, dirs_exist_ok=True)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **change}))
        for name in remove:
            (directory / name).unlink()
        found = fails(
            "fit",
            "--config",
            CONFIGS / "sts.yaml",
            "--model.backbone",
            directory,
            "--data.root",
            corpus,
            *QUIET,
        )
        shutil.rmtree(directory)
        return found

    assert "is of type mpnet: an encoder of type bert" in message({"model_type": "mpnet"})
    assert "is of type bert: an encoder" in message({"is_decoder": True})
    assert "has no fast tokenizer" in message({}, ["tokenizer.json", "tokenizer_config.json"])
    assert "lacks weights" in message({"num_hidden_layers": 3})
    assert "could not be loaded" in message({}, ["model.safetensors"])


def test_another_backbone_under_the_same_name_is_refused(
    run_command, fails, tiny_bert, corpus, tmp_path
):
    from transformers import BertModel

    backbone = shutil.copytree(tiny_bert, tmp_path / "backbone")
    command = [
        "fit",
        "--config",
        CONFIGS / "sst.yaml",
        "--model.backbone",
        backbone,
        "--data.root",
        corpus,
    ]
    assert (
        run_command(
            *command,
            "--trainer.max_epochs",
            1,
            "--store.root",
            tmp_path,
            "--store.run",
            "run",
            *QUIET,
        )
        == 0
    )
    changed = BertModel.from_pretrained(backbone)
    changed.encoder.layer[1].output.dense.bias.data[0] += 1e-3
    changed.save_pretrained(backbone)
    assert "has other weights than the one" in fails(
        "predict", "--model", tmp_path / "run", "--text", "good"
    )


def test_every_config_parses_and_makes_a_step(run_command, tiny_bert, corpus, tmp_path):
    found = sorted(CONFIGS.glob("*.yaml"))
    assert len(found) >= 7
    for path in found:
        overlay = "data" not in yaml.safe_load(path.read_text())
        base = ["--config", CONFIGS / "sst.yaml"] if overlay else []
        options = [
            "--model.backbone",
            tiny_bert,
            "--data.root",
            corpus,
            "--data.max_length",
            64,
            "--trainer.fast_dev_run",
            "true",
        ]
        assert (
            run_command("fit", *base, "--config", path, *options, "--store.root", tmp_path, *QUIET)
            == 0
        ), path
    assert list(tmp_path.iterdir()) == []


def test_three_heads_on_one_adapter(fit):
    run = fit(config="multitask", epochs=1)
    manifest = MemberStore(find_member(run)).manifest()
    assert set(manifest["dev"]["best"]) == {"sst", "quora", "sts"}
    assert {"sst.weight", "quora.weight", "sts.weight"} < {key.split()[-1] for key in weights(run)}
    predictor = Predictor.load(run)
    assert predictor.logits([("a", "b")], predictor.task("quora")).shape == (1, 1, 1)


QUESTIONS = {
    "WHO": ("Who carried {}?", "Which cook saw {}?"),
    "WHERE": ("Where is {}?", "In which town is {}?"),
    "WHEN": ("When did {} fall?", "In what year was {} built?"),
    "COUNT": ("How many people own {}?", "How much of {} is left?"),
    "WHY": ("Why do people like {}?", "What makes {} popular?"),
    "NAME": ("What is the name of {}?", "What do you call {}?"),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_task_of_the_users_own_from_yaml_alone(run_command, tiny_bert, tmp_path, suffix):
    things = [
        "the wall",
        "a red boat",
        "the old car",
        "that bike",
        "a guitar",
        "the bottle",
        "a basket",
        "the table",
    ]
    for split, part in (("train", things[:6]), ("dev", things[6:])):
        rows = [
            {"text": form.format(thing), "type": kind}
            for thing in part
            for kind, forms in QUESTIONS.items()
            for form in forms
        ]
        lines = (
            [json.dumps(row) for row in rows]
            if suffix == "jsonl"
            else ["text,type", *(f"{r['text']},{r['type']}" for r in rows)]
        )
        (tmp_path / f"{split}.{suffix}").write_text("\n".join(lines))
    config = {
        "data": {
            "class_path": "loraens.data.TextFiles",
            "init_args": {
                "name": "trec",
                "train": str(tmp_path / f"train.{suffix}"),
                "dev": str(tmp_path / f"dev.{suffix}"),
                "text_columns": ["text"],
                "label_column": "type",
                "class_names": list(QUESTIONS),
                "metric": "macro_f1",
                "max_length": 32,
            },
        },
        "model": {
            "backbone": str(tiny_bert),
            "pooling": "mean",
            "rank": 8,
            "scale": 2,
            "lr": 0.01,
            "head_dropout": 0.0,
        },
        "trainer": {"max_epochs": 12},
    }
    (tmp_path / "trec.yaml").write_text(yaml.safe_dump(config))
    assert (
        run_command(
            "fit", "--config", tmp_path / "trec.yaml", "--store.root", tmp_path / "runs", *QUIET
        )
        == 0
    )
    (member,) = (tmp_path / "runs").glob("trec-*/*/manifest.json")
    manifest = MemberStore(member.parent).manifest()
    assert manifest["dev"]["best"]["trec"]["macro_f1"] > 0.8  # a sixth by chance
    predictor = Predictor.load(member.parent)
    asked = [
        (form.format(thing), kind)
        for thing in things[6:]
        for kind, forms in QUESTIONS.items()
        for form in forms
    ]
    rows = predictor.rows([(text,) for text, _ in asked], predictor.task())
    right = sum(
        row["prediction"] == kind for row, (_, kind) in zip(rows, asked, strict=True)
    ) / len(asked)
    assert right == pytest.approx(manifest["dev"]["best"]["trec"]["accuracy"])


def test_validate_and_test_score_a_checkpoint(
    fit, run_command, fails, tiny_bert, corpus, tmp_path, capsys
):
    run = fit(epochs=1)
    history = MemberStore(find_member(run)).manifest()["history"]
    command = ["--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt"]
    assert run_command("validate", *command) == 0
    assert f"{history[0]['dev']['sts']['mse']:.5f}"[:5] in capsys.readouterr().out
    assert "no test split with labels" in fails("test", *command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("logger", "file"),
    [("CSVLogger", "metrics.csv"), ("TensorBoardLogger", "events.out.tfevents.*")],
)
def test_other_loggers(fit, tmp_path, logger, file):
    fit("--trainer.logger", logger, "--trainer.logger.save_dir", tmp_path / "logs", epochs=1)
    assert len(list((tmp_path / "logs").rglob(file))) == 1


def test_bad_input_ends_in_one_sentence(fit, fails, tiny_bert, corpus, tmp_path):
    command = ["fit", "--config", CONFIGS / "sts.yaml", "--store.root", tmp_path / "runs", *QUIET]
    tiny = [*command, "--model.backbone", tiny_bert, "--data.root", corpus, "--data.max_length", 40]
    assert "data.root nowhere has no sts-train.csv" in fails(
        *command, "--model.backbone", tiny_bert, "--data.root", "nowhere"
    )
    assert "backbone 'no/such' could not be loaded" in fails(
        *command, "--model.backbone", "no/such", "--data.root", corpus
    )
    assert "'q_lin' matches no linear layer" in fails(*tiny, "--model.targets", "[q_lin]")
    assert fails(*tiny, "--data.batch_size", 0).startswith(
        "loraens: --data.batch_size 0 is too small"
    )
    files = [
        "--data",
        "TextFiles",
        "--data.name",
        "a",
        "--data.train",
        "no.csv",
        "--data.dev",
        "no.csv",
    ]
    columns = ["--data.text_columns", "[a]", "--data.label_column", "b"]
    missing = fails("fit", *files, *columns, *QUIET)
    assert missing == "loraens: no.csv does not exist or is not a file: check the path"
    assert "--data.max_length 400 is more than backbone" in fails(*tiny, "--data.max_length", 400)
    assert "--model.rank must be at least 1" in fails(*tiny, "--model.rank", 0)
    assert "warmup 2 is not a share" in fails(*tiny, "--model.warmup", 2)
    assert "model.rank" in fails(*tiny, "--model.rank", "many")
    assert "no-such.yaml" in fails("fit", "--config", "no-such.yaml")
    assert "the loss is" in fails(*tiny, "--model.lr", 1e30)
    assert "logit is not finite at step 1" in fails(
        *tiny, "--model.lr", 1e30, "--trainer.limit_train_batches", 1
    )
    assert "Lightning: " in fails(*tiny, "--trainer.gradient_clip_algorithm", "nonsense")
    assert "--model.init_std -1 must be positive" in fails(*tiny, "--model.init_std", -1)
    assert "at least one name of a linear layer" in fails(*tiny, "--model.targets", "[]")
    assert "positive scale" in fails(*tiny, "--model.scale", 0)
    assert "none twice" in fails(
        "fit", "--data", "Multitask", "--data.names", "[sst,sst]", "--data.root", corpus, *QUIET
    )
    assert "task name 'a/b'" in fails(
        "fit",
        *files[:2],
        "--data.name",
        "a/b",
        *files[4:],
        *columns,
        "--data.kind",
        "number",
        *QUIET,
    )
    assert "'fitt' is not a command" in fails("fitt")
    fit(epochs=1)
    assert "holds a run: choose another name" in fails(
        *tiny[:3], "--store.root", tmp_path, "--store.run", "run", *tiny[5:]
    )
