"""Small random encoders of several architectures, and sequences of uneven lengths for them."""

import numpy as np
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
ARCHITECTURES = {
    "bert": (
        BertModel,
        BertConfig(**SMALL, max_position_embeddings=40, initializer_range=0.3),
        ("query", "value"),
    ),
    "roberta": (
        RobertaModel,
        RobertaConfig(
            **SMALL,
            max_position_embeddings=40,
            type_vocab_size=1,
            pad_token_id=1,
            initializer_range=0.3,
        ),
        ("query", "value"),
    ),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(
            vocab_size=100,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=48,
            max_position_embeddings=40,
            initializer_range=0.3,
        ),
        ("q_lin", "v_lin"),
    ),
    "electra": (
        ElectraModel,
        ElectraConfig(
            **SMALL, embedding_size=16, max_position_embeddings=40, initializer_range=0.3
        ),
        ("query", "value", "embeddings_project"),
    ),
}
LENGTHS = (7, 1, 23, 12, 3)


def examples():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 100, sum(LENGTHS)).astype(np.int32)
    types = (rng.random(sum(LENGTHS)) < 0.5).astype(np.int8)
    return tokens, types, np.concatenate([[0], np.cumsum(LENGTHS)])
