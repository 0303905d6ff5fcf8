"""A few forwards of made-up tokens through a stock model: what the axes of its tensors are, and
whether its features are exact, so that those of a text alone are those beside longer texts.

Shape letters: s sequences of a forward, L tokens of the longest of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from loraens.errors import InputError
from loraens.model.adapters import Adapter
from loraens.model.dropout import MaskGenerator
from loraens.model.sites import DropoutSites, Site, UnknownAxesError, site_of
from loraens.model.stock import StockForward

SHORT, LONG = 5, 9  # tokens of a sequence
FORWARDS = ((2, SHORT), (3, SHORT), (2, LONG))  # sequences and their tokens
TOLERANCE = 1e-4  # of features, as a share of the largest
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)


def refuse(encoder: Any, reason: str) -> NoReturn:
    """Say that an encoder cannot be used.

    Raises:
        InputError: Always.
    """
    raise InputError(f"backbone of type {encoder.config.model_type}: {reason}: give another one")


def _made_up(encoder: Any, sequences: int, length: int) -> Tensor:
    """Tokens `(s, L)`, none of them special, the same for the same numbers."""
    special: set[int | None] = set()
    for name in SPECIAL:
        given = getattr(encoder.config, f"{name}_token_id", None)
        special |= {*given} if isinstance(given, list) else {given}
    size = min(encoder.get_input_embeddings().num_embeddings, 1000)
    usable = torch.tensor([token for token in range(size) if token not in special])
    chosen = torch.randint(
        len(usable), (sequences, length), generator=torch.Generator().manual_seed(0)
    )
    return usable[chosen].to(encoder.device)


def _run(forward: StockForward, ids: Tensor, real: Tensor, drop: Any = None) -> Any:
    """Outputs of the stock model, all its adapters the first member's.

    Raises:
        InputError: It fails.
    """
    forward.routing.parts = [(0, len(ids))]
    try:
        with torch.no_grad():
            return forward(ids, torch.zeros_like(ids), real, drop)
    except UnknownAxesError:
        raise
    except FAILURES as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        refuse(forward.encoder, f"it cannot be run on tokens and a mask of padding ({reason})")
    finally:
        forward.routing.parts = None


def trace(
    forward: StockForward, adapters: Mapping[str, Adapter], masks: MaskGenerator
) -> tuple[dict[str, Site], bool]:
    """Find the sites of dropout, and the axis of the sequences in each adapter's input.

    Returns:
        The sites by the names of the calls, and whether an adapter has an input that is the same
        for all sequences.

    Raises:
        InputError: The model cannot be run, mixes texts, or has more in it that is random.
    """
    encoder = forward.encoder
    _check_parts(encoder)
    calls: dict[str, list[torch.Size]] = {}
    inputs: dict[str, list[torch.Size]] = {}

    def seeing(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: inputs.setdefault(name, []).append(args[0].shape)

    def seen(name: str, x: Tensor, p: float) -> Tensor:
        calls.setdefault(name, []).append(x.shape)
        return x

    hooks = [layer.register_forward_pre_hook(seeing(name)) for name, layer in adapters.items()]
    before = encoder.training
    encoder.train()
    state = torch.get_rng_state()
    for sequences, length in FORWARDS:
        ids = _made_up(encoder, sequences, length)
        _run(forward, ids, torch.ones_like(ids, dtype=torch.bool), seen)
    encoder.train(before)
    for hook in hooks:
        hook.remove()
    if not torch.equal(state, torch.get_rng_state()):
        torch.set_rng_state(state)
        refuse(encoder, "something beside dropout is random in it while it is trained")
    try:
        found = {name: _axes(encoder, shapes) for name, shapes in calls.items()}
    except UnknownAxesError:
        refuse(encoder, "its dropout acts on axes that mix texts with something else")
    sites = {name: Site(masks.site(name), *of_call) for name, of_call in found.items()}
    told = [_set_axis(encoder, adapters[name], shapes) for name, shapes in inputs.items()]
    return sites, not all(told)


def _axes(
    encoder: Any, shapes: Sequence[torch.Size]
) -> tuple[int | None, tuple[int, ...], frozenset[int]]:
    """As `site_of`, of a call's shapes in the three forwards.

    Raises:
        UnknownAxesError: The axes cannot be told apart, or the call is not in each of the forwards.
    """
    if len(shapes) != len(FORWARDS):
        raise UnknownAxesError
    heads = getattr(encoder.config, "num_attention_heads", 0)
    return site_of(shapes, (FORWARDS[0][0], FORWARDS[1][0]), LONG - SHORT, heads)


def _set_axis(encoder: Any, adapter: Adapter, shapes: Sequence[torch.Size]) -> bool:
    """Tell an adapter which axis of its inputs are the sequences; False where one has none.

    Args:
        encoder: The stock model.
        adapter: The adapter.
        shapes: Of its inputs; in each forward it may be called several times.
    """
    times = len(shapes) // len(FORWARDS)
    axes = set()
    for time in range(times):
        try:
            axes.add(_axes(encoder, shapes[time::times])[0])
        except UnknownAxesError:
            return False
    if len(axes) != 1 or None in axes:
        return False
    adapter.sequence_axis = axes.pop() or 0
    return True


def _check_parts(encoder: Any) -> None:
    """Refuse modules in which texts depend on each other.

    Raises:
        InputError: There are such.
    """
    norms = nn.modules.batchnorm._BatchNorm
    if any(isinstance(module, norms) for module in encoder.modules()):
        refuse(encoder, "its batch norm makes a text depend on those beside it")
    if getattr(encoder.config, "expert_capacity", None) is not None:
        refuse(encoder, "its experts take a limited number of tokens of all texts together")


def check(
    forward: StockForward,
    sites: DropoutSites,
    pool: Callable[[Any, Tensor], Tensor],
    first_token: bool,
) -> None:
    """Compare the features of a short text alone with those beside a longer one, with dropout and
    without.

    Args:
        forward: The stock model.
        sites: Its dropout.
        pool: From outputs and the mask of real tokens `(s, L)` to features `(s, D)`.
        first_token: Whether features are those of the first token alone.

    Raises:
        InputError: They differ; or the first token has seen no other.
    """
    encoder = forward.encoder
    ids = _made_up(encoder, 2, LONG)
    lengths = torch.tensor([SHORT, LONG], device=ids.device)
    column = torch.arange(LONG, device=ids.device)
    real = column < lengths[:, None]
    positions = column.expand(2, LONG)[real]
    masks = sites.masks
    masks.seed([0])
    masks.routing.route([SHORT + LONG], lengths, positions)

    def features(ids: Tensor, real: Tensor) -> Tensor:
        sites.route(torch.arange(len(ids), device=ids.device), 0)
        return pool(_run(forward, ids, real, sites.drop), real)

    before = encoder.training
    for training in (False, True):
        encoder.train(training)
        together = features(ids, real)[0]
        alone = features(ids[:1, :SHORT], real[:1, :SHORT])[0]
        difference = float((together - alone).abs().max() / alone.abs().max())
        if not difference < TOLERANCE:
            refuse(
                encoder,
                "features of a text change with the texts and the padding beside it, by"
                f" {100 * difference:.2g} % {'in training' if training else 'of the largest'}",
            )
    encoder.eval()
    other = ids[:1].clone()
    other[0, -1] = ids[1, 0] if ids[0, -1] != ids[1, 0] else ids[1, 1]
    if first_token and torch.equal(*(features(x, real[1:]) for x in (ids[:1], other))):
        raise InputError(
            "pooling of the first token: in a decoder it has seen no other token, so give last or"
            " mean",
            option="model.pooling",
        )
    encoder.train(before)
    masks.unseed()
