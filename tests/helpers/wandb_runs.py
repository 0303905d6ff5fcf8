"""Runs of W&B without an account, and what their files hold."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BLOCK = 32 * 1024
HEADER = 7


def records(path: Path):
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB, chunks of crc, length and
    type) after 7 bytes.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    place = HEADER
    whole = b""
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


def run_offline(home, *arguments, **variables):
    """Runs a command as someone without an account would, with further variables; its run is the
    last one below `home / "runs"`.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))
    }
    done = subprocess.run(
        [sys.executable, "-c", "from loraens.cli import main; main()", *map(str, arguments)],
        env={**environment, "HOME": str(home), **variables},
        cwd=home,
        stdin=subprocess.DEVNULL,  # a question would fail
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return max((home / "runs").iterdir(), key=lambda directory: directory.stat().st_mtime)


@dataclass
class Logged:
    """What an offline run holds."""

    run: object
    config: dict
    summary: dict
    curves: dict


def read_run(offline):
    (file,) = offline.glob("*.wandb")
    found = Logged(None, {}, {}, {})
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
        for update in (
            record.config.update
            if kind == "config"
            else record.run.config.update
            if kind == "run"
            else ()
        ):
            found.config[update.key] = json.loads(update.value_json)
        for update in record.summary.update if kind == "summary" else ():
            found.summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item if kind == "history" else ():
            found.curves.setdefault(item.key or "/".join(item.nested_key), []).append(
                json.loads(item.value_json)
            )
    return found
