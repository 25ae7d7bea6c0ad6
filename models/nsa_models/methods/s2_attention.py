"""S2-Attention's pattern: local blocks, and every stride-th block, another one for each KV head."""

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
class S2Attention(Listed):
    """S2-Attention: sparsely sharded attention, the pattern alone (arXiv 2407.17678).

    Tokens stand in blocks of `block`. A query reads the latest `local` blocks with its own, and of the older
    blocks j those with (j + h * step) mod `stride` = 0 for its KV head h; step is `stride` over the number of
    query heads, and 1 where there are as many heads as that. Heads see different parts of the context, all of
    it together. The authors train models with it; on a dense checkpoint it is a static baseline.

    It has no budget: a query reads `local` blocks and one of `stride` before them, however many those are.

    Attributes:
        local: Latest blocks that are read, the query's own among them. Default 32 (the authors' example).
        stride: One older block of so many is read. Default 8 (the authors' example).
        block: Tokens of a block. Default 64 (the authors').
        fast: Read the blocks by kernels, in prompts and steps, on a GPU and in 16 bits (`Listed`). Default
            false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "s2-attention"
    title: ClassVar[str] = "S2-Attention: local blocks and every stride-th one, shifted by head"
    paper: ClassVar[str] = "2407.17678"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "none: local blocks, and one older block of stride"
    stated: ClassVar[tuple[str, ...]] = ("local", "stride")
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    local: int = 32
    stride: int = 8
    block: int = 64

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No local block, no stride, or an empty block.
        """
        super().__post_init__()
        for field, unit in (("local", "block: a query's own"), ("stride", "block"), ("block", "token")):
            if getattr(self, field) < 1:
                self.refuse(field, f"must be at least 1 {unit}")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S]."""
        heads, groups = block.q.shape[1], block.k.shape[1]
        own = block.positions.div(self.block, rounding_mode="floor")[:, None, :, None]
        of_keys = torch.arange(block.k.shape[2], device=block.k.device) // self.block
        step = max(1, self.stride // heads)
        shift = torch.arange(groups, device=of_keys.device).repeat_interleave(heads // groups) * step
        strided = (of_keys + shift[:, None]) % self.stride == 0  # [H, S]
        return (strided[None, :, None] | (own - of_keys < self.local)) & block.visible

    def lists(self, run: Run, plan: None) -> BlockLists:
        """A list for each KV head."""
        own = own_blocks(run, block=self.block, tile=self.tile)
        read = self._read(own, run.k.shape[1], heads=run.q.shape[0], kv_heads=run.k.shape[0])
        return BlockLists.from_mask(read.transpose(0, 1)[None], query_block=self.tile, key_block=self.block)

    def pages(self, lengths: Tensor, *, heads: int, kv_heads: int, size: int) -> PageLists:
        """A list for each KV head."""
        own = (lengths - 1).div(self.block, rounding_mode="floor")
        read = self._read(own, size, heads=heads, kv_heads=kv_heads)
        return pages_of(read, self.block, self.kv_reads(size) // self.block + 1)

    def _read(self, own: Tensor, size: int, *, heads: int, kv_heads: int) -> Tensor:
        """Booleans [n, H_kv, blocks]: what queries in the blocks `own` [n] read of `size` keys."""
        of_keys = torch.arange(-(-size // self.block), device=own.device)
        shift = torch.arange(kv_heads, device=own.device) * max(1, self.stride // heads)
        strided = (of_keys + shift[:, None]) % self.stride == 0  # [H_kv, blocks]
        distance = own[:, None, None] - of_keys
        return (strided | (distance < self.local)) & (distance >= 0)

    def kv_reads(self, tokens: int) -> int:
        """Of a KV head whose shift meets the most blocks."""
        older = max(0, (tokens - 1) // self.block - self.local + 1)
        return self._reads(tokens, -(-older // self.stride))

    def kv_reads_least(self, tokens: int) -> int:
        """Of one whose shift meets the fewest."""
        older = max(0, (tokens - 1) // self.block - self.local + 1)
        return self._reads(tokens, older // self.stride)

    def _reads(self, tokens: int, strided: int) -> int:
        before, own = divmod(tokens - 1, self.block)
        return (min(before, self.local - 1) + strided) * self.block + own + 1
