"""Dropout of a stock model, met where it is called: `nn.Dropout`, `functional.dropout` and
attention with dropout get masks by the caller's name and by coordinates.

Shape letters: s sequences of a forward, L tokens of the longest of these, H heads, K head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from loraens.model.dropout import MaskGenerator, coordinates, factor

Drop = Callable[[str, Tensor, float], Tensor]  # name of the call, x and p to x with dropped values
HEAD_BITS = 8  # of a hash input; other axes have 12, and the first of two has 20
OTHER_BITS = 12


class UnknownAxesError(Exception):
    """Dropout of a tensor whose axes are not told apart."""


@dataclass(frozen=True)
class Site:
    """A call that drops values.

    Args:
        number: Of the site in the mask generator.
        axis: Which axis are the sequences; None where the tensor is the same for all.
        bits: Bits of each other axis in a hash input.
        centred: Other axes whose coordinates count from their middle, as relative positions do.
    """

    number: int
    axis: int | None
    bits: tuple[int, ...]
    centred: frozenset[int]


class Calls(TorchFunctionMode):
    """Hands calls that drop values to `drop(name, x, p)`, which returns the dropped values; others
    are left as they are.

    A call is named by its `nn.Dropout`, or by the module in which it is and `.dropout`; of a module
    that is called again, or calls again, a number follows.

    Args:
        encoder: The stock model; hooks are added to its modules.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.drop: Drop = lambda name, x, p: x
        self._callers: list[tuple[str, nn.Module]] = []
        self._times: Counter[str] = Counter()
        for name, module in encoder.named_modules():
            module.register_forward_pre_hook(self._entered(name))
            module.register_forward_hook(self._left, always_call=True)

    def _entered(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._callers.append((name, module))

        return hook

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        self._callers.pop()

    @contextmanager
    def met(self, drop: Drop) -> Iterator[None]:
        """While it lasts, calls are handed to `drop`."""
        self.drop = drop
        self._times.clear()
        with self:
            yield

    def name(self) -> str:
        """Of the running call."""
        name, module = self._callers[-1]
        if not isinstance(module, nn.Dropout):
            name = f"{name}.dropout"
        self._times[name] += 1
        times = self._times[name]
        return name if times == 1 else f"{name} {times}"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return self.drop(self.name(), input, p) if training and p > 0 else input

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`(s, H, L, K)` each; written out where weights are dropped, as
        `scaled_dot_product_attention` documents it.
        """
        if not dropout_p:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key, value = (
                x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value)
            )
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        least = torch.finfo(scores.dtype).min  # not minus infinity: padding may attend to nothing
        if is_causal:
            attn_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, least)
        elif attn_mask is not None:
            scores = (scores + attn_mask).clamp(min=least)
        return self.drop(self.name(), scores.softmax(-1), dropout_p) @ value


def site_of(
    shapes: Sequence[torch.Size], sequences: tuple[int, int], longer: int, heads: int
) -> tuple[int | None, tuple[int, ...], frozenset[int]]:
    """Axis of the sequences, bits of the other axes, and those that are centred, of a call in three
    forwards.

    Args:
        shapes: Of the tensor in the first, with more sequences, and with more tokens.
        sequences: Of the first and the second forward.
        longer: By how many tokens sequences of the third forward are longer.
        heads: H.

    Raises:
        UnknownAxesError: The axes cannot be told apart.
    """
    first, wider, longest = map(tuple, shapes)
    changed = [axis for axis, size in enumerate(first) if wider[axis] != size]
    if len(changed) > 1 or any((first[a], wider[a]) != sequences for a in changed):
        raise UnknownAxesError
    axis = changed[0] if changed else None
    others = [a for a in range(len(first)) if a != axis]
    if len(others) > 3:
        raise UnknownAxesError
    bits = [OTHER_BITS] * len(others)
    if len(others) == 2:
        bits[0] = 32 - OTHER_BITS
    if len(others) == 3:
        of_heads = (i for i, a in enumerate(others) if first[a] == longest[a] == heads)
        bits[next(of_heads, 0)] = HEAD_BITS
    centred = [i for i, a in enumerate(others) if longest[a] - first[a] == 2 * longer]
    return axis, tuple(bits), frozenset(centred)


class DropoutSites:
    """Masks of the calls of a stock model, by their sites.

    Args:
        masks: The model's mask generator.
        sites: Of each call's name.
        enabled: Whether values are dropped at all.
    """

    def __init__(self, masks: MaskGenerator, sites: dict[str, Site], enabled: bool) -> None:
        self.masks = masks
        self.sites = sites
        self.enabled = enabled
        self._sequences = torch.empty(0, dtype=torch.int64)
        self._first = self._sequences
        self._inputs: dict[tuple[Any, ...], Tensor] = {}

    @property
    def shared(self) -> bool:
        """Whether values are dropped that are the same for all sequences."""
        return self.enabled and any(site.axis is None for site in self.sites.values())

    def route(self, sequences: Tensor, first: int) -> None:
        """Switch to a forward.

        Args:
            sequences: `(s,)` those in it.
            first: The first sequence of the only member; where there are several, it is not used.
        """
        self._sequences = sequences
        self._first = sequences.new_tensor([first])
        self._inputs.clear()

    def drop(self, name: str, x: Tensor, p: float) -> Tensor:
        """The tensor x with values dropped.

        Raises:
            UnknownAxesError: The call was not met when the model was built.
        """
        if not self.enabled:
            return x
        if name not in self.sites:
            raise UnknownAxesError(name)
        site = self.sites[name]
        sequences = self._first if site.axis is None else self._sequences
        mask = self.masks.attention_mask(site.number, self._inputs_of(x, site), sequences, p)
        mask = mask[0] if site.axis is None else mask.movedim(0, site.axis)
        return x * factor(mask, p, x.dtype)

    def _inputs_of(self, x: Tensor, site: Site) -> Tensor:
        """Hash inputs of the axes but the sequences'; made once a forward for each shape."""
        sizes = [size for axis, size in enumerate(x.shape) if axis != site.axis]
        key = (*sizes, site.bits, site.centred)
        if key not in self._inputs:
            self._inputs[key] = coordinates(
                *sizes, bits=site.bits, device=x.device, centred=site.centred
            )
        return self._inputs[key]
