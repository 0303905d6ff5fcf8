"""The record of an ensemble: all that is needed to use it, and what it is worth."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from loraens.ensemble.conformal import Conformal
from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.diversity import summary
from loraens.ensemble.options import Options
from loraens.ensemble.prove import Proof
from loraens.ensemble.read import PoolMembers
from loraens.ensemble.significance import Interval
from loraens.ensemble.table import check_listed
from loraens.errors import InputError
from loraens.files import checksum, write_atomically
from loraens.records import (
    Checksum,
    Count,
    Epoch,
    Inside,
    Manifest,
    Record,
    Score,
    read_signed,
    signed,
)
from loraens.store import ENSEMBLE, MANIFEST, MemberStore
from loraens.tasks import Task

FORMAT = 2
UPWARD = 3  # from RUN/ensembles/NAME to the directory of the runs
Rule = Literal["vote", "logits", "probs", "merged"]


def _near(path: str) -> str:
    """A path to a member of the same run or of one beside it, as ensembles are written with."""
    parts = PurePosixPath(path).parts
    upward = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
    if PurePosixPath(path).is_absolute() or "\\" in path or ".." in parts[upward:]:
        raise ValueError("is no relative path to a member")
    if upward > UPWARD:
        raise ValueError("leaves the directory of the runs")
    return path


Near = Annotated[str, AfterValidator(_near)]


@dataclass(frozen=True)
class EnsembleMember(Record):
    """One member of an ensemble.

    Args:
        name: Its name in the pool.
        directory: Its directory, relative to the ensemble's.
        epoch: Directory of its epoch.
        rank: Its LoRA rank; breaks ties of a vote.
        standing: Its standing by dev score, 0 the best; breaks ties of equal ranks.
        weight: Its weight, positive.
        manifest_sha256: SHA-256 of its manifest.
    """

    name: str
    directory: Near
    epoch: Inside
    rank: Count
    standing: Count
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    manifest_sha256: Checksum


@dataclass(frozen=True)
class EnsembleRecord(Record):
    """An ensemble; the scores are those of `prove.Proof`.

    Args:
        task: The task.
        method: The method that chose it.
        rule: The rule that combines it.
        options: Options of the method.
        epoch: Epoch of each member.
        pool_size: Members to choose from; configurations where there are folds.
        members: The chosen ones.
        dev: Every metric on dev, on which it was chosen; out of fold where there are folds.
        held_out: Every metric, cross-validated.
        interval: The task's metric, cross-validated.
        to_best: Difference of that to the best member.
        to_omni: Difference to all members.
        p_best: p of the difference to the best member, adjusted for the number of candidates; NaN
            for the best member itself.
        temperature: Divides log probabilities; None for numbers and votes.
        calibrated: NLL, Brier score and calibration error at the folds' temperatures.
        test: The task's metric on test; None without labels.
        diversity: Measures of `diversity.summary`.
        backbone: Name of the backbone.
        backbone_fingerprint: SHA-256 of its weights.
        data: Fingerprint of each split of the task.
        folds: Members of each chosen configuration, each of a fold; None without folds.
        apart: The task's metric on a dev set that was kept apart from the folds.
        epochs_chosen: Whether the proof chose each member's epoch anew in its folds and bags; if
            not, the best one was chosen on all of dev.
        refit: Whether its members are configurations that were trained once more, on all labelled
            texts; the scores are those of the ensemble of their folds.
        train_epochs: Epochs that its members were trained, all together; None where not known.
        conformal: Quantiles of held-out scores, for prediction sets and intervals; None in records
            of older versions.
        thresholds: Of the probability of each label, before the temperature; None where predictions
            are by none.
    """

    task: Task
    method: str
    rule: Rule
    options: Options
    epoch: Epoch
    pool_size: Count
    members: Annotated[tuple[EnsembleMember, ...], Field(min_length=1)]
    dev: dict[str, Score]
    held_out: dict[str, Score]
    interval: Interval
    to_best: Interval
    to_omni: Interval
    p_best: Score
    temperature: Annotated[float, Field(gt=0)] | None
    calibrated: dict[str, Score]
    test: float | None
    diversity: dict[str, Score]
    backbone: str
    backbone_fingerprint: str
    data: dict[str, str]
    folds: Annotated[int, Field(ge=2)] | None = None
    apart: float | None = None
    epochs_chosen: bool = False
    train_epochs: Count | None = None
    refit: bool = False
    conformal: Conformal | None = None
    thresholds: tuple[float, ...] | None = None

    @property
    def size(self) -> int:
        """Members that run at prediction: one where they are merged."""
        return 1 if self.rule == "merged" else len(self.members)

    @property
    def members_each(self) -> int:
        """Members of each chosen configuration: one a fold; 1 without folds, and where refit."""
        return 1 if self.folds is None or self.refit else self.folds

    @property
    def candidate(self) -> Candidate:
        """The method, rule and options that it was made by."""
        return Candidate(self.method, self.rule, self.options)

    @property
    def score(self) -> float:
        """The task's metric on dev."""
        return self.dev[self.task.metric]

    @classmethod
    def read(cls, directory: Path) -> EnsembleRecord:
        """The record in an ensemble's directory.

        Raises:
            InputError: It is not readable, of another format, or that of another ensemble.
        """
        path = Path(directory) / ENSEMBLE
        fix = "make it again with `loraens ensemble`"
        fields = read_signed(path.read_bytes(), path, fix)
        if fields.get("format") not in (1, FORMAT):
            raise InputError(f"{path} is not an ensemble that this version of loraens reads: {fix}")
        fields = _of_format_1(fields) if fields["format"] == 1 else fields
        record = cls.from_json(fields, path, fix)
        check_listed(path.parent, record.task.name, record.method, record.rule, record.refit)
        return record

    def write(self, directory: Path) -> None:
        """Write the record into an ensemble's directory.

        Raises:
            InputError: It is neither in the run of its members nor beside it.
        """
        for member in self.members:
            try:
                _near(Path(member.directory).as_posix())
            except ValueError as error:
                raise InputError(
                    f"out {directory} is too far from the members (the path {member.directory}"
                    f" {error}): give a directory in a run of theirs or beside it",
                    option="out",
                ) from None
        write_atomically(Path(directory) / ENSEMBLE, signed({"format": FORMAT, **self.to_json()}))

    def member_store(self, directory: Path, member: EnsembleMember) -> tuple[Path, Manifest]:
        """Directory and manifest of a member, its files, but not the run's examples, verified.

        Args:
            directory: The ensemble's.
            member: The member.

        Raises:
            InputError: It is missing, or has changed since the ensemble was made.
        """
        path = Path(directory).resolve() / member.directory
        lexical = Path(os.path.normpath(path))
        if path.resolve() != lexical:
            raise InputError(
                f"{lexical} is a link, or below one, and ensemble {directory} names no links: make"
                " the ensemble again"
            )
        path = lexical
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"{path} is missing: ensemble {directory} needs it, restore it or make the ensemble"
                " again"
            )
        if checksum(path / MANIFEST) != member.manifest_sha256:
            raise InputError(
                f"{path / MANIFEST} has changed since ensemble {directory} was made: make the"
                " ensemble again"
            )
        return path, MemberStore(path).manifest(examples=False)


def _of_format_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of an ensemble of format 1, which had other names for two of them."""
    renamed = {**fields, "epoch": fields.get("which")}
    members = fields.get("members")
    if isinstance(members, list):
        renamed["members"] = [
            {**member, "standing": member.get("place")} if isinstance(member, dict) else member
            for member in members
        ]
    return renamed


def make_record(members: PoolMembers, proof: Proof, directory: Path) -> EnsembleRecord:
    """The record of a proved candidate.

    Args:
        members: The pool.
        proof: Its scores.
        directory: Where the ensemble will be kept.
    """
    pool = members.dev
    chosen = [index for index, weight in enumerate(proof.weights) if weight > 0]
    refit = members.chosen_from is not None
    settings = members.manifests[0].settings
    prefix = f"{pool.task.name}-"
    return EnsembleRecord(
        task=pool.task,
        method=proof.candidate.method,
        rule=proof.candidate.rule,  # type: ignore[arg-type]
        options=proof.candidate.options,
        epoch=members.epoch,
        pool_size=members.chosen_from or len(pool),
        members=tuple(
            member for index in chosen for member in _members(members, proof, index, directory)
        ),
        dev=dict(proof.dev),
        held_out=dict(proof.held_out),
        interval=proof.interval,
        to_best=proof.to_best,
        to_omni=proof.to_omni,
        p_best=proof.p_best,
        temperature=proof.temperature,
        calibrated=dict(proof.calibrated),
        test=_test_score(members, proof),
        diversity=dict(summary(pool.of(chosen))),
        backbone=settings.backbone,
        backbone_fingerprint=settings.backbone_fingerprint,
        data={split: value for split, value in settings.data.items() if split.startswith(prefix)},
        folds=settings.folds,
        apart=_apart_score(members, proof),
        epochs_chosen=pool.epochs is not None,
        train_epochs=(
            None if pool.trained is None else int(pool.trained[chosen].sum()) * members.folds
        ),
        refit=refit,
        conformal=Conformal.of(proof.outcomes.distances, proof.outcomes.spreads),
        thresholds=None if proof.thresholds is None else tuple(proof.thresholds.tolist()),
    )


def _members(
    members: PoolMembers, proof: Proof, index: int, directory: Path
) -> list[EnsembleMember]:
    """A chosen member; of a configuration the members of its folds, which share its weight."""
    name = members.dev.names[index]
    return [
        EnsembleMember(
            name=name if members.folds == 1 else f"{name}-f{manifest.member.fold}",
            directory=os.path.relpath(path.resolve(), directory.resolve()),
            epoch=manifest.epochs[members.epoch],
            rank=int(members.dev.ranks[index]),
            standing=int(members.dev.standings[index]),
            weight=float(proof.weights[index]) / members.folds,
            manifest_sha256=checksum(path / MANIFEST),
        )
        for path, manifest in members.units[index]
    ]


def _test_score(members: PoolMembers, proof: Proof) -> float | None:
    """The task's metric on test, where labels are there."""
    test = members.labelled_test
    if test is None:
        return None
    outcome = members.combined(test, proof.weights, proof.candidate.rule)
    outcome = outcome.decided(proof.thresholds)
    return test.task.main_metric(outcome, test.labels)


def _apart_score(members: PoolMembers, proof: Proof) -> float | None:
    """The task's metric on a dev set that was kept apart from the folds."""
    if members.apart is None:
        return None
    outcome = members.combined(members.apart, proof.weights, proof.candidate.rule)
    outcome = outcome.decided(proof.thresholds)
    return members.apart.task.main_metric(outcome, members.apart.labels)
