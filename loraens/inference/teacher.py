"""What an ensemble predicts for texts that none of its members was trained on, as targets of
students.

Of members of folds these are the labelled examples, out of fold, and unlabelled texts; of others
unlabelled texts alone: training examples then keep their labels alone. For unlabelled texts a
student of a fold learns from the members of that fold, which have not seen the labels of the part
that it is scored on. The predictions out of fold for the other parts are by members that have seen
them: a student's score out of fold is optimistic by what comes to it through these, and its score
on a dev set that is kept apart from the folds is not.

Shape letters: M members, K folds, N labelled examples, U unlabelled texts, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loraens.data.config import DataConfig
from loraens.data.distilled import Distilled
from loraens.data.imports import check_imports
from loraens.data.modules import TextData
from loraens.data.targets import Targets, digest_of, unlabelled_texts
from loraens.ensemble.combine import MERGED
from loraens.ensemble.folded import Unit, out_of_fold
from loraens.ensemble.recommend import resolved
from loraens.ensemble.record import EnsembleRecord
from loraens.errors import InputError
from loraens.files import checksum
from loraens.inference.combination import Combination
from loraens.inference.evaluate import all_logits
from loraens.inference.predictor import Predictor
from loraens.members import OUT_OF_FOLD
from loraens.records import Manifest
from loraens.store import ENSEMBLE, MemberStore
from loraens.tasks import Task

DISTILLED = f"{Distilled.__module__}.{Distilled.__qualname__}"


@dataclass(frozen=True)
class Teacher:
    """An ensemble whose predictions students learn.

    Args:
        directory: The ensemble's.
        record: Its record.
        members: Directory and manifest of each member.
    """

    directory: Path
    record: EnsembleRecord
    members: Unit

    @classmethod
    def load(cls, model: str | Path) -> Teacher:
        """The teacher of an ensemble's directory, or of the file `recommended` beside it.

        Raises:
            InputError: There is no such ensemble, its files were altered, or it was refitted.
        """
        directory = resolved(Path(model))
        if not (directory / ENSEMBLE).is_file():
            raise InputError(
                f"model {model} is no ensemble: give a directory that `loraens ensemble` wrote, or"
                " the file `recommended` beside it",
                option="model",
            )
        record = EnsembleRecord.read(directory)
        if record.refit or (record.folds and record.rule == MERGED):
            raise InputError(
                f"model {model} has no predictions of its own out of fold: give the ensemble of"
                " folds that it was made from, or another",
                option="model",
            )
        members = [record.member_store(directory, member) for member in record.members]
        return cls(directory, record, members)

    @property
    def run(self) -> Path:
        """The run of its first member, which has the settings of the others' data, too."""
        return self.members[0][0].parent

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of that run's config.yaml.

        Raises:
            InputError: It is missing, names what is not to be imported, or no data.
        """
        path = self.run / "config.yaml"
        if not path.is_file():
            raise InputError(f"{path} is missing: it has the settings of the run, so restore it")
        try:
            settings = yaml.safe_load(path.read_text())
        except (ValueError, yaml.YAMLError):
            settings = None
        if not isinstance(settings, dict):
            raise InputError(f"{path} is no YAML file of settings: restore it")
        check_imports(settings, path)
        data = settings.get("data")
        while isinstance(data, dict) and data.get("class_path") == DISTILLED:
            data = settings["data"] = (data.get("init_args") or {}).get("run")
        if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
            raise InputError(
                f"{path} names no data, as it was only in a program's memory: students need its"
                " texts"
            )
        return settings

    @property
    def manifest(self) -> Manifest:
        """The manifest of the member of the largest weight."""
        heaviest = np.argmax([member.weight for member in self.record.members])
        return self.members[int(heaviest)][1]

    @cached_property
    def data(self) -> TextData:
        """The texts that its members were trained on.

        Raises:
            InputError: They cannot be read, have changed, or are of several tasks.
        """
        manifest = self.manifest.settings
        data = self.settings["data"]
        config = DataConfig(data["class_path"], data.get("init_args") or {})
        module = config.build(manifest.backbone, manifest.folds)
        if len(module.tasks) > 1:
            raise InputError(
                f"the members of {self.directory} were trained on several tasks at once, and"
                " students are on one: give another ensemble",
                option="model",
            )
        module.setup("fit")
        for (task, split), part in module.splits.items():
            name = f"{task}-{split}"
            if self.record.data.get(name) != part.fingerprint:
                raise InputError(
                    f"{self.run / 'config.yaml'} names other data than the members were trained on"
                    f" ({name} differs): restore it"
                )
        return module

    def write_targets(self, path: Path, texts: Sequence[str]) -> None:
        """Write what it predicts for the labelled examples and for the texts of some files, unless
        that is there.

        Args:
            path: Where to.
            texts: Files of unlabelled texts.

        Raises:
            InputError: There is nothing to learn, a file cannot be used, the ensemble cannot be
                run, or the file is there and of another teacher or other texts.
        """
        task = self.record.task
        if self.record.folds is None and not texts:
            raise InputError(
                f"the members of {self.directory} were trained on all training examples, so they"
                " predict none of them held out: give unlabelled texts (--texts), or an ensemble of"
                " a sweep with folds",
                option="texts",
            )
        train = self.data.splits[task.name, "train"]
        known = [part.split for part in self.data.splits.values()]
        unlabelled = unlabelled_texts(task, texts, known)
        teacher, of_texts = checksum(self.directory / ENSEMBLE), digest_of(train, unlabelled)
        if path.is_file():
            there = Targets.read(path)
            if (there.teacher, there.texts) != (teacher, of_texts):
                raise InputError(
                    f"{path} is of another teacher or of other texts: give another directory"
                    " (--out), or the same ones as before",
                    option="out",
                )
            return
        labelled = self._held_out(len(train))
        shape = ((self.record.folds or 0) + 1, 0, *labelled.shape[1:])
        of_unlabelled = self._of(unlabelled.texts) if unlabelled else np.zeros(shape, np.float32)
        Targets(labelled, of_unlabelled, teacher, of_texts).write(path)

    def _held_out(self, size: int) -> np.ndarray:
        """Targets `(N, ...)` of the labelled examples; NaN where there are no folds."""
        task, folds = self.record.task, self.record.folds
        if folds is None:
            width = (len(task.class_names),) if task.label_kind.categorical else ()
            return np.full((size, *width), np.nan, np.float32)
        stored = zip(self.members, self.record.members, strict=True)
        logits = [
            MemberStore(path).logits_of(manifest, member.epoch, task.name, OUT_OF_FOLD)
            for (path, manifest), member in stored
        ]
        units = [self.members[start : start + folds] for start in range(0, len(logits), folds)]
        together = np.stack([one.logits for one in out_of_fold(units, logits)])
        return _targets(task, together, Combination.of_record(self.record).of_fold(0))

    def _of(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Targets `(T, U, ...)` of unlabelled texts: of the members of each fold, and of all."""
        task = self.record.task
        predictor = Predictor.load(self.directory)
        logits = all_logits(predictor, task, texts, "teach")
        whole = predictor.combined(task)
        folds = self.record.folds or 0
        of_folds = [
            _targets(task, logits[fold::folds], whole.of_fold(fold)) for fold in range(folds)
        ]
        return np.stack([*of_folds, _targets(task, logits, whole)])


def _targets(task: Task, logits: np.ndarray, combination: Combination) -> np.ndarray:
    """Probabilities `(N, K)`, or values `(N,)`, of logits `(M, N, C)`, in float32."""
    outcome = combination.outcome(combination.pool(task, logits))
    targets = outcome.predictions if outcome.probabilities is None else outcome.probabilities
    return targets.astype(np.float32)
