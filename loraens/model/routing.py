"""Which tokens of a packed batch belong to which member.

Shape letters: M members, S sequences, N tokens of all sequences of all members, n most rows of one
member, I width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from loraens.model.upload import upload


class MemberRows:
    """Rows of concatenated members `(N, *)` and the same rows with padding, `(M, n, *)`.

    Args:
        counts: Rows of each member.
        device: Device of the tensors.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        counts_ = torch.tensor(counts)
        column = torch.arange(int(counts_.max()))
        starts = counts_.cumsum(0) - counts_
        real = column < counts_[:, None]
        index = torch.where(real, starts[:, None] + column, 0)
        slots = torch.arange(len(counts))[:, None] * len(column) + column
        self._real, self._index, self._slots = upload([real, index, slots[real]], device)

    def pad(self, x: Tensor) -> Tensor:
        """`(N, I)` -> `(M, n, I)`, zero at padding."""
        return torch.where(self._real[..., None], x[self._index], 0.0)

    def unpad(self, x: Tensor) -> Tensor:
        """`(M, n, I)` -> `(N, I)`."""
        return x.flatten(0, 1).index_select(0, self._slots)

    def add(self, out: Tensor, x: Tensor) -> None:
        """Add padded x `(M, n, I)` to `out` `(N, I)`."""
        out.add_(self.unpad(x))


class Routing:
    """Which tokens of the current batch belong to which member and sequence.

    The model updates it before a forward; all adapters of the model, and its mask generator, share
    one.

    Args:
        tokens: Number of tokens of each member; the tokens of member m follow those of member
            m - 1.

    Attributes:
        tokens: Number of tokens of each member of the current batch.
        sequences: Number of sequences of each member.
        lengths: `(S,)` tokens of each sequence; None before the first batch.
        positions: `(N,)` position of each token in its sequence; None before the first batch.
        parts: Of a padded forward, the members in it and how many sequences of each, in order; None
            in a packed one.
        batched: Whether the members' small products are computed in one padded batch, which suits a
            GPU, instead of member by member.
        generation: Number of batches routed so far; it tells what was derived from an earlier one.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)
        self.sequences: list[int] = []
        self.lengths: Tensor | None = None
        self.positions: Tensor | None = None
        self.parts: list[tuple[int, int]] | None = None
        self.batched = False
        self.generation = 0
        self._rows: dict[tuple[int, ...], MemberRows] = {}
        self._ends: dict[tuple[int, ...], Tensor] = {}

    def route(
        self,
        tokens: Sequence[int],
        lengths: Tensor,
        positions: Tensor,
        sequences: Sequence[int] | None = None,
    ) -> None:
        """Switch to a batch.

        Args:
            tokens: Tokens of each member.
            lengths: `(S,)` tokens of each sequence.
            positions: `(N,)` position of each token in its sequence.
            sequences: Sequences of each member; equal numbers by default.
        """
        self.tokens = list(tokens)
        each = len(lengths) // len(tokens)
        self.sequences = [each] * len(tokens) if sequences is None else list(sequences)
        self.lengths = lengths
        self.positions = positions
        self.batched = self.batched or lengths.device.type == "cuda"
        self.generation += 1
        self._rows.clear()
        self._ends.clear()

    def member_rows(self, counts: Sequence[int]) -> MemberRows:
        """Padded rows of the members, of which each has `counts[m]`; made once a batch.

        Raises:
            RuntimeError: No batch was routed.
        """
        if self.lengths is None:
            raise RuntimeError("no batch was routed: call route before the padded rows are used")
        key = tuple(counts)
        if key not in self._rows:
            self._rows[key] = MemberRows(counts, self.lengths.device)
        return self._rows[key]

    def member_ends(self, counts: Sequence[int]) -> tuple[Tensor, int]:
        """First row `(M + 1,)`, int32, of each member, of which each has `counts[m]`, and the end;
        and the most rows of a member.

        Raises:
            RuntimeError: No batch was routed.
        """
        if self.lengths is None:
            raise RuntimeError("no batch was routed: call route before the ends are used")
        key = tuple(counts)
        if key not in self._ends:
            ends = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
            (self._ends[key],) = upload([ends], self.lengths.device)
        return self._ends[key], max(counts)
