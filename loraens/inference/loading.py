"""Members of a run, loaded onto one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
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
SHARED = ("backbone_fingerprint", "pooling", "mode", "max_length", "long")


class LoadedMember(NamedTuple):
    """A member to load: its directory, its manifest, and the directory name of the epoch."""

    directory: Path
    manifest: Manifest
    epoch: str


class Part(NamedTuple):
    """Those members that have one adapter kind and the same targets: a model of them, and their
    indices among all.
    """

    model: MemberModel
    indices: list[int]


def load_members(members: Sequence[LoadedMember]) -> list[Part]:
    """The models of members with their weights, one for each adapter kind and targets; the weights
    of the backbone exist once.

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
    kinds: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for index, member in enumerate(members):
        its = member.manifest.settings
        kinds.setdefault((its.adapter, its.targets), []).append(index)
    models = _models([[members[index] for index in indices] for indices in kinds.values()])
    for model, indices in zip(models, kinds.values(), strict=True):
        for number, index in enumerate(indices):
            load_member(model, number, members[index].directory / members[index].epoch)
    return [Part(*part) for part in zip(models, kinds.values(), strict=True)]


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
        " which a cascade needs: with folds, keep dev apart, or sweep with a test file and"
        " --data.test_logits true, and predict where the members' run is",
        option="cascade",
    )


def _sharing(encoder: Any) -> Any:
    """Another encoder of the same weights, which are not copied."""
    shared = chain(encoder.parameters(), encoder.buffers())
    return deepcopy(encoder, {id(tensor): tensor for tensor in shared})


def _models(kinds: Sequence[Sequence[LoadedMember]]) -> list[MemberModel]:
    """A model of the members of each kind, adapters and heads not loaded; without `transformers`
    where the fast path runs all of them.

    Raises:
        InputError: The backbone cannot be had, or is another than the members'.
    """
    from loraens.model.backbone import fingerprint, load_encoder, local_directory
    from loraens.model.plain_encoder import read_plain
    from loraens.model.population import MemberModel

    first = kinds[0][0]
    settings = first.manifest.settings
    pooler = settings.pooling == "pooler"

    def of(encoder: Any) -> list[MemberModel]:
        encoders = [encoder, *(_sharing(encoder) for _ in kinds[1:])]
        return [
            MemberModel(
                encoder,
                settings.tasks,
                [member.manifest.member for member in members],
                mode=settings.mode,  # type: ignore[arg-type]
                targets=members[0].manifest.settings.targets,
                pooling=settings.pooling,  # type: ignore[arg-type]
                adapter=members[0].manifest.settings.adapter,
            )
            for encoder, members in zip(encoders, kinds, strict=True)
        ]

    directory = local_directory(settings.backbone)
    plain: Any = None if directory is None else read_plain(directory, pooler)
    if plain is not None and fingerprint(plain) == settings.backbone_fingerprint:
        models = of(plain)
        if all(model.fast is not None for model in models):
            return models
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
