"""A trained member or an ensemble, ready to predict.

Shape letters: M members, N texts, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.data.tables import Row
from loraens.ensemble.conformal import Conformal, Region, check_coverage, of_member
from loraens.ensemble.pool import Pool
from loraens.ensemble.recommend import resolved
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.inference.combination import Combination, thresholds_of
from loraens.inference.hub import fetched
from loraens.inference.loading import BUNDLED, LoadedMember, held_out_logits, load_members
from loraens.inference.rows import column_names, rows_of
from loraens.inference.running import Runner, checked_texts
from loraens.records import Epoch
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, find_member
from loraens.tasks import Task

if TYPE_CHECKING:
    from loraens.ensemble.evaluation import Evaluation
    from loraens.inference.early_stop import InTurn


@dataclass
class Predictor(Runner):
    """A trained member or an ensemble.

    Args (beside those of `Runner`):
        combination: How the members are combined; None for a single member.
        conformal: Gives the quantiles of held-out scores of a task, for regions; None where the
            members were not loaded from a run.
        data: Fingerprint of each split that the members were trained and chosen on, by
            `<task>-<split>`.
        thresholds: `(K,)` of the probability of each label, of a soup of members of a task whose
            examples have several labels.
        backbone: Name or directory of the backbone.
        kept: Names of the columns that rows have; all by default.
        held_out: Gives the members' logits `(M, N, C)` of texts that none was trained on; None
            where they were not loaded from an ensemble.
        in_turn: Runs members one after another; set where only predictions are kept and these can
            be certain before all members ran.
    """

    combination: Combination | None = None
    conformal: Callable[[Task], Conformal] | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    thresholds: np.ndarray | None = None
    backbone: str = ""
    kept: tuple[str, ...] | None = None
    held_out: Callable[[], np.ndarray] | None = None
    in_turn: InTurn | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        epoch: Epoch = "best",
        batch_size: int | None = None,
        device: str | None = None,
        backbone: str | None = None,
    ) -> Predictor:
        """Load a member of a run, or an ensemble.

        Args:
            path: A member's directory, a run's that has one member, an ensemble's, the file
                `recommended` beside the ensembles, or `hub:OWNER/NAME` of the Hugging Face hub,
                where `@REVISION` may follow.
            epoch: Epoch of a member; an ensemble names the epochs of its members.
            batch_size: Texts in one batch, those of all members together; by default 64 on a CPU,
                and what an eighth of its memory holds on a GPU.
            device: Where to compute; a GPU if there is one, by default.
            backbone: Where the backbone is now, if it was moved: a directory or hub name of the
                same weights.

        Raises:
            InputError: There is no such member, its files were altered, or its backbone cannot be
                had or is another.
        """
        from loraens.model.device import usable_device

        usable_device(device)
        path = resolved(fetched(path))
        if backbone is None and (path / BUNDLED).is_dir():
            backbone = str(path / BUNDLED)
        record = EnsembleRecord.read(path) if (path / ENSEMBLE).is_file() else None
        # a soup is both, and is loaded as the one member that it is
        if record is None or (path / MANIFEST).is_file():
            store = MemberStore(find_member(path))
            manifest = store.located(store.manifest(examples=False), backbone)
            name = store.epoch(manifest, epoch).name
            member = LoadedMember(store.directory, manifest, name)
            predictor = cls.of_members([member], batch_size, device)
            predictor._fold()
            predictor.conformal = partial(of_member, store.directory, name)
            if record is not None:
                predictor.conformal = partial(_of_record, record, path)
                predictor.thresholds = thresholds_of(record)
            return predictor
        stored = [(record.member_store(path, member), member.epoch) for member in record.members]
        members = [
            LoadedMember(at, MemberStore(at).located(found, backbone), epoch)
            for (at, found), epoch in stored
        ]
        predictor = cls.of_members(members, batch_size, device)
        if len(members) == 1:
            predictor._fold()
        predictor.combination = Combination.of_record(record)
        predictor.conformal = partial(_of_record, record, path)
        predictor.held_out = partial(held_out_logits, members, record.task)
        predictor.tasks = {record.task.name: record.task}
        return predictor

    @classmethod
    def of_members(
        cls,
        members: Sequence[LoadedMember],
        batch_size: int | None = None,
        device: str | None = None,
    ) -> Predictor:
        """Load members onto one backbone, not combined.

        Raises:
            InputError: They cannot share one, or it cannot be had or is another than theirs.
        """
        from loraens.model.device import allow_tf32, usable_device
        from loraens.model.tokenizer import load_tokenizer

        settings = members[0].manifest.settings
        where = usable_device(device)
        precisions = {member.manifest.settings.precision for member in members}
        parts = load_members(members)
        allow_tf32(where)
        for part in parts:
            part.model.eval().to(where)
        return cls(
            model=parts[0].model,
            tasks={task.name: task for task in settings.tasks},
            tokenizer=load_tokenizer(settings.backbone),
            max_length=settings.max_length,
            batch_size=batch_size,
            data=settings.data,
            precision=precisions.pop() if len(precisions) == 1 else "32-true",
            backbone=settings.backbone,
            long=settings.long,  # type: ignore[arg-type]
            several=parts if len(parts) > 1 else (),
        )

    def _fold(self) -> None:
        """Add the only member's adapter to the backbone's weights, unless these are rounded to
        bfloat16, which would round the adapter away.
        """
        from loraens.model.device import HALF

        if self.precision != HALF:
            self.model.fold()

    def keep(
        self,
        columns: Sequence[str],
        task: Task,
        region: Region | None = None,
        cascade: float | None = None,
    ) -> None:
        """Give rows only some of their columns.

        Where `prediction` is the only one, members of a vote or of mean probabilities run one after
        another on a CPU, and none on a text whose class is certain; see `early_stop`.

        Args:
            columns: Names of the columns, in their order.
            task: The task.
            region: What `rows` will be given.
            cascade: Share of new texts in which members may stop running only where the class then
                is that of all, see `cascade`, which is for the column `prediction` alone. By
                default they run until the class is certain.

        Raises:
            InputError: There is no such column, or no cascade can be proved.
        """
        there = column_names(task, self.combination is not None, region)
        for name in columns:
            if name not in there:
                raise InputError(
                    f"columns {name}: one of {', '.join(there)} is expected", option="columns"
                )
        self.kept = tuple(columns)
        if cascade is not None:
            self.in_turn = self._cascaded(task, cascade)
        elif self.kept == ("prediction",) and self.model.mode == "lora":
            from loraens.inference.early_stop import InTurn, stops_early

            one = not self.several and self.precision == "32-true"
            if one and stops_early(task, self.combined(task)):
                device = next(self.model.parameters()).device
                self.in_turn = InTurn(self.model) if device.type == "cpu" else None

    def _cascaded(self, task: Task, level: float) -> InTurn:
        """The members one after another, until a class is that of all of them nearly always.

        Raises:
            InputError: There are no several members that predict a class in float32, they have no
                held-out logits, or these do not prove the level.
        """
        from loraens.inference.cascade import chosen_cascade
        from loraens.inference.early_stop import InTurn, can_cascade

        combination = self.combined(task)
        able = self.model.mode == "lora" and self.precision == "32-true" and not self.several
        if not (able and can_cascade(task, combination)):
            raise InputError(
                f"cascade {level:g} is for several LoRA members of one kind that predict one class,"
                " trained in float32: leave it out",
                option="cascade",
            )
        assert self.held_out is not None
        logits = self.held_out()
        return InTurn(self.model, chosen_cascade(task, combination, logits, level))

    def combined(self, task: Task) -> Combination:
        """How the members are combined; of a single one, as it is."""
        return self.combination or Combination.of_one(task, self.thresholds)

    def pool(self, logits: np.ndarray, task: Task) -> Pool:
        """The members and their logits `(M, N, C)`, to be combined.

        Raises:
            InputError: A logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise InputError(
                "the member predicts values that are not finite: train it again at a lower rate"
            )
        return self.combined(task).pool(task, logits)

    def region(self, task: Task, coverage: float | None) -> Region | None:
        """What `rows` needs to give regions of a coverage; None for none.

        Raises:
            InputError: The coverage is no share between 0 and 1, or the held-out examples are not
                there or too few.
        """
        if coverage is None:
            return None
        check_coverage(coverage)
        assert self.conformal is not None
        return self.conformal(task).at(coverage)

    def columns(self, task: Task, region: Region | None = None) -> list[str]:
        """Names of the columns that predictions have."""
        if self.kept is not None:
            return [*self.kept]
        return column_names(task, self.combination is not None, region)

    def rows(
        self, texts: Sequence[tuple[str, ...]], task: Task, region: Region | None = None
    ) -> list[Row]:
        """One row a text: prediction, for classes probabilities, for ensembles their uncertainty,
        and a prediction set or interval.

        Args:
            texts: Texts, one or two each.
            task: The task.
            region: What `region` gives for a coverage; no sets or intervals by default.

        Raises:
            InputError: A logit is not finite.
        """
        if self.in_turn is not None:
            predictions = self.in_turn.predictions(self, texts, task)
            return [{"prediction": task.format_label(value)} for value in predictions]
        return self.rows_of(self.logits(texts, task), task, region)

    def rows_of(
        self,
        logits: np.ndarray,
        task: Task,
        region: Region | None = None,
        members: bool = False,
    ) -> list[Row]:
        """The same of logits `(M, N, C)`.

        Args:
            logits: Of the members, as `logits` gives them.
            task: The task.
            region: As of `rows`.
            members: Whether rows have a column `members`, a list of each member's prediction.

        Raises:
            InputError: A logit is not finite.
        """
        if not logits.shape[1]:
            return []
        return rows_of(
            pool=self.pool(logits, task),
            combination=self.combined(task),
            ensemble=self.combination is not None,
            region=region,
            members=members,
            kept=self.kept,
        )

    def evaluate(self, data: Any, task: str | None = None) -> Evaluation:
        """Score labelled examples.

        Args:
            data: A file, or a DataFrame, with the task's text columns and label column.
            task: Name of the task, where there are several.

        Raises:
            InputError: The data cannot be used, or has no labels.
        """
        from loraens.inference.evaluate import evaluate

        return evaluate(self, data, task)

    def predict(
        self,
        texts: Sequence[str | Sequence[str]],
        task: str | None = None,
        coverage: float | None = None,
    ) -> list[Row]:
        """Predictions, one row a text, or a pair of texts where the task takes two.

        Args:
            texts: Texts, or pairs of texts.
            task: Name of the task, where there are several.
            coverage: Share of new texts whose label is in the prediction set (`set`, a list of
                class names) or interval (`low`, `high`) that each row then has, as
                `loraens.ensemble.conformal` says; none by default.

        Raises:
            InputError: The texts are one bare string, or not what the task takes; or the coverage
                is more than the held-out examples can give.
        """
        chosen = self.task(task)
        region = self.region(chosen, coverage)
        return self.rows(checked_texts(texts, chosen), chosen, region)


def _of_record(record: EnsembleRecord, directory: Path, task: Task) -> Conformal:
    """The quantiles in the record of an ensemble, which has one task."""
    if record.conformal is None:
        raise InputError(
            f"{directory / ENSEMBLE} has no held-out scores, which coverage needs (older versions"
            " did not keep them): make the ensemble again with `loraens ensemble`"
        )
    return record.conformal
