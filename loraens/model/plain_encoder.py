"""BERT and RoBERTa without `transformers`, which takes seconds to import: for prediction.

Modules and weights have the names of the stock encoder, so that its layers are run by the fast path
and its fingerprint is the same; there is no other forward.

Shape letters: N tokens, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

MODEL_TYPES = ("bert", "camembert", "roberta", "xlm-roberta")
FIELDS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
)
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: the weights are loaded."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing: the weights are loaded."""


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _Embedding(config.vocab_size, width)
        self.position_embeddings = _Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """`(1, N)` each -> `(1, N, D)`."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.LayerNorm(x + self.position_embeddings(position_ids))
        embedded: Tensor = self.dropout(x)
        return embedded


class _Projection(nn.Module):
    """A linear layer, and what follows it where it ends a block."""

    def __init__(self, inputs: int, outputs: int, config: Any | None = None) -> None:
        super().__init__()
        self.dense = _Linear(inputs, outputs)
        if config is not None:
            self.LayerNorm = nn.LayerNorm(outputs, eps=config.layer_norm_eps)
            self.dropout = nn.Dropout(config.hidden_dropout_prob)


class _SelfAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.query = _Linear(config.hidden_size, config.hidden_size)
        self.key = _Linear(config.hidden_size, config.hidden_size)
        self.value = _Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)


def _layer(config: Any) -> nn.Module:
    attention = nn.ModuleDict(
        {
            "self": _SelfAttention(config),
            "output": _Projection(config.hidden_size, config.hidden_size, config),
        }
    )
    return nn.ModuleDict(
        {
            "attention": attention,
            "intermediate": _Projection(config.hidden_size, config.intermediate_size),
            "output": _Projection(config.intermediate_size, config.hidden_size, config),
        }
    )


class _Pooler(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = _Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(S, L, D)` -> `(S, D)`, of the first token."""
        return torch.tanh(self.dense(hidden[:, 0]))


class PlainEncoder(nn.Module):
    """Embeddings, layers and pooler of a BERT-like encoder; the fast path runs them.

    Args:
        config: The content of config.json as attributes.
        pooler: Whether there is a pooler.
    """

    def __init__(self, config: Any, pooler: bool) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = _Pooler(config) if pooler else None


def read_plain(directory: Path, pooler: bool) -> PlainEncoder | None:
    """The encoder of a directory in evaluation mode and float32; None where its files are those of
    another kind, or not whole, which `load_encoder` then says.

    Args:
        directory: Where config.json and model.safetensors are.
        pooler: Whether its pooler is needed.
    """
    try:
        fields = json.loads((directory / "config.json").read_text())
        saved = load_file(directory / "model.safetensors")
    except (OSError, ValueError, SafetensorError):
        return None
    if not _is_plain(fields):
        return None
    encoder = PlainEncoder(SimpleNamespace(**fields), pooler)
    prefix = "bert." if fields["model_type"] == "bert" else "roberta."
    weights = {_name(key, prefix): weight.float() for key, weight in saved.items()}
    expected = encoder.state_dict()
    if any(
        name not in weights or weights[name].shape != weight.shape
        for name, weight in expected.items()
    ):
        return None
    encoder.load_state_dict({name: weights[name] for name in expected}, assign=True)
    return encoder.eval()


def _is_plain(fields: Any) -> bool:
    """Whether a configuration is of an encoder that is laid out as here."""
    return (
        isinstance(fields, dict)
        and all(fields.get(name) is not None for name in FIELDS)
        and fields["model_type"] in MODEL_TYPES
        and not fields.get("is_decoder")
        and fields.get("position_embedding_type", "absolute") == "absolute"
    )


def _name(key: str, prefix: str) -> str:
    """The name of a weight in the encoder, of a file that may have it below a whole model, and
    under the names of the first versions.
    """
    for old, new in OLD_NAMES.items():
        key = key.replace(old, new)
    return key.removeprefix(prefix)
