"""Dropout whose masks are named by coordinates: the member's seed, a counter, the layer, the
sequence, and the place in it.

A mask is a hash of its coordinates, so it depends neither on the other members of a pack, nor on
padding, nor on which places are computed at all: one that is left out changes no other.

Shape letters: M members, B examples of a member, S = M B sequences, N tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import cast
from zlib import crc32

import torch
from torch import Tensor, nn

from loraens.seeding import derive_seed

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def _signed(value: int, bits: int) -> int:
    """The two's complement number of the lowest bits."""
    return ((value + (1 << bits - 1)) % (1 << bits)) - (1 << bits - 1)


_STRIDE, _FIRST, _SECOND = (_signed(value, 32) for value in (0x9E3779B1, 0x7FEB352D, 0x846CA68B))
_WIDE = tuple(
    _signed(value, 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64."""
    for shift, factor in ((30, _WIDE[1]), (27, _WIDE[2])):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def places(*sizes: int, bits: Sequence[int], device: torch.device) -> Tensor:
    """Hash inputs of a grid of places, int32 of shape `sizes`; axis a takes `bits[a]` bits, the
    last axis the lowest.
    """
    total = sum(bits)
    index = torch.zeros((), dtype=torch.int64, device=device)
    for size, width in zip(sizes, bits, strict=True):
        total -= width
        index = index[..., None] + (torch.arange(size, device=device) << total)
    return (index * _STRIDE).to(torch.int32)


def keep(
    place: Tensor, keys: tuple[Tensor, Tensor], p: float | Tensor, out: Tensor, scratch: Tensor
) -> Tensor:
    """-1 (all bits set) where a value is kept and 0 where it is dropped, int32.

    The hash is two rounds of xor-shift and multiplication, after Wellons' `lowbias32`. p is exact
    to 2 ** -31.

    Args:
        place: Hash inputs, int32.
        keys: Two int32 tensors that broadcast with `place`.
        p: Probability of being dropped, in [0, 1); a tensor broadcasts too.
        out: The result's place, int32.
        scratch: A tensor like `out` that is written over.
    """
    x = torch.add(place, keys[0], out=out)
    x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=scratch)).mul_(_FIRST).add_(keys[1])
    x.bitwise_xor_(torch.bitwise_right_shift(x, 14, out=scratch)).mul_(_SECOND)
    below = (
        ((1 - p) * 2**31 - 2**30).round().to(torch.int32)
        if isinstance(p, Tensor)
        else round((1 - p) * 2**31 - 2**30)
    )
    return x.bitwise_right_shift_(1).sub_(below).bitwise_right_shift_(31)


def drop(x: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Values of x, dropped ones (NaN too) set to zero, without scaling; `out` may be x."""
    integers = _INTEGERS[x.dtype.itemsize]
    torch.bitwise_and(
        x.view(integers),
        mask if mask.dtype == integers else mask.to(integers),
        out=out.view(integers),
    )
    return out


def factor(mask: Tensor, p: float | Tensor, dtype: torch.dtype) -> Tensor:
    """What inverted dropout (Srivastava et al. 2014) multiplies with: 0, or 1 / (1 - p)."""
    return mask.to(dtype) * (1 / (p - 1))


class MemberRows:
    """Rows of concatenated members `(N, *)` and the same rows with padding, `(M, n, *)`.

    Args:
        counts: Rows of each member.
        device: Where the tensors are.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        counts_ = torch.tensor(counts)
        column = torch.arange(int(counts_.max()))
        starts = counts_.cumsum(0) - counts_
        self._real = (column < counts_[:, None]).to(device)
        self._index = torch.where(column < counts_[:, None], starts[:, None] + column, 0).to(device)
        self._places = (torch.arange(len(counts))[:, None] * len(column) + column)[
            column < counts_[:, None]
        ].to(device)

    def pad(self, x: Tensor) -> Tensor:
        """`(N, I)` -> `(M, n, I)`, zero at padding."""
        return torch.where(self._real[..., None], x[self._index], 0.0)

    def unpad(self, x: Tensor) -> Tensor:
        """`(M, n, I)` -> `(N, I)`."""
        return x.flatten(0, 1).index_select(0, self._places)

    def add(self, out: Tensor, x: Tensor) -> None:
        """Add padded x `(M, n, I)` to `out` `(N, I)`."""
        out.add_(self.unpad(x))


class Routing:
    """What the layers must know of the running forward: which tokens are whose, and the names of
    the dropout masks.

    The model sets it before a forward; all adapted layers and dropouts of the model share one.

    Args:
        tokens: Number of tokens of each member; the tokens of member m follow those of member m -
            1.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)
        self.batched = (
            False  # whether the members' small products are taken all at once, as a GPU likes it
        )
        self.device: torch.device | None = None
        self._rows: dict[tuple[int, ...], MemberRows] = {}
        self._names: list[int] = []
        self._members: list[int] = []
        self._keys: tuple[Tensor, Tensor] | None = None  # (sites, S) each
        self._scratch = torch.empty(0, dtype=torch.int32)
        self._held: Tensor | None = None
        self._sequence: Tensor | None = None  # (N,) sequence of each token
        self._position: Tensor | None = None  # (N,) hash input of its position

    def site(self, name: str) -> int:
        """The number of a place in the model that drops values."""
        self._names.append(crc32(name.encode()))
        return len(self._names) - 1

    def seed(self, seeds: Sequence[int], *counter: int) -> None:
        """Name the masks of the next forward by each member's seed and a counter."""
        self._members = [_signed(derive_seed(seed, "dropout", *counter), 64) for seed in seeds]

    def route(
        self, tokens: Sequence[int], lengths: Tensor, positions: Tensor, training: bool
    ) -> None:
        """Take up a batch.

        Args:
            tokens: Tokens of each member.
            lengths: `(S,)` tokens of each sequence.
            positions: `(N,)` place of each token in its sequence.
            training: Whether masks will be asked for.
        """
        self.tokens = list(tokens)
        self.batched = self.batched or lengths.device.type == "cuda"
        self._rows.clear()
        self.device = lengths.device
        if not training:
            return
        device = lengths.device
        self._keys = self._named(self._names, len(lengths) // len(self._members), device)
        self._sequence = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        self._position = ((positions << 12) * _STRIDE).to(torch.int32)

    def _named(
        self, sites: Sequence[int], each: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Two keys `(sites, S)` of every sequence, of which each member has `each`."""
        member = torch.tensor(self._members, device=device)
        site = torch.tensor(sites, device=device)
        named = _mix64(
            _mix64(member * _WIDE[0])[:, None] + torch.arange(each, device=device)
        ).flatten()
        mixed = _mix64(named + _mix64(site * _WIDE[0])[:, None])
        return mixed.to(torch.int32), (mixed >> 32).to(torch.int32)

    def member_rows(self, counts: Sequence[int]) -> MemberRows:
        """Padded rows of the members; made once a forward."""
        if (found := self._rows.get(tuple(counts))) is None:
            assert self.device is not None
            found = self._rows[tuple(counts)] = MemberRows(counts, self.device)
        return found

    def _of(self, site: int) -> tuple[Tensor, Tensor]:
        assert self._keys is not None
        return self._keys[0][site], self._keys[1][site]

    def token_mask(
        self, site: int, width: int, p: float, rows: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Mask `(N, width)` of token vectors, or of some rows of them."""
        assert self._sequence is not None
        assert self._position is not None
        sequence = self._sequence
        position = self._position
        if rows is not None:
            sequence = sequence[rows]
            position = position[rows]
        first, second = (key[sequence][:, None] for key in self._of(site))
        return self._keep(
            (len(sequence), width),
            self._columns(width, sequence.device),
            (first + position[:, None], second),
            p,
            out,
        )

    def attention_mask(
        self, site: int, place: Tensor, sequences: Tensor, p: float, out: Tensor | None = None
    ) -> Tensor:
        """Mask `(s, H, Q, L)` of attention weights of some sequences; `place` is `attention_places`
        of it.
        """
        first, second = (key[sequences][:, None, None, None] for key in self._of(site))
        return self._keep((len(sequences), *place.shape), place, (first, second), p, out)

    def feature_mask(self, site: int, each: int, width: int, p: Tensor) -> Tensor:
        """Mask `(M, B, width)` of features of the members' B = `each` sequences, with p of shape
        `(M, 1, 1)`.
        """
        first, second = (
            key.view(len(p), each, 1) for key in self._named([self._names[site]], each, p.device)
        )
        return self._keep(
            (len(p), each, width), self._columns(width, p.device), (first, second), p, None
        )

    def _columns(self, width: int, device: torch.device) -> Tensor:
        """Hash inputs of the places in a vector; made once."""
        if self._held is None or len(self._held) != width or self._held.device != device:
            self._held = places(width, bits=(12,), device=device)
        return self._held

    def _keep(
        self,
        shape: Sequence[int],
        place: Tensor,
        keys: tuple[Tensor, Tensor],
        p: float | Tensor,
        out: Tensor | None,
    ) -> Tensor:
        size = prod(shape)
        if self._scratch.numel() < size or self._scratch.device != place.device:
            self._scratch = place.new_empty(size)
        out = place.new_empty(size) if out is None else out
        return keep(place, keys, p, out.view(*shape), self._scratch[:size].view(*shape))


def attention_places(heads: int, queries: int, length: int, device: torch.device) -> Tensor:
    """Hash inputs `(H, Q, L)` of attention weights: head, query, key."""
    return places(heads, queries, length, bits=(8, 12, 12), device=device)


class MemberDropout(nn.Module):
    """Dropout of token vectors `(1, N, D)`, with members along N."""

    def __init__(self, p: float, routing: Routing, name: str) -> None:
        super().__init__()
        self.p = p
        self.routing = routing
        self.site = routing.site(name)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, N, D)` -> `(1, N, D)`."""
        if not self.training or self.p == 0:
            return x
        return x * factor(self.routing.token_mask(self.site, x.shape[-1], self.p), self.p, x.dtype)


def route_dropout(encoder: nn.Module, routing: Routing, enabled: bool) -> None:
    """Replace every `nn.Dropout` by one whose masks have names, or, where not enabled, by one that
    does nothing.
    """
    for name, module in list(encoder.named_modules()):
        if isinstance(module, nn.Dropout):
            encoder.set_submodule(
                name, cast(nn.Module, MemberDropout(module.p if enabled else 0.0, routing, name))
            )
