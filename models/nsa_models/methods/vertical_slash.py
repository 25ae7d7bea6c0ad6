"""Vertical-slash prefill: the columns and diagonals that the prompt's last queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels import block_choice
from nsa_kernels.blocks import BlockLists
from nsa_models.methods._base import Budgeted
from nsa_models.methods._block import keep_top
from nsa_models.methods._listed import Listed, Run
from nsa_models.methods._order_free import sums_of_last
from nsa_models.methods._planned import Planned, block_of, fitted
from nsa_models.methods._prompt import PromptRow

Reading = Literal["token", "kernel"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one prompt's last queries choose."""

    columns: Tensor
    """Booleans [H, n]: keys that all queries read."""
    offsets: Tensor
    """Booleans [H, n]: distances t - s at which all queries read."""
    starts: Tensor | None
    """[H, blocks, m] where a kernel's blocks of keys begin for each block of queries, -1 behind the last;
    None in the other reading."""


@dataclass(frozen=True, kw_only=True)
class VerticalSlash(Listed, Planned, Budgeted):
    """Vertical-slash: the pattern that MInference gives to nearly all heads (arXiv 2407.02490).

    The attention weights of the prompt's last `last` queries are summed over each column (a key) and each
    diagonal (a distance t - s). The `vertical` largest columns, the first `first` among them, and the
    `budget - vertical` largest diagonals, the nearest `local` among them, are read by the whole prompt.
    Decode steps are dense. The authors' program reads more than their formula:

    - `token`, the formula: key s if it is a column or t - s a diagonal.
    - `kernel`, their CUDA kernels: a block of `block` queries reads, for each diagonal, the whole block of
      keys that the diagonal crosses there; blocks that would leave a gap of less than a block are moved
      together. It holds all keys of the other reading.

    Weights are made and summed in float64, the sums rounded to float32; of equal sums the earlier column or
    the nearer diagonal is read. Here all heads have the same sizes. The authors search them head by head,
    between (30, 800) and (3500, 100) for Llama 3.1, and take (1000, 6096) where nothing was searched.

    Attributes:
        budget: Columns and diagonals, the KV tokens a query reads per layer and head at most in the `token`
            reading; in the `kernel` reading a diagonal reads up to `block` tokens. The authors' (1000, 6096)
            is a budget of 7096.
        vertical: Columns; the rest of the budget are diagonals. Default 1000 (the authors').
        first: First tokens that are always columns. Default 30 (the authors').
        local: Nearest distances that are always diagonals. Default 100 (the authors').
        last: Queries that choose, the last of the prompt. Default 64 (the authors').
        reading: "token" (default) or "kernel".
        block: Queries and keys of a kernel's block. Default 64 (the authors').
        fast: Read the blocks and columns by kernels, on a GPU and in 16 bits (`Listed`): the `kernel` reading
            alone. Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "vertical-slash"
    title: ClassVar[str] = "Vertical-slash: columns and diagonals of the last queries, in prefill"
    paper: ClassVar[str] = "2407.02490"
    budget_unit: ClassVar[str] = "columns and diagonals: KV tokens read per query of a prompt, layer and head"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    version: ClassVar[int] = 2
    lists_by_itself: ClassVar[bool] = True

    vertical: int = 1000
    first: int = 30
    local: int = 100
    last: int = 64
    reading: Reading = "token"
    block: int = 64

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: Fewer columns than are forced, too few diagonals, nothing in a block, or kernels for
                the reading that isn't theirs.
        """
        super().__post_init__()
        for field, least, unit in (
            ("first", 0, "tokens"),
            ("local", 1, "distance: a query's own token"),
            ("last", 1, "query"),
            ("block", 1, "token"),
        ):
            if getattr(self, field) < least:
                self.refuse(field, f"must be at least {least} {unit}")
        if self.fast and self.block > 128:
            self.refuse("block", "must be at most 128 with fast: the queries of a kernel's tile")
        if self.fast and self.reading != "kernel":
            self.refuse("reading", 'must be "kernel" with fast: single diagonals are no blocks')
        if self.vertical < self.first:
            self.refuse("vertical", f"must be at least first = {self.first} columns: they are always read")
        slash = max(1, self.local // 2)  # the authors' code takes no fewer than 50, and forces 100
        if self.slash < slash:
            self.refuse(
                "budget",
                f"must be at least vertical = {self.vertical} columns and {slash} diagonals (half of local)",
            )

    @property
    def slash(self) -> int:
        """Diagonals."""
        return self.budget - self.vertical

    def plan(self, row: PromptRow) -> Plan:
        """Columns and diagonals, and the blocks of the kernel reading."""
        by_key, by_distance = sums_of_last(row, self.last)
        columns = top(by_key, self.vertical, self.first)
        offsets = top(by_distance, self.slash, self.local)
        starts = kernel_starts(offsets, self.block) if self.reading == "kernel" else None
        return Plan(columns=columns, offsets=offsets, starts=starts)

    def reads(self, plan: Plan, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        columns = fitted(plan.columns, width)[:, None]
        if plan.starts is not None:
            return columns | kernel_keys(plan.starts, positions, self.block, width)
        distance = positions[:, None] - torch.arange(width, device=positions.device)
        reach = plan.offsets.shape[-1] - 1
        return columns | plan.offsets[:, distance.clamp(min=0, max=reach)]

    def lists(self, run: Run, plan: None) -> BlockLists:
        """Blocks along the diagonals, and the columns beside them."""
        return block_choice.vertical_slash(
            *run.with_tokens_first(),
            vertical=self.vertical,
            slash=self.slash,
            first=self.first,
            local=self.local,
            last=self.last,
            block=self.block,
            scale=run.scaling,
        )

    @property
    def tile(self) -> int:
        """A block: runs of keys stand by blocks of queries."""
        return self.block

    def kv_reads(self, tokens: int) -> int:
        """All columns and all that diagonals read, apart from each other."""
        return min(tokens, self.vertical + self.slash * (1 if self.reading == "token" else self.block))

    def kv_reads_least(self, tokens: int) -> int:
        """The first tokens and the nearest: the rest may lie behind the query, or overlap."""
        return min(tokens, min(self.first, self.vertical) + min(self.local, self.slash))

    def index_reads(self, tokens: int) -> int:
        """All keys by each of the last queries, shared by the prompt's queries."""
        return min(tokens, self.last)


def top(scores: Tensor, count: int, forced: int) -> Tensor:
    """The `count` highest scores [H, n], of which the first `forced` count as highest; booleans [H, n]."""
    index = torch.arange(scores.shape[-1], device=scores.device)
    everything = torch.ones_like(index, dtype=torch.bool)
    return keep_top(scores.masked_fill(index < forced, float("inf")), count, everything)


def kernel_starts(offsets: Tensor, block: int) -> Tensor:
    """Where the blocks of keys begin that the kernels read for the diagonals.

    For queries m .. m + block - 1, a distance o < m + block opens the keys [e - block, e), e = max(m + block
    - o, block). In rising order of e, one that begins behind all before it by more than a block stands as it
    is; a nearer one is put right behind them; one that is covered adds nothing.

    Args:
        offsets: Booleans [H, n], chosen distances.
        block: Queries and keys of a block.

    Returns:
        [H, blocks, m], -1 behind the last.
    """
    heads, count = offsets.shape
    blocks = -(-count // block)
    ends = (torch.arange(blocks, device=offsets.device) + 1) * block  # m + block
    # Of the distances below x, the largest that is chosen; -1 where there is none.
    index = torch.arange(count, device=offsets.device)
    upto = torch.where(offsets, index, -1).cummax(-1).values
    below = torch.cat([upto.new_full((heads, 1), -1), upto, upto[:, -1:].expand(-1, block)], dim=-1)
    found, end = [], torch.full((heads, blocks), -block - 1, device=offsets.device)
    limit = ends.expand(heads, -1)  # distances below it open blocks that end behind `end`
    while True:
        distance = below.gather(-1, limit.clamp(min=0))
        going = distance >= 0
        if not bool(going.any()):
            break
        opened = (ends - distance).clamp(min=block)
        start = torch.where(opened > end + block, opened - block, end)
        found.append(torch.where(going, start, -1))
        end = torch.where(going, start + block, end)
        limit = torch.where(going, ends - end, 0)
    return torch.stack(found, dim=-1) if found else ends.new_empty(heads, blocks, 0)


def kernel_keys(starts: Tensor, positions: Tensor, block: int, width: int) -> Tensor:
    """The keys [H, n, S] in the blocks of keys that begin at `starts` (see `kernel_starts`)."""
    of_query = block_of(positions, block, starts.shape[1])
    first = int(of_query.min())
    mine = starts[:, first : int(of_query.max()) + 1]
    behind = width + block  # where what isn't read is counted
    edges = torch.zeros(*mine.shape[:2], behind + block + 1, dtype=torch.int32, device=starts.device)
    begin = torch.where(mine < 0, behind, mine.clamp(max=behind))
    one = torch.ones_like(begin, dtype=torch.int32)
    edges.scatter_add_(-1, begin, one).scatter_add_(-1, begin + block, -one)
    return (edges[..., :width].cumsum(-1) > 0)[:, of_query - first]
