"""Whole runs on a tiny backbone, through the command line."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from safetensors.torch import load_file

from loraens.inference.predictor import Predictor
from loraens.members import Member
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
CONFIG_FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def fit_in(run_command, tiny_bert, corpus):
    """Runs `fit` with the tiny backbone in a store; returns the run's directory."""

    def run(root, *args, config="sts", name="run", expect=0, epochs=2, extra=()):
        files = ["--config", CONFIGS / f"{config}.yaml", "--data.root", corpus]
        sizes = ["--data.max_length", 40, "--trainer.max_epochs", epochs]
        sizes += ["--data.test_logits", "true"]
        store = ["--model.backbone", tiny_bert, "--store.root", root, "--store.run", name]
        command = ["fit", *files, *sizes, *store, *QUIET]
        assert run_command(*command, *args, *extra) == expect
        return root / name

    return run


@pytest.fixture
def fit(fit_in, tmp_path):
    """Runs `fit` with the tiny backbone in a new store; returns the run's directory."""
    return partial(fit_in, tmp_path)


@pytest.fixture(scope="module")
def finished(fit_in, tmp_path_factory):
    """The directory of a run of one epoch, which no test may change."""
    return fit_in(tmp_path_factory.mktemp("finished"), epochs=1)


@pytest.mark.slow
def test_a_run_leaves_a_whole_member(fit):
    run = fit("--model.lr", 1e-2, "--model.rank", 3)
    store = MemberStore(find_member(run))
    manifest = store.manifest()
    assert manifest.status == "finished"
    expected = Member(3, 3.0, seed=0, lr=0.01, weight_decay=0.01, head_dropout=0.3)
    assert manifest.member == expected
    assert [entry.epoch for entry in manifest.history] == [1, 2]
    assert set(manifest.dev["last"]["sts"]) == {"pearson", "spearman", "mse"}
    best = max(manifest.history, key=lambda entry: entry.dev["sts"]["pearson"])
    assert manifest.epochs == {"best": f"epoch-{best.epoch:03d}", "last": "epoch-002"}
    assert manifest.trainable_parameters == 2 * 2 * 3 * 64 + 33
    for split, size in (("dev", 24), ("test", 10)):
        logits = store.logits("sts", split, "last")
        assert logits.logits.shape == (size, 1)
        assert len(set(logits.example_id.tolist())) == size
        assert (logits.labels is None) == (split == "test")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["rank"] == 3


def check_stored_logits(run, corpus):
    """The stored logits of SST are those of the stored weights."""
    for epoch in ("best", "last"):
        predictor = Predictor.load(run, epoch)
        stored = MemberStore(find_member(run)).logits("sst", "dev", epoch)
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


@pytest.mark.slow
def test_stored_logits_are_what_predict_gives(fit, corpus):
    check_stored_logits(fit("--model.lr", 1e-2, config="sst"), corpus)


AVERAGING = {
    "EMAWeightAveraging": {"decay": 0.8},
    "StochasticWeightAveraging": {"swa_lrs": 1e-2, "device": "null"},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback:UserWarning")
@pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning")
@pytest.mark.parametrize("name", AVERAGING)
def test_averaged_weights_that_are_scored_are_the_ones_that_are_stored(
    fit_in, tmp_path, corpus, name
):
    callback = ["--trainer.callbacks", name]
    for option, value in AVERAGING[name].items():
        callback += [f"--trainer.callbacks.{option}", value]
    lr = ("--model.lr", 1e-2)
    averaged = fit_in(tmp_path, *lr, *callback, config="sst", name="averaged", epochs=3)
    check_stored_logits(averaged, corpus)
    plain = fit_in(tmp_path, *lr, config="sst", name="plain", epochs=3)
    ours, others = weights(averaged), weights(plain)
    assert any(not torch.equal(ours[key], others[key]) for key in ours)


def weights(run, epoch="last"):
    directory = find_member(run)
    folder = directory / MemberStore(directory).manifest().epochs[epoch]
    return {
        f"{path.name} {key}": value
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("lora", marks=pytest.mark.slow),
        "frozen",
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
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
    assert MemberStore(find_member(half)).manifest().status == "training"
    config, checkpoint = half / "config.yaml", half / "last.ckpt"
    allow = f"--allow {__name__}"  # where the callback is that interrupts
    resume = f"to resume: loraens fit --config {config} {allow} --ckpt_path {checkpoint}"
    assert resume in caplog.text
    again = fit(*options, epochs=3, name="ignored", extra=["--ckpt_path", half / "last.ckpt"])
    assert not again.exists()
    expected = weights(whole)
    got = weights(half)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    old, new = (MemberStore(find_member(run)).manifest() for run in (whole, half))
    assert (new.status, new.history) == ("finished", old.history)
    assert new.files == old.files


@pytest.mark.slow
def test_several_validations_an_epoch(fit):
    run = fit("--trainer.val_check_interval", 0.5, "--model.lr", 1e-2, epochs=2)
    manifest = MemberStore(find_member(run)).manifest()
    assert [entry.name for entry in manifest.history] == [
        "epoch-001",
        "epoch-001-2",
        "epoch-002",
        "epoch-002-2",
    ]
    assert [entry.step for entry in manifest.history] == [3, 6, 9, 12]
    assert manifest.epochs["last"] == "epoch-002-2"
    best = max(manifest.history, key=lambda entry: entry.dev["sts"]["pearson"])
    assert manifest.epochs["best"] == best.name


@pytest.mark.parametrize(
    ("option", "value", "last", "steps"),
    [
        ("max_steps", 2, "epoch-001", 2),
        ("max_steps", 8, "epoch-002", 8),
        ("check_val_every_n_epoch", 2, "epoch-003", 18),
    ],
)
@pytest.mark.slow
def test_final_weights_are_saved_though_no_validation_was_due(fit, option, value, last, steps):
    run = fit(f"--trainer.{option}", value, epochs=3)
    manifest = MemberStore(find_member(run)).manifest()
    assert manifest.status == "finished"
    assert (manifest.epochs["last"], manifest.history[-1].step) == (last, steps)


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


@pytest.mark.slow
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
    assert len(MemberStore(find_member(half)).manifest().history) == 2
    fit(epochs=3, name="ignored", extra=["--ckpt_path", half / "last.ckpt"])
    found = MemberStore(find_member(half)).manifest()
    assert found.files == MemberStore(find_member(whole)).manifest().files
    names = [entry.name for entry in found.history]
    assert names == [f"epoch-{number:03d}" for number in (1, 2, 3)]
    kept = [path.name for path in (find_member(half) / "logits").iterdir()]
    assert sorted(kept) == names


def test_checkpoint_holds_no_frozen_weight_and_no_pickle(finished):
    checkpoint = torch.load(finished / "last.ckpt", weights_only=True)
    assert {name.rsplit(".", 1)[-1] for name in checkpoint["state_dict"]} == {
        *("lora_A", "lora_B", "weight", "bias"),
        *("step", "loss"),
    }
    assert all(
        "lora_" in name or ".head_sts." in name or name.startswith("failures.")
        for name in checkpoint["state_dict"]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["--model.rank", 4], "members", id="rank"),
        pytest.param(["--data.batch_size", 4], "batch_size 8, now it is 4", id="batch-size"),
        pytest.param(["--model.schedule", "linear"], "", id="schedule"),
        pytest.param(["--model.warmup", 0.5], "", id="warmup"),
        pytest.param(["--trainer.limit_train_batches", 2], "limit_train_batches", id="limit"),
    ],
)
def test_resume_with_other_settings_is_refused(
    finished, fails, tiny_bert, corpus, tmp_path, args, message
):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus, "--data.max_length", 40]
    store = ["--model.backbone", tiny_bert, "--store.root", tmp_path, *QUIET]
    command = ["fit", *files, *store, "--ckpt_path", run / "last.ckpt", *args]
    assert f"was written with {message}" in fails(*command)


def test_a_refused_resume_leaves_the_config_alone(finished, fails, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run / "config.yaml").read_text()
    command = ["fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt"]
    assert "was written with" in fails(*command, "--trainer.limit_train_batches", 2)
    assert (run / "config.yaml").read_text() == before


@pytest.mark.slow
def test_length_of_a_scheduled_run_cannot_change(fit, fails, tiny_bert, corpus, tmp_path):
    run = fit("--model.schedule", "linear", epochs=1)
    command = ["fit", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt"]
    assert "was written with scheduled_steps 6, now it is 12" in fails(
        *command, "--trainer.max_epochs", 2
    )


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"{}", id="json"),
        pytest.param(lambda content: content[:-3000], id="cut"),
        pytest.param(lambda content: pickle.dumps(print), id="pickle"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: saved({"state_dict": {}}), id="another-programs"),
    ],
)
def test_files_that_are_no_checkpoints_of_ours_are_refused(finished, fails, tmp_path, damage):
    path = tmp_path / "copy.ckpt"
    path.write_bytes(damage((finished / "last.ckpt").read_bytes()))
    assert "is not a whole checkpoint of loraens" in fails(
        "fit", "--config", finished / "config.yaml", "--ckpt_path", path
    )


def saved(checkpoint):
    """Bytes of what `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    return stream.getvalue()


@pytest.mark.slow
def test_a_checkpoint_elsewhere_is_refused(finished, fails, tmp_path):
    path = shutil.copy(finished / "last.ckpt", tmp_path / "copy.ckpt")
    command = ["fit", "--config", finished / "config.yaml", "--ckpt_path"]
    assert "is not in its run's directory" in fails(*command, path)
    assert "does not exist" in fails(*command, "nowhere.ckpt")


@pytest.mark.parametrize("name", ["validate", "test"])
def test_evaluation_needs_a_checkpoint(finished, fails, name):
    assert "--ckpt_path is missing" in fails(name, "--config", finished / "config.yaml")


@pytest.mark.slow
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
    for name in ("config.yaml", ".loraens"):  # what a run leaves, killed before its first epoch
        (tmp_path / "run" / name).write_text("")
    fit(epochs=1)


@pytest.mark.parametrize(
    ("change", "remove", "message"),
    [
        pytest.param({"model_type": "mpnet"}, [], "lacks weights", id="other-type"),
        pytest.param({"model_type": "t5"}, [], "could not be loaded (Validation", id="fields"),
        pytest.param(
            {"is_decoder": True}, [], "pooling of the first token: in a decoder", id="decoder"
        ),
        pytest.param(
            {},
            ["tokenizer.json", "tokenizer_config.json"],
            "has no fast tokenizer",
            id="no-tokenizer",
        ),
        pytest.param({"num_hidden_layers": 3}, [], "lacks weights", id="too-deep"),
        pytest.param({}, ["model.safetensors"], "could not be loaded", id="no-weights"),
    ],
)
def test_backbones_that_cannot_be_used(fails, tiny_bert, corpus, tmp_path, change, remove, message):
    backbone = Path(shutil.copytree(tiny_bert, tmp_path / "backbone"))
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, **change}))
    for name in remove:
        (backbone / name).unlink()
    command = ["fit", "--config", CONFIGS / "sts.yaml", "--data.root", corpus, *QUIET]
    assert message in fails(*command, "--model.backbone", backbone)


@pytest.mark.slow
@pytest.mark.slow
def test_a_backbone_that_was_moved_is_named(
    fit_in, run_command, fails, tiny_bert, corpus, tmp_path
):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_bert, here)
    run = fit_in(tmp_path, "--model.backbone", here, epochs=1)
    here.rename(there)
    predict = ("predict", "--model", run, "--text", "a man", "--text2", "a dog")
    assert "if it was moved, say where it is (--backbone)" in fails(*predict)
    assert run_command(*predict, "--backbone", there) == 0
    labelled = ("--input", corpus / "sts-dev.csv", "--backbone", there)
    assert run_command("evaluate", "--model", run, *labelled) == 0
    soup = ("ensemble", "--runs", run, "--method", "soup", "--logger", "false")
    assert run_command(*soup, "--backbone", there) == 0
    merged = run / "ensembles" / "sts-soup-merged"
    assert run_command("predict", "--model", merged, *predict[3:]) == 0
    report = ("report", "--runs", run, "--logger", "false", "--backbone", there)
    assert run_command(*report) == 0
    resume = ("--ckpt_path", run / "last.ckpt", "--trainer.max_epochs", 2)
    again = ("fit", "--config", run / "config.yaml", *resume, "--model.backbone", there)
    assert run_command(*again) == 0
    assert len(MemberStore(find_member(run)).manifest().history) == 2


@pytest.mark.slow
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


def test_there_are_configs():
    assert len(CONFIG_FILES) >= 7


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_config_parses_and_makes_a_step(run_command, tiny_bert, corpus, tmp_path, path):
    overlay = "data" not in yaml.safe_load(path.read_text())
    base = ["--config", CONFIGS / "sst.yaml"] if overlay else []
    files = [*base, "--config", path, "--data.root", corpus, "--data.max_length", 64]
    options = ["--model.backbone", tiny_bert, "--trainer.fast_dev_run", "true"]
    assert run_command("fit", *files, *options, "--store.root", tmp_path, *QUIET) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_three_heads_on_one_adapter(fit):
    run = fit(config="multitask", epochs=1)
    manifest = MemberStore(find_member(run)).manifest()
    assert set(manifest.dev["best"]) == {"sst", "quora", "sts"}
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


@pytest.mark.slow
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
    assert manifest.dev["best"]["trec"]["macro_f1"] > 0.8  # a sixth by chance
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
    assert right == pytest.approx(manifest.dev["best"]["trec"]["accuracy"])


@pytest.mark.slow
def test_validate_and_test_score_a_checkpoint(finished, run_command, fails, capsys):
    history = MemberStore(find_member(finished)).manifest().history
    command = ["--config", finished / "config.yaml", "--ckpt_path", finished / "last.ckpt"]
    assert run_command("validate", *command) == 0
    assert f"{history[0].dev['sts']['mse']:.5f}"[:5] in capsys.readouterr().out
    assert "no test split with labels" in fails("test", *command)
    assert sorted(path.name for path in finished.parent.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("logger", "file"),
    [("CSVLogger", "metrics.csv"), ("TensorBoardLogger", "events.out.tfevents.*")],
)
@pytest.mark.slow
def test_other_loggers(fit, tmp_path, logger, file):
    fit("--trainer.logger", logger, "--trainer.logger.save_dir", tmp_path / "logs", epochs=1)
    assert len(list((tmp_path / "logs").rglob(file))) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            ["--data.root", "nowhere"], "data.root nowhere has no sts-train.csv", id="data-root"
        ),
        pytest.param(
            ["--model.backbone", "no/such"],
            "backbone 'no/such' could not be loaded",
            id="backbone",
        ),
        pytest.param(
            ["--model.targets", "[q_lin]"], "'q_lin' matches no linear layer", id="targets"
        ),
        pytest.param(
            ["--model.targets", "[]"], "at least one name of a linear layer", id="no-targets"
        ),
        pytest.param(
            ["--data.batch_size", 0], "loraens: --data.batch_size 0 is too small", id="batch-size"
        ),
        pytest.param(
            ["--data.max_length", 400],
            "--data.max_length 400 is more than backbone",
            id="max-length",
        ),
        pytest.param(["--model.rank", 0], "--model.rank must be at least 1", id="rank"),
        pytest.param(["--model.rank", "many"], "model.rank", id="rank-no-number"),
        pytest.param(["--model.scale", 0], "positive scale", id="scale"),
        pytest.param(["--model.warmup", 2], "warmup 2 is not a share", id="warmup"),
        pytest.param(
            ["--model.init_std", -1], "--model.init_std -1 must be positive", id="init-std"
        ),
        pytest.param(["--model.lr", 1e30], "the loss is", id="loss"),
        pytest.param(
            ["--model.lr", 1e30, "--trainer.limit_train_batches", 1],
            "logit is not finite at step 1",
            id="logit",
        ),
        pytest.param(
            ["--trainer.gradient_clip_algorithm", "nonsense"], "Lightning: ", id="lightning"
        ),
        pytest.param(
            ["--trainer.limit_val_batches", 0],
            "loraens: --trainer.limit_val_batches 0: a member is written when dev is scored",
            id="no-dev",
        ),
        pytest.param(
            ["--trainer.overfit_batches", 2], "use --data.limit for a quick look", id="overfit"
        ),
        *(
            pytest.param([f"--trainer.{name}", 0], f"--trainer.{name} 0: nothing", id=name)
            for name in ("limit_train_batches", "max_epochs", "max_steps")
        ),
        *(
            pytest.param(
                ["--trainer.precision", name],
                f"--trainer.precision {name}: one of 32-true, bf16-mixed, 64-true is expected",
                id=name,
            )
            for name in ("bf16-true", "16-true", "16-mixed", "transformer-engine")
        ),
        pytest.param(
            ["--trainer.barebones", "true"], "barebones True: no member would", id="barebones"
        ),
        pytest.param(
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
            "--trainer.callbacks: EarlyStopping monitors 'val_loss', which is not there: there are"
            " train/loss, dev/sts/pearson, dev/sts/spearman, dev/sts/mse",
            id="monitor",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(fails, tiny_bert, corpus, tmp_path, args, message):
    files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus, "--data.max_length", 40]
    store = ["--model.backbone", tiny_bert, "--store.root", tmp_path / "runs", *QUIET]
    assert message in fails("fit", *files, *store, *args)
    if not str(args[0]).startswith("--model.lr"):
        assert not (tmp_path / "runs").exists()


def test_early_stopping_on_a_score(run_command, tiny_bert, corpus, tmp_path):
    """By a patience of 0, after the second epoch at a rate at which nothing is learned."""
    files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus, "--data.limit", 8]
    model = ["--model.backbone", tiny_bert, "--model.lr", 1e-9, "--store.root", tmp_path, *QUIET]
    options = {"monitor": "dev/sts/pearson", "mode": "max", "patience": 1, "min_delta": 1.0}
    stop = [part for k, v in options.items() for part in (f"--trainer.callbacks.{k}", v)]
    command = ["fit", *files, *model, "--trainer.max_epochs", 9]
    assert run_command(*command, "--trainer.callbacks+=EarlyStopping", *stop) == 0
    (path,) = tmp_path.rglob("manifest.json")
    assert len(MemberStore(path.parent).manifest().history) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            [], "loraens: no.csv does not exist or is not a file: check the path", id="missing"
        ),
        pytest.param(["--data.name", "a/b", "--data.kind", "number"], "task name 'a/b'", id="name"),
    ],
)
def test_text_files_that_cannot_be_used(fails, args, message):
    files = ["--data.name", "a", "--data.train", "no.csv", "--data.dev", "no.csv"]
    columns = ["--data.text_columns", "[a]", "--data.label_column", "b"]
    assert message in fails("fit", "--data", "TextFiles", *files, *columns, *args, *QUIET)


def test_a_task_given_twice(fails, corpus):
    names = ["--data.names", "[sst,sst]", "--data.root", corpus]
    assert "none twice" in fails("fit", "--data", "Multitask", *names, *QUIET)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(["fit", "--config", "no-such.yaml"], "no-such.yaml", id="config"),
        pytest.param(["fitt"], "'fitt' is not a command", id="command"),
    ],
)
def test_command_lines_that_name_nothing(fails, args, message):
    assert message in fails(*args)


def test_a_name_that_is_taken(finished, fails, tiny_bert, corpus):
    files = ["--config", CONFIGS / "sts.yaml", "--data.root", corpus, *QUIET]
    store = ["--store.root", finished.parent, "--store.run", finished.name]
    assert "holds a run: choose another name" in fails(
        "fit", *files, "--model.backbone", tiny_bert, *store
    )
