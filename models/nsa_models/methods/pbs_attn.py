"""PBS-Attn: keys sorted within segments by the last queries' attention, then blocks of the sorted keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists
from nsa_models.methods._listed import Listed, Run, lists_of_plan
from nsa_models.methods._planned import Planned, block_means, block_of, fitted, shared_means
from nsa_models.methods._prompt import PromptRow


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one prompt's blocks of queries read."""

    chosen: Tensor
    """Booleans [H, blocks of queries, blocks of sorted keys]."""
    of_key: Tensor
    """[H, n] the block of sorted keys in which each key stands."""
    order: Tensor | None = None
    """[H, n] the sorted keys; None for a prompt of one segment."""


@dataclass(frozen=True, kw_only=True)
class PBSAttn(Listed, Planned):
    """PBS-Attn: permuted block-sparse attention (arXiv 2510.21270).

    In each whole segment of `segment` tokens keys are sorted by the mean attention of the prompt's last
    `block` queries over all of them, whatever the order in time; an incomplete last segment stays as it is.
    A block of queries reads its own segment, the block of sorted keys that holds the first token, and of the
    blocks of earlier segments those of highest mean q . mean k, up to the one that brings their softmax to
    `tau`; a token sees none behind it. Prompts of one segment and decode steps are dense.

    It has no budget: tau decides, block by block. An incomplete last block of queries is averaged over its
    tokens; the authors' code fills it with zeros first.

    Attributes:
        tau: Share of the estimated attention to earlier segments, above 0; at 1 and above all of them are
            read. Default 0.9 (the authors').
        block: Tokens of a block. Default 128 (the authors').
        segment: Tokens within which keys are sorted, whole blocks. Default 256 (the authors').
        fast: Read the chosen blocks by kernels, on a GPU and in 16 bits (`Listed`); while a layer reads its
            prompt, each query head has keys and values of its own in its order. Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "pbs-attn"
    title: ClassVar[str] = "PBS-Attn: blocks of keys sorted by the last queries' attention, in prefill"
    paper: ClassVar[str] = "2510.21270"
    budget_unit: ClassVar[str] = "none: tau, the share of estimated attention that is read"
    stated: ClassVar[tuple[str, ...]] = ("tau",)
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"

    tau: float = 0.9
    block: int = 128
    segment: int = 256

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No share, an empty block, or a segment that isn't whole blocks.
        """
        super().__post_init__()
        if self.tau <= 0:
            self.refuse("tau", "must be above 0")
        if self.block < 1:
            self.refuse("block", "must be at least 1 token")
        if self.segment < 1 or self.segment % self.block:
            self.refuse("segment", f"must be a multiple of block = {self.block} tokens")

    def plan(self, row: PromptRow) -> Plan:
        """Sorted keys and chosen blocks."""
        heads, blocks = row.q.shape[0], -(-row.length // self.block)
        if row.length <= self.segment:
            everything = torch.ones(heads, blocks, blocks, dtype=torch.bool, device=row.q.device)
            of_key = torch.arange(row.length, device=row.q.device).expand(heads, -1) // self.block
            return Plan(chosen=everything, of_key=of_key)
        order = sorted_keys(row, self.block, self.segment)
        keys = row.k.repeat_interleave(heads // row.k.shape[0], dim=0)
        keys = keys.gather(1, order[..., None].expand(-1, -1, keys.shape[-1]))
        means = block_means(row.q, self.block), block_means(keys, self.block)
        scores = (means[0] @ means[1].transpose(-1, -2)) * row.scaling
        of_sorted = torch.arange(row.length, device=order.device).expand(heads, -1) // self.block
        of_key = torch.empty_like(order).scatter(1, order, of_sorted)
        index = torch.arange(blocks, device=order.device)
        of_segment = index // (self.segment // self.block)
        chosen = choose(scores, of_segment, self.tau)
        chosen = chosen | (of_segment[:, None] == of_segment) | (index == of_key[:, :1])[:, None]
        return Plan(chosen=chosen, of_key=of_key, order=order)

    def lists(self, run: Run, plan: Plan) -> BlockLists:
        """Of earlier segments' sorted keys: all of a block stands before the query, sorted or not."""
        of_segment = torch.arange(plan.chosen.shape[1], device=run.q.device) // (self.segment // self.block)
        earlier = of_segment < of_segment[:, None]
        return lists_of_plan(plan.chosen & earlier, run, block=self.block, tile=self.tile)

    def parts(self, run: Run, v: Tensor, plan: Plan) -> list[tuple[Tensor, Tensor, BlockLists]]:
        """A query's own segment in the order of time, and blocks of earlier ones in each head's order."""
        own = (run.k, v, self._own_segment(run))
        if plan.order is None:
            return [own]
        heads, count = plan.order.shape
        # A query head's keys are its own: as many KV heads as query heads.
        head = torch.arange(heads, device=v.device)[:, None] // (heads // len(v))
        sorted_k, sorted_v = (x[:, :count][head, plan.order] for x in (run.k, v))
        return [own, (sorted_k, sorted_v, self.lists(run, plan))]

    def _own_segment(self, run: Run) -> BlockLists:
        """The blocks of each tile's segment up to its own."""
        first = torch.arange(0, run.q.shape[1], self.tile, dtype=torch.int32, device=run.q.device)
        begin = first // self.segment * self.segment
        blocks = torch.arange(0, self.segment, self.block, dtype=torch.int32, device=first.device)
        return BlockLists(
            firsts=(begin[:, None] + blocks)[None, None],
            counts=((first - begin) // self.block + 1)[None, None],
            query_block=self.tile,
            key_block=self.block,
        )

    def reads(self, plan: Plan, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        of_queries = plan.chosen[:, block_of(positions, self.block, plan.chosen.shape[1])]
        index = plan.of_key[:, None].expand(-1, len(positions), -1)
        return fitted(of_queries.gather(-1, index), width)

    def kv_reads(self, tokens: int) -> int:
        """Everything, where attention is spread evenly."""
        return tokens

    def kv_reads_least(self, tokens: int) -> int:
        """The query's own segment, and the block that holds the first token."""
        before, own = divmod(tokens - 1, self.segment)
        return min(before, 1) * self.block + own + 1

    def index_reads(self, tokens: int) -> int:
        """All keys by each of the last queries, shared by the prompt's queries, and its block's mean keys."""
        return min(tokens, self.block) + shared_means(tokens, self.block)


def sorted_keys(row: PromptRow, block: int, segment: int) -> Tensor:
    """The keys in the order in which blocks are cut, [H, n]; of equal ones the earlier comes first."""
    whole = row.length // segment * segment
    scores = (row.dot(row.q[:, -block:], row.k[:, :whole]) * row.scaling).softmax(-1).mean(1)
    order = scores.unflatten(-1, (-1, segment)).argsort(dim=-1, descending=True, stable=True)
    order = order + torch.arange(0, whole, segment, device=order.device)[:, None]
    rest = torch.arange(whole, row.length, device=order.device).expand(len(scores), -1)
    return torch.cat([order.flatten(1), rest], dim=1)


def choose(scores: Tensor, of_segment: Tensor, tau: float) -> Tensor:
    """The blocks of earlier segments that each block of queries reads.

    Args:
        scores: [H, blocks, blocks] scaled mean q . mean k.
        of_segment: [blocks] the segment of each block.
        tau: Share of their softmax.

    Returns:
        Booleans [H, blocks, blocks].
    """
    earlier = of_segment < of_segment[:, None]
    if tau >= 1:
        return earlier.expand(scores.shape)
    weights = scores.masked_fill(~earlier, float("-inf")).softmax(-1).masked_fill(~earlier, 0.0).double()
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    added = ordered.cumsum(-1) - ordered < tau
    return torch.zeros_like(added).scatter(-1, order, added) & earlier
