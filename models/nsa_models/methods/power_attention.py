"""PowerAttention: blocks at distances that are powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists, PageLists
from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock
from nsa_models.methods._listed import Listed, Run, own_blocks, pages_of


@dataclass(frozen=True, kw_only=True)
class PowerAttention(Listed):
    """PowerAttention: a static pattern whose reach doubles with every layer (arXiv 2503.03588, Algorithm 1).

    Tokens stand in blocks of `block`. A query reads the blocks whose distance to its own is below `window`,
    or a power of two, and the first block, up to itself. The paper trains the pattern (1B tokens and
    fine-tuning) and leaves 2 of 7 layers dense for RULER; on a dense checkpoint it is a static baseline.

    It has no budget: a query reads `window` blocks, the first, and one for each power of two from `window` to
    its distance to the start. At 32k that is 10 blocks, 2560 KV tokens.

    Attributes:
        window: Latest blocks that are read, the query's own among them. Default 5 (the paper's).
        block: Tokens of a block. Default 256 (the paper's).
        fast: Read the blocks by kernels, in prompts and steps, on a GPU and in 16 bits (`Listed`). Default
            false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "power-attention"
    title: ClassVar[str] = "PowerAttention: blocks at distances of powers of two"
    paper: ClassVar[str] = "2503.03588"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "none: window, in blocks; grows by a block when the distance doubles"
    stated: ClassVar[tuple[str, ...]] = ("window",)
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "layer"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    window: int = 5
    block: int = 256

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No window, or an empty block.
        """
        super().__post_init__()
        if self.window < 1:
            self.refuse("window", "must be at least 1 block: a query's own")
        if self.block < 1:
            self.refuse("block", "must be at least 1 token")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, 1, n, S]."""
        own = block.positions.div(self.block, rounding_mode="floor")[:, None, :, None]
        of_keys = torch.arange(block.k.shape[2], device=block.k.device) // self.block
        return visible_blocks(own - of_keys, of_keys, self.window) & block.visible

    def lists(self, run: Run, plan: None) -> BlockLists:
        """One list for all heads."""
        own = own_blocks(run, block=self.block, tile=self.tile)
        read = self._read(own, run.k.shape[1])
        return BlockLists.from_mask(read[None, None], query_block=self.tile, key_block=self.block)

    def pages(self, lengths: Tensor, *, heads: int, kv_heads: int, size: int) -> PageLists:
        """One list for all heads."""
        read = self._read((lengths - 1).div(self.block, rounding_mode="floor"), size)
        return pages_of(read[:, None], self.block, self.kv_reads(size) // self.block + 1)

    def _read(self, own: Tensor, size: int) -> Tensor:
        """Booleans [n, blocks]: what queries in the blocks `own` [n] read of `size` keys."""
        of_keys = torch.arange(-(-size // self.block), device=own.device)
        distance = own[:, None] - of_keys
        return visible_blocks(distance, of_keys, self.window) & (distance >= 0)

    def kv_reads(self, tokens: int) -> int:
        """Whole older blocks, and the own one up to the query."""
        before, own = divmod(tokens - 1, self.block)
        window = min(self.window - 1, before)
        powers = [2**power for power in range(before.bit_length()) if window < 2**power <= before]
        first = before > window and before not in powers
        return (window + len(powers) + first) * self.block + own + 1


def visible_blocks(distance: Tensor, of_keys: Tensor, window: int) -> Tensor:
    """Booleans: whether a block of keys is read at a distance in blocks of 0 or more."""
    return (of_keys == 0) | (distance < window) | ((distance & (distance - 1)) == 0)
