"""Dropout whose masks are derived from coordinates: the member's seed, a counter, the site (layer),
the sequence, and the coordinates of a value in it.

A mask is a hash of its coordinates, so it depends neither on the other members of a pack, nor on
padding, nor on which values are computed at all: one that is left out changes no other.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens, D width, H heads, Q
queries and L keys of attention.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple, cast
from zlib import crc32

import torch
from torch import Tensor, nn

from loraens.model import kernels
from loraens.model.routing import Routing
from loraens.model.upload import upload
from loraens.seeding import derive_seed

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}  # of the same size as a float


def _signed(value: int, bits: int) -> int:
    """The lowest bits of an integer, read as a two's complement number.

    torch has no arithmetic on unsigned integers; on signed ones sums and products wrap around to
    the same bits.
    """
    return ((value + (1 << bits - 1)) % (1 << bits)) - (1 << bits - 1)


STRIDE, FIRST, SECOND = (_signed(value, 32) for value in (0x9E3779B1, 0x7FEB352D, 0x846CA68B))
_WIDE = tuple(
    _signed(value, 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
COLUMN_BITS = 12  # of the coordinates of a token vector: column, then position above it


def _mix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64."""
    # >> copies the sign bit into the bits that become free; the mask clears them, as an unsigned
    # shift would
    for shift, multiplier in ((30, _WIDE[1]), (27, _WIDE[2])):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * multiplier
    return x ^ (x >> 31 & (1 << 33) - 1)


def coordinates(
    *sizes: int, bits: Sequence[int], device: torch.device, centred: Collection[int] = ()
) -> Tensor:
    """Hash inputs of a grid of coordinates, int32 of shape `sizes`; axis a takes `bits[a]` bits,
    the last axis the lowest. Coordinates count from 0, or, of the axes `centred`, from the middle.
    """
    total = sum(bits)
    index = torch.zeros((), dtype=torch.int64, device=device)
    for axis, (size, width) in enumerate(zip(sizes, bits, strict=True)):
        total -= width
        begin = -(size // 2) if axis in centred else 0
        index = index[..., None] + (torch.arange(begin, begin + size, device=device) << total)
    # an odd stride maps the 2 ** 32 indices one to one; the conversion keeps the lowest 32 bits
    return (index * STRIDE).to(torch.int32)


def attention_coordinates(heads: int, queries: int, length: int, device: torch.device) -> Tensor:
    """Hash inputs `(H, Q, L)` of attention weights: head, query, key."""
    return coordinates(heads, queries, length, bits=(8, 12, 12), device=device)


def keep(
    inputs: Tensor, keys: tuple[Tensor, Tensor], p: float | Tensor, out: Tensor, scratch: Tensor
) -> Tensor:
    """-1 (all bits set) where a value is kept and 0 where it is dropped, int32.

    The hash is two rounds of xor-shift and multiplication, after Wellons' `lowbias32`. p is exact
    to 2 ** -31.

    Args:
        inputs: Hash inputs, int32.
        keys: Two int32 tensors that broadcast with `inputs`.
        p: Probability of being dropped, in [0, 1); a tensor broadcasts too.
        out: Receives the result, int32.
        scratch: A tensor like `out` that is overwritten.
    """
    # every operation writes into `out` or `scratch`: the masks are the largest tensors of a step
    x = torch.add(inputs, keys[0], out=out)
    x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=scratch)).mul_(FIRST).add_(keys[1])
    x.bitwise_xor_(torch.bitwise_right_shift(x, 14, out=scratch)).mul_(SECOND)
    threshold = (
        ((1 - p) * 2**31 - 2**30).round().to(torch.int32)
        if isinstance(p, Tensor)
        else threshold_of(p)
    )
    # x >> 1 is uniform in [-2^30, 2^30), so the difference cannot overflow; it is negative with
    # probability 1 - p, and >> 31 copies its sign bit into all bits
    return x.bitwise_right_shift_(1).sub_(threshold).bitwise_right_shift_(31)


def threshold_of(p: float) -> int:
    """Hashes below it, of 31 bits with a sign, are of values that are kept."""
    return round((1 - p) * 2**31 - 2**30)


def drop(x: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Values of x, dropped ones (NaN too) set to zero, without scaling; `out` may be x."""
    # bitwise and on the floats' bits: all bits set keeps a value as it is, 0 gives +0.0; a narrower
    # integer keeps -1 and 0
    integers = _INTEGERS[x.dtype.itemsize]
    torch.bitwise_and(
        x.view(integers),
        mask if mask.dtype == integers else mask.to(integers),
        out=out.view(integers),
    )
    return out


def factor(mask: Tensor, p: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The factor of inverted dropout (Srivastava et al. 2014): 0, or 1 / (1 - p)."""
    return mask.to(dtype) * (1 / (p - 1))  # kept is -1, hence p - 1


class _BatchKeys(NamedTuple):
    """What the masks of one batch share."""

    generation: int  # of the routing
    first: Tensor  # (sites, S)
    second: Tensor  # (sites, S)
    sequence: Tensor  # (N,) sequence of each token
    position: Tensor  # (N,) hash input of each token's position


class MaskGenerator:
    """Dropout masks of the running forward.

    The order of calls is: `seed`, `Routing.route`, then masks. A batch may be routed again without
    a new seed and gets the same masks. `feature_mask` alone needs no routed batch.

    Args:
        routing: The model's routing.
    """

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._sites: list[int] = []
        self._seeds: list[int] = []  # of each member, mixed with the counter
        self._seeded = 0  # generation of the routing when the seeds were set
        self._keys: _BatchKeys | None = None
        self._columns: Tensor | None = None
        self._scratch = torch.empty(0, dtype=torch.int32)

    def site(self, name: str) -> int:
        """Register a layer that drops values; returns its number."""
        self._sites.append(crc32(name.encode()))
        return len(self._sites) - 1

    def seed(self, seeds: Sequence[int], *counter: int) -> None:
        """Set the members' seeds and a counter, from which the masks of the next forward are
        derived.
        """
        self._seeds = [_signed(derive_seed(seed, "dropout", *counter), 64) for seed in seeds]
        self._seeded = self.routing.generation
        self._keys = None

    def keys(self, site: int) -> tuple[Tensor, Tensor]:
        """The two keys `(S,)` of every sequence at a site, from which kernels make its masks.

        Raises:
            RuntimeError: `seed` and `Routing.route` were not called before, in this order.
        """
        keys = self._batch_keys()
        return keys.first[site], keys.second[site]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Sequence and position `(N,)` of every token.

        Raises:
            RuntimeError: `seed` and `Routing.route` were not called before, in this order.
        """
        positions = self.routing.positions
        sequence = self._batch_keys().sequence
        assert positions is not None
        return sequence, positions

    def unseed(self) -> None:
        """Forget the seeds, so that a mask without new ones is refused."""
        self._seeds = []
        self._keys = None

    def token_mask(
        self, site: int, width: int, p: float, rows: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Mask `(N, width)` of token vectors, or of some rows of them.

        Raises:
            RuntimeError: `seed` and `Routing.route` were not called before, in this order.
        """
        keys = self._batch_keys()
        sequence = keys.sequence
        position = keys.position
        if rows is not None:
            sequence = sequence[rows]
            position = position[rows]
        # (a + b) * stride = a * stride + b * stride: the position's part of the hash input is added
        # to the key, so that no (N, width) tensor of inputs is made
        first = keys.first[site][sequence][:, None] + position[:, None]
        second = keys.second[site][sequence][:, None]
        return self._mask(
            shape=(len(sequence), width),
            inputs=self._column_inputs(width, sequence.device),
            keys=(first, second),
            p=p,
            out=out,
        )

    def attention_mask(
        self, site: int, inputs: Tensor, sequences: Tensor, p: float, out: Tensor | None = None
    ) -> Tensor:
        """Mask `(s, *)` of values of some sequences, whose hash inputs are `inputs` `(*,)`; of
        attention weights `(s, H, Q, L)`, their `attention_coordinates`.

        Raises:
            RuntimeError: `seed` and `Routing.route` were not called before, in this order.
        """
        keys = self._batch_keys()
        each = (-1, *[1] * inputs.ndim)
        first = keys.first[site][sequences].view(each)
        second = keys.second[site][sequences].view(each)
        shape = (len(sequences), *inputs.shape)
        return self._mask(shape=shape, inputs=inputs, keys=(first, second), p=p, out=out)

    def feature_mask(self, site: int, each: int, width: int, p: Tensor) -> Tensor:
        """Mask `(M, B, width)` of features of the members' B = `each` sequences, with p of shape
        `(M, 1, 1)`.

        Raises:
            RuntimeError: `seed` was not called before.
        """
        first, second = (
            key.view(len(p), each, 1)
            for key in self._derive_keys([self._sites[site]], [each] * len(p), p.device)
        )
        return self._mask(
            shape=(len(p), each, width),
            inputs=self._column_inputs(width, p.device),
            keys=(first, second),
            p=p,
            out=None,
        )

    def _batch_keys(self) -> _BatchKeys:
        """Keys of the routed batch; derived for its first mask, and used again for the others."""
        routing = self.routing
        if self._keys is not None and self._keys.generation == routing.generation:
            return self._keys
        if not self._seeds:
            raise RuntimeError("dropout masks have no seed: call seed, then route, then a mask")
        if routing.generation == self._seeded or routing.lengths is None:
            raise RuntimeError(
                "no batch was routed since dropout masks were seeded: call seed, then route, then a"
                " mask"
            )
        assert routing.positions is not None
        if len(routing.tokens) != len(self._seeds):
            raise RuntimeError(
                f"dropout masks were seeded for {len(self._seeds)} members, and the batch has"
                f" {len(routing.tokens)}"
            )
        lengths = routing.lengths
        device = lengths.device
        first, second = self._derive_keys(self._sites, routing.sequences, device)
        sequence = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), lengths, output_size=len(routing.positions)
        )
        position = ((routing.positions << COLUMN_BITS) * STRIDE).to(torch.int32)
        self._keys = _BatchKeys(
            generation=routing.generation,
            first=first,
            second=second,
            sequence=sequence,
            position=position,
        )
        return self._keys

    def _derive_keys(
        self, sites: Sequence[int], sequences: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Two keys `(sites, S)` of every sequence, of which member m has `sequences[m]`."""
        if not self._seeds:
            raise RuntimeError("dropout masks have no seed: call seed before a mask")
        member = torch.tensor(self._seeds)
        site = torch.tensor(sites)
        number = torch.cat([torch.arange(count) for count in sequences])
        of_member = _mix64(member * _WIDE[0]).repeat_interleave(torch.tensor(sequences))
        sequence = _mix64(of_member + number)
        mixed = _mix64(sequence + _mix64(site * _WIDE[0])[:, None])
        # made by the host, as a GPU would take longer to be asked for it
        first, second = upload([mixed.to(torch.int32), (mixed >> 32).to(torch.int32)], device)
        return first, second

    def _column_inputs(self, width: int, device: torch.device) -> Tensor:
        """Hash inputs of the columns of a vector; kept until the width changes."""
        columns = self._columns
        if columns is None or len(columns) != width or columns.device != device:
            columns = self._columns = coordinates(width, bits=(COLUMN_BITS,), device=device)
        return columns

    def _mask(
        self,
        shape: Sequence[int],
        inputs: Tensor,
        keys: tuple[Tensor, Tensor],
        p: float | Tensor,
        out: Tensor | None,
    ) -> Tensor:
        size = prod(shape)
        if self._scratch.numel() < size or self._scratch.device != inputs.device:
            self._scratch = inputs.new_empty(size)  # grown on demand, used for every mask
        out = inputs.new_empty(size) if out is None else out
        return keep(
            inputs=inputs,
            keys=keys,
            p=p,
            out=out.view(*shape),
            scratch=self._scratch[:size].view(*shape),
        )


class MemberDropout(nn.Module):
    """Dropout of token vectors `(1, N, D)`, with members along N.

    Args:
        p: Probability of being dropped, in [0, 1).
        masks: The model's mask generator.
        name: Name of the layer, from which its masks are derived.
    """

    def __init__(self, p: float, masks: MaskGenerator, name: str) -> None:
        super().__init__()
        self.p = p
        self.masks = masks
        self.site = masks.site(name)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, N, D)` -> `(1, N, D)`."""
        if not self.training or self.p == 0:
            return x
        if kernels.usable(x.device, x.dtype) and not torch.is_grad_enabled():
            from loraens.model.kernels import operators

            out = torch.empty_like(x)
            keys = (*self.masks.keys(self.site), *self.masks.rows())
            operators.drop_tokens(x[0], out[0], *keys, self.p)
            return out
        return x * factor(self.masks.token_mask(self.site, x.shape[-1], self.p), self.p, x.dtype)


def replace_dropout(encoder: nn.Module, masks: MaskGenerator, enabled: bool) -> None:
    """Replace every `nn.Dropout` by a `MemberDropout`; where not enabled, by one that does
    nothing.
    """
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.Dropout):
            encoder.set_submodule(
                name, cast(nn.Module, MemberDropout(module.p if enabled else 0.0, masks, name))
            )
