"""The run store: the only reader and writer of run files.

    checkpoints/<run>/
        config.yaml         the settings of the run, as `--config` takes them
        last.ckpt           Lightning's checkpoint of the last epoch, for `--ckpt_path`
        <member>/
            manifest.json   settings, scores, data fingerprints, and a checksum of every file below
            epoch-003/      the member after an epoch: weights, and logits of dev and test
                adapter_config.json, adapter_model.safetensors    in PEFT's format
                <task>-dev.npz, <task>-test.npz    logits (N, C), example_id (N,), and labels (N,)
                                                   where there are any
                <task>-oof.npz                     of a member of a fold: of its own part; beside
                                                   them positions (N,) and groups (N,)

A member's manifest names its best and its last epoch; it is replaced last, in one step, so that it
never names a file that is not whole, and what it does not name is removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.errors import InputError
from loraens.records import Epoch, Manifest

MANIFEST = "manifest.json"
ENSEMBLE = "ensemble.json"
CHECKPOINT = "last.ckpt"
FORMAT = 1


@dataclass
class Logits:
    """Logits of a member on one split.

    Args:
        logits: `(N, C)`.
        example_id: `(N,)` strings.
        labels: `(N,)` float64; None where there are none.
        positions: `(N,)` number of each example among all that are cut into folds, where the
            split is out of fold and so has a part of them only.
        groups: `(N,)` number of each example's group there: equal texts are in one.
    """

    logits: np.ndarray
    example_id: np.ndarray
    labels: np.ndarray | None
    positions: np.ndarray | None = None
    groups: np.ndarray | None = None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees all of it or
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
    for name in ("labels", "positions", "groups"):
        if (array := getattr(logits, name)) is not None:
            arrays[name] = array
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
        optional = (file.get(name) for name in ("labels", "positions", "groups"))
        return Logits(file["logits"], file["example_id"], *optional)


class MemberStore:
    """The files of one member in its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def write(self, epochs: Mapping[str, Mapping[str, bytes]], manifest: Manifest) -> Manifest:
        """Write the files of some epochs, then the manifest, then remove what neither it nor the
        one before it names.

        The files that the manifest before names stay once more: a run that is resumed from its last
        checkpoint may need them.

        Args:
            epochs: Directory name of an epoch -> file name -> content; epochs that are already
                there need not be given.
            manifest: The manifest, whose `files` are filled in; its `epochs` are the directories
                that shall remain.

        Returns:
            The manifest as it was written.
        """
        for part in self.directory.rglob(".*.part"):  # of a writer that was killed
            part.unlink()
        for epoch, files in epochs.items():
            for name, content in files.items():
                write_atomically(self.directory / epoch / name, content)
        remaining = set(manifest.epochs.values())
        before = self.read() if (self.directory / MANIFEST).is_file() else None
        checksums = {}
        for name, before_sum in (before.files if before else {}).items():
            if name.partition("/")[0] in remaining - set(epochs):
                checksums[name] = before_sum
        for epoch in remaining & set(epochs):
            for name, content in epochs[epoch].items():
                checksums[f"{epoch}/{name}"] = hashlib.sha256(content).hexdigest()
        manifest = replace(manifest, files=dict(sorted(checksums.items())))
        write_atomically(self.directory / MANIFEST, manifest.dumps(format=FORMAT))
        named_before = set(before.epochs.values()) if before else set()
        for path in self.directory.glob("epoch-*"):
            if path.name not in remaining | named_before:
                shutil.rmtree(path)
        return manifest

    def update(self, **fields: Any) -> Manifest:
        """Change fields of the manifest; the member's files, which are verified, stay as they are.

        Returns:
            The manifest as it is now.
        """
        manifest = replace(self.manifest(), **fields)
        return self.write({}, manifest) if fields else manifest

    def read(self) -> Manifest:
        """The member's manifest; its files are not verified.

        Raises:
            InputError: It is missing, not readable or of another format.
        """
        path = self.directory / MANIFEST
        fix = "restore it or train the member again"
        if not path.is_file():
            raise InputError(
                f"{self.directory} is not a member of a run (it has no {MANIFEST}): give a member's"
                " directory"
            )
        try:
            fields = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): {fix}") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise InputError(
                f"{path} is not of format {FORMAT}, which this version of loraens reads: train the"
                " member again"
            )
        return Manifest.from_json(fields, path, fix)

    def manifest(self) -> Manifest:
        """The member's manifest, every file that it names verified.

        Raises:
            InputError: It is missing, not readable or of another format, or a file is missing or
                altered.
        """
        manifest = self.read()
        for name, expected in manifest.files.items():
            file = self.directory / name
            if not file.is_file():
                raise InputError(f"{file} is missing: restore it or train the member again")
            if checksum(file) != expected:
                raise InputError(
                    f"{file} was altered (its checksum is not the manifest's): restore it or train"
                    " the member again"
                )
        return manifest

    def epoch(self, manifest: Manifest, epoch: Epoch) -> Path:
        """Directory of the member's best or last epoch.

        Raises:
            InputError: It has none: it failed in its first.
        """
        if epoch not in manifest.epochs:
            raise InputError(
                f"{self.directory} has no epoch: the member failed ({manifest.ended}), leave it out"
            )
        return self.directory / manifest.epochs[epoch]

    def logits(self, task: str, split: str, epoch: Epoch = "best") -> Logits:
        """Logits of a task's split after the member's best or last epoch.

        Raises:
            InputError: The member has none: it failed in its first epoch, or the split has no file.
        """
        return read_logits(self.epoch(self.manifest(), epoch) / f"{task}-{split}.npz")


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
    members = find_members(path)
    if len(members) == 1:
        return members[0]
    if not members:
        raise InputError(f"{path} has no member of a run: give a directory with {MANIFEST}")
    raise InputError(f"{path} has {len(members)} members: give one of them, such as {members[0]}")
