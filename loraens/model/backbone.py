"""Pre-trained encoders: by hub name, from a directory, or of a package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from loraens.errors import InputError
from loraens.model.architectures import ARCHITECTURES, architecture_of
from loraens.model.packaged import HUB_NAMES, is_adapter, locate
from loraens.model.packed import ATTENTION, register_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    return locate(name) if is_adapter(name) else HUB_NAMES.get(name, name)


def unusable(name: str, error: Exception) -> InputError:
    """The error of a backbone that could not be loaded."""
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return InputError(
        f"backbone {name!r} could not be loaded ({reason}): give a hub name that is cached or can"
        " be downloaded, a directory with config.json, model.safetensors and a tokenizer, or"
        f" one of {', '.join(HUB_NAMES)}"
    )


def load_encoder(name: str, pooler: bool, packed: bool = True) -> PreTrainedModel:
    """The encoder without a head, in evaluation mode and float32; its attention made padding-free
    where its type allows it, else as `transformers` has it, for the padded path.

    Args:
        name: Hub name, directory, or that of a packaged backbone.
        pooler: Whether its pooler is needed.
        packed: Whether it may be made padding-free.

    Raises:
        InputError: It cannot be loaded, is no encoder or decoder of texts alone, or the pooler is
            needed and the pre-trained weights have none.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel

    register_attention()
    location = locate(name)
    safe = {"trust_remote_code": False}  # as the default asks, and a program cannot answer
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(location, **safe)
            _check_kind(name, config)
            record = ARCHITECTURES.get(config.model_type)
            packed = packed and record is not None and record.packed
            packed = packed and not getattr(config, "is_decoder", False)
            encoder: PreTrainedModel
            encoder, info = AutoModel.from_pretrained(
                location,
                dtype=torch.float32,
                attn_implementation=ATTENTION if packed else None,
                use_safetensors=True,
                output_loading_info=True,
                **safe,
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise unusable(name, error) from None
    architecture = architecture_of(encoder)
    missing = [key for key in info["missing_keys"] if not architecture.is_in_pooler(key)]
    if missing:
        raise InputError(
            f"backbone {name!r} lacks weights ({missing[0]} and {len(missing) - 1} more): its files"
            " are incomplete"
        )
    if packed and architecture.make_packed is not None:
        architecture.make_packed(encoder)
    if not pooler:
        if architecture.pooler is not None:
            setattr(encoder, architecture.pooler, None)
    elif pooler_of(encoder) is None or info["missing_keys"]:
        raise InputError(
            f"backbone {name!r} has no pre-trained pooler: choose pooling mean, cls or last"
        )
    return encoder


def _check_kind(name: str, config: Any) -> None:
    """Refuse what is neither an encoder nor a decoder of texts.

    Raises:
        InputError: It says what it is.
    """
    of = f"backbone {name!r} is of type {config.model_type}"
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{of}, an encoder with a decoder, which is no one model of texts: give an encoder or a"
            " decoder alone"
        )
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise InputError(f"{of}, whose configuration has no hidden_size: give an encoder of texts")


def summary_pooling(name: str) -> Literal["cls", "last"]:
    """Which token of a text sums it up: the first, or, of types that are trained to predict the
    next token alone, the last.

    Raises:
        InputError: The backbone's configuration cannot be loaded.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        kind = AutoConfig.from_pretrained(locate(name), trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError) as error:
        raise unusable(name, error) from None
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "last" if decodes and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "cls"


def is_packed(encoder: PreTrainedModel) -> bool:
    """Whether the encoder's attention was made padding-free."""
    return bool(getattr(encoder.config, "_attn_implementation", ATTENTION) == ATTENTION)


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
