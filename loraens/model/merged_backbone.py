"""A backbone that is given as an adapter of PEFT: merged once with the model that it adapts, and
kept in the cache as a directory of its own.

    <cache>/backbones/peft-<checksum>/
        config.json, model.safetensors, tokenizer...    the merged encoder
        merged.json     "base", the weights' fingerprint of the model that was adapted, and
                        "adapter", SHA-256 of the adapter's weights
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from loraens.errors import InputError
from loraens.files import checksum, new_directory, write_atomically
from loraens.model.backbone import fingerprint, load_encoder, local_directory, quiet_loading
from loraens.model.packaged import HUB_NAMES, MERGED, cache_directory
from loraens.model.peft_adapter import Layer, PeftAdapter
from loraens.model.weights import ADAPTER, ADAPTER_CONFIG

OF_TOKENIZERS = (".json", ".txt", ".model")  # suffixes of files
OF_MODELS = (ADAPTER_CONFIG, MERGED, "config.json", "model.safetensors.index.json")


@lru_cache
def merged_backbone(name: str) -> Path:
    """The directory of an adapter's model, merged; it is made where it is not there yet.

    Args:
        name: Directory of the adapter.

    Raises:
        InputError: The adapter cannot be merged, or the model that it adapts is not on this
            machine.
    """
    try:
        return _merged(Path(name))
    except InputError as error:
        raise InputError(
            f"backbone {name!r} is an adapter of PEFT that cannot be merged: {error}"
        ) from None


def _merged(directory: Path) -> Path:
    adapter = PeftAdapter.read(directory)
    base = {hub: packaged for packaged, hub in HUB_NAMES.items()}.get(adapter.base, adapter.base)
    found = local_directory(base) if base else None
    if found is None:
        raise InputError(
            f"its base model {base or 'is not named'!r} is not on this machine: set"
            f" base_model_name_or_path in its {ADAPTER_CONFIG} to a directory or a cached hub name"
        )
    beside = _beside(directory) or _beside(found)
    weights = (*sorted(found.glob("*.safetensors")), found / "config.json")
    digest = hashlib.sha256()
    for path in (directory / ADAPTER_CONFIG, directory / ADAPTER, *weights, *beside):
        digest.update(f"{path.name} {checksum(path)}\n".encode())
    target = cache_directory() / "backbones" / f"peft-{digest.hexdigest()[:32]}"
    if target.is_dir():
        return target
    try:
        encoder = load_encoder(base, pooler=True, packed=False)
    except InputError:  # there is none
        encoder = load_encoder(base, pooler=False, packed=False)
    inside = adapter.others_in(encoder)
    if inside:
        raise InputError(
            f"it has {inside[0]}, weights of the model itself: merge it by PEFT's"
            " merge_and_unload, and give that directory"
        )
    kept = {
        "base": fingerprint(encoder),
        "adapter": checksum(directory / ADAPTER),
    }
    for layer_name, layer in adapter.on(encoder).items():
        linear = encoder.get_submodule(layer_name)
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.copy_(merged_weight(linear.weight, layer))
    with new_directory(target) as work:
        with quiet_loading():
            encoder.save_pretrained(work)
        for path in beside:
            write_atomically(work / path.name, path.read_bytes())
        write_atomically(work / MERGED, f"{json.dumps(kept, indent=2)}\n".encode())
    return target


def _beside(directory: Path) -> list[Path]:
    """Files of a tokenizer in a directory."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix in OF_TOKENIZERS and path.is_file() and path.name not in OF_MODELS
    )


def merged_weight(weight: Tensor, layer: Layer) -> Tensor:
    """A weight `(O, I)` with a layer's change, in float64: so that it is the same on any machine
    but for a rare last bit.
    """
    merged = weight.double() + layer.scale * layer.up.double() @ layer.down.double()
    if layer.magnitude is not None:
        merged *= (layer.magnitude.double() / merged.norm(dim=1))[:, None]
    return merged
