"""A member's weights on disk, in PEFT's format, and back.

A member that pools over BERT's or ALBERT's own pooler and has one head is a sequence classifier as
`peft` knows it, head included. Any other is saved as a feature extractor (same hidden states in
`peft`) with its heads beside it. Frozen weights are never written; a fully tuned encoder is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from loraens.errors import InputError
from loraens.model.backbone import hub_name
from loraens.model.population import MemberModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
HEADS = "heads.safetensors"
ENCODER = "encoder.safetensors"
PREFIX = "base_model.model."


def _classifier_prefix(model: MemberModel) -> str | None:
    """PEFT's prefix of a layer's name, if the model is a sequence classifier to PEFT; else None."""
    if model.pooling != "pooler" or len(model.heads) != 1:
        return None
    return model.architecture.classifier_prefix


def _adapter_tensors(model: MemberModel, index: int) -> dict[str, Tensor]:
    """The adapters of one member, under PEFT's keys."""
    prefix = PREFIX + (_classifier_prefix(model) or "")
    tensors = {}
    for name, layer in model.adapters.items():
        for end, tensor in layer.member_tensors(index).items():
            tensors[f"{prefix}{name}.{end}"] = tensor
    return tensors


def _target_modules(model: MemberModel, targets: Iterable[str]) -> list[str]:
    """What PEFT takes as the adapted layers: the projections' names, or, of others, which layers
    outside of the encoder may have too, full names.
    """
    names = model.architecture.linear_names(list(targets))
    return names if {*names} <= {*model.architecture.projections} else list(model.adapters)


def _head_tensors(model: MemberModel, index: int) -> dict[str, Tensor]:
    """Heads of one member: `<task>.weight` (C, D) and `<task>.bias` (C,)."""
    tensors = {}
    for task, head in model.heads.items():
        tensors[f"{task}.weight"] = head.weight[index]
        tensors[f"{task}.bias"] = head.bias[index]
    return tensors


def _serialise(tensors: dict[str, Tensor]) -> bytes:
    return save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"format": "pt"},
    )


def member_files(
    model: MemberModel, index: int, backbone: str, targets: Iterable[str]
) -> dict[str, bytes]:
    """File name -> content of one member of a model."""
    heads = _head_tensors(model, index)
    if model.mode == "full":
        return {ENCODER: _serialise(model.encoder.state_dict()), HEADS: _serialise(heads)}
    if model.mode == "frozen":
        return {HEADS: _serialise(heads)}
    classifier = _classifier_prefix(model) is not None
    config = {
        **model.adapter_kind.peft_config(model.members[index]),
        "task_type": "SEQ_CLS" if classifier else "FEATURE_EXTRACTION",
        "base_model_name_or_path": hub_name(backbone),
        "target_modules": _target_modules(model, targets),
        "modules_to_save": ["classifier"] if classifier else None,
        "inference_mode": True,
    }
    tensors = _adapter_tensors(model, index)
    files = {ADAPTER_CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    if classifier:
        (task,) = model.heads
        for part in ("weight", "bias"):
            tensors[f"{PREFIX}classifier.{part}"] = heads[f"{task}.{part}"]
    else:
        files[HEADS] = _serialise(heads)
    return {**files, ADAPTER: _serialise(tensors)}


def load_member(model: MemberModel, index: int, directory: Path) -> None:
    """Load a saved member's weights into member `index` of a model that was built for it.

    Raises:
        InputError: A weight is missing, unknown or of another shape.
    """
    targets = _head_tensors(model, index)  # views: copying into them sets the parameters
    saved: dict[str, Tensor] = {}
    for name in (ADAPTER, HEADS):
        if (directory / name).is_file():
            saved.update(read_tensors(directory / name))
    if model.mode == "lora":
        targets.update(_adapter_tensors(model, index))
        if _classifier_prefix(model) is not None:
            (task,) = model.heads
            for part in ("weight", "bias"):
                targets[f"{PREFIX}classifier.{part}"] = targets.pop(f"{task}.{part}")
    if model.mode == "full":
        _load_encoder(model.encoder, directory / ENCODER)
    different = set(targets) ^ set(saved)
    if different:
        raise InputError(
            f"{directory} does not fit its manifest: weight {sorted(different)[0]!r} is missing or"
            " unknown"
        )
    for key, target in targets.items():
        if target.shape != saved[key].shape:
            raise InputError(
                f"{directory}: weight {key!r} has shape {tuple(saved[key].shape)}, not"
                f" {tuple(target.shape)}"
            )
        target.data.copy_(saved[key])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        InputError: It is no whole file of safetensors.
    """
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} has no weights ({error}): restore it") from None


def _load_encoder(encoder: nn.Module, path: Path) -> None:
    try:
        encoder.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit the backbone: {str(error).splitlines()[-1].strip()}"
        ) from None
