"""Exact counts of the KV tokens that queries read under a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Now: TypeAlias = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCounts:
    """KV tokens read; a query of each head of each layer counts on its own."""

    queries: int
    """Queries x heads x layers."""
    read: int
    """KV tokens that they read."""
    dense: int
    """KV tokens that dense attention would have read."""

    @property
    def per_query(self) -> float:
        """KV tokens a query read per head and layer, on average; 0 where nothing was counted."""
        return self.read / self.queries if self.queries else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReads:
    """What choosing read, where kernels choose by something that is kept beside the cache (`fast`).

    Vectors of a key's width in each KV head, over rows, steps and layers.
    """

    scored: int
    """Of the index: `Method.index_reads` of each query."""
    rebuilt: int
    """Keys that were read to make it anew: at a reply's first step, and where rows of a batch had changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReads:
    """What one layer read in one forward."""

    layer: int
    phase: Now
    sparse: bool
    """Whether the method chose the keys: False in dense layers and in a phase that it leaves alone."""
    counts: ReadCounts


class Reads:
    """Reads since the method was attached, or since `reset()`.

    Counts stay on the device until somebody asks, so that counting doesn't make a GPU wait. A forward that
    was broken off, or repeated with a smaller batch, has read what it has read.
    """

    def __init__(self) -> None:
        """Nothing read yet."""
        self._totals: dict[Now, Tensor] = {}
        self._last: list[tuple[int, Now, bool, Tensor]] = []
        self._rows: list[Tensor] | None = None
        self._index: dict[str, Tensor] = {}

    def look(self, **vectors: Tensor) -> None:
        """Count what choosing read, by the fields of `IndexReads`: 0-d LongTensors."""
        for name, count in vectors.items():
            before = self._index.get(name)
            self._index[name] = count if before is None else before + count.to(before.device)

    @property
    def index(self) -> IndexReads:
        """All that choosing read so far."""
        found = {name: int(count) for name, count in self._index.items()}
        return IndexReads(scored=found.get("scored", 0), rebuilt=found.get("rebuilt", 0))

    def add(
        self,
        *,
        layer: int,
        phase: Now,
        sparse: bool,
        heads: int,
        queries: Tensor,
        read: Tensor,
        dense: Tensor,
    ) -> None:
        """Count one layer of a forward.

        Args:
            layer: Its index. One that isn't above the last begins a forward.
            phase: What the caller says it is.
            sparse: Whether the method chose.
            heads: H, query heads.
            queries: Real queries.
            read: KV tokens read over all heads, by each row [B] or by all of them.
            dense: KV tokens that dense attention reads in one head, by each row [B].
        """
        counts = torch.stack([queries * heads, read.sum(), dense.sum() * heads])
        begins = not self._last or layer <= self._last[-1][0]
        if begins:
            self._last = []
        if self._rows is not None and phase == "prefill" and read.dim():
            by_row = torch.stack([read, dense * heads], dim=-1)
            if begins or not self._rows:
                self._rows.append(by_row)
            else:
                self._rows[-1] = self._rows[-1] + by_row.to(self._rows[-1].device)
        self._last.append((layer, phase, sparse, counts))
        before = self._totals.get(phase)
        # Layers of one model may live on several devices.
        self._totals[phase] = counts if before is None else before + counts.to(before.device)

    @property
    def last(self) -> list[LayerReads]:
        """The last forward, layer by layer."""
        return [
            LayerReads(layer=layer, phase=phase, sparse=sparse, counts=_counts(counts))
            for layer, phase, sparse, counts in self._last
        ]

    @property
    def prefill(self) -> ReadCounts:
        """All prefill so far."""
        return _counts(self._totals.get("prefill"))

    @property
    def decode(self) -> ReadCounts:
        """All decode steps so far."""
        return _counts(self._totals.get("decode"))

    def take_rows(self) -> list[tuple[int, int]]:
        """(read, dense) of each row of each forward over prompts since the last call, in order.

        They are kept from the first call on, for whoever goes on calling.
        """
        taken = [(read, dense) for rows in self._rows or () for read, dense in rows.tolist()]
        self._rows = []
        return taken

    def reset(self) -> None:
        """Begin anew."""
        self._totals, self._last, self._index = {}, [], {}
        self._rows = None if self._rows is None else []


def _counts(tensor: Tensor | None) -> ReadCounts:
    queries, read, dense = tensor.tolist() if tensor is not None else (0, 0, 0)
    return ReadCounts(queries=queries, read=read, dense=dense)
