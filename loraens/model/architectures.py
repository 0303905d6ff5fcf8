"""What the model must know of a pre-trained encoder: one record for each model type that has a path
of its own; of any other type it is read off the encoder.

Another architecture is one more record, registered from anywhere:
`ARCHITECTURES.register("my-bert", Architecture())`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from loraens.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def first_position(config: Any) -> int:
    """Position ids start at 0 (BERT)."""
    return 0


def first_position_after_padding(config: Any) -> int:
    """Position ids start behind the padding token's id (RoBERTa)."""
    return int(config.pad_token_id) + 1


def second_position(config: Any) -> int:
    """Position ids start at 2, whatever the padding token's id is (MPNet)."""
    return 2


def add_attention_dropout(encoder: Any) -> None:
    """Attention's dropout as modules (ModernBERT), from which packed attention takes the rate and
    the name.
    """
    for layer in encoder.layers:
        layer.attn.dropout = nn.Dropout(layer.attn.attention_dropout)


def pack_mpnet(encoder: Any) -> None:
    """Attention of a packed batch with biases by relative position (MPNet)."""
    from loraens.model.packed_mpnet import make_packed  # takes seconds

    make_packed(encoder)


ROLES = ("query", "key", "value")
# names of attention's query, key and value projections, in the order in which they are tried; a
# fused projection is all three
PROJECTIONS = (
    ROLES,
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_head", "k_head", "v_head"),
    ("q", "k", "v"),
    *((fused,) * 3 for fused in ("Wqkv", "qkv_proj", "query_key_value", "qkv", "c_attn")),
)
# what PEFT's keys of classifiers put before a layer's name, of types that are read off
CLASSIFIERS = {"albert": "albert."}
UNLIMITED = 2**20  # tokens, where positions are relative


@dataclass(frozen=True)
class Architecture:
    """How the encoders of one model type are built, and which paths they can take.

    Args:
        projections: Names of attention's query, key and value projections in a layer, the same
            where they are one; none if they are no linear layers.
        position_offset: From the encoder's configuration to the position id of a sequence's first
            token.
        length_field: Field of the configuration with the number of position embeddings, which
            limits the length of a sequence; it may be missing.
        token_types: Whether the encoder reads `token_type_ids` where its configuration has more
            than one type; "always" where that does not say how many there are.
        pooler: Name of the pre-trained pooler in the encoder; None if the architecture has none.
        packed: Whether its attention goes through `transformers.AttentionInterface` and hands
            down unknown keyword arguments, as the padding-free path needs, or does so once it was
            made ready; others take the padded path.
        make_packed: What else makes a loaded encoder ready for the padding-free path.
        layer_types: Whether its configuration names the type of each layer, whose window the layer
            tells attention, and it takes a mask for each type.
        fast: Whether its layers are laid out as BERT's and named as BERT's, as the fast path needs
            (`encoder.layer[i]` with `attention.self`, `attention.output`, `intermediate.dense` and
            `output`, layer norm after the residual).
        classifier_prefix: What PEFT's keys of a sequence classifier put before a layer's name;
            None if the pooler and one linear layer are not that classifier's whole head.
    """

    projections: tuple[str, ...] = ROLES
    position_offset: Callable[[Any], int] = first_position
    length_field: str = "max_position_embeddings"
    token_types: bool | Literal["always"] = True
    pooler: str | None = "pooler"
    packed: bool = True
    make_packed: Callable[[Any], None] | None = None
    layer_types: bool = False
    fast: bool = False
    classifier_prefix: str | None = None

    def max_positions(self, config: Any) -> int:
        """The longest sequence that an encoder of this configuration can read, in tokens."""
        positions = getattr(config, self.length_field, None) or 0
        return int(positions) - self.position_offset(config) if positions > 0 else UNLIMITED

    def reads_token_types(self, config: Any) -> bool:
        """Whether an encoder of this configuration tells first and second text apart."""
        return self.token_types == "always" or (
            self.token_types and getattr(config, "type_vocab_size", 0) > 1
        )

    def is_in_pooler(self, name: str) -> bool:
        """Whether a module or weight of the encoder belongs to its pooler."""
        return self.pooler is not None and f"{name}.".startswith(f"{self.pooler}.")

    def linear_names(self, targets: Sequence[str]) -> list[str]:
        """Names of linear layers, of which `query`, `key` and `value` mean the projections, and
        `attention` all three, each name once.

        Raises:
            ValueError: They are meant, and are not linear layers.
        """
        names = []
        for target in chain.from_iterable(ROLES if t == "attention" else (t,) for t in targets):
            if target not in ROLES:
                names.append(target)
            elif not self.projections:
                raise ValueError(f"the encoder's {target} projections are no linear layers")
            else:
                names.append(self.projections[ROLES.index(target)])
        return list(dict.fromkeys(names))


ARCHITECTURES: Registry[Architecture] = Registry("architectures")

_ROBERTA = Architecture(position_offset=first_position_after_padding, fast=True)

ARCHITECTURES.register("bert", Architecture(fast=True, classifier_prefix="bert."))
ARCHITECTURES.register("camembert", _ROBERTA)
ARCHITECTURES.register(
    "distilbert",
    Architecture(projections=("q_lin", "k_lin", "v_lin"), token_types=False, pooler=None),
)
ARCHITECTURES.register("electra", Architecture(pooler=None, fast=True))
ARCHITECTURES.register(
    "modernbert",
    Architecture(
        projections=("Wqkv",) * 3,
        token_types=False,
        pooler=None,
        make_packed=add_attention_dropout,
        layer_types=True,
    ),
)
ARCHITECTURES.register(
    "mpnet",
    Architecture(
        projections=("q", "k", "v"),
        position_offset=second_position,
        token_types=False,
        make_packed=pack_mpnet,
    ),
)
ARCHITECTURES.register("roberta", _ROBERTA)
ARCHITECTURES.register("xlm-roberta", _ROBERTA)
ARCHITECTURES.register(
    "xlnet", Architecture(projections=(), token_types="always", pooler=None, packed=False)
)


def architecture_of(encoder: PreTrainedModel) -> Architecture:
    """The record of an encoder's model type; read off the encoder where none is registered."""
    return ARCHITECTURES.get(encoder.config.model_type) or _read_off(encoder)


def _read_off(encoder: PreTrainedModel) -> Architecture:
    """What names of modules and arguments say of an encoder, which takes the padded path."""
    modules = dict(encoder.named_modules())
    linears = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear)}
    wrapped = {n.removesuffix(".base").rpartition(".")[2] for n in modules if n.endswith(".base")}
    found = (names for names in PROJECTIONS if {*names} <= linears | wrapped)
    after_padding = any(
        isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
        for name, module in modules.items()
    )
    return Architecture(
        projections=next(found, ()),
        position_offset=first_position_after_padding if after_padding else first_position,
        token_types="token_type_ids" in signature(encoder.forward).parameters,
        pooler="pooler" if hasattr(encoder, "pooler") else None,
        packed=False,
        classifier_prefix=CLASSIFIERS.get(encoder.config.model_type),
    )
