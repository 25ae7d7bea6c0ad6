"""DHSA without its trained boundary predictor: chunks of a fixed size, chosen for blocks of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._reads import Now
from nsa_models.methods._rowmethod import RowMethod, lengthened, memory_of, start_of


@dataclass(frozen=True, kw_only=True)
class DHSAFixed(RowMethod):
    """DHSA with chunks of a fixed size (arXiv 2510.24606): the predictor that cuts them is absent.

    DHSA cuts a prompt's keys into chunks with a trained boundary predictor, whose weights are apart from the
    model's and aren't here; fixed chunks are the stand-in, and results aren't the paper's. The rest is as
    published: a block of `block` queries, averaged over tokens and heads, scores each chunk by its product
    with the sum of the chunk's keys over the root of their number, averaged over heads. A chunk's score is
    its tokens'. The block takes the `local` tokens up to its end and the best others, `budget` in all, then
    the first `first` tokens in place of the lowest of them. The last `tail` queries of a prompt are dense,
    and so are decode steps. Every query of a block shares what the others asked for.

    Attributes:
        budget: KV tokens that a block of queries takes per layer, for all heads. A query doesn't read those
            behind it.
        chunk: Tokens of a chunk, a divisor of block. Default 8 (as many chunks as the predictor makes).
        block: Queries that choose together. Default 64 (the authors').
        first: Leading tokens that are always taken. Default 128 (the authors').
        local: Tokens up to the end of the block that are always taken, block at least. Default 128 (theirs).
        tail: Last queries of the prompt that are dense. Default 64 (theirs: the instruction's).
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "dhsa-fixed"
    title: ClassVar[str] = (
        "DHSA without its predictor: fixed chunks, chosen for blocks of queries, in prefill"
    )
    paper: ClassVar[str] = "2510.24606"
    phase: ClassVar[Phase] = "prefill"
    budget_unit: ClassVar[str] = "KV tokens taken per block of queries and layer"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "layer"
    chunked_prefill: ClassVar[bool] = False
    shared_prefixes: ClassVar[bool] = False
    lm_scores: ClassVar[bool] = False
    simulated: ClassVar[bool] = True

    chunk: int = 8
    block: int = 64
    first: int = 128
    local: int = 128
    tail: int = 64

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A size out of range, or a budget below what is always taken.
        """
        super().__post_init__()
        for field in ("chunk", "block"):
            if getattr(self, field) < 1:
                self.refuse(field, "must be at least 1 token")
        for field in ("first", "tail"):
            if getattr(self, field) < 0:
                self.refuse(field, "must be at least 0 tokens")
        if self.block % self.chunk:
            self.refuse("chunk", f"must divide block = {self.block}")
        if self.local < self.block:
            self.refuse("local", f"must be at least block = {self.block}: a query reads its own token")
        if self.budget < self.first + self.local:
            self.refuse(
                "budget", f"must be at least first + local = {self.first + self.local}: they are always taken"
            )

    def units(self, first: int, end: int) -> list[int]:
        """Blocks of queries, and the dense tail."""
        tail = max(first, end - self.tail)
        return sorted({*range(first, tail, self.block), tail, end})

    def looks_ahead(self, phase: Now) -> bool:
        """A block takes chunks up to its own end, which may lie behind its last query."""
        return True

    def observe(self, block: QueryBlock) -> None:
        """Add keys, averaged over heads, to their chunks."""
        memory = memory_of(block)
        start, end = start_of(block), block.k.shape[2]
        keys = block.k[0, :, start:end].mean(0)
        chunks = -(-memory.end // self.chunk)
        own = keys.new_zeros(chunks, keys.shape[1]) if start == 0 else memory.own
        index = torch.arange(start, end, device=keys.device).div(self.chunk, rounding_mode="floor")
        memory.own = own.index_add(0, index, keys)

    def select(self, block: QueryBlock) -> Tensor:
        """[1, 1, n, S]."""
        memory = memory_of(block)
        start, width = start_of(block), block.k.shape[2]
        if start >= memory.end - self.tail:
            return block.visible
        end = self._end(start, memory.end)
        return self._taken(block.q[0], memory.own, end=end, prompt=memory.end)[None, None, None, :width]

    def kv_reads(self, tokens: int) -> int:
        """Of a query with no prompt's end near."""
        return self._reads(tokens, self._end(tokens - 1, tokens + self.block))

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """All in the tail; else what its block takes, without tokens behind the query."""
        if tokens > prompt - self.tail:
            return tokens, tokens
        return (self._reads(tokens, self._end(tokens - 1, prompt)),) * 2

    def index_reads(self, tokens: int) -> int:
        """A query's share of the chunks that its block scores, rounded up."""
        chunks = -(-self._end(tokens - 1, tokens + self.block) // self.chunk)
        return -(-chunks // self.block)

    def _end(self, t: int, prompt: int) -> int:
        """Where the tokens end among which the block of query t chooses."""
        return min((t // self.block + 1) * self.block, prompt)

    def _reads(self, tokens: int, end: int) -> int:
        return tokens if end <= self.budget else self.budget - (end - tokens)

    def _taken(self, queries: Tensor, sums: Tensor, *, end: int, prompt: int) -> Tensor:
        """[S] tokens up to `end` that a block of queries [H, n, d] takes."""
        s = torch.arange(end, device=queries.device)
        everything = torch.ones_like(s, dtype=torch.bool)
        if end <= self.budget:
            return lengthened(everything, prompt)
        sizes = (prompt - torch.arange(len(sums), device=s.device) * self.chunk).clamp(max=self.chunk)
        scores = (sums / sizes[:, None].to(sums.dtype).sqrt()) @ queries.mean((0, 1))
        tokens = scores.repeat_interleave(self.chunk)[:end]
        near = s >= end - self.local
        taken = near | keep_top(tokens, self.budget - self.local, ~near)
        lowest = taken & (taken.cumsum(0) <= self.first)
        return lengthened((taken & ~lowest) | (s < self.first), prompt)
