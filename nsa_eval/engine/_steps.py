"""Rows that decode together: one token a step for each, while rows leave and others take their places.

Two kinds, of one interface: `FixedSlots` are a family's own (steps of fixed shapes, from a CUDA graph where
there is one), `RowSlots` are ordinary forwards over whatever rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nsa_eval.engine._reader import Reader
from nsa_models.families import Rows, Slots


class Decoding(Protocol):
    """Rows by the number of their slot."""

    count: int
    """Slots in all."""
    lag: int
    """Steps that may be under way while the host looks at an earlier one's tokens."""

    def admit(self, slots: Sequence[int], rows: Rows, tokens: Sequence[int]) -> None:
        """Put rows into slots, each with the token that it feeds next. The rows are used up."""
        ...

    def release(self, slot: int) -> None:
        """Take a row out."""
        ...

    def kept(self, rows: Rows | None) -> int | None:
        """Tokens of cache that rows in slots and `rows` keep, and the room of all slots; None: unknown."""
        ...

    def step(self) -> tuple[list[int], Tensor]:
        """Feed every row its token.

        Returns:
            The slots, and logits [n, V] of each one's next token, good until the next step.
        """
        ...

    def feed(self, tokens: Tensor) -> None:
        """Say what the next step feeds: [n] int64 on the device, in the order of the last step's slots."""
        ...


class FixedSlots:
    """A family's slots: idle ones go along with tokens that nobody reads."""

    def __init__(self, slots: Slots, count: int, device: torch.device) -> None:
        """Args: `slots` has room for `count` rows."""
        self.count, self._slots = count, slots
        # The host waits for a GPU one step late: while it looks at tokens, the next step is under way.
        self.lag = 1 if device.type == "cuda" else 0

    def admit(self, slots: Sequence[int], rows: Rows, tokens: Sequence[int]) -> None:
        """As `Decoding` has it."""
        for row, slot in enumerate(slots):
            self._slots.admit(slot, rows, row)
        device = self._slots.tokens.device
        self._slots.tokens[torch.tensor(slots, device=device)] = torch.tensor(tokens, device=device)

    def release(self, slot: int) -> None:
        """As `Decoding` has it."""
        self._slots.release(slot)

    def kept(self, rows: Rows | None) -> int | None:
        """As `Decoding` has it."""
        return self._slots.kept(rows)

    def step(self) -> tuple[list[int], Tensor]:
        """As `Decoding` has it."""
        return list(range(self.count)), self._slots.step()

    def feed(self, tokens: Tensor) -> None:
        """As `Decoding` has it."""
        self._slots.tokens.copy_(tokens)


class RowSlots:
    """Rows of a cache that grows by a column a step; those that end are taken out before the next."""

    lag = 0

    def __init__(self, reader: Reader, count: int) -> None:
        """Args: `count` bounds the rows, and costs nothing."""
        self.count, self._reader = count, reader
        self._rows: Rows | None = None
        self._order: list[int] = []
        self._tokens: list[int] = []
        self._left: set[int] = set()

    def admit(self, slots: Sequence[int], rows: Rows, tokens: Sequence[int]) -> None:
        """As `Decoding` has it."""
        self._drop()
        self._rows = rows if self._rows is None else self._reader.join([self._rows, rows])
        self._order += slots
        self._tokens += tokens

    def release(self, slot: int) -> None:
        """As `Decoding` has it."""
        self._left.add(slot)

    def step(self) -> tuple[list[int], Tensor]:
        """As `Decoding` has it."""
        self._drop()
        assert self._rows is not None, "no row was admitted"
        return [*self._order], self._reader.step(self._tokens, self._rows)

    def kept(self, rows: Rows | None) -> int | None:
        """As `Decoding` has it."""
        return None

    def feed(self, tokens: Tensor) -> None:
        """As `Decoding` has it."""
        self._tokens = tokens.tolist()

    def _drop(self) -> None:
        if not self._left or self._rows is None:
            return
        kept = [place for place, slot in enumerate(self._order) if slot not in self._left]
        self._rows = self._reader.select(self._rows, kept) if kept else None
        self._order = [self._order[place] for place in kept]
        self._tokens = [self._tokens[place] for place in kept]
        self._left = set()
