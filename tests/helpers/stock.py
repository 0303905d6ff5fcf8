"""Small random encoders and decoders of many types."""

from copy import deepcopy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    CamembertConfig,
    DebertaV2Config,
    LlamaConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XLMRobertaConfig,
    XLNetConfig,
)

from helpers.encoders import ARCHITECTURES, SMALL

ROBERTA = {**SMALL, "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1}
WIDE = {**SMALL, "initializer_range": 0.3}
DEBERTA = {
    **WIDE,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_position_embeddings": 40,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DECODER = {
    **WIDE,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 40,
    "attention_dropout": 0.1,
    "pad_token_id": 0,
}
CONFIGS = {
    # copies, as models write into their configurations
    **{name: deepcopy(config) for name, (_, config, _) in ARCHITECTURES.items()},
    "xlm-roberta": XLMRobertaConfig(**ROBERTA, initializer_range=0.3),
    "camembert": CamembertConfig(**ROBERTA, initializer_range=0.3),
    "albert": AlbertConfig(
        **WIDE,
        embedding_size=16,
        max_position_embeddings=40,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
    ),
    "mpnet": MPNetConfig(**WIDE, max_position_embeddings=40),
    "deberta-v2": DebertaV2Config(**DEBERTA),
    "deberta-v3": DebertaV2Config(
        **DEBERTA, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm"
    ),
    "modernbert": ModernBertConfig(
        **SMALL,
        max_position_embeddings=40,
        local_attention=6,
        global_attn_every_n_layers=2,
        attention_dropout=0.1,
        embedding_dropout=0.1,
        mlp_dropout=0.1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        initializer_range=0.3,
        initializer_cutoff_factor=3.0,
    ),
    "longformer": LongformerConfig(**ROBERTA, attention_window=6, initializer_range=0.3),
    "xlnet": XLNetConfig(
        vocab_size=100,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
        dropout=0.1,
        initializer_range=0.3,
    ),
    "qwen3": Qwen3Config(**DECODER),
    "llama": LlamaConfig(**DECODER),
}
DECODERS = ("qwen3", "llama")
TARGETS = {"xlnet": ("layer_1", "layer_2")}


def write_stock(name, tokenizer, directory):
    """A small random model of a type with a tokenizer, as `transformers` saves them."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 160}
    AutoModel.from_config(type(config)(**{**config.to_dict(), **sizes})).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def plain_tokenizer(words):
    """A tokenizer that adds no token to texts, as those of decoders."""
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


def bracketing_tokenizer(words):
    """A tokenizer that puts `<s>` before and `</s>` behind each text; id 1, which is padding to
    RoBERTa, is never used.
    """
    names = ["<pad>", "<none>", "<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
    )
