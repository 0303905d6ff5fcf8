"""The LightningModule: steps, losses, optimiser, scores.

Shape letters: M members, B examples of a member, N examples of a split, C outputs, D width of the
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import psutil
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import get_scheduler

from loraens.data.modules import TextData
from loraens.errors import InputError
from loraens.members import OUT_OF_FOLD, Member, by_kind, indices_of_configurations
from loraens.model.adapters import ADAPTERS
from loraens.model.backbone import fingerprint, load_encoder, max_positions
from loraens.model.batch import PackedBatch
from loraens.model.packaged import merged_of
from loraens.model.population import MemberModel, Mode, Pooling
from loraens.records import OLDER_SETTINGS, Scores, Settings
from loraens.tasks import Task
from loraens.train.evaluation import Evaluation, overall_score, undefined_scores
from loraens.train.failures import Failures
from loraens.train.features import SplitName, frozen_features
from loraens.train.optimizer import MemberAdamW, gradient_norms, scale_gradients

Schedule = Literal["constant", "linear", "cosine"]


class Population(LightningModule):
    """Members trained side by side on one backbone; the loss is the sum of the members' mean
    losses.

    A member whose loss or gradient becomes NaN or infinite stays at the weights that it had before
    that step, and disturbs no other.

    Args:
        members: The population; those of one kind of adapters and targets.
        tasks: What is predicted; linked from the data.
        backbone: Hub name or directory of an encoder or decoder of texts, or the packaged "minilm"
            or "mpnet".
        mode: "lora" trains adapters and heads, "frozen" heads alone on features computed once,
            "full" the whole encoder.
        targets: Names of the encoder's linear layers that get an adapter, where the members give
            none of their own; query, key and value are attention's projections, whatever they are
            called, attention is all three, and all-linear is every linear layer; top-N among them
            restricts them to the N highest layers, below which no backward is computed.
        pooling: What the head reads: "pooler" (the backbone's own), "cls" (the first token), "mean"
            or "last" (the last token, of decoders).
        init_std: Standard deviation of A at the start; B is zero.
        encoder_dropout: Whether the backbone's own dropout is on while training.
        schedule: Learning rate after the warm-up: constant, or linear or cosine decay to zero.
        warmup: Share of the steps in which the learning rate rises from zero, in [0, 1).
        adapter: Adapter kind, where the members give none of their own: "lora", "rslora", "dora",
            or one that another package registered.

    Raises:
        InputError: An option is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        members: Sequence[Member],
        tasks: Sequence[Task],
        backbone: str = "bert-base-uncased",
        mode: Mode = "lora",
        targets: Sequence[str] = ("query", "value"),
        pooling: Pooling = "pooler",
        init_std: float = 0.02,
        encoder_dropout: bool = True,
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        adapter: str = "lora",
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError(
                f"warmup {warmup:g} is not a share of the steps: a number from 0 to below 1"
                " is expected",
                option="model.warmup",
            )
        if mode == "lora" and any(member.rank < 1 for member in members):
            raise InputError("rank must be at least 1 in mode lora", option="model.rank")
        if len(by_kind(members)) > 1:
            raise InputError("members of several adapter kinds or targets are no one population")
        own, own_targets = members[0].adapter, members[0].targets
        adapter, targets = own or adapter, own_targets or targets
        if adapter not in ADAPTERS:
            raise InputError(
                f"adapter {adapter!r} is none of {', '.join(ADAPTERS)}",
                option="model.adapter" if own is None else "grid.adapter",
            )
        plus = [member.name for member in members if member.loraplus_lr_ratio != 1]
        if plus and (mode != "lora" or not ADAPTERS[adapter].loraplus):
            what = f"adapters of kind {adapter} have" if mode == "lora" else f"mode {mode} has"
            raise InputError(
                f"loraplus_lr_ratio of {plus[0]}: {what} no B with a learning rate of its own:"
                " leave it out",
                option="model.loraplus_lr_ratio",
            )
        if init_std <= 0:
            raise InputError(f"init_std {init_std:g} must be positive", option="model.init_std")
        self.strict_loading = False  # checkpoints have no frozen weights
        self.members = tuple(members)
        self.units = indices_of_configurations(members)
        self.tasks = tuple(tasks)
        self.options: dict[str, Any] = {
            "mode": mode,
            "targets": list(targets),
            "pooling": pooling,
            "init_std": init_std,
            "encoder_dropout": encoder_dropout,
            "adapter": adapter,
        }
        self.backbone = backbone
        self.schedule = schedule
        self.warmup = warmup
        self.model: MemberModel
        self.backbone_fingerprint = ""
        self.evaluation = Evaluation()
        self.scores: list[Scores] = []  # of each member, or its configuration, last evaluation
        self.failures = Failures(len(members))
        self.train_losses = torch.zeros(len(members))  # (M,) sums since the last validation
        self._steps = 0  # that they are sums of
        self._fresh = True
        self._features: dict[SplitName, Tensor] = {}

    @property
    def data(self) -> TextData:
        """The trainer's data module."""
        data: TextData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def setup(self, stage: str) -> None:
        """Refuse to train members for other numbers of epochs than their own; Lightning calls it.

        Raises:
            InputError: One has another number than the trainer.
        """
        for member in self.members:
            if stage == "fit" and member.epochs not in (None, self.trainer.max_epochs):
                raise InputError(
                    f"max_epochs {self.trainer.max_epochs}: member {member.name} is to be trained"
                    f" for {member.epochs} epochs, so give that number, or train it in a sweep",
                    option="trainer.max_epochs",
                )

    def configure_model(self) -> None:
        """Build the model, unless that was done before; Lightning calls it.

        Raises:
            InputError: The precision scales the losses of all members by one factor.
        """
        if str(self.trainer.precision) == "16-mixed":
            raise InputError(
                "precision 16-mixed: one loss scale would tie the members together, use bf16-mixed",
                option="trainer.precision",
            )
        self.build(self.data.max_length)

    def build(self, max_length: int) -> None:
        """Load the backbone and build the members on it, once.

        Raises:
            InputError: The backbone cannot be had, or does not fit the options or the longest
                sequence.
        """
        if hasattr(self, "model"):
            return
        with torch.device("cpu"):  # Lightning's default here is the GPU
            encoder = load_encoder(self.backbone, pooler=self.options["pooling"] == "pooler")
        self.backbone_fingerprint = fingerprint(encoder)
        if max_length > max_positions(encoder):
            raise InputError(
                f"max_length {max_length} is more than backbone {self.backbone!r} can read: "
                f"at most {max_positions(encoder)} is expected",
                option="data.max_length",
            )
        self._check_memory(encoder.config)
        try:
            with torch.device("cpu"):  # whose random numbers are the same everywhere
                self.model = MemberModel(encoder, self.tasks, self.members, **self.options)
        except InputError:
            raise
        except ValueError as error:
            section = "model" if self.members[0].targets is None else "grid"
            raise InputError(f"targets: {error}", option=f"{section}.targets") from None

    def _check_memory(self, config: Any) -> None:
        """Refuse a rank whose adapters can't be in memory: 16 bytes a number, of the weight, its
        gradient and two moments.

        Raises:
            InputError: It says what the largest takes.
        """
        rank = max(member.rank for member in self.members)
        layers = config.num_hidden_layers * len(self.options["targets"])
        needed = 16 * rank * 2 * config.hidden_size * layers
        if needed > (there := psutil.virtual_memory().total):
            raise InputError(
                f"rank {rank:,} takes {needed / 2**30:,.0f} GiB of memory a member, and this"
                f" machine has {there / 2**30:,.0f}: give a lower one",
                option="model.rank",
            )

    def configure_optimizers(self) -> Any:
        """AdamW with the members' rates and decays, and the schedule stepped every batch."""
        optimizer = MemberAdamW(
            params=(p for p in self.parameters() if p.requires_grad),
            rates=[m.lr for m in self.members],
            decays=[m.weight_decay for m in self.members],
            ratios=[m.loraplus_lr_ratio for m in self.members],
            faster=[
                layer.get_parameter(name)
                for layer in self.model.adapters.values()
                for name in layer.loraplus
            ],
        )
        steps = self._scheduled_steps()
        if steps is None:
            return optimizer
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = get_scheduler(
            name, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _scheduled_steps(self) -> int | None:
        """Steps that the learning rate is scheduled over; None where it is constant from the start.

        Raises:
            InputError: The run has no end.
        """
        if self.schedule == "constant" and self.warmup == 0:
            return None
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise InputError(
                "schedule and warmup need an end: give max_epochs or max_steps",
                option="model.schedule",
            )
        return int(steps)

    def settings(self) -> Settings:
        """All that a member's weights depend on beside its own settings."""
        fixed = self.fixed_settings(self.data, self.trainer)
        return replace(fixed, scheduled_steps=self._scheduled_steps())

    def fixed_settings(self, data: TextData, trainer: Trainer) -> Settings:
        """The settings as far as they are known before training; the model must be built."""
        return Settings(
            **self.options,
            backbone=self.backbone,
            backbone_fingerprint=self.backbone_fingerprint,
            schedule=self.schedule,
            warmup=self.warmup,
            tasks=self.tasks,
            batch_size=data.batch_size,
            max_length=data.max_length,
            temperature=data.temperature,
            precision=str(trainer.precision),
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=str(trainer.gradient_clip_algorithm or "norm"),
            limit_train_batches=trainer.limit_train_batches,
            data=data.fingerprints,
            folds=data.folds,
            long=data.long,
            group_by_length=data.group_by_length,
            merged=merged_of(self.backbone),
        )

    @property
    def mean_losses(self) -> list[float]:
        """Mean training loss of each member since the last validation; a member that failed counts
        its losses till then.
        """
        losses: list[float] = (self.train_losses / max(1, self._steps)).tolist()
        return losses

    # Training

    def on_fit_start(self) -> None:
        """Compute the features that the mode `frozen` trains on; put everything else in training
        mode.
        """
        if self.options["mode"] == "frozen":
            self._features = frozen_features(
                model=self.model,
                splits=self.data.splits,
                records=self.data.eval_records,
                trainer=self.trainer,
                dtype=self.dtype,  # type: ignore[arg-type]
            )
        self.model.train()

    def _logits(self, batch: PackedBatch) -> Tensor:
        features = self._features.get((batch.task, batch.split))
        if features is None:
            logits: Tensor = self.model(batch)
            return logits
        return self.model.head(features[batch.indices], batch.task)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Sum of the losses of the active members.

        Raises:
            PopulationError: There are none.
        """
        self.model.seed_dropout(self.current_epoch, batch_idx)
        assert batch.labels is not None
        logits = self._logits(batch)
        task = self._task(batch.task)
        losses = task.member_losses(logits, batch.labels, batch.weights, batch.soft)
        self.failures.note(losses.isfinite(), self.global_step, losses)
        losses = torch.where(self.failures.active, losses, 0.0)
        if self._fresh:
            self.train_losses = torch.zeros_like(losses, requires_grad=False)
            self._steps = 0
            self._fresh = False
        self.train_losses += losses.detach()
        self._steps += 1
        self.log(
            "train/loss",
            losses.sum() / self.failures.active.sum(),
            prog_bar=True,
            batch_size=batch.indices.numel(),
        )
        if len(self.tasks) > 1:
            self.log(f"train/{batch.task}/loss", losses.mean(), batch_size=batch.indices.numel())
        return losses.sum()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradients by their own norm or by value, and stop those of members
        that failed.
        """
        parameters = optimizer.param_groups[0]["params"]
        norms = gradient_norms(parameters, len(self.members))
        self.failures.note(norms.isfinite(), self.global_step)
        active = self.failures.active
        factor = torch.ones_like(norms)
        if gradient_clip_val and str(gradient_clip_algorithm or "norm").endswith("norm"):
            factor = (gradient_clip_val / (norms + 1e-6)).clamp(max=1)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        inner = getattr(optimizer, "optimizer", optimizer)
        inner.active = active
        if inner.fused:
            inner.factor = factor
        elif gradient_clip_val or self.device.type != "cpu" or not bool(active.all()):
            scale_gradients(parameters, factor, active)

    def _task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)

    # Evaluation

    def validation_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the logits of one batch."""
        self.evaluation.add(batch, self._logits(batch))

    def test_step(self, batch: PackedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the logits of one batch."""
        self.evaluation.add(batch, self._logits(batch))

    def on_validation_epoch_end(self) -> None:
        """Score dev, or the parts where there are folds, and keep the logits of all splits for the
        callbacks.
        """
        self._score(self.data.scored)
        self._fresh = True

    def on_test_epoch_end(self) -> None:
        """Score test."""
        self._score("test")

    def _score(self, split: str) -> None:
        """Score every member on a split, and log the means of the active ones.

        The members of a configuration's folds have one score out of fold, that of all their logits
        together; it is not defined once one of them has failed.
        """
        finite = self.evaluation.finish()
        self.failures.note(finite.to(self.device), self.global_step, look=True)
        labels = [self._labels(task, split) for task in self.tasks]
        self.scores = [undefined_scores(self.tasks)] * len(self.members)
        if any((task.name, split) not in self.evaluation.logits for task in self.tasks):
            return  # members that are trained on all labelled texts have none to be scored on
        units = self.units if split == OUT_OF_FOLD else [[m] for m in range(len(self.members))]
        active = []
        for unit in units:
            if any(self.failures.of(member) is not None for member in unit):
                continue
            scores = self.evaluation.scores(self.tasks, labels, split, unit)
            for member in unit:
                self.scores[member] = scores
            active += unit
        if not active:
            return
        for task in self.tasks:
            of_task = [self.scores[member][task.name] for member in active]
            for metric in of_task[0]:
                mean = float(np.mean([scores[metric] for scores in of_task]))
                self.log(f"{split}/{task.name}/{metric}", mean, prog_bar=metric == task.metric)
        overall = [self.overall(member) for member in active]
        if overall[0] is not None:
            self.log(f"{split}/overall", float(np.mean(overall)), prog_bar=True)  # type: ignore[arg-type]

    def _labels(self, task: Task, split: str) -> np.ndarray:
        labels = self.data.splits[task.name, split].split.labels
        assert labels is not None
        return labels

    def overall(self, member: int) -> float | None:
        """The paper's overall score of a member over the three tasks, if all are there."""
        return overall_score(self.tasks, self.scores[member])

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out, and note the settings."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        trained |= {"failures.step", "failures.loss"}
        checkpoint["state_dict"] = {
            k: v for k, v in checkpoint["state_dict"].items() if k in trained
        }
        checkpoint["loraens"] = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What must be the same when training is resumed from a checkpoint."""
        members = [member.to_json() for member in self.members]
        return {"members": members, **self.settings().to_json()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings or data.

        Raises:
            InputError: It names the first difference.
        """
        saved = checkpoint.get("loraens")
        if saved is None:
            raise InputError(
                "ckpt_path is not a checkpoint of loraens: give the last.ckpt of a run",
                option="ckpt_path",
            )
        saved = {**OLDER_SETTINGS, **saved}
        for name, value in self._identity().items():
            # of a backbone its weights alone, as it may have been moved
            if name != "backbone" and saved.get(name) != value:
                raise InputError(
                    f"ckpt_path was written with {name} {saved.get(name)!r}, now it is {value!r}:"
                    " use the run's config.yaml and data, or start a new run without --ckpt_path",
                    option="ckpt_path",
                )
