"""An ensemble, or a member, as one directory that can be moved: what prediction needs, and nothing
else.

    OUT/
        ensemble.json       of an ensemble
        members/000/        its members: manifest.json and the weights of one epoch
        backbone/           the backbone's own files, where they are asked for

A member is written as OUT itself, with the held-out logits that `--coverage` reads; so is a soup,
beside its ensemble.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load, save

from loraens.ensemble.recommend import resolved
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.files import checksum, new_directory, write_atomically
from loraens.inference.loading import BUNDLED
from loraens.members import OUT_OF_FOLD
from loraens.model.backbone import local_directory
from loraens.records import Epoch, Manifest
from loraens.store import (
    ENSEMBLE,
    MANIFEST,
    MemberStore,
    find_member,
    logits_file,
    logits_to_bytes,
    path_from_run,
)

WEIGHTS = ".safetensors"
BACKBONE_SUFFIXES = (".json", ".txt", ".model", WEIGHTS)


def export_bundle(
    model: Path,
    directory: Path,
    epoch: Epoch = "best",
    half: bool = False,
    with_backbone: bool = False,
    backbone: str | None = None,
) -> None:
    """Copy a member or an ensemble into a directory of its own.

    Args:
        model: A member's directory, an ensemble's, or the file `recommended`.
        directory: Where to write; it must be new.
        epoch: Epoch of a member; an ensemble names the epochs of its members.
        half: Whether to keep adapters and heads in float16. They are loaded as float32, each
            rounded to 11 significant bits.
        with_backbone: Whether to copy the backbone's files.
        backbone: Where the backbone is now, if it was moved.

    Raises:
        InputError: There is no such model, its files were altered, or its backbone's files are not
            on this machine.
    """
    model = resolved(model)
    with new_directory(directory) as work:
        record = EnsembleRecord.read(model) if (model / ENSEMBLE).is_file() else None
        if record is None or (model / MANIFEST).is_file():
            store = MemberStore(find_member(model))
            manifest = store.located(store.manifest(examples=record is None))
            name = store.epoch(manifest, epoch).name
            files = _weights(store.directory / name, half) | _held_out(store, manifest, name)
            _write(work, manifest, name, files)
            if record is not None:
                record.write(work)
        else:
            members = []
            for number, member in enumerate(record.members):
                at, manifest = record.member_store(model, member)
                manifest = MemberStore(at).located(manifest)
                to = work / "members" / f"{number:03d}"
                _write(to, manifest, member.epoch, _weights(at / member.epoch, half))
                members.append(
                    replace(
                        member,
                        directory=to.relative_to(work).as_posix(),
                        manifest_sha256=checksum(to / MANIFEST),
                    )
                )
            replace(record, members=tuple(members)).write(work)
        if with_backbone:
            _copy_backbone(backbone or manifest.settings.backbone, work / BUNDLED)


def export_peft(model: Path, directory: Path, epoch: Epoch = "best") -> None:
    """Copy the adapters of a member, or of each member of an ensemble, as PEFT loads them.

    Of models that pool over BERT's or ALBERT's pooler they are classifiers, their heads in
    `modules_to_save`; heads of others are in heads.safetensors beside the adapter, which PEFT does
    not read.

    Args:
        model: As of `export_bundle`.
        directory: Where to write, `NAME/` for each member of an ensemble; it must be new.
        epoch: Epoch of a member.

    Raises:
        InputError: There is no such model, its files were altered, or it has no adapters.
    """
    model = resolved(model)
    record = EnsembleRecord.read(model) if (model / ENSEMBLE).is_file() else None
    members: dict[str, tuple[Path, Manifest, str]] = {}
    if record is None or (model / MANIFEST).is_file():
        store = MemberStore(find_member(model))
        manifest = store.manifest(examples=False)
        members["."] = (store.directory, manifest, store.epoch(manifest, epoch).name)
    else:
        for member in record.members:
            members[member.name] = (*record.member_store(model, member), member.epoch)
    for at, manifest, _ in members.values():
        if manifest.settings.mode != "lora":
            raise InputError(
                f"format peft is of adapters, and {at} was trained with mode"
                f" {manifest.settings.mode}: give --format transformers or onnx",
                option="format",
            )
    with new_directory(directory) as work:
        for name, (at, _, folder) in members.items():
            for file, content in _weights(at / folder, half=False).items():
                write_atomically(work / name / file, content)


def _weights(epoch: Path, half: bool) -> dict[str, bytes]:
    """The files of a member's weights, and what PEFT reads beside them."""
    import torch

    files = {}
    for path in sorted(epoch.iterdir()):
        if path.suffix not in (WEIGHTS, ".json"):
            continue
        content = path.read_bytes()
        if half and path.suffix == WEIGHTS:
            tensors = {name: tensor.to(torch.float16) for name, tensor in load(content).items()}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise InputError(
                    f"{path} has weights beyond the range of float16: leave out --half",
                    option="half",
                )
            content = save(tensors, {"format": "pt"})
        files[path.name] = content
    return files


def _held_out(store: MemberStore, manifest: Manifest, epoch: str) -> dict[str, bytes]:
    """Held-out logits of each task of a member, with ids and labels inside."""
    split = "dev" if manifest.member.fold is None else OUT_OF_FOLD
    names = [task.name for task in manifest.settings.tasks]
    return {
        f"{name}-{split}.npz": logits_to_bytes(store.logits_of(manifest, epoch, name, split))
        for name in names
        if (store.directory / logits_file(manifest, epoch, name, split)).is_file()
    }


def _write(directory: Path, manifest: Manifest, epoch: str, files: dict[str, bytes]) -> None:
    """Write a member of one epoch, which is its best and its last one."""
    scores = next(
        manifest.dev[name] for name, directory in manifest.epochs.items() if directory == epoch
    )
    alone = replace(
        manifest,
        epochs={"best": epoch, "last": epoch},
        dev={"best": scores, "last": scores},
        history=tuple(entry for entry in manifest.history if entry.name == epoch),
        examples={},
        backbone_path=path_from_run(manifest.settings.backbone, directory.parent),
    )
    MemberStore(directory).write({epoch: files}, alone)


def _copy_backbone(name: str, to: Path) -> None:
    """Copy the files of a backbone: configuration, weights and tokenizer.

    Raises:
        InputError: They are not on this machine.
    """
    found = local_directory(name)
    if found is None:
        raise InputError(f"backbone {name!r} has no files on this machine", option="with_backbone")
    for path in sorted(found.iterdir()):
        if path.is_file() and path.suffix in BACKBONE_SUFFIXES:
            write_atomically(to / path.name, path.read_bytes())
