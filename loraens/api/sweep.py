"""A sweep in Python: a grid of members trained at once on one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraens.data.modules import TextData
from loraens.members import Grid, Member
from loraens.model.population import Pooling
from loraens.records import Manifest
from loraens.train.config import SweepConfig
from loraens.train.coordinator import Coordinator
from loraens.train.module import Schedule
from loraens.train.options import SweepOptions
from loraens.train.plan import Plan

if TYPE_CHECKING:
    import pandas


class Sweep:
    """Trains every member of a grid, in packs that share each forward and backward pass.

    A sweep keeps all it has done in its directory. A new `Sweep` of the same arguments there
    resumes where the last one was, whatever ended it; the commands `loraens ensemble`, `report`,
    `compare` and `predict` take the directory too.

    Args:
        data: The texts: `TextFiles`, one of the paper's tasks, or a data module of your own.
        grid: Axes that are crossed, or the members themselves.
        directory: The sweep's directory; `checkpoints/<task>-sweep` by default.
        backbone: Hub name or directory of the encoder, or the packaged "minilm" or "mpnet".
        epochs: Epochs of a member that gives none of its own and is not stopped.
        rank: Rank of members whose grid gives none; likewise
        scale: the scale c = alpha / r,
        seed: the seed,
        lr: the learning rate,
        weight_decay: the weight decay,
        head_dropout: the dropout before the head, and
        loraplus_lr_ratio: the learning rate of B by that of A (LoRA+).
        pooling: What the head reads: "pooler" (the backbone's own), "cls", "mean" or
            "last" (of decoders).
        targets: Names of the encoder's linear layers that get an adapter; query, key and value are
            attention's projections, whatever they are called, attention is all three, and
            all-linear is every linear layer; top-N among them restricts them to the N highest
            layers.
        adapter: Adapter kind: "lora", "rslora", "dora", or one that was registered in
            `loraens.ADAPTERS`.
        schedule: Learning rate after the warm-up.
        warmup: Share of the steps in which the learning rate rises from zero.
        options: How members are trained together: pack size, early stopping, halving, engine.
        trainer: Further options of Lightning's `Trainer`, as plain values. Nothing is logged
            unless a `logger` is among them.

    Raises:
        InputError: An argument is out of range, or the directory is of another sweep.
    """

    def __init__(
        self,
        data: TextData,
        grid: Grid | Sequence[Member],
        directory: str | Path | None = None,
        *,
        backbone: str = "bert-base-uncased",
        epochs: int = 10,
        rank: int = 8,
        scale: float = 1.0,
        seed: int = 0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        head_dropout: float = 0.3,
        loraplus_lr_ratio: float = 1.0,
        pooling: Pooling = "pooler",
        targets: Sequence[str] = ("query", "value"),
        adapter: str = "lora",
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        options: SweepOptions | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> None:
        if directory is None:
            tasks = "-".join(task.name for task in data.tasks)
            directory = Path("checkpoints") / f"{tasks}-sweep"
        base = Member(
            rank=rank,
            scale=scale,
            seed=seed,
            lr=lr,
            weight_decay=weight_decay,
            head_dropout=head_dropout,
            loraplus_lr_ratio=loraplus_lr_ratio,
        )
        config = SweepConfig.from_objects(
            data,
            grid,
            directory,
            backbone=backbone,
            epochs=epochs,
            base=base,
            options=options or SweepOptions(),
            model={
                "pooling": pooling,
                "targets": list(targets),
                "adapter": adapter,
                "schedule": schedule,
                "warmup": warmup,
            },
            trainer=trainer,
        )
        self.data = data
        self._coordinator = Coordinator(config, data)
        self._manifests: dict[str, Manifest] = {}

    @property
    def directory(self) -> Path:
        """The sweep's directory."""
        return self._coordinator.directory

    @property
    def members(self) -> tuple[Member, ...]:
        """The grid's members; with folds K of each configuration."""
        return self._coordinator.config.members

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Settings and scores of each member, by name, once it is fitted."""
        return dict(self._manifests)

    def plan(self) -> Plan:
        """What is left to do, and what it costs on this machine, measured."""
        return self._coordinator.plan()

    def fit(self) -> Sweep:
        """Train what is missing; returns the sweep itself."""
        self._manifests = self._coordinator.run()
        return self

    def to_frame(self) -> pandas.DataFrame:
        """One row a member: its settings, and its scores on dev after its best epoch; with folds
        the out-of-fold scores of its configuration.
        """
        import pandas

        rows = []
        for name, manifest in self._manifests.items():
            row: dict[str, Any] = {"member": name, **manifest.member.to_json()}
            row["status"] = manifest.status
            for task, scores in manifest.dev.get("best", {}).items():
                row |= {f"{task} {metric}": score for metric, score in scores.items()}
            rows.append(row)
        return pandas.DataFrame(rows)
