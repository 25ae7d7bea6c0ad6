"""Which keys a tile of queries reads, as lists: the common form of block-sparse attention.

Methods choose in many ways (scores of block means, gates, pages, diagonals) and all end in this: neighbouring
queries share a list of blocks of keys, each block read whole under a causal mask. `nsa_kernels.blocks`
attends by such lists and knows no method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BEHIND = 2**30
"""A first key that no list reaches."""
_WORD = 32
"""Blocks to a word of `BlockLists.members`."""
_CELLS = 2**24
"""Numbers that are held at a time while what members read is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLists:
    """Blocks of keys for each tile of queries: made by `from_mask` and `from_blocks`, or by hand.

    Tile i holds the queries [i * query_block, (i + 1) * query_block) of a call. L lists stand beside each
    other: one for each query head (L = H), one for each KV head (H_kv), or one for all (1). A block is
    `key_block` keys from its first one on; it may begin anywhere. A list is ascending and its blocks don't
    overlap, so that a key counts once; a list that breaks this gives NaN on a GPU and an error elsewhere
    (`check`). What is behind a query's own position is never seen, whatever the list holds.
    """

    firsts: Tensor
    """[B, L, T, W] int32: positions of the blocks' first keys; what is behind a list's count is ignored."""
    counts: Tensor
    """[B, L, T] int32: blocks of each list; a tile without any gives 0."""
    query_block: int
    """Queries to a tile: a power of 2 from 16 on."""
    key_block: int
    """Keys to a block: a power of 2 from 16 on."""
    columns: Tensor | None = None
    """[B, L, T, C] int32: single keys, ascending, each once and in none of the tile's blocks."""
    column_counts: Tensor | None = None
    """[B, L, T] int32: single keys of each list."""
    members: Tensor | None = None
    """[B, H, N, words] int32: bit j % 32 of word j // 32 says whether a query sees block j of the grid, that
    is the keys from j * key_block on. None: a tile's queries all see what their list holds."""

    def __post_init__(self) -> None:
        """Checks shapes; nothing of the device is read.

        Raises:
            ValueError: A size or shape that doesn't fit.
        """
        for name in ("query_block", "key_block"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"{name} must be a power of 2 from 16 on, got {size}")
        if self.firsts.dim() != 4 or tuple(self.counts.shape) != tuple(self.firsts.shape[:3]):
            raise ValueError(
                "firsts must be [B, L, T, W] and counts [B, L, T], got "
                f"{list(self.firsts.shape)} and {list(self.counts.shape)}"
            )
        if (self.columns is None) != (self.column_counts is None):
            raise ValueError("columns and column_counts are given together, or neither is")
        if self.columns is not None and self.column_counts is not None:
            shapes = (tuple(self.columns.shape[:3]), tuple(self.column_counts.shape))
            if self.columns.dim() != 4 or shapes != (tuple(self.counts.shape),) * 2:
                raise ValueError(
                    f"columns must be [B, L, T, C] and column_counts [B, L, T] with [B, L, T] = "
                    f"{list(self.counts.shape)}, got {list(self.columns.shape)} and {list(shapes[1])}"
                )
        for name in ("firsts", "counts", "columns", "column_counts", "members"):
            x = getattr(self, name)
            if x is not None and x.dtype != torch.int32:
                raise ValueError(f"{name} must be int32, got {x.dtype}")

    @classmethod
    def from_mask(cls, mask: Tensor, *, query_block: int, key_block: int) -> BlockLists:
        """Lists of the blocks that a mask is True at.

        Args:
            mask: Booleans [B, L, T, K]; block j of the grid is the keys from j * key_block on.
            query_block: Queries to a tile.
            key_block: Keys to a block.
        """
        blocks = mask.shape[-1]
        place = mask.cumsum(-1, dtype=torch.int32)
        counts = place[..., -1] if blocks else mask.new_zeros(mask.shape[:3], dtype=torch.int32)
        # Blocks that aren't chosen all go to a place of their own, which is cut off.
        place = torch.where(mask, place - 1, blocks).long()
        first = torch.arange(blocks, dtype=torch.int32, device=mask.device) * key_block
        firsts = torch.full((*mask.shape[:3], blocks + 1), _BEHIND, dtype=torch.int32, device=mask.device)
        firsts.scatter_(-1, place, first.expand(mask.shape))
        return cls(
            firsts=firsts[..., :blocks].contiguous(),
            counts=counts.contiguous(),
            query_block=query_block,
            key_block=key_block,
        )

    @classmethod
    def from_blocks(
        cls, blocks: Tensor, *, query_block: int, key_block: int, distinct: bool = False
    ) -> BlockLists:
        """Lists of the blocks that are numbered; a number that comes twice counts once.

        Args:
            blocks: Integers [B, L, T, W] in any order; negative ones are unused slots.
            query_block: Queries to a tile.
            key_block: Keys to a block.
            distinct: The caller knows that no number comes twice.
        """
        behind = _BEHIND // key_block
        numbers = torch.where(blocks < 0, behind, blocks).int().sort(-1).values
        if not distinct:
            again = torch.zeros_like(numbers, dtype=torch.bool)
            again[..., 1:] = numbers[..., 1:] == numbers[..., :-1]
            numbers = numbers.masked_fill(again, behind).sort(-1).values
        counts = (numbers < behind).sum(-1, dtype=torch.int32)
        return cls(firsts=numbers * key_block, counts=counts, query_block=query_block, key_block=key_block)

    def with_members(self, chosen: Tensor) -> BlockLists:
        """The same lists, of whose blocks each query sees those that it chose itself.

        Args:
            chosen: Booleans [B, H, N, K] over the blocks of the grid.
        """
        return replace(self, members=pack_members(chosen))

    def check(self) -> None:
        """Looks through the lists, which makes a GPU wait.

        Raises:
            ValueError: A list that isn't ascending, or a key that it names twice.
        """
        width = torch.arange(self.firsts.shape[-1], device=self.firsts.device)
        used = width < self.counts[..., None]
        before = torch.full_like(self.firsts, -self.key_block)
        before[..., 1:] = self.firsts[..., :-1]
        if bool(((self.firsts - before < self.key_block) & used).any()) or bool(
            (self.counts > self.firsts.shape[-1]).any()
        ):
            raise ValueError(
                f"the blocks of a list must be ascending and {self.key_block} keys apart at least, from 0 "
                f"on, and no more than its {self.firsts.shape[-1]} slots; BlockLists.from_blocks orders them"
            )
        if self.members is not None:
            known = self.members.shape[-1] * _WORD * self.key_block
            outside = (self.firsts % self.key_block != 0) | (self.firsts >= known)
            if bool((outside & used).any()):
                raise ValueError(
                    f"with members, blocks must begin at multiples of {self.key_block} and before {known}, "
                    "where there are bits"
                )
        if self.columns is None or self.column_counts is None:
            return
        if bool((self.column_counts > self.columns.shape[-1]).any()):
            raise ValueError(f"a list has more columns than its {self.columns.shape[-1]} slots")
        width = torch.arange(self.columns.shape[-1], device=self.columns.device)
        single = width < self.column_counts[..., None]
        before = torch.full_like(self.columns, -1)
        before[..., 1:] = self.columns[..., :-1]
        if bool(((self.columns <= before) & single).any()):
            raise ValueError("the columns of a list must be ascending, from 0 on, each once")
        if bool((single & self.covers(self.columns)).any()):
            raise ValueError("a list names a column that one of its blocks holds: it would count twice")

    def covers(self, keys: Tensor) -> Tensor:
        """Whether keys [B, L, T, C] lie in a block of their tile's list, booleans of the same shape."""
        if self.firsts.shape[-1] == 0:
            return torch.zeros_like(keys, dtype=torch.bool)
        width = torch.arange(self.firsts.shape[-1], device=self.firsts.device)
        firsts = torch.where(width < self.counts[..., None], self.firsts, _BEHIND)
        at = torch.searchsorted(firsts, keys.contiguous(), right=True) - 1
        first = firsts.gather(-1, at.clamp(min=0))
        return (at >= 0) & (keys - first < self.key_block)

    def seen(self, tokens: int) -> Tensor:
        """The keys of each tile, before any causal mask: booleans [B, L, T, tokens]. For tests and twins."""
        keys = torch.arange(tokens, dtype=torch.int32, device=self.firsts.device)
        seen = self.covers(keys.expand(*self.counts.shape, tokens))
        if self.columns is not None and self.column_counts is not None:
            width = torch.arange(self.columns.shape[-1], device=keys.device)
            single = torch.where(width < self.column_counts[..., None], self.columns, tokens)
            marks = seen.new_zeros(*seen.shape[:-1], tokens + 1)
            marks.scatter_(-1, single.clamp(max=tokens).long(), True)
            seen = seen | marks[..., :tokens]
        return seen

    def pairs(self, queries: int) -> int:
        """Query-key pairs that L lists of N queries at positions 0 to N - 1 compute, causal masks apart.

        Those of `members` count as all of their tile's. It makes a GPU wait.
        """
        tiles = torch.arange(self.counts.shape[-1], device=self.counts.device)
        begin = (tiles * self.query_block)[:, None].expand_as(self.firsts)
        end = (begin + self.query_block).clamp(max=queries)
        used = torch.arange(self.firsts.shape[-1], device=begin.device) < self.counts[..., None]
        seen = _ramp(end - self.firsts, self.key_block) - _ramp(begin - self.firsts, self.key_block)
        total = int((seen * used).sum())
        if self.columns is not None and self.column_counts is not None:
            begin, end = begin[..., :1], end[..., :1]
            used = torch.arange(self.columns.shape[-1], device=begin.device) < self.column_counts[..., None]
            seen = _ramp(end - self.columns, 1) - _ramp(begin - self.columns, 1)
            total += int((seen * used).sum())
        return total

    def reads(self, heads: int, *, start: int, first: int, end: int) -> Tensor:
        """KV tokens that the queries at positions [first, end) read under a causal mask, over all heads.

        Exact, and without an [N, S] mask; nothing makes a GPU wait. With `members`, lists must hold all
        blocks that a query chose, as unions do.

        Args:
            heads: H, query heads.
            start: Position of the call's first query, where tile 0 begins; at most `first`.
            first: Position of the first query that counts.
            end: Position behind the last one.

        Returns:
            A 0-d LongTensor, of one row of the batch or of all.
        """
        if self.members is not None:
            return self._reads_of_members(self.members, start=start, first=first, end=end)
        batch, lists, tiles = self.counts.shape
        widest = max(self.firsts.shape[-1], 1 if self.columns is None else self.columns.shape[-1], 1)
        step = max(1, _CELLS // (batch * lists * widest))
        total = torch.zeros((), dtype=torch.long, device=self.counts.device)
        for at in range(0, tiles, step):
            some = slice(at, at + step)
            edge = start + torch.arange(at, min(at + step, tiles), device=total.device) * self.query_block
            begin = edge.clamp(min=first, max=end)[:, None]
            behind = (edge + self.query_block).clamp(min=first, max=end)[:, None]
            total += _seen(self.firsts[:, :, some], self.counts[:, :, some], begin, behind, self.key_block)
            if self.columns is not None and self.column_counts is not None:
                columns, counts = self.columns[:, :, some], self.column_counts[:, :, some]
                total += _seen(columns, counts, begin, behind, 1)
        read: Tensor = total * (heads // lists)
        return read

    def _reads_of_members(self, members: Tensor, *, start: int, first: int, end: int) -> Tensor:
        """A word and some queries at a time: 32 numbers for each head and query."""
        batch, heads, _, words = members.shape
        bits = torch.arange(_WORD, dtype=torch.int32, device=members.device)
        total = torch.zeros((), dtype=torch.long, device=members.device)
        step = max(1, _CELLS // (batch * heads * _WORD))
        for begin in range(first, end, step):
            position = torch.arange(begin, min(begin + step, end), device=members.device)[:, None].int()
            some = members[:, :, begin - start : begin - start + len(position)]
            for word in range(words):
                keys = (word * _WORD + bits) * self.key_block
                seen = (position + 1 - keys).clamp(min=0, max=self.key_block)  # [n, 32]
                held = (some[..., word, None] >> bits) & 1
                total = total + (held * seen).sum()
        return total


def pack_members(chosen: Tensor) -> Tensor:
    """Booleans [..., K] over the blocks of the grid as words of `BlockLists.members`, int32 [..., words]."""
    words = -(-chosen.shape[-1] // _WORD)
    padded = torch.nn.functional.pad(chosen, (0, words * _WORD - chosen.shape[-1]))
    bits = torch.arange(_WORD, dtype=torch.int32, device=chosen.device)
    # Bit 31 is the sign: a sum of bits, each once, is their union all the same.
    packed: Tensor = (padded.unflatten(-1, (words, _WORD)).int() << bits).sum(-1, dtype=torch.int32)
    return packed


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLists:
    """Pages of keys that one query a row reads while decoding.

    Distinct, in any order; a page holds `page` keys from its first one on, of which those behind the row's
    length are not there.
    """

    firsts: Tensor
    """[B, L, W] int32: positions of the pages' first keys; L = H, H_kv or 1."""
    counts: Tensor
    """[B, L] int32: pages of each list."""
    page: int
    """Keys to a page."""

    def __post_init__(self) -> None:
        """Checks shapes; nothing of the device is read.

        Raises:
            ValueError: A size, shape or dtype that doesn't fit.
        """
        if self.page < 1:
            raise ValueError(f"page must be at least 1 key, got {self.page}")
        if self.firsts.dim() != 3 or tuple(self.counts.shape) != tuple(self.firsts.shape[:2]):
            raise ValueError(
                f"firsts must be [B, L, W] and counts [B, L], got {list(self.firsts.shape)} and "
                f"{list(self.counts.shape)}"
            )
        if self.firsts.dtype != torch.int32 or self.counts.dtype != torch.int32:
            raise ValueError(f"lists must be int32, got {self.firsts.dtype} and {self.counts.dtype}")

    def check(self) -> None:
        """Looks through the lists, which makes a GPU wait.

        Raises:
            ValueError: Pages that overlap, or more than there are slots.
        """
        width = torch.arange(self.firsts.shape[-1], device=self.firsts.device)
        used = width < self.counts[..., None]
        # Unused slots go behind everything, a page apart from each other.
        spare = _BEHIND + width.int() * self.page
        ordered = torch.where(used, self.firsts, spare).sort(-1).values
        close = ordered[..., 1:] - ordered[..., :-1] < self.page
        outside = (self.firsts < 0) & used
        if bool(close.any()) or bool(outside.any()) or bool((self.counts > width.numel()).any()):
            raise ValueError(
                f"pages of a list must begin {self.page} keys apart at least, from 0 on, and be no more than "
                f"its {width.numel()} slots"
            )

    def reads(self, heads: int, lengths: Tensor) -> Tensor:
        """KV tokens of the lists in rows of `lengths` [B] tokens, over all H heads: a 0-d LongTensor."""
        used = torch.arange(self.firsts.shape[-1], device=self.firsts.device) < self.counts[..., None]
        held = (lengths.long()[:, None, None] - self.firsts).clamp(min=0, max=self.page)
        total: Tensor = (held * used).sum() * (heads // self.counts.shape[1])
        return total


def _seen(firsts: Tensor, counts: Tensor, begin: Tensor, behind: Tensor, size: int) -> Tensor:
    """Keys that queries at positions [begin, behind) of tiles [T, 1] see of `size` keys from `firsts` on."""
    used = torch.arange(firsts.shape[-1], device=firsts.device) < counts[..., None]
    return ((_ramp(behind - firsts, size) - _ramp(begin - firsts, size)) * used).sum()


def _ramp(x: Tensor, size: int) -> Tensor:
    """The sum over y = 1 to x of min(y, size); 0 for x below 1."""
    x = x.long().clamp(min=0)
    short = x.clamp(max=size)
    return short * (short + 1) // 2 + (x - short) * size
