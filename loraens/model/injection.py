"""Adapters in an encoder: put into its linear layers, and merged with them.

Importing this module registers the kinds "lora", "rslora" and "dora"; others are registered by
their own modules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from loraens.model import dora, lora, rslora  # noqa: F401, each registers its kind
from loraens.model.adapters import ADAPTERS, Adapter
from loraens.model.architectures import architecture_of
from loraens.model.routing import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
TOP = re.compile(r"top-(\d+)")


def padded_axis(parameter_name: str, adapter: str = "lora") -> int | None:
    """The axis of a parameter that is padded to the largest rank of its pack.

    Args:
        parameter_name: Name of the parameter; what is before its last dot does not matter.
        adapter: The adapters' kind.

    Returns:
        The axis, 0 being the member axis; None for parameters that do not depend on the rank.

    Raises:
        KeyError: The kind is not registered.
    """
    return ADAPTERS[adapter].rank_axes.get(parameter_name.rpartition(".")[2])


def linear_names(encoder: PreTrainedModel) -> list[str]:
    """Last name components of the encoder's linear layers, each once, in order of occurrence."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name, _ in linears_of(encoder)))


def linears_of(encoder: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers by name; those of a pooler are left out, it stays frozen."""
    architecture = architecture_of(encoder)
    return [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and not architecture.is_in_pooler(name)
    ]


def inject(
    encoder: PreTrainedModel,
    targets: Sequence[str],
    ranks: Sequence[int],
    scales: Sequence[float],
    routing: Routing,
    adapter: str = "lora",
) -> dict[str, Adapter]:
    """Replace every linear layer whose name ends with a target by an adapter around it.

    A target is the tail of a dotted name: `intermediate.dense`, or `layer.0.attention.self.query`;
    `query`, `key` and `value` alone are attention's projections, whatever they are called,
    `attention` is all three, `all-linear` is every linear layer but a pooler's, and `top-N`
    restricts the others to the N highest layers of the encoder.

    Args:
        encoder: The backbone, changed in place.
        targets: What the names of the layers end with.
        ranks: Rank of each member.
        scales: Scale of each member.
        routing: Which tokens belong to which member.
        adapter: The adapters' kind.

    Returns:
        The adapters by the full names of their layers.

    Raises:
        ValueError: A target matches no linear layer; the message lists the names of those that
            there are.
        KeyError: The kind is not registered.
    """
    kind = ADAPTERS[adapter]
    adapters = {
        name: kind(layer, ranks, scales, routing)
        for name, layer in matching(encoder, targets).items()
    }
    for name, layer in adapters.items():
        encoder.set_submodule(name, layer)
    return adapters


def matching(encoder: PreTrainedModel, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that targets match, by their full names, in the order of the targets.

    Raises:
        ValueError: There is no target, or one matches no linear layer.
    """
    linears = linears_of(encoder)
    there = ", ".join(linear_names(encoder))
    numbers = [int(given[1]) for target in targets if (given := TOP.fullmatch(target))]
    if numbers:
        targets = [target for target in targets if not TOP.fullmatch(target)]
        linears = _top(linears, min(numbers))
    if not targets:
        raise ValueError("at least one name of a linear layer is expected")
    try:
        names = architecture_of(encoder).linear_names(targets)
    except ValueError as error:
        raise ValueError(f"{error}; the encoder has {there}") from None
    found: dict[str, nn.Linear] = {}
    for target in names:
        every = target == ALL_LINEAR
        matches = {n: layer for n, layer in linears if every or f".{n}".endswith(f".{target}")}
        if not matches:
            raise ValueError(f"target {target!r} matches no linear layer; the encoder has {there}")
        found.update(matches)
    return found


def _top(linears: list[tuple[str, nn.Linear]], count: int) -> list[tuple[str, nn.Linear]]:
    """Those of the highest layers.

    Raises:
        ValueError: There are fewer layers.
    """
    number_of = {
        name: next((int(p) for p in name.split(".") if p.isdigit()), -1) for name, _ in linears
    }
    layers = 1 + max(number_of.values())
    if not 1 <= count <= layers:
        raise ValueError(f"top-{count} is not among the encoder's {layers} layers")
    return [(name, layer) for name, layer in linears if number_of[name] >= layers - count]


def merge(encoder: nn.Module, index: int) -> None:
    """Replace every adapter by one linear layer with one member's change merged in; a second call
    finds none and changes nothing.
    """
    for name, module in list(encoder.named_modules()):
        if isinstance(module, Adapter):
            encoder.set_submodule(name, module.merged(index))
