"""Members of a run, loaded onto one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loraens.errors import InputError
from loraens.records import Manifest
from loraens.store import MemberStore, logits_file
from loraens.tasks import Task

if TYPE_CHECKING:
    from loraens.model.population import MemberModel

BUNDLED = "backbone"  # directory of the backbone in an exported ensemble
SHARED = ("backbone_fingerprint", "pooling", "targets", "mode", "adapter", "max_length", "long")


class LoadedMember(NamedTuple):
    """A member to load: its directory, its manifest, and the directory name of the epoch."""

    directory: Path
    manifest: Manifest
    epoch: str


def load_members(members: Sequence[LoadedMember]) -> MemberModel:
    """The model of members with their weights.

    Raises:
        InputError: They cannot share a backbone, or it cannot be had or is another than theirs.
    """
    from loraens.model.weights import load_member

    first = members[0]
    settings = first.manifest.settings
    for other in members[1:]:
        for name in SHARED:
            if getattr(other.manifest.settings, name) != getattr(settings, name):
                raise InputError(
                    f"{other.directory} and {first.directory} differ in {name}: members that"
                    " predict together must share it, so choose an ensemble of one sweep"
                )
    model = _model(members)
    for index, member in enumerate(members):
        load_member(model, index, member.directory / member.epoch)
    return model


def held_out_logits(members: Sequence[LoadedMember], task: Task) -> np.ndarray:
    """Logits `(M, N, C)` of texts that no member was trained on: of dev, with folds where it was
    kept apart, or of test.

    Raises:
        InputError: Not all members have logits of one of these.
    """
    for split in ("dev", "test"):
        files = [m.directory / logits_file(m.manifest, m.epoch, task.name, split) for m in members]
        if all(file.is_file() for file in files):
            stored = [
                MemberStore(m.directory).logits_of(m.manifest, m.epoch, task.name, split).logits
                for m in members
            ]
            return np.stack(stored)
    raise InputError(
        f"{members[0].directory} and the other members have no logits of the same held-out texts,"
        " which a cascade needs: with folds, keep dev apart or give a test file, and predict where"
        " the members' run is",
        option="cascade",
    )


def _model(members: Sequence[LoadedMember]) -> MemberModel:
    """The model of members, its adapters and heads not loaded; without `transformers` where the
    fast path runs all of it.

    Raises:
        InputError: The backbone cannot be had, or is another than the members'.
    """
    from loraens.model.backbone import fingerprint, load_encoder, local_directory
    from loraens.model.plain_encoder import read_plain
    from loraens.model.population import MemberModel

    first = members[0]
    settings = first.manifest.settings
    pooler = settings.pooling == "pooler"

    def of(encoder: Any) -> MemberModel:
        return MemberModel(
            encoder,
            settings.tasks,
            [member.manifest.member for member in members],
            mode=settings.mode,  # type: ignore[arg-type]
            targets=settings.targets,
            pooling=settings.pooling,  # type: ignore[arg-type]
            adapter=settings.adapter,
        )

    directory = local_directory(settings.backbone)
    plain: Any = None if directory is None else read_plain(directory, pooler)
    if plain is not None and fingerprint(plain) == settings.backbone_fingerprint:
        model = of(plain)
        if model.fast is not None:
            return model
    try:
        encoder = load_encoder(settings.backbone, pooler=pooler)
    except InputError as error:
        raise InputError(f"{error}; if it was moved, say where it is (--backbone)") from None
    if fingerprint(encoder) != settings.backbone_fingerprint:
        raise InputError(
            f"backbone {settings.backbone!r} has other weights than the one that"
            f" {first.directory} was trained on: use the same version of it"
        )
    return of(encoder)
