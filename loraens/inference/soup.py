"""Model soups: the mean of the members' weight changes and heads, one model at the cost of one
(Wortsman et al. 2022).

Shape letters: M members, N examples, C outputs, R rank of the merged adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from loraens.ensemble.read import PoolMembers
from loraens.errors import InputError
from loraens.inference.loading import LoadedMember
from loraens.inference.predictor import Predictor
from loraens.inference.texts import read_texts
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.device import HALF
from loraens.model.lora import LoRALinear
from loraens.model.population import MemberModel, Mode
from loraens.model.weights import member_files
from loraens.records import Manifest
from loraens.store import Logits, MemberStore, logits_to_bytes, path_from_run

EPOCH = "epoch-001"


class Soup:
    """Models merged of the members of a pool.

    Args:
        members: The members.
        advance: Called after each model that was made and run.

    Raises:
        InputError: Members have no adapters, are of folds or cannot share a backbone, or the texts
            cannot be had.
    """

    def __init__(self, members: PoolMembers, advance: Callable[[], Any] = lambda: None) -> None:
        self.members = members
        self.advance = advance
        self.settings = members.manifests[0].settings
        self.task = members.dev.task
        if self.settings.mode != "lora":
            raise InputError(
                f"method soup merges LoRA members, and {members.directories[0]} was trained with"
                f" mode {self.settings.mode}",
                option="method",
            )
        if self.settings.folds is not None:
            raise InputError(
                "method soup merges members, and a model merged of the members of all folds has"
                " seen every example, so it has no out-of-fold score: choose another method",
                option="method",
            )
        for path, manifest in zip(members.directories, members.manifests, strict=True):
            for name in ("adapter", "targets"):
                mine, theirs = (getattr(of, name) for of in (self.settings, manifest.settings))
                if mine != theirs:
                    raise InputError(
                        "method soup merges members of one adapter kind and targets, and"
                        f" {members.directories[0]} and {path} differ in {name}: choose another"
                        " method, or name members that do not (--runs)",
                        option="method",
                    )
        self.texts = read_texts(members)
        stored = zip(members.directories, members.manifests, strict=True)
        self.parts = Predictor.of_members(
            [
                LoadedMember(path, manifest, manifest.epochs[members.epoch])
                for path, manifest in stored
            ]
        )
        # in bfloat16 the members' changes would be rounded away in the merged weights
        precision = self.settings.precision
        self.precision = "32-true" if precision == HALF else precision
        merged = self._model(Member(0, 1.0), "frozen")
        self.merged = replace(self.parts, model=merged, precision=self.precision)
        self._logits: dict[tuple[str, bytes], np.ndarray] = {}

    def _model(self, member: Member, mode: Mode) -> MemberModel:
        settings = self.settings
        model = MemberModel(
            load_encoder(settings.backbone, pooler=settings.pooling == "pooler"),
            [self.task],
            [member],
            mode=mode,
            targets=settings.targets,
            pooling=settings.pooling,  # type: ignore[arg-type]
        )
        return model.eval().to(next(self.parts.model.parameters()).device)

    def pools(self) -> PoolMembers:
        """The members, with pools that run the merged model where the rule asks for it."""
        dev = replace(self.members.dev, merged=partial(self.logits, "dev"))
        test = self.members.test
        if test is not None and "test" in self.texts:
            test = replace(test, merged=partial(self.logits, "test"))
        return replace(self.members, dev=dev, test=test)

    def logits(self, split: str, weights: np.ndarray) -> np.ndarray:
        """Logits `(N, C)` of the model merged with the weights `(M,)`, on a split."""
        key = split, weights.tobytes()
        if key not in self._logits:
            self._merge(weights)
            self._logits[key] = self.merged.logits(self.texts[split].texts, self.task)[0]
            self.advance()
        return self._logits[key]

    @torch.no_grad()
    def _merge(self, weights: np.ndarray) -> None:
        """Give the merged model its weights."""
        model = self.merged.model
        for name, layer in self.parts.model.adapters.items():
            up, down = layer.combined(weights.tolist())
            linear = model.encoder.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(torch.addmm(layer.base.weight, up, down))
        self._mix_heads(model, weights)

    def _mix_heads(self, model: MemberModel, weights: np.ndarray) -> None:
        head = model.heads[self.task.name]
        parts = self.parts.model.heads[self.task.name]
        for mine, theirs in ((head.weight, parts.weight), (head.bias, parts.bias)):
            mine.copy_(torch.tensordot(theirs.new_tensor(weights), theirs, 1)[None])

    @torch.no_grad()
    def write(self, directory: Path, weights: np.ndarray, dev: Mapping[str, float]) -> None:
        """Store the merged model as a member: an adapter of rank R in PEFT's format, its heads, and
        its logits.

        Args:
            directory: The ensemble's directory.
            weights: `(M,)`.
            dev: Its scores on dev.
        """
        factors = {
            name: layer.combined(weights.tolist())
            for name, layer in self.parts.model.adapters.items()
        }
        rank = max(up.shape[1] for up, _ in factors.values())
        best = self.members.manifests[int(self.members.dev.order[0])].member
        member = replace(best, rank=rank, scale=1.0, adapter=None)
        model = self._model(member, "lora")
        for name, (up, down) in factors.items():
            layer = model.adapters[name]
            assert isinstance(layer, LoRALinear)
            layer.set_factors(0, up, down)
        self._mix_heads(model, weights)
        files = member_files(model, 0, self.settings.backbone, self.settings.targets)
        for split, pool in (("dev", self.members.dev), ("test", self.members.test)):
            if pool is not None:
                labels = pool.labels if pool.labelled else None
                logits = Logits(self.logits(split, weights), self.texts[split].ids, labels)
                files[f"{self.task.name}-{split}.npz"] = logits_to_bytes(logits)
        manifest = Manifest(
            name=directory.name,
            status="finished",
            member=member,
            settings=replace(
                self.settings, tasks=(self.task,), adapter="lora", precision=self.precision
            ),
            epochs={"best": EPOCH, "last": EPOCH},
            dev={"best": {self.task.name: dict(dev)}},
            backbone_path=path_from_run(self.settings.backbone, directory.parent),
        )
        MemberStore(directory).write({EPOCH: files}, manifest)
