"""FlexPrefill: as many blocks of columns and diagonals as cover a share of the last queries' attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.block_choice import column_and_diagonal_sums
from nsa_kernels.blocks import BlockLists
from nsa_models.methods._block import keep_top
from nsa_models.methods._listed import Listed, Run, lists_of_plan
from nsa_models.methods._order_free import sums_of_last
from nsa_models.methods._planned import (
    Planned,
    block_means,
    block_sums,
    causal_blocks,
    cover,
    keys_of_blocks,
    shared_means,
)
from nsa_models.methods._prompt import PromptRow

# The authors' code turns a number of tokens into one of blocks by this, whatever the size of its blocks.
_COVERED = 128


@dataclass(frozen=True, kw_only=True)
class FlexPrefill(Listed, Planned):
    """FlexPrefill: sizes of the pattern follow from the attention of each head (arXiv 2502.20766).

    The attention weights of the prompt's last `block` queries are averaged over each column and each
    diagonal. So many columns as it takes to get above the share `gamma` give a number of blocks of columns,
    and diagonals likewise, each at least `least` tokens; the blocks of highest weight are read by the whole
    prompt, the first block and the diagonal one always. Where block means alone predict the weight of columns
    well (the root of the Jensen-Shannon divergence is below `tau`), a head is query-aware: it takes the least
    number of both, and the blocks of highest mean q . mean k over the whole prompt up to a share of `gamma`.
    Prompts of up to `least` tokens and of two blocks, and decode steps, are dense.

    It has no budget: gamma decides, head by head. Blocks of diagonals begin at the farthest one, the last
    query's to the first token, as in the authors' code: the nearest block has what is left. Weights of the
    last queries are made and summed in float64, the sums rounded to float32.

    Attributes:
        gamma: Share of attention to cover, above 0 and below 1. Default 0.9 (the authors').
        tau: Divergence below which a head is query-aware; 0 makes none so. Default 0.1 (the authors').
        least: KV tokens of columns, and of diagonals, at least (the authors' min_budget). Default 1024
            (theirs; 512 in their README).
        block: Tokens of a block. Default 128 (the authors').
        fast: Read the chosen blocks by kernels, on a GPU and in 16 bits (`Listed`). Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "flexprefill"
    title: ClassVar[str] = "FlexPrefill: blocks that cover a share of the last queries' attention, in prefill"
    paper: ClassVar[str] = "2502.20766"
    budget_unit: ClassVar[str] = "none: gamma, the share of attention that is covered"
    stated: ClassVar[tuple[str, ...]] = ("gamma", "least")
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    version: ClassVar[int] = 2

    gamma: float = 0.9
    tau: float = 0.1
    least: int = 1024
    block: int = 128

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A number out of its range.
        """
        super().__post_init__()
        if not 0 < self.gamma < 1:
            self.refuse("gamma", "must be above 0 and below 1")
        if not 0 <= self.tau <= 1:
            self.refuse("tau", "must be between 0 and 1")
        for field in ("least", "block"):
            if getattr(self, field) < 1:
                self.refuse(field, "must be at least 1 token")

    def plan(self, row: PromptRow) -> Tensor:
        """Chosen blocks, booleans [H, blocks, blocks]."""
        heads, size = row.q.shape[0], self.block
        blocks, floor = -(-row.length // size), -(-self.least // size)
        causal = causal_blocks(blocks, row.q.device)
        if row.length <= max(2 * size, floor * size):
            return causal.expand(heads, -1, -1)
        columns, offsets = (sums / size for sums in self._sums_of_last(row))
        of_columns, of_offsets = block_sums(columns, size), block_sums(offsets.flip(-1), size).flip(-1)
        keys = block_means(row.k, size)
        last = row.q[:, -size:].mean(1, keepdim=True)
        predicted = (row.dot(last, keys) * row.scaling).softmax(-1)[:, 0]
        aware = root_divergence(predicted, of_columns) < self.tau  # [H]
        counts = [
            (cover(each, self.gamma) // _COVERED + 1).clamp(min=floor, max=blocks).masked_fill(aware, floor)
            for each in (columns, offsets)
        ]
        chosen = pattern(of_columns, of_offsets, *counts)
        if self.tau:  # whether any head is aware isn't asked: a GPU would wait
            scores = row.dot(block_means(row.q, size), keys) * row.scaling
            by_means = heaviest(scores.masked_fill(~causal, float("-inf")).softmax(-1), self.gamma)
            chosen = chosen | (by_means & aware[:, None, None])
        return chosen & causal

    def _sums_of_last(self, row: PromptRow) -> tuple[Tensor, Tensor]:
        """Weights of the last queries by key and by distance, [H, n] each; with `fast` few heads at once."""
        if not self.fast:
            return sums_of_last(row, self.block)
        q, k = row.q[:, -self.block :].transpose(0, 1)[None], row.k.transpose(0, 1)[None]
        columns, offsets = column_and_diagonal_sums(q, k, scale=row.scaling)
        return columns[0], offsets[0]

    def reads(self, plan: Tensor, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        return keys_of_blocks(plan, positions, rows=self.block, columns=self.block, width=width)

    def lists(self, run: Run, plan: Tensor) -> BlockLists:
        """The plan, as lists."""
        return lists_of_plan(plan, run, block=self.block, tile=self.tile)

    def kv_reads(self, tokens: int) -> int:
        """Everything, where attention is spread evenly."""
        return tokens

    def kv_reads_least(self, tokens: int) -> int:
        """The first block and the query's own."""
        before, own = divmod(tokens - 1, self.block)
        return min(before, 1) * self.block + own + 1

    def index_reads(self, tokens: int) -> int:
        """All keys by each of the last queries, shared by the prompt's queries, and its block's mean keys."""
        return min(tokens, self.block) + shared_means(tokens, self.block)


def root_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Root of the Jensen-Shannon divergence, in nats, of distributions [..., n]: [...]."""
    middle = (p + q) / 2
    return ((torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).nansum(-1) / 2).clamp(min=0).sqrt()


def pattern(columns: Tensor, offsets: Tensor, column_count: Tensor, offset_count: Tensor) -> Tensor:
    """The blocks of the heaviest columns and diagonals; column block 0 and diagonal block 0 are the heaviest.

    Args:
        columns: [H, blocks] weight of each block of keys.
        offsets: [H, blocks] weight of each block of distances.
        column_count: [H] blocks of keys to take.
        offset_count: [H] blocks of distances to take.

    Returns:
        Booleans [H, blocks of queries, blocks of keys], causal.
    """
    index = torch.arange(columns.shape[-1], device=columns.device)
    all_blocks = torch.ones_like(index, dtype=torch.bool)
    taken = [
        keep_top(
            each.masked_fill(index == 0, float("inf")),
            count[:, None],
            all_blocks,
            most=len(index),
            waits=False,
        )
        for each, count in ((columns, column_count), (offsets, offset_count))
    ]
    distance = index[:, None] - index
    return (taken[0][:, None] | taken[1][:, distance.clamp(min=0)]) & (distance >= 0)


def heaviest(weights: Tensor, share: float) -> Tensor:
    """Of weights [H, blocks, blocks], the heaviest of all rows together that don't exceed share * blocks."""
    flat = weights.double().flatten(1)
    ordered, order = flat.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) <= share * weights.shape[-1]
    return torch.zeros_like(kept).scatter(-1, order, kept).view(weights.shape)
