"""A trained member or an ensemble, ready to predict: all members run in one packed pass over one
backbone.

Shape letters: M members, N texts, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loraens.data.files import Row
from loraens.ensemble.combine import combine
from loraens.ensemble.pool import Outcome, Pool
from loraens.ensemble.prove import scaled
from loraens.errors import InputError
from loraens.store import ENSEMBLE, MANIFEST, MemberStore, checksum, find_member, read_ensemble
from loraens.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraens.model.batch import PackedBatch
    from loraens.model.population import MemberModel


@dataclass
class Joint:
    """How the members of an ensemble are joined.

    Args:
        rule: "vote", "logits" or "probs".
        weights: `(M,)`.
        ranks: `(M,)` ranks, and
        places: `(M,)` places by dev score, which break ties of a vote.
        temperature: Divides log probabilities; None for numbers and votes.
    """

    rule: Any
    weights: np.ndarray
    ranks: np.ndarray
    places: np.ndarray
    temperature: float | None

    def outcome(self, pool: Pool) -> Outcome:
        """Predictions, and for classes probabilities: at the ensemble's temperature, or shares of
        the votes.
        """
        found = combine(pool, self.weights, self.rule, self.places)
        if self.temperature is not None:
            return scaled(found, self.temperature)
        if pool.task.kind == "number":
            return found
        return Outcome(found.predictions, vote_shares(pool, self.weights))


def vote_shares(pool: Pool, weights: np.ndarray) -> np.ndarray:
    """Share of the votes that each class has, `(N, K)`."""
    classes = np.arange(len(pool.task.class_names))
    found: np.ndarray = np.tensordot(
        weights / weights.sum(), pool.predictions[..., None] == classes, 1
    )
    return found


def uncertainty(pool: Pool, weights: np.ndarray, outcome: Outcome) -> dict[str, np.ndarray]:
    """What only several members can tell, `(N,)` each.

    For numbers `spread`, the members' weighted standard deviation. For classes, in nats: `entropy`
    of the members' mean probability, `mutual_information`, the part of it that comes from their
    disagreement (Depeweg et al. 2018), and `vote_share`, the share of the members that say what the
    ensemble says.
    """
    shares = weights / weights.sum()
    if pool.task.kind == "number":
        mean = shares @ pool.predictions
        return {"spread": np.sqrt(shares @ (pool.predictions - mean) ** 2)}
    mean = np.tensordot(shares, pool.probabilities, 1)
    total = _entropy(mean)
    own = shares @ _entropy(pool.probabilities)
    agreed = np.take_along_axis(
        vote_shares(pool, weights), outcome.predictions[:, None].astype(np.int64), 1
    )[:, 0]
    return {
        "entropy": total,
        "mutual_information": np.maximum(total - own, 0),
        "vote_share": agreed,
    }


def _entropy(shares: np.ndarray) -> np.ndarray:
    found: np.ndarray = -(shares * np.log(np.maximum(shares, np.finfo(np.float64).tiny))).sum(
        axis=-1
    )
    return found


@dataclass
class Predictor:
    """A trained member or an ensemble.

    Args:
        model: The model with the members' weights, in evaluation mode.
        tasks: Its tasks, by name.
        tokenizer: The backbone's tokenizer.
        max_length: Longest sequence in tokens.
        batch_size: Texts in one batch, those of all members together.
        joint: How the members are joined; None for a single member.
    """

    model: MemberModel
    tasks: dict[str, Task]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int
    joint: Joint | None = None

    @classmethod
    def load(
        cls, path: str | Path, which: str = "best", batch_size: int = 64, device: str | None = None
    ) -> Predictor:
        """Load a member of a run, or an ensemble.

        Args:
            path: A member's directory, a run's that holds one member, or an ensemble's.
            which: "best" or "last" epoch of a member; an ensemble names the epochs of its members.
            batch_size: Texts in one batch.
            device: Where to compute; a GPU if there is one, by default.

        Raises:
            InputError: There is no such member, its files were altered, or its backbone cannot be
                had or is another.
        """
        if (
            not (Path(path) / ENSEMBLE).is_file() or (Path(path) / MANIFEST).is_file()
        ):  # a member, or a soup: both in one
            directory = find_member(Path(path))
            manifest = MemberStore(directory).manifest()
            if which not in manifest["epochs"]:
                raise InputError(
                    f"{directory} has no weights: the member failed ({manifest.get('ended')}),"
                    " choose another"
                )
            predictor = cls.of_members(
                [(directory, manifest, manifest["epochs"][which])], batch_size, device
            )
            predictor.model.fold()
            return predictor
        record = read_ensemble(Path(path))
        members = record["members"]
        found = [_member_of(Path(path), member) for member in members]
        predictor = cls.of_members(found, batch_size, device)
        if len(members) == 1:
            predictor.model.fold()
        weights, ranks, places = (
            np.array([member[key] for member in members]) for key in ("weight", "rank", "place")
        )
        predictor.joint = Joint(record["rule"], weights, ranks, places, record["temperature"])
        predictor.tasks = {record["task"]["name"]: Task.from_dict(record["task"])}
        return predictor

    @classmethod
    def of_members(
        cls,
        members: Sequence[tuple[Path, dict[str, Any], str]],
        batch_size: int = 64,
        device: str | None = None,
    ) -> Predictor:
        """Load members (directory, manifest, epoch) onto one backbone, not joined.

        Raises:
            InputError: They cannot share one, or it cannot be had or is another than theirs.
        """
        import torch

        from loraens.members import Member
        from loraens.model.backbone import fingerprint, load_encoder, load_tokenizer
        from loraens.model.population import MemberModel
        from loraens.model.weights import load_member

        directory, manifest, _ = members[0]
        settings = manifest["settings"]
        for other, found, _ in members[1:]:
            for name in ("backbone_fingerprint", "pooling", "targets", "mode", "max_length"):
                if found["settings"][name] != settings[name]:
                    raise InputError(
                        f"{other} and {directory} differ in {name}: members that predict together"
                        " must share it, so choose an ensemble of one sweep"
                    )
        encoder = load_encoder(settings["backbone"], pooler=settings["pooling"] == "pooler")
        if fingerprint(encoder) != settings["backbone_fingerprint"]:
            raise InputError(
                f"backbone {settings['backbone']!r} has other weights than the one that {directory}"
                " was trained on: use the same version of it"
            )
        tasks = [Task.from_dict(fields) for fields in settings["tasks"]]
        options = {name: settings[name] for name in ("mode", "targets", "pooling")}
        options["adapter"] = settings.get("adapter", "lora")
        model = MemberModel(
            encoder, tasks, [Member(**found["member"]) for _, found, _ in members], **options
        )
        for index, (place, _, epoch) in enumerate(members):
            load_member(model, index, place / epoch)
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        by_name = {task.name: task for task in tasks}
        return cls(
            model, by_name, load_tokenizer(settings["backbone"]), settings["max_length"], batch_size
        )

    def task(self, name: str | None = None) -> Task:
        """The task of that name, or the only one.

        Raises:
            InputError: There is no such task, or there are several and none was named.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            raise InputError(
                f"--task {name or 'is missing'}: give one of the member's tasks"
                f" {', '.join(self.tasks)}"
            )
        return self.tasks[name]

    def logits(self, texts: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
        """Logits `(M, N, C)` of texts, in their order."""
        return self._run(texts, task, self.model, task.num_outputs)

    def features(self, texts: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
        """What the heads read of texts, `(M, N, D)`, in their order."""
        return self._run(texts, task, self.model.pooled, self.model.encoder.config.hidden_size)

    def _run(
        self,
        texts: Sequence[tuple[str, ...]],
        task: Task,
        part: Callable[[PackedBatch], Tensor],
        width: int,
    ) -> np.ndarray:
        """What a part of the model makes of texts, `(M, N, width)`, in packed passes over texts of
        like length.
        """
        import torch

        from loraens.data.tokens import tokenise
        from loraens.model.batch import pack

        members = len(self.model.members)
        found = np.zeros((members, len(texts), width), np.float32)
        if not texts:
            return found
        tokens = tokenise(list(texts), self.tokenizer, self.max_length)
        order = np.argsort(tokens.lengths, kind="stable")
        device = next(self.model.parameters()).device
        size = max(1, self.batch_size // members)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                places = np.tile(rows, (members, 1))
                batch = pack(
                    tokens.ids, tokens.types, tokens.offsets, places, None, task.name, "predict"
                )
                found[:, rows] = part(batch.to(device)).float().cpu().numpy()
        return found

    def columns(self, task: Task) -> list[str]:
        """Names of the columns that predictions have."""
        columns = ["prediction", *(f"probability_{name}" for name in task.class_names)]
        if self.joint is None:
            return columns
        return [
            *columns,
            *(
                ["spread"]
                if task.kind == "number"
                else ["entropy", "mutual_information", "vote_share"]
            ),
        ]

    def rows(self, texts: Sequence[tuple[str, ...]], task: Task) -> list[Row]:
        """One row a text: prediction, for classes probabilities, and for ensembles their
        uncertainty.

        Raises:
            InputError: A logit is not finite.
        """
        logits = self.logits(texts, task)
        if not np.isfinite(logits).all():
            raise InputError(
                "the member predicts values that are not finite: train it again at a lower rate"
            )
        joint = self.joint or Joint(
            "logits", np.ones(1), np.ones(1), np.zeros(1), None if task.kind == "number" else 1.0
        )
        pool = Pool(
            task,
            tuple(map(str, range(len(logits)))),
            joint.ranks,
            logits,
            np.full(len(texts), np.nan),
        )
        outcome = joint.outcome(pool)
        values = outcome.predictions.tolist()
        cells: list[list[Any]] = [
            (
                [round(value, 6) for value in values]
                if task.kind == "number"
                else [task.class_names[value] for value in values]
            )
        ]
        numbers = [] if outcome.probabilities is None else list(outcome.probabilities.T)
        if self.joint is not None:
            numbers += uncertainty(pool, joint.weights, outcome).values()
        cells += [[round(value, 6) for value in column.tolist()] for column in numbers]
        return [dict(zip(self.columns(task), row, strict=True)) for row in zip(*cells, strict=True)]

    def predict(self, texts: Sequence[str | tuple[str, str]], task: str | None = None) -> list[Row]:
        """Rows as `rows` gives them, of texts, or of pairs where the task takes two."""
        return self.rows(
            [(text,) if isinstance(text, str) else text for text in texts], self.task(task)
        )


def _member_of(ensemble: Path, member: dict[str, Any]) -> tuple[Path, dict[str, Any], str]:
    """A member of an ensemble, its files verified."""
    directory = (ensemble / member["directory"]).resolve()
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{directory} is missing: ensemble {ensemble} needs it, restore it or make the ensemble"
            " again"
        )
    if checksum(path) != member["manifest_sha256"]:
        raise InputError(
            f"{path} has changed since ensemble {ensemble} was made: make the ensemble again"
        )
    return directory, MemberStore(directory).manifest(), str(member["epoch"])
