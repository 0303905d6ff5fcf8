"""Model soups: the mean of the members' weight changes and heads, one model at the cost of one
(Wortsman et al. 2022).

Shape letters: M members, N examples, C outputs, R rank of the merged adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from loraens.ensemble.read import Candidates
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.inference.texts import read_texts
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.lora import LoRALinear
from loraens.model.population import MemberModel
from loraens.model.weights import member_files
from loraens.store import Logits, MemberStore, logits_to_bytes
from loraens.tasks import Task

EPOCH = "epoch-001"


class Soup:
    """Models merged of the members of a pool.

    Args:
        found: The members.
        which: "best" or "last" epoch of each.
        advance: Is called after each model that was made and run.

    Raises:
        InputError: Members have no adapters or cannot share a backbone, or the texts cannot be had.
    """

    def __init__(
        self, found: Candidates, which: str, advance: Callable[[], Any] = lambda: None
    ) -> None:
        members = [
            (path, manifest, manifest["epochs"][which])
            for path, manifest in zip(found.directories, found.manifests, strict=True)
        ]
        self.found = found
        self.advance = advance
        self.settings = found.manifests[0]["settings"]
        if self.settings["mode"] != "lora":
            raise InputError(
                f"--method soup merges LoRA members, and {members[0][0]} was trained with mode"
                f" {self.settings['mode']}"
            )
        self.texts = read_texts(found)
        self.parts = Predictor.of_members(members)
        self.merged = replace(self.parts, model=self._model(Member(0, 1.0), "frozen"))
        self._known: dict[tuple[str, bytes], np.ndarray] = {}

    def _model(self, member: Member, mode: Any) -> MemberModel:
        settings = self.settings
        device = next(self.parts.model.parameters()).device
        encoder = load_encoder(settings["backbone"], pooler=settings["pooling"] == "pooler")
        options = {name: settings[name] for name in ("targets", "pooling")}
        return (
            MemberModel(encoder, [self.found.dev.task], [member], mode, **options).eval().to(device)
        )

    @property
    def task(self) -> Task:
        """The task."""
        return self.found.dev.task

    def of(self, split: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """A function from the weights `(M,)` of the members to the merged model's logits `(N, C)`;
        None without the split.
        """
        return (lambda weights: self.logits(split, weights)) if split in self.texts else None

    def logits(self, split: str, weights: np.ndarray) -> np.ndarray:
        """Logits `(N, C)` of the model merged with the weights `(M,)`, on a split."""
        key = split, weights.tobytes()
        if key not in self._known:
            self._pour(weights)
            self._known[key] = self.merged.logits(self.texts[split][1], self.task)[0]
            self.advance()
        return self._known[key]

    @torch.no_grad()
    def _pour(self, weights: np.ndarray) -> None:
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
        """
        joined = {
            name: layer.combined(weights.tolist())
            for name, layer in self.parts.model.adapters.items()
        }
        rank = max(up.shape[1] for up, _ in joined.values())
        best = self.found.manifests[int(self.found.dev.order[0])]["member"]
        member = replace(Member(**best), rank=rank, scale=1.0)
        model = self._model(member, "lora")
        for name, (up, down) in joined.items():
            layer = model.adapters[name]
            assert isinstance(layer, LoRALinear)
            layer.set_factors(0, up, down)
        self._mix_heads(model, weights)
        files = member_files(model, 0, self.settings["backbone"], self.settings["targets"])
        for split, pool in (("dev", self.found.dev), ("test", self.found.test)):
            if pool is not None:
                labels = None if np.isnan(pool.labels[0]) else pool.labels
                logits = Logits(self.logits(split, weights), self.texts[split][0], labels)
                files[f"{self.task.name}-{split}.npz"] = logits_to_bytes(logits)
        manifest = {
            "name": directory.name,
            "status": "finished",
            "member": member.to_dict(),
            "settings": {**self.settings, "tasks": [self.task.to_dict()]},
            "epochs": {"best": EPOCH, "last": EPOCH},
            "dev": {"best": {self.task.name: dict(dev)}},
        }
        MemberStore(directory).write({EPOCH: files}, manifest)
