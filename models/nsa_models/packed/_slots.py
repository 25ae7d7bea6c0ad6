"""Rows that decode together, each in a slot: what they have read stays where it is, new tokens get tails.

A step has fixed shapes, whatever rows are in the slots and however long they are, so on a GPU it is captured
in a CUDA graph once and replayed from then on, also after rows have left and others entered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsa_kernels.spans import TILE, SpanTable, attend_plainly, decode_spans
from nsa_models.feeding import feeding
from nsa_models.graphs import ReplayedStep
from nsa_models.packed._blocks import Block, Chain, own

Step = Callable[[Tensor, Tensor], Tensor]
"""A forward over packed tokens [1, R] at positions [1, R]: logits [R, V]."""


class _Tables:
    """The tiles of all slots: `SpanTable`s of every layer, and the rows that they point to."""

    def __init__(
        self,
        like: Block,
        slots: int,
        tiles: int,
        room: int,
        device: torch.device,
        before: _Tables | None = None,
    ) -> None:
        """Tables as `like` has layers; with `before`, its tails are kept, as rows decode in them."""
        layers = len(like.k)
        self.tiles = tiles
        self.room_tiles = -(-room // TILE)
        width = self.room_tiles * TILE
        self.k_tails: list[Tensor] = before.k_tails if before else _rooms(like.k, slots, width)
        self.v_tails: list[Tensor] = before.v_tails if before else _rooms(like.v, slots, width)
        self.addresses = torch.zeros(2, layers, slots, tiles, dtype=torch.int64, device=device)
        self.sizes = torch.zeros(slots, tiles, dtype=torch.int32, device=device)

    def fill(self, slot: int, chain: Chain) -> int:
        """Point a slot to a row's spans and to its own tail; number of the tail's first tile."""
        columns: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        sizes: list[int] = []
        for span in chain:
            starts = np.arange(span.begin, span.end, TILE, dtype=np.int64)
            columns.append(_addresses(span.block.k, span.block.v, starts))
            sizes += [min(TILE, span.end - int(start)) for start in starts]
        starts = np.arange(0, self.room_tiles * TILE, TILE, dtype=np.int64)
        columns.append(_addresses([x[slot] for x in self.k_tails], [x[slot] for x in self.v_tails], starts))
        whole = torch.from_numpy(np.concatenate(columns, -1))
        self.addresses[:, :, slot, : whole.shape[-1]] = whole.to(self.addresses.device)
        self.sizes[slot, : len(sizes)] = torch.tensor(sizes, dtype=torch.int32).to(self.sizes.device)
        return len(sizes)


class PackedSlots:
    """One token a step for the rows of up to R slots.

    Attributes:
        tokens: [R] int64 on the device: what the next step feeds; anything in a slot without a row.
    """

    def __init__(self, step: Step, *, slots: int, room: int, device: torch.device, graphs: bool) -> None:
        """Make room.

        Args:
            step: The model's forward.
            slots: R.
            room: Tokens that a row may get.
            device: Where the model is.
            graphs: Whether the step is captured in a CUDA graph.
        """
        self.room, self._device = room, device
        self._step = step
        self.tokens = torch.zeros(slots, dtype=torch.long, device=device)
        self._positions = torch.zeros(slots, dtype=torch.long, device=device)
        self._lengths = torch.zeros(slots, dtype=torch.int32, device=device)
        self._tails = torch.zeros(slots, dtype=torch.int32, device=device)
        self._active = torch.zeros(slots, dtype=torch.int32, device=device)
        self._slots = torch.arange(slots, device=device)
        self._chains: list[Chain | None] = [None] * slots
        self._tables: _Tables | None = None
        self._replayed = ReplayedStep(
            self._forward, state=(self._positions, self._lengths), enabled=graphs and device.type == "cuda"
        )
        self._layer = 0

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return self._replayed.captured

    def admit(self, slot: int, chain: Chain, length: int) -> None:
        """Put a row into a slot.

        Args:
            slot: One without a row.
            chain: What the row has read.
            length: Tokens of it.
        """
        needed = sum(-(-len(span) // TILE) for span in chain) + -(-self.room // TILE)
        if self._tables is None or needed > self._tables.tiles:
            self._make_tables(chain[0].block, needed)
        assert self._tables is not None
        self._chains[slot] = chain
        self._tails[slot] = self._tables.fill(slot, chain)
        self._positions[slot], self._lengths[slot], self._active[slot] = length, 0, 1

    def release(self, slot: int) -> None:
        """Take the row out of a slot: it reads and writes nothing that is another's from now on."""
        self._chains[slot] = None
        for state in (self._positions, self._lengths, self._tails, self._active):
            state[slot] = 0

    def step(self) -> Tensor:
        """Feed `tokens`; logits [R, V], good until the next step."""
        return self._replayed()

    def _make_tables(self, like: Block, tiles: int) -> None:
        """Tables for more tiles; the tails of rows that decode already move along."""
        before = self._tables
        made = _Tables(like, len(self._chains), -(-tiles * 5 // 4), self.room, self._device, before)
        if before is not None:
            for slot, chain in enumerate(self._chains):
                if chain is not None:
                    made.fill(slot, chain)
        self._tables = made
        self._replayed.forget()

    def _forward(self) -> Tensor:
        self._lengths.add_(self._active)
        self._layer = 0
        with feeding(self):
            logits = self._step(self.tokens[None], self._positions[None])
        self._positions.add_(self._active)
        return logits

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        """The next layer's attention of the step, as `Feed` has it."""
        tables = self._tables
        assert tables is not None, "no row was admitted"
        layer, self._layer = self._layer, self._layer + 1
        last = (self._lengths - 1).clamp(min=0).long()
        tables.k_tails[layer][self._slots, last] = own(k)
        tables.v_tails[layer][self._slots, last] = own(v)
        queries = q[0].transpose(0, 1)
        if not q.is_cuda:
            return self._plainly(queries, layer, scale)[None]
        table = SpanTable(
            k=tables.addresses[0, layer],
            v=tables.addresses[1, layer],
            sizes=tables.sizes,
            tails=self._tails,
            lengths=self._lengths,
        )
        return decode_spans(queries, table, kv_heads=k.shape[1], v_width=v.shape[-1], scale=scale)[None]

    def _plainly(self, q: Tensor, layer: int, scale: float | None) -> Tensor:
        """The plain twin of `decode_spans`: a row's keys copied together."""
        assert self._tables is not None
        out = q.new_zeros(*q.shape[:2], self._tables.v_tails[layer].shape[-1])
        for slot, chain in enumerate(self._chains):
            if chain is None:
                continue
            grown = int(self._lengths[slot])
            k, v = (
                torch.cat([*(part(span)[span.begin : span.end] for span in chain), tails[slot, :grown]])
                for part, tails in (
                    (lambda span: span.block.k[layer], self._tables.k_tails[layer]),
                    (lambda span: span.block.v[layer], self._tables.v_tails[layer]),
                )
            )
            out[slot] = attend_plainly(q[slot : slot + 1], k, v, causal=False, scale=scale).out[0]
        return out


def _rooms(like: Sequence[Tensor], slots: int, width: int) -> list[Tensor]:
    return [x.new_zeros(slots, width, *x.shape[1:]) for x in like]


def _addresses(
    keys: Sequence[Tensor], values: Sequence[Tensor], starts: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Addresses [2, layers, starts] of tokens in each layer's keys and values."""
    return np.stack(
        [
            np.stack([x.data_ptr() + starts * (x.stride(0) * x.element_size()) for x in some])
            for some in (keys, values)
        ]
    )
