"""What a method remembers of the rows that a model reads, from one forward to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Memory:
    """One row in one layer."""

    own: Any = None
    """What the method made of it: replaced, never changed in place, so that copies of a row may share it."""
    seen: int = 0
    """Tokens that it covers."""
    end: int = 0
    """Tokens of the row once the forward that is under way is done."""
    prompt: int | None = None
    """Tokens that were there when the first decode step began; None before."""
    last: Tensor | None = None
    """[H_kv, d_k] key of the last token seen, in the deepest layer alone: tells whether another row goes on
    here."""
    step: dict[str, Any] = field(default_factory=dict)
    """What a layer hands to later ones of the same forward, shared by all layers of the row."""


class RowMemory:
    """One row in all layers."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self.layers: dict[int, Memory] = {}
        self.step: dict[str, Any] = {}

    def copy(self) -> RowMemory:
        """The same memory for a row that goes its own way from here."""
        twin = RowMemory()
        twin.layers = {layer: replace(memory, step=twin.step) for layer, memory in self.layers.items()}
        return twin


class Memories:
    """The rows of a batch, in its order. Whoever copies, joins or drops rows of a cache does so here too."""

    def __init__(self, rows: Sequence[RowMemory]) -> None:
        """Args: a memory for each row."""
        self.rows = list(rows)

    @classmethod
    def fresh(cls, rows: int) -> Memories:
        """Rows that have read nothing."""
        return cls([RowMemory() for _ in range(rows)])

    def select(self, indices: Sequence[int]) -> Memories:
        """Rows `indices` (repeats allowed) as new rows; the old ones stay as they are."""
        return Memories([self.rows[index].copy() for index in indices])

    @classmethod
    def join(cls, parts: Sequence[Memories]) -> Memories:
        """All rows as one batch, in order."""
        return cls([row for part in parts for row in part.rows])
