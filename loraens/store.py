"""The run store: the only reader and writer of run files.

    checkpoints/<run>/
        config.yaml             the settings of the run, as `--config` takes them
        last.ckpt               Lightning's checkpoint of the last epoch, for `--ckpt_path`
        <member>/
            manifest.json       settings, scores, data fingerprints, and a checksum of every file
            below epoch-003/          the member after an epoch: weights, and logits of dev and test
                adapter_config.json adapter_model.safetensors   in PEFT's format <task>-dev.npz
                <task>-test.npz                  logits (N, C), example_id (N,), labels (N,) where
                there are

A member's manifest names its best and its last epoch; it is replaced last, in one step, so that it
never names a file that is not whole, and what it does not name is removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loraens.errors import InputError

MANIFEST = "manifest.json"
ENSEMBLE = "ensemble.json"
ENSEMBLE_FORMAT = 1
CHECKPOINT = "last.ckpt"
FORMAT = 1


@dataclass
class Logits:
    """What a member says of one split.

    Args:
        logits: `(N, C)`.
        example_id: `(N,)` strings.
        labels: `(N,)` float64; None where there are none.
    """

    logits: np.ndarray
    example_id: np.ndarray
    labels: np.ndarray | None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it into it, so that a reader sees all of it or
    nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def logits_to_bytes(logits: Logits) -> bytes:
    """The .npz file of a split's logits; the same arrays give the same bytes."""
    arrays: dict[str, Any] = {"logits": logits.logits, "example_id": logits.example_id}
    if logits.labels is not None:
        arrays["labels"] = logits.labels
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_logits(path: Path) -> Logits:
    """Read a split's logits.

    Raises:
        InputError: The file is missing.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: the member has no logits of this split")
    with np.load(path, allow_pickle=False) as file:
        return Logits(file["logits"], file["example_id"], file.get("labels"))


class MemberStore:
    """The files of one member in its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def write(self, epochs: dict[str, dict[str, bytes]], manifest: dict[str, Any]) -> None:
        """Write the files of some epochs, then the manifest, then remove what neither it nor the
        one before it names.

        What the one before it names is kept once more: a run that is resumed from its last
        checkpoint may need it.

        Args:
            epochs: Directory name of an epoch -> file name -> content; epochs that are already
                there need not be given.
            manifest: JSON fields; `epochs` holds the directory names that shall remain, as {"best":
                ..., "last": ...}.
        """
        for left_over in self.directory.rglob(".*.part"):  # of a writer that was killed
            left_over.unlink()
        for epoch, files in epochs.items():
            for name, content in files.items():
                write_atomically(self.directory / epoch / name, content)
        kept = set(manifest["epochs"].values())
        old = self._manifest_before()
        before = set(old["epochs"].values())
        sums = {
            name: known
            for name, known in old["files"].items()
            if name.partition("/")[0] in kept - set(epochs)
        }
        for epoch in kept & set(epochs):
            sums.update(
                {
                    f"{epoch}/{name}": hashlib.sha256(content).hexdigest()
                    for name, content in epochs[epoch].items()
                }
            )
        sums = dict(sorted(sums.items()))
        whole = without_nan({"format": FORMAT, **manifest, "files": sums})
        write_atomically(
            self.directory / MANIFEST,
            (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode(),
        )
        for path in self.directory.glob("epoch-*"):
            if path.name not in kept | before:
                shutil.rmtree(path)

    def update(self, **fields: Any) -> dict[str, Any]:
        """Change fields of the manifest; the member's files, which are verified, stay as they are.
        Returns the manifest.
        """
        manifest = {**self.manifest(), **fields}
        if fields:
            self.write({}, manifest)
        return manifest

    def _manifest_before(self) -> dict[str, Any]:
        path = self.directory / MANIFEST
        if not path.is_file():
            return {"epochs": {}, "files": {}}
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def read(self) -> dict[str, Any]:
        """The member's manifest; the files that it names are not looked at.

        Raises:
            InputError: It is missing, not readable or of another format.
        """
        path = self.directory / MANIFEST
        if not path.is_file():
            raise InputError(
                f"{self.directory} is not a member of a run (it has no {MANIFEST}): give a member's"
                " directory"
            )
        try:
            manifest = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(
                f"{path} is not JSON ({error}): restore it or train the member again"
            ) from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(
                f"{path} is not of format {FORMAT}, which this version of loraens reads: train the"
                " member again"
            )
        for name in ("files", "epochs", "settings", "member", "dev"):
            if not isinstance(manifest.get(name), dict):
                raise InputError(
                    f"{path} lacks the field {name!r}: restore it or train the member again"
                )
        return manifest

    def manifest(self) -> dict[str, Any]:
        """The member's manifest, every file that it names checked.

        Raises:
            InputError: It is missing, not readable or of another format, or a file is missing or
                altered.
        """
        manifest = self.read()
        for name, expected in manifest["files"].items():
            file = self.directory / name
            if not file.is_file():
                raise InputError(f"{file} is missing: restore it or train the member again")
            if checksum(file) != expected:
                raise InputError(
                    f"{file} was altered (its checksum is not the manifest's): restore it or train"
                    " the member again"
                )
        return manifest

    def logits(self, task: str, split: str, which: str = "best") -> Logits:
        """Logits of a task's split after the member's best or last epoch.

        Raises:
            InputError: The member has none: it failed in its first epoch, or the split has no file.
        """
        manifest = self.manifest()
        if which not in manifest["epochs"]:
            raise InputError(
                f"{self.directory} has no epoch: the member failed ({manifest['ended']}), leave"
                " it out"
            )
        return read_logits(self.directory / manifest["epochs"][which] / f"{task}-{split}.npz")


def without_nan(value: Any) -> Any:
    """JSON fields with null for scores that are not defined."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_ensemble(directory: Path) -> dict[str, Any]:
    """The record of an ensemble in its directory.

    Raises:
        InputError: It is not readable or of another format.
    """
    path = directory / ENSEMBLE
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if (
        not isinstance(record, dict)
        or record.get("format") != ENSEMBLE_FORMAT
        or not record.get("members")
    ):
        raise InputError(
            f"{path} is not an ensemble that this version of loraens reads: make it again with"
            " `loraens ensemble`"
        )
    return record


def find_members(path: Path) -> list[Path]:
    """Member directories at or right below a path, sorted by name."""
    if (path / MANIFEST).is_file():
        return [path]
    return sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))


def find_member(path: Path) -> Path:
    """The one member at or right below a path.

    Raises:
        InputError: There is none, or more than one.
    """
    found = find_members(path)
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{path} holds no member of a run: give a directory with {MANIFEST}")
    raise InputError(f"{path} holds {len(found)} members: give one of them, such as {found[0]}")
