"""Which pooling the head of a stock sequence classifier reads, found by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from loraens.errors import InputError
from loraens.model.backbone import quiet_loading, unusable
from loraens.model.packaged import locate

if TYPE_CHECKING:
    from loraens.model.population import Pooling

TOKENS = 6  # of the sequence that is tried


@torch.no_grad()
def pooling_of_classifier(backbone: str, head: str) -> Pooling:
    """The pooling under the head of the backbone's `AutoModelForSequenceClassification`.

    Args:
        backbone: Hub name, directory, or that of a packaged backbone.
        head: Name of the head in the classifier.

    Raises:
        InputError: There is no such classifier, or its head is not one linear layer over a pooling.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    location = locate(backbone)
    options = {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(location, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(location, **options).eval()
    except (OSError, ValueError, KeyError) as error:
        raise unusable(backbone, error) from None
    encoder = getattr(model, model.base_model_prefix)
    inside = {id(module) for module in encoder.modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inside and any(True for _ in module.parameters(recurse=False))
    }
    only = layers[head] if [*layers] == [head] else None
    if isinstance(only, nn.Linear):
        start = (getattr(config, "pad_token_id", None) or 0) + 1
        ids = torch.arange(start, start + TOKENS)[None] % config.vocab_size
        output = encoder(input_ids=ids)
        hidden = output.last_hidden_state[0]
        pooled: dict[Pooling, torch.Tensor | None] = {
            "pooler": getattr(output, "pooler_output", None),
            "cls": hidden[0],
            "last": hidden[-1],
            "mean": hidden.mean(0),
        }
        logits = model(input_ids=ids).logits[0]
        for name, features in pooled.items():
            if features is not None and torch.allclose(only(features.flatten()), logits, atol=1e-5):
                return name
    raise InputError(
        f"classifiers of type {config.model_type} have another head than one linear layer"
        f" over the pooler, the first or the last token, or the mean ({', '.join(layers)})"
    )
