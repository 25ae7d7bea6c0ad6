"""Keys that are made once and kept: a tensor that grows at its end, which copies of a row share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_SPARE = 256
"""Tokens of room at least when a tensor moves, so that few steps of decoding move one."""


@dataclass(slots=True)
class _Store:
    data: Tensor
    """[heads, room, d]."""
    filled: int
    """Tokens that somebody has put there."""


@dataclass(frozen=True, slots=True)
class Growing:
    """The first `count` tokens of a store; what is there never changes.

    Of copies of a row that share a store, the first to go on takes the room behind their common tokens, and
    any other moves to a store of its own.
    """

    store: _Store
    count: int

    @classmethod
    def like(cls, x: Tensor, *, room: int) -> Growing:
        """No tokens, with room for some, as x [heads, n, d] has them."""
        return cls(_Store(x.new_empty(x.shape[0], room, x.shape[2]), 0), 0)

    @property
    def tokens(self) -> Tensor:
        """[heads, count, d], a view."""
        return self.store.data[:, : self.count]

    def with_room(self, room: int) -> Growing:
        """The same tokens where up to `room` of them fit, and this row may put some behind its own."""
        if self.store.filled == self.count and room <= self.store.data.shape[1]:
            return self
        heads, _, width = self.store.data.shape
        moved = self.store.data.new_empty(heads, room + max(_SPARE, room // 8), width)
        moved[:, : self.count] = self.tokens
        return Growing(_Store(moved, self.count), self.count)

    def extended(self, new: Tensor) -> Growing:
        """With new [heads, n, d] behind the last token."""
        end = self.count + new.shape[1]
        grown = self.with_room(end)
        grown.store.data[:, self.count : end] = new
        grown.store.filled = end
        return Growing(grown.store, end)
