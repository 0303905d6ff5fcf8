"""What a run logs to W&B without an account, read back from the offline run's own file."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parent.parent / "configs"
BLOCK, HEADER = 32 * 1024, 7


def records(path: Path):
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB, chunks of crc, length and type) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # a full record, or the last chunk of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bert, corpus):
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    command = ["fit", "--config", CONFIGS / "sst.yaml", "--model.backbone", tiny_bert, "--data.root", corpus]
    command += [
        "--trainer.max_epochs",
        2,
        "--trainer.log_every_n_steps",
        2,
        "--data.max_length",
        40,
        "--store.root",
        home / "runs",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from loraens.cli import main; main()", *map(str, command)],
        env={**environment, "HOME": str(home)},
        cwd=home,
        stdin=subprocess.DEVNULL,  # a question would fail
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (home / "runs").iterdir()
    return directory


def test_offline_run_holds_settings_curves_scores_and_table(run):
    (offline,) = (run / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    config, summary, curves, project, name = {}, {}, {}, None, None
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            project, name = record.run.project, record.run.display_name
        for update in record.config.update if kind == "config" else record.run.config.update if kind == "run" else ():
            config[update.key] = json.loads(update.value_json)
        for update in record.summary.update if kind == "summary" else ():
            summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item if kind == "history" else ():
            curves.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    assert (project, name) == ("loraens", run.name)
    assert (config["rank"], config["scale"], config["mode"], config["batch_size"]) == (12, 3.0, "lora", 8)
    assert len(curves["train/loss"]) >= 4
    assert len(curves["dev/sst/accuracy"]) == 2
    assert max(curves["dev/sst/accuracy"]) == summary["best/sst/accuracy"]
    (table,) = offline.glob("files/media/table/dev/sst/predictions*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][:4] == ["id", "sentence", "label", "prediction"]
    assert len(rows["data"]) == 24
    assert all(sum(row[4:]) == pytest.approx(1) for row in rows["data"])


def test_config_beside_the_run_is_the_one_that_was_used(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["rank"] == 12
