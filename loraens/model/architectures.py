"""What the model must know of a pre-trained encoder: one record for each model type.

Another architecture is one more record, registered from anywhere:
`ARCHITECTURES.register("my-bert", Architecture())`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraens.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def first_position(config: Any) -> int:
    """Position ids start at 0 (BERT)."""
    return 0


def first_position_after_padding(config: Any) -> int:
    """Position ids start behind the padding token's id (RoBERTa)."""
    return int(config.pad_token_id) + 1


@dataclass(frozen=True)
class Architecture:
    """How the encoders of one model type are built, and which paths they can take.

    Args:
        projections: Names of attention's query, key and value projections in a layer.
        position_offset: From the encoder's configuration to the position id of a sequence's first
            token.
        length_field: Field of the configuration with the number of position embeddings, which
            limits the length of a sequence.
        token_types: Whether the embeddings read `token_type_ids`.
        pooler: Name of the pre-trained pooler in the encoder; None if the architecture has none.
        packed: Whether its attention goes through `transformers.AttentionInterface` and hands
            down unknown keyword arguments, as the padding-free path needs.
        fast: Whether its layers are laid out as BERT's and named as BERT's, as the fast path needs
            (`encoder.layer[i]` with `attention.self`, `attention.output`, `intermediate.dense` and
            `output`, layer norm after the residual).
        classifier_prefix: What PEFT's keys of a sequence classifier put before a layer's name;
            None if the pooler and one linear layer are not that classifier's whole head.
    """

    projections: tuple[str, str, str] = ("query", "key", "value")
    position_offset: Callable[[Any], int] = first_position
    length_field: str = "max_position_embeddings"
    token_types: bool = True
    pooler: str | None = "pooler"
    packed: bool = True
    fast: bool = False
    classifier_prefix: str | None = None

    def max_positions(self, config: Any) -> int:
        """The longest sequence that an encoder of this configuration can read, in tokens."""
        return int(getattr(config, self.length_field)) - self.position_offset(config)

    def reads_token_types(self, config: Any) -> bool:
        """Whether an encoder of this configuration tells first and second text apart."""
        return self.token_types and getattr(config, "type_vocab_size", 0) > 1

    def is_in_pooler(self, name: str) -> bool:
        """Whether a module or weight of the encoder belongs to its pooler."""
        return self.pooler is not None and name.startswith(f"{self.pooler}.")


ARCHITECTURES: Registry[Architecture] = Registry("architectures")

_ROBERTA = Architecture(position_offset=first_position_after_padding, fast=True)

ARCHITECTURES.register("bert", Architecture(fast=True, classifier_prefix="bert."))
ARCHITECTURES.register("camembert", _ROBERTA)
ARCHITECTURES.register(
    "distilbert",
    Architecture(projections=("q_lin", "k_lin", "v_lin"), token_types=False, pooler=None),
)
ARCHITECTURES.register("electra", Architecture(pooler=None, fast=True))
ARCHITECTURES.register("roberta", _ROBERTA)
ARCHITECTURES.register("xlm-roberta", _ROBERTA)


def architecture_of(encoder: PreTrainedModel) -> Architecture:
    """The record of an encoder's model type.

    Raises:
        KeyError: Its model type is not registered; the message lists those that are.
    """
    return ARCHITECTURES[encoder.config.model_type]
