"""Where the queries of one forward stand among the keys of their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Query rows of a mask that are checked at once: bounds the temporaries at rows x S.
_CHECKED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """A row's tokens among the queries of a forward; their positions follow each other."""

    column: int
    """Of the first of them, among the forward's n."""
    count: int
    """0 for a row without one."""
    position: int
    """Of the first of them, in the row."""
    apart: Tensor | None = None
    """[count] columns, where padding stands between them; None: one behind another."""

    @property
    def where(self) -> slice | Tensor:
        """Their columns."""
        return slice(self.column, self.column + self.count) if self.apart is None else self.apart

    @property
    def end(self) -> int:
        """Position behind the last of them."""
        return self.position + self.count


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
    new: tuple[NewTokens, ...] | None = None
    """Of each row, known to the host: to ask a GPU in each layer makes it wait. None where the device alone
    knows."""

    @classmethod
    def bottom_right(cls, rows: int, queries: int, keys: int, device: torch.device) -> Placement:
        """The last `queries` of `keys` columns, all of them tokens: plain causal attention."""
        first = keys - queries
        positions = torch.arange(first, keys, device=device).expand(rows, queries)
        new = (NewTokens(column=0, count=queries, position=first),) * rows
        return cls(positions=positions, first=first, new=new)

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
            new=_new_tokens(positions, real),
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
        # Without waiting for what the device has to do before.
        limit = torch.tensor(counts)[:, None].to(self.positions.device, non_blocking=True)
        real = torch.arange(self.positions.shape[1], device=limit.device) < limit
        return replace(self, real=real, new=self._counted_new(counts))

    def together(self, row: int) -> NewTokens | None:
        """A row's tokens, None where they stand apart."""
        new = None if self.new is None else self.new[row]
        return new if new is not None and new.apart is None else None

    def tokens(self) -> tuple[NewTokens, ...]:
        """Of each row, from the device where the host doesn't know them: then it makes a GPU wait."""
        if self.new is not None:
            return self.new
        real = self.positions >= 0
        return _new_tokens(self.positions, real if self.real is None else real & self.real)

    def _counted_new(self, counts: list[int]) -> tuple[NewTokens, ...] | None:
        """With so many tokens a row; None where a row has them elsewhere, by the mask."""
        if self.new is None:
            return None
        cut = []
        for new, count in zip(self.new, counts, strict=True):
            if count and (new.column or count > new.count or new.apart is not None):
                return None
            cut.append(replace(new, column=0, count=count, apart=None))
        return tuple(cut)

    def queries(self) -> Tensor:
        """Real queries of all rows, a 0-d LongTensor."""
        whole = torch.full((), self.positions.numel(), device=self.positions.device)
        return whole if self.real is None else self.real.sum()

    def dense_reads(self) -> Tensor:
        """KV tokens that dense attention reads for each row's real queries in one head, a LongTensor [B]."""
        seen = self.positions + 1
        return seen.sum(-1) if self.real is None else (seen * self.real).sum(-1)


def _new_tokens(positions: Tensor, real: Tensor) -> tuple[NewTokens, ...]:
    """Where each row's tokens stand among queries at `positions` [B, n]; the host waits for one table."""
    index = torch.arange(real.shape[1], device=real.device)
    begin = torch.where(real, index, real.shape[1]).amin(-1)
    behind = torch.where(real, index, -1).amax(-1) + 1
    position = positions.gather(-1, begin.clamp(max=real.shape[1] - 1)[:, None])[:, 0]
    table = torch.stack([begin, behind, real.sum(-1), position], dim=-1).tolist()
    return tuple(
        NewTokens(
            column=begin,
            count=count,
            position=position,
            apart=index[real[row]] if count and behind - begin != count else None,
        )
        for row, (begin, behind, count, position) in enumerate(table)
    )
