"""MoBA: each query reads its own chunk and the older ones whose mean key it likes best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels import block_choice
from nsa_kernels.blocks import BlockLists
from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._listed import Listed, Run
from nsa_models.methods._order_free import means, products


@dataclass(frozen=True, kw_only=True)
class MoBA(Listed, Budgeted):
    """MoBA: mixture of block attention (arXiv 2502.13189), put on a dense checkpoint untrained.

    Keys stand in chunks of `chunk` tokens. Query t reads its own chunk up to itself, and of the chunks that
    end before it those with the highest q . mean k, `budget // chunk` chunks in all. The authors train models
    with it; as released it acts on prompts alone, and decode steps are dense. Means and products are made in
    float64 and rounded to float32; of equal products the earlier chunk is read.

    Attributes:
        budget: KV tokens a query reads per layer and head, rounded down to whole chunks with its own (of
            which it reads the part before it). The authors' topk 12 is a budget of 48k.
        chunk: Tokens of a chunk. Default 4096 (the authors' example).
        fast: Read the chosen chunks by kernels, on a GPU and in 16 bits (`Listed`). Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "moba"
    title: ClassVar[str] = "MoBA: own chunk and those of highest q . mean k, in prefill"
    paper: ClassVar[str] = "2502.13189"
    phase: ClassVar[Phase] = "prefill"
    budget_unit: ClassVar[str] = "KV tokens read per query of a prompt, layer and head, in whole chunks"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True
    version: ClassVar[int] = 2
    sized: ClassVar[str] = "chunk"
    lists_by_itself: ClassVar[bool] = True

    chunk: int = 4096

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty chunk, or a budget below one chunk.
        """
        super().__post_init__()
        if self.chunk < 1:
            self.refuse("chunk", "must be at least 1 token")
        if self.budget < self.chunk:
            self.refuse("budget", f"must be at least one chunk of {self.chunk} KV tokens: a query's own")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S]."""
        # The last chunk may be incomplete, and hold what stands behind a row: no query scores it.
        scores = products(block.q, means(block.k, self.chunk))
        chosen = choose(scores, block.positions, self.chunk, self.budget // self.chunk)
        return chosen.repeat_interleave(self.chunk, dim=-1)[..., : block.k.shape[2]] & block.visible

    def lists(self, run: Run, plan: None) -> BlockLists:
        """Of each tile the chunks that any of its queries reads, and who reads which of them."""
        return block_choice.moba(
            *run.with_tokens_first(),
            chunk=self.chunk,
            top=self.budget // self.chunk,
            query_block=self.tile,
            start=run.start,
        )

    def kv_reads(self, tokens: int) -> int:
        """Whole older chunks, and the own one up to the query."""
        before, own = divmod(tokens - 1, self.chunk)
        return min(before, self.budget // self.chunk - 1) * self.chunk + own + 1

    def index_reads(self, tokens: int) -> int:
        """The mean keys of all older chunks."""
        return (tokens - 1) // self.chunk


def choose(scores: Tensor, positions: Tensor, chunk: int, count: int) -> Tensor:
    """The chunks that each query reads.

    Args:
        scores: [B, H, n, chunks] q . mean k.
        positions: [B, n] of the queries.
        chunk: Tokens of a chunk.
        count: Chunks a query reads at most, with its own.

    Returns:
        Booleans [B, H, n, chunks].
    """
    own = positions.div(chunk, rounding_mode="floor")[:, None, :, None]
    index = torch.arange(scores.shape[-1], device=scores.device)
    return keep_top(scores, count - 1, index < own) | (index == own)
