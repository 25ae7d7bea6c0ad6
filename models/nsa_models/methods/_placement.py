"""Where the queries of one forward stand among the keys of their rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Query rows of a mask that are checked at once: bounds the temporaries at rows x S.
_CHECKED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Positions of the new queries, and the order that puts each row's keys at their positions."""

    positions: Tensor
    """[B, n] position of each query in its own row, -1 for padding that sees nothing."""
    real: Tensor | None = None
    """[B, n] queries that are tokens, None = all of them: padding isn't counted."""
    columns: Tensor | None = None
    """[B, S'] cache column of each position, None where column and position are the same."""
    first: int | None = None
    """Position of the first query where all rows start alike; lets blocks leave later keys out."""

    @classmethod
    def bottom_right(cls, rows: int, queries: int, keys: int, device: torch.device) -> Placement:
        """The last `queries` of `keys` columns, all of them tokens: plain causal attention."""
        first = keys - queries
        positions = torch.arange(first, keys, device=device).expand(rows, queries)
        return cls(positions=positions, first=first)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Placement | None:
        """Read a mask of booleans [B, 1, n, S] (True = visible) whose last n columns are the queries' own.

        A key's position is its rank among the columns that its row ever sees, so a row gives the same whether
        padding stands on its left, on its right, or as a hole in the cache.

        Returns:
            None for a mask that isn't causal attention over each row's tokens: packed rows, a window, a
            prefix that sees itself whole, or the columns of a cache of fixed size behind the queries' own.
        """
        mask = mask[:, 0]
        queries, keys = mask.shape[1:]
        seen = mask.any(1)
        rank = seen.cumsum(-1, dtype=torch.int32) - 1
        positions = mask.sum(-1) - 1
        for begin in range(0, queries, _CHECKED_ROWS):
            part = slice(begin, begin + _CHECKED_ROWS)
            causal = seen[:, None] & (rank[:, None] <= positions[:, part, None])
            if not torch.equal(causal, mask[:, part]):
                return None
        # A query that is a token is the last one that it sees; padding doesn't see its own column.
        real = mask.diagonal(offset=keys - queries, dim1=1, dim2=2)
        if not bool(real.any()) or not torch.equal(positions[real], rank[:, keys - queries :][real].long()):
            return None
        lengths = seen.sum(-1, keepdim=True)
        extent = int(lengths.max())
        in_front = torch.arange(keys, device=mask.device) < lengths
        columns = None
        if not torch.equal(seen, in_front):
            columns = torch.argsort((~seen).byte(), dim=-1, stable=True)[:, :extent]
        return cls(positions=positions, columns=columns, real=None if bool(real.all()) else real)

    def in_order(self, x: Tensor) -> Tensor:
        """Keys or values x [B, H_kv, S, d] with each row's tokens at their positions."""
        if self.columns is None:
            return x
        index = self.columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index)

    def counted(self, counts: list[int] | None) -> Placement:
        """The same with row b's first counts[b] queries as its tokens; None leaves it as it is."""
        if counts is None:
            return self
        limit = torch.tensor(counts, device=self.positions.device)[:, None]
        real = torch.arange(self.positions.shape[1], device=limit.device) < limit
        return Placement(positions=self.positions, real=real, columns=self.columns, first=self.first)

    def queries(self) -> Tensor:
        """Real queries of all rows, a 0-d LongTensor."""
        whole = torch.tensor(self.positions.numel(), device=self.positions.device)
        return whole if self.real is None else self.real.sum()

    def dense_reads(self) -> Tensor:
        """KV tokens that dense attention reads for all real queries in one head, a 0-d LongTensor."""
        seen = self.positions + 1
        return seen.sum() if self.real is None else (seen * self.real).sum()
