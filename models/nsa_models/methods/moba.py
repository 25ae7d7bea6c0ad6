"""MoBA: each query reads its own chunk and the older ones whose mean key it likes best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.block_lists import pack_members
from nsa_kernels.blocks import BlockLists
from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, block_rows, grouped, keep_top
from nsa_models.methods._listed import Listed, Run


@dataclass(frozen=True, kw_only=True)
class MoBA(Listed, Budgeted):
    """MoBA: mixture of block attention (arXiv 2502.13189), put on a dense checkpoint untrained.

    Keys stand in chunks of `chunk` tokens. Query t reads its own chunk up to itself, and of the chunks that
    end before it those with the highest q . mean k, `budget // chunk` chunks in all. The authors train models
    with it; as released it acts on prompts alone, and decode steps are dense.

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
    sized: ClassVar[str] = "chunk"

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
        means = chunk_means(block.k, self.chunk)
        chosen = choose(block.dot(block.q, means), block.positions, self.chunk, self.budget // self.chunk)
        return chosen.repeat_interleave(self.chunk, dim=-1)[..., : block.k.shape[2]] & block.visible

    def lists(self, run: Run, plan: None) -> BlockLists:
        """Of each tile the chunks that any of its queries reads, and who reads which of them."""
        dtype = torch.float64 if run.q.dtype == torch.float64 else torch.float32
        means = chunk_means(run.k[None].to(dtype), self.chunk)
        count, rows = run.q.shape[1], block_rows(run.q[None], max(run.q.shape[2], means.shape[2]))
        rows = max(self.tile, rows // self.tile * self.tile)
        unions, members = [], []
        for begin in range(0, count, rows):
            some = run.q[None, :, begin : begin + rows].to(dtype)
            positions = run.start + begin + torch.arange(some.shape[2], device=some.device)[None]
            scores = grouped(some, means.transpose(-1, -2))
            chosen = choose(scores, positions, self.chunk, self.budget // self.chunk)
            members.append(pack_members(chosen))
            whole = torch.nn.functional.pad(chosen, (0, 0, 0, -some.shape[2] % self.tile))
            unions.append(whole.unflatten(2, (-1, self.tile)).any(3))
        lists = BlockLists.from_mask(torch.cat(unions, 2), query_block=self.tile, key_block=self.chunk)
        return replace(lists, members=torch.cat(members, 2))

    def kv_reads(self, tokens: int) -> int:
        """Whole older chunks, and the own one up to the query."""
        before, own = divmod(tokens - 1, self.chunk)
        return min(before, self.budget // self.chunk - 1) * self.chunk + own + 1

    def index_reads(self, tokens: int) -> int:
        """The mean keys of all older chunks."""
        return (tokens - 1) // self.chunk


def chunk_means(k: Tensor, chunk: int) -> Tensor:
    """Mean keys [B, H_kv, chunks, d] of k [B, H_kv, S, d].

    The last chunk may be incomplete, and hold what stands behind a row: no query scores it.
    """
    chunks = -(-k.shape[2] // chunk)
    padded = torch.nn.functional.pad(k, (0, 0, 0, chunks * chunk - k.shape[2]))
    means: Tensor = padded.unflatten(2, (chunks, chunk)).mean(3)
    return means


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
