"""S2-Attention's pattern: local blocks, and every stride-th block, another one for each KV head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Method, Phase
from nsa_models.methods._block import QueryBlock


@dataclass(frozen=True, kw_only=True)
class S2Attention(Method):
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
