"""Where each row of a batch stands: the bridge from attention masks to right-padded rows with lengths.

The block grid of NSA starts at a sequence's own first token, so a row must never begin with padding.
transformers' `generate()` pads on the left; `RaggedBatch.from_mask` turns such rows round before the decoder
sees them and turns the hidden states back afterwards, and a score can't depend on what shares the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsa_kernels import BlockGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedBatch:
    """One forward's new tokens: row b appends `counts[b]` tokens at positions `starts[b]`, `starts[b] + 1`...

    Host lists steer memory and loops without a device sync; the tensors go to the kernels.
    """

    starts: list[int]
    counts: list[int]
    width: int
    """N, columns of the chunk; counts[b] <= N."""
    device: torch.device
    order: Tensor | None = None
    """[B, N] column that each right-padded place takes its token from, or None when nothing moves."""
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_mask(
        cls, mask: Tensor | None, *, starts: list[int], width: int, device: torch.device
    ) -> RaggedBatch:
        """Read a 2-D attention mask [B, >= N] (1 = token); its last N columns are the new tokens.

        Raises:
            ValueError: The mask isn't 2-D, is narrower than the chunk, or a row's tokens aren't contiguous.
        """
        batch = len(starts)
        if mask is None:
            return cls(starts=starts, counts=[width] * batch, width=width, device=device)
        if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < width:
            raise ValueError(
                f"attention_mask must be [batch={batch}, >= {width}] with 1 for tokens, "
                f"got {tuple(mask.shape)}"
            )
        new = mask[:, -width:].bool().cpu()
        counts = new.sum(-1).tolist()
        if all(count == width for count in counts):
            return cls(starts=starts, counts=counts, width=width, device=device)
        first = new.int().argmax(-1)  # 0 for an all-padding row too
        columns = torch.arange(width)
        expected = (columns >= first[:, None]) & (columns < first[:, None] + new.sum(-1, keepdim=True))
        if not torch.equal(new, expected):
            raise ValueError(
                "attention_mask has padding between a row's tokens; pad at one end of each row only"
            )
        order = None
        if bool((first > 0).any()):
            order = ((columns + first[:, None]) % width).to(device)
        return cls(starts=starts, counts=counts, width=width, device=device, order=order)

    @property
    def rows(self) -> int:
        """B, rows in the batch."""
        return len(self.starts)

    @property
    def start(self) -> int | None:
        """The rows' common first position, or None when they differ."""
        return self.starts[0] if len(set(self.starts)) == 1 else None

    @property
    def full(self) -> bool:
        """Whether every row fills the chunk."""
        return all(count == self.width for count in self.counts)

    @property
    def ends(self) -> list[int]:
        """Tokens of each row after this chunk."""
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]

    @property
    def extent(self) -> int:
        """S: K/V columns that the chunk's padded rectangle needs, max over rows of start + N."""
        return max(self.starts) + self.width

    def tensor(self, name: str) -> Tensor:
        """`starts` or `ends` as a LongTensor [B] on the device, made once."""
        if name not in self._tensors:
            self._tensors[name] = torch.tensor(getattr(self, name), dtype=torch.long, device=self.device)
        return self._tensors[name]

    def positions(self) -> Tensor:
        """Positions [B, N] of the chunk's columns ([1, N] when all rows start alike)."""
        columns = torch.arange(self.width, device=self.device)
        if self.start is not None:
            return (columns + self.start)[None]
        return self.tensor("starts")[:, None] + columns

    def to_right_padded(self, x: Tensor) -> Tensor:
        """Move each row's tokens to its front; x [B, N, ...]."""
        return x if self.order is None else _take(x, self.order)

    def to_given_order(self, x: Tensor) -> Tensor:
        """Undo `to_right_padded`."""
        return x if self.order is None else _take(x, self.order.argsort(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyBatch(RaggedBatch):
    """One token for every row, at positions that only the device knows: a step of fixed shapes.

    Nothing that steers memory or loops depends on how long the rows are, so that a CUDA graph of the step
    serves all later steps. `starts` gives the number of rows alone.
    """

    positions_: Tensor
    """[B], tokens of each row before this one; advanced on the device between steps."""
    capacity: int
    """S: columns of every K/V buffer; what stands behind a row's tokens is never read."""
    renews: bool = True
    """Whether this token may complete a row's compression block; without, no entry is computed anew."""

    @classmethod
    def of(cls, positions: Tensor, capacity: int, *, renews: bool = True) -> SteadyBatch:
        """A step at `positions` [B] (int64), in buffers of `capacity` columns."""
        rows = positions.shape[0]
        return cls(
            starts=[0] * rows,
            counts=[1] * rows,
            width=1,
            device=positions.device,
            positions_=positions,
            capacity=capacity,
            renews=renews,
        )

    @property
    def start(self) -> int | None:
        """None: rows may differ."""
        return None

    @property
    def extent(self) -> int:
        """S: all columns."""
        return self.capacity

    def tensor(self, name: str) -> Tensor:
        """`starts` or `ends`, [B]."""
        if name not in self._tensors:
            self._tensors[name] = self.positions_ + 1 if name == "ends" else self.positions_
        return self._tensors[name]

    def angles(self, at: Callable[[Tensor], tuple[Tensor, Tensor]], first: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the last blocks' first positions, made once for all layers."""
        if "cos" not in self._tensors:
            self._tensors["cos"], self._tensors["sin"] = at(first)
        return self._tensors["cos"], self._tensors["sin"]

    def last_blocks(self, geometry: BlockGeometry) -> tuple[Tensor, Tensor]:
        """The last complete compression block of each row, made once for all layers.

        A row shorter than a block gets block 0, which no query sees before it is complete.

        Returns:
            Its index [B, 1] and its tokens' columns [B, l].
        """
        if "blocks" not in self._tensors:
            block = (self.tensor("ends") - geometry.block).div(geometry.stride, rounding_mode="floor")
            block = block.clamp(min=0)[:, None]
            self._tensors["blocks"] = block
            self._tensors["columns"] = block * geometry.stride + torch.arange(
                geometry.block, device=self.device
            )
        return self._tensors["blocks"], self._tensors["columns"]


def _take(x: Tensor, columns: Tensor) -> Tensor:
    index = columns.reshape(*columns.shape, *([1] * (x.dim() - 2)))
    return x.gather(1, index.expand_as(x) if x.dim() > 2 else index)
