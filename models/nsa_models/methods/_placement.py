"""Where the queries of one forward stand among the keys of their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Query rows of a mask that are checked at once: bounds the temporaries at rows x S.
_CHECKED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row's new tokens, one behind another."""

    column: int
    """Of the first of them, among the forward's n."""
    count: int
    """0 for a row without one."""
    position: int
    """Of the first of them, in the row."""


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
    seen: Tensor | None = None
    """[B, S] cache columns that hold a token of their row, None = all of them."""
    runs: tuple[Run, ...] | None = None
    """Of each row, where they stand together. Plain numbers: to ask a GPU in each layer makes it wait."""

    @classmethod
    def bottom_right(cls, rows: int, queries: int, keys: int, device: torch.device) -> Placement:
        """The last `queries` of `keys` columns, all of them tokens: plain causal attention."""
        first = keys - queries
        positions = torch.arange(first, keys, device=device).expand(rows, queries)
        runs = (Run(column=0, count=queries, position=first),) * rows
        return cls(positions=positions, first=first, runs=runs)

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
        return cls(
            positions=positions,
            columns=columns,
            real=None if bool(real.all()) else real,
            seen=seen,
            runs=_runs(positions, real),
        )

    def in_order(self, x: Tensor) -> Tensor:
        """Keys or values x [B, H_kv, S, d] with each row's tokens at their positions."""
        if self.columns is None:
            return x
        index = self.columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index)

    def counted(self, counts: list[int] | None) -> Placement:
        """The same with row b's first counts[b] queries as its tokens; None leaves it as it is."""
        if counts is None or (self.real is None and min(counts) >= self.positions.shape[1]):
            return self
        limit = torch.tensor(counts, device=self.positions.device)[:, None]
        real = torch.arange(self.positions.shape[1], device=limit.device) < limit
        return replace(self, real=real, runs=self._counted_runs(counts))

    def run(self, row: int) -> Run | None:
        """Where a row's tokens stand, None where they stand apart."""
        return None if self.runs is None else self.runs[row]

    def _counted_runs(self, counts: list[int]) -> tuple[Run, ...] | None:
        """The runs of so many tokens a row; None where a row has them elsewhere, by the mask."""
        if self.runs is None:
            return None
        cut = [(run, count) for run, count in zip(self.runs, counts, strict=True) if count]
        if any(run.column or count > run.count for run, count in cut):
            return None
        found = zip(self.runs, counts, strict=True)
        return tuple(replace(run, column=0, count=count) for run, count in found)

    def queries(self) -> Tensor:
        """Real queries of all rows, a 0-d LongTensor."""
        whole = torch.full((), self.positions.numel(), device=self.positions.device)
        return whole if self.real is None else self.real.sum()

    def dense_reads(self) -> Tensor:
        """KV tokens that dense attention reads for each row's real queries in one head, a LongTensor [B]."""
        seen = self.positions + 1
        return seen.sum(-1) if self.real is None else (seen * self.real).sum(-1)


def _runs(positions: Tensor, real: Tensor) -> tuple[Run, ...] | None:
    """Where each row's tokens stand among queries at `positions` [B, n]; None if a row has holes."""
    index = torch.arange(real.shape[1], device=real.device)
    begin = torch.where(real, index, real.shape[1]).amin(-1)
    behind = torch.where(real, index, -1).amax(-1) + 1
    position = positions.gather(-1, begin.clamp(max=real.shape[1] - 1)[:, None])[:, 0]
    table = torch.stack([begin, behind, real.sum(-1), position], dim=-1).tolist()
    if any(count and behind - begin != count for begin, behind, count, _ in table):
        return None
    return tuple(Run(column=begin, count=count, position=position) for begin, _, count, position in table)
