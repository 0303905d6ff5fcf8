"""The run store: the only reader and writer of run files.

    checkpoints/<run>/
        config.yaml         the settings of the run, as `--config` takes them
        last.ckpt           Lightning's checkpoint of the last epoch, for `--ckpt_path`
        examples/           the examples of each split, once for all members
            <task>-dev.npz, <task>-test.npz        example_id (N,); labels (N,) where there are any
            <task>-oof.npz      all that are cut into folds: beside these, groups (N,)
        <member>/
            manifest.json   settings, scores, data fingerprints, and a checksum of every file below
                            and of the examples that they refer to
            epoch-003/      the member after its best or its last epoch
                adapter_config.json, adapter_model.safetensors    in PEFT's format
                <task>-dev.npz, <task>-test.npz    logits (N, C); indices (N,) of the run's examples
                                                   where only a part of them was evaluated
                <task>-oof.npz                     the same of a member of a fold, of its own part
            logits/
                epoch-001/  the logits after every epoch, best and last too, in float16
                    <task>-dev.npz, <task>-test.npz, <task>-oof.npz

A member's manifest names its best and its last epoch; it is replaced last, in one step, so that it
never names a file that is not whole, and what it does not name is removed.

The logits of every epoch are kept in 16 bits: the relative error is at most 2^-11, below 2^-14 the
absolute one 2^-25. A file with a logit beyond the largest such number, 65504, is in float32. They
take 11,276 bytes a member and epoch for 1,101 examples of 5 classes.

A file of logits may also hold `example_id` and `labels` itself, as those of a soup and of older
versions do; then nothing beside the member is needed. Of a member that is copied out of its run,
weights can be used alone, and logits only if the run's `examples/` is copied to beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loraens.arrays import check_arrays, npz, of_examples, read_arrays
from loraens.errors import InputError
from loraens.files import PART, checksum, remove_files, write_atomically
from loraens.records import Epoch, Manifest, read_signed, signed

MANIFEST = "manifest.json"
ENSEMBLE = "ensemble.json"
CHECKPOINT = "last.ckpt"
EXAMPLES = "examples"
LOGITS = "logits"
SWEEP = "sweep.json"
FORMAT = 1
FIX = "restore it or train the member again"
DIRECTORIES = rf"({LOGITS}/)?epoch-\d+(-\d+)?"  # of epochs, below a member's
FILES = rf"[^.].*\.(json|safetensors|npz)|{PART}"  # in them


@dataclass
class Logits:
    """Logits of a member on one split.

    Args:
        logits: `(N, C)`.
        example_id: `(N,)` strings.
        labels: `(N,)` float64, or `(N, K)` zeros and ones; None where there are none.
        indices: `(N,)` of these among the run's examples, in ascending order; None where they are
            all of them, or where the file holds ids itself.
        groups: `(N,)` number of each example's group, where the examples are cut into folds: equal
            texts are in one.
    """

    logits: np.ndarray
    example_id: np.ndarray
    labels: np.ndarray | None
    indices: np.ndarray | None = None
    groups: np.ndarray | None = None


def logits_to_bytes(logits: Logits) -> bytes:
    """The .npz file of a split's logits that needs no examples beside the member."""
    return npz(logits=logits.logits, example_id=logits.example_id, labels=logits.labels)


def in_16_bits(logits: np.ndarray) -> np.ndarray:
    """Logits in float16, or as they are where one is beyond its range."""
    with np.errstate(over="ignore"):
        half = logits.astype(np.float16)
    return half if np.isfinite(half).all() else logits


def write_examples(
    run: Path,
    file: str,
    example_id: Sequence[str],
    labels: np.ndarray | None,
    groups: np.ndarray | None = None,
) -> str:
    """Write the examples of a split beside a run's members, unless that very file is there.

    Workers that train members of one run may all do so: they write the same bytes.

    Args:
        run: The run's directory.
        file: Name of the file, `<task>-<split>.npz`.
        example_id: N ids.
        labels: `(N,)`, where there are any.
        groups: `(N,)` number of each example's group, where they are cut into folds.

    Returns:
        The file's SHA-256.
    """
    content = npz(example_id=np.array(example_id), labels=labels, groups=groups)
    path = run / EXAMPLES / file
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def path_from_run(backbone: str, run: Path) -> str | None:
    """Path of a backbone's directory from a run's; None where the backbone is given by a name or by
    an absolute path.
    """
    if Path(backbone).is_absolute() or not Path(backbone).is_dir():
        return None
    return Path(os.path.relpath(Path(backbone).resolve(), run.resolve())).as_posix()


def logits_file(manifest: Manifest, epoch: str, task: str, split: str) -> str:
    """The file below a member's directory with its logits after an epoch: that of the weights, in
    float32, where these are kept.

    Args:
        manifest: The member's.
        epoch: Name of an epoch of its history.
        task: Name of the task.
        split: Name of the split.
    """
    directory = epoch if epoch in manifest.epochs.values() else f"{LOGITS}/{epoch}"
    return f"{directory}/{task}-{split}.npz"


def _directories(manifest: Manifest) -> set[str]:
    """The directories below a member's that its manifest may name files of."""
    return {*manifest.epochs.values(), *(f"{LOGITS}/{entry.name}" for entry in manifest.history)}


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
            epochs: Directory below the member's, `epoch-003` or `logits/epoch-003` -> file name ->
                content; directories that are already there need not be given.
            manifest: The manifest, whose `files` are filled in; the directories of its `epochs` and
                the logits of its `history` shall remain.

        Returns:
            The manifest as it was written.
        """
        self._remove_parts()
        for epoch, files in epochs.items():
            for name, content in files.items():
                write_atomically(self.directory / epoch / name, content)
        remaining = _directories(manifest)
        before = self.read() if (self.directory / MANIFEST).is_file() else None
        checksums = {}
        for name, before_sum in (before.files if before else {}).items():
            if name.rpartition("/")[0] in remaining - set(epochs):
                checksums[name] = before_sum
        for epoch in remaining & set(epochs):
            for name, content in epochs[epoch].items():
                checksums[f"{epoch}/{name}"] = hashlib.sha256(content).hexdigest()
        manifest = replace(manifest, files=dict(sorted(checksums.items())))
        write_atomically(
            self.directory / MANIFEST, signed({"format": FORMAT, **manifest.to_json()})
        )
        named = remaining | (_directories(before) if before else set())
        for name, path in self._epoch_directories().items():
            if name not in named:
                remove_files(path, FILES)
        return manifest

    def _epoch_directories(self) -> dict[str, Path]:
        """The directories of epochs that there are, by their name below the member's."""
        found = (*self.directory.glob("epoch-*"), *self.directory.glob(f"{LOGITS}/epoch-*"))
        paths = {path.relative_to(self.directory).as_posix(): path for path in found}
        return {name: path for name, path in paths.items() if re.fullmatch(DIRECTORIES, name)}

    def _remove_parts(self) -> None:
        """Remove what a writer that was killed had begun."""
        for directory in (self.directory, *self._epoch_directories().values()):
            for path in directory.glob(".*.part"):
                if re.fullmatch(PART, path.name):
                    path.unlink()

    def remove(self) -> None:
        """Remove the member: the files that the store writes, and the directories that are then
        empty; what else is there stays.
        """
        remove_files(self.directory, re.escape(MANIFEST))  # first: killed, there is no member
        for path in self._epoch_directories().values():
            remove_files(path, FILES)
        remove_files(self.directory / LOGITS, PART)
        remove_files(self.directory, PART)

    def located(self, manifest: Manifest, backbone: str | None = None) -> Manifest:
        """The member's manifest with its backbone where it is now.

        Args:
            manifest: The member's.
            backbone: Where that is: a directory or hub name of the same weights. By default where
                it was, or, if nothing is there and the path was relative, where it was as seen from
                the run.
        """
        before = manifest.settings.backbone
        if backbone is None and manifest.backbone_path is not None and not Path(before).is_dir():
            path = self.directory.resolve().parent / manifest.backbone_path
            backbone = os.path.normpath(path) if path.is_dir() else None
        settings = replace(manifest.settings, backbone=before if backbone is None else backbone)
        return replace(manifest, settings=settings)

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
        return self._read()[0]

    def _read(self) -> tuple[Manifest, bytes]:
        """The manifest and its file's content."""
        path = self.directory / MANIFEST
        if not path.is_file():
            raise InputError(
                f"{self.directory} is not a member of a run (it has no {MANIFEST}): give a member's"
                " directory"
            )
        content = path.read_bytes()
        fields = read_signed(content, path, FIX)
        if fields.get("format") != FORMAT:
            raise InputError(
                f"{path} is not of format {FORMAT}, which this version of loraens reads: train the"
                " member again"
            )
        return Manifest.from_json(fields, path, FIX), content

    def manifest(self, examples: bool = True) -> Manifest:
        """The member's manifest, every file that it names verified.

        Args:
            examples: Whether the run's examples are verified too; weights can be used without them.

        Raises:
            InputError: It is missing, not readable or of another format, or a file is missing or
                altered.
        """
        while True:
            manifest, content = self._read()
            try:
                self._verify_files(manifest, examples)
            except InputError:
                if (self.directory / MANIFEST).read_bytes() == content:
                    raise
            else:  # else a training has replaced it, and then removed files, since it was read
                return manifest

    def _verify_files(self, manifest: Manifest, examples: bool) -> None:
        """Refuse files that are missing or altered."""
        for name, expected in manifest.files.items():
            _verify(self.directory / name, expected, FIX)
        if examples:
            fix = (
                f"it has ids and labels for the logits in {self.directory}, so restore it (for a"
                f" copy of a member, copy its run's {EXAMPLES}/ too) or train the member again"
            )
            for name, expected in manifest.examples.items():
                _verify(self._examples / name, expected, fix)

    @property
    def _examples(self) -> Path:
        """Directory of the run's examples; resolved, as the member's may be given as `.`."""
        return self.directory.resolve().parent / EXAMPLES

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
        manifest = self.manifest()
        return self.logits_of(manifest, self.epoch(manifest, epoch).name, task, split)

    def logits_of(self, manifest: Manifest, epoch: str, task: str, split: str) -> Logits:
        """Logits of a task's split after any epoch; those of the best and the last one are in
        float32, others in float16 unless they are too large for it.

        Args:
            manifest: The member's manifest, whose files are verified.
            epoch: Name of an epoch of its history.
            task: Name of the task.
            split: Name of the split.

        Raises:
            InputError: The member has none of that epoch or split.
        """
        path = self.directory / logits_file(manifest, epoch, task, split)
        if not path.is_file():
            raise InputError(f"{path} is missing: the member has no logits of this split")
        arrays = read_arrays(path)
        if "example_id" not in arrays:
            examples = read_arrays(self._examples / path.name)
            arrays = of_examples(arrays, examples, path)
        settings = manifest.settings.task(task)
        check_arrays(arrays, settings, path)
        return Logits(
            logits=arrays["logits"],
            example_id=arrays["example_id"],
            labels=arrays.get("labels"),
            indices=arrays.get("indices"),
            groups=arrays.get("groups"),
        )


def _verify(file: Path, expected: str, fix: str) -> None:
    """Refuse a file that is missing or altered.

    Args:
        file: The file.
        expected: Its SHA-256.
        fix: What the user can do.
    """
    try:
        found = checksum(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{file} is missing: {fix}") from None
    if found != expected:
        raise InputError(f"{file} was altered (its checksum is not the manifest's): {fix}")


def find_members(path: Path) -> list[Path]:
    """Member directories at or right below a path, sorted by name."""
    if (path / MANIFEST).is_file():
        return [path]
    return sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))


def missing_members(run: Path) -> str | None:
    """A sentence that names the members of a sweep that have no manifest: they have not begun, or
    are lost. None where all are there; sweeps of older versions don't say which members they have.

    Raises:
        InputError: sweep.json is not readable.
    """
    path = run / SWEEP
    if not path.is_file():
        return None
    names = read_signed(path.read_bytes(), path, "restore it").get("members") or []
    missing = [name for name in names if not (run / str(name) / MANIFEST).is_file()]
    if not missing:
        return None
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"{run} lacks members of its sweep, {missing[0]}{more}: they have not begun, or their"
        f" {MANIFEST} is missing, so resume the sweep or restore them"
    )


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
