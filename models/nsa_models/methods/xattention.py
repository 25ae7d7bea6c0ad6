"""XAttention: blocks whose antidiagonals carry a share of the attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_kernels.blocks import BlockLists
from nsa_models.methods._listed import Listed, Run, lists_of_plan
from nsa_models.methods._planned import Planned, keys_of_blocks
from nsa_models.methods._prompt import PromptRow

# Cells [H, rows, S / stride] of estimated attention that are there at once.
_CELLS = 2**24


@dataclass(frozen=True, kw_only=True)
class XAttention(Listed, Planned):
    """XAttention: block-sparse prefill scored by antidiagonals (arXiv 2503.16428).

    `stride` tokens make one row of estimated attention: the logit of rows a and b is the mean of q . k over
    an antidiagonal, whose queries run backwards while its keys run forwards. The softmax over earlier rows,
    summed over a block, is the block's mass. A block of queries reads the first block and its own, and others
    by falling mass until what it reads is at least `tau` of all. Decode steps are dense.

    It has no budget: tau decides, block by block. The authors tune a tau for each head of Llama 3.1 and
    take 0.8 or 0.9 for others; here all heads have the same. Their code reads one block more in its first
    chunk of a prompt (all of up to 16k tokens), where the first block isn't forced and each block is judged
    by what was read before the last one; here every block follows the rule.

    Attributes:
        tau: Share of the mass that is read, above 0. Above 1 everything is read; at 1 blocks without mass
            aren't. Default 0.9 (the authors').
        stride: Tokens of an antidiagonal. Default 16 (the authors').
        block: Tokens of a block, whole strides. Default 128 (the authors').
        fast: Read the chosen blocks by kernels, on a GPU and in 16 bits (`Listed`). Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "xattention"
    title: ClassVar[str] = "XAttention: blocks by the attention of their antidiagonals, in prefill"
    paper: ClassVar[str] = "2503.16428"
    budget_unit: ClassVar[str] = "none: tau, the share of estimated attention that is read"
    stated: ClassVar[tuple[str, ...]] = ("tau",)
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    version: ClassVar[int] = 2

    tau: float = 0.9
    stride: int = 16
    block: int = 128

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No share, or a block that isn't whole strides.
        """
        super().__post_init__()
        if self.tau <= 0:
            self.refuse("tau", "must be above 0")
        if self.stride < 1:
            self.refuse("stride", "must be at least 1 token")
        if self.block < 1 or self.block % self.stride:
            self.refuse("block", f"must be a multiple of stride = {self.stride} tokens")

    def plan(self, row: PromptRow) -> Tensor:
        """Chosen blocks, booleans [H, blocks, blocks]."""
        chosen: list[Tensor] = []
        for some in masses(row, self.stride, self.block // self.stride):
            chosen.append(choose(some, self.tau, first=sum(each.shape[1] for each in chosen)))
        return torch.cat(chosen, dim=1)

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
        """All keys by each row of `stride` queries, shared by them."""
        return -(-tokens // self.stride)


def masses(row: PromptRow, stride: int, per_block: int) -> Iterator[Tensor]:
    """Estimated attention of blocks, some blocks of queries at a time.

    Held at a time: some four tensors of `_CELLS` float32, a quarter of a GiB, or one block of queries of all
    heads; beside the prompt's keys once more.

    Args:
        row: The prompt; an incomplete last stride is filled with zeros.
        stride: Tokens of an antidiagonal.
        per_block: Strides of a block.

    Yields:
        [H, blocks of queries, blocks of keys], in order; 0 where it isn't causal.
    """
    strides = -(-row.length // stride)
    blocks = -(-strides // per_block)
    keys = in_strides(row.k, strides, stride).flatten(2)
    at = torch.arange(strides, device=keys.device)
    rows = max(1, _CELLS // (row.q.shape[0] * strides * per_block)) * per_block
    for begin in range(0, strides, rows):
        end = min(begin + rows, strides)
        queries = in_strides(row.q[:, begin * stride : end * stride], end - begin, stride).flip(2).flatten(2)
        logits = row.dot(queries, keys[:, :end]) * (row.scaling / stride)
        weights = logits.masked_fill(at[:end] > at[begin:end, None], float("-inf")).softmax(-1)
        weights = pad(weights, (0, blocks * per_block - end, 0, -(end - begin) % per_block))
        yield weights.unflatten(2, (blocks, per_block)).sum(3).unflatten(1, (-1, per_block)).sum(2)


def in_strides(x: Tensor, strides: int, stride: int) -> Tensor:
    """x [h, n, d] as [h, strides, stride, d], filled with zeros."""
    cut: Tensor = pad(x, (0, 0, 0, strides * stride - x.shape[1])).unflatten(1, (strides, stride))
    return cut


def choose(masses: Tensor, tau: float, *, first: int = 0) -> Tensor:
    """The blocks that each block of queries reads.

    Args:
        masses: [H, n, blocks], causal.
        tau: Share of a row's mass.
        first: The first of the n blocks of queries.

    Returns:
        Booleans [H, n, blocks].
    """
    masses = masses.double()
    index = torch.arange(masses.shape[-1], device=masses.device)
    own = index[first : first + masses.shape[1], None]
    forced, causal = (index == 0) | (index == own), index <= own
    # Forced ones first, then by falling mass; blocks behind the queries have none and come last.
    others = masses.masked_fill(forced, -1).masked_fill(~causal, -2)
    ordered, order = others.sort(dim=-1, descending=True, stable=True)
    before = ordered.clamp(min=0).cumsum(-1) - ordered.clamp(min=0)
    read = (masses * forced).sum(-1, keepdim=True) + before
    added = read < tau * masses.sum(-1, keepdim=True)
    return (torch.zeros_like(added).scatter(-1, order, added) | forced) & causal
