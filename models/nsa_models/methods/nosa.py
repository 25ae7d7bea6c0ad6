"""NOSA: blocks of keys by query first, then by a bias that no query moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._pooled import (
    always_read,
    as_tokens,
    check_sizes,
    group_shares,
    largest_by_block,
    stretch_means,
    whole_stretches,
)
from nsa_models.methods._weights import Weighted, WeightsError


@dataclass(frozen=True, kw_only=True)
class NOSA(Weighted, Budgeted):
    """NOSA: what is read beyond `by_query` doesn't depend on the query, so that it can stay on a GPU while
    the rest is offloaded (arXiv 2510.13602). For checkpoints that were trained so (openbmb/NOSA-1B, 3B, 8B):
    a Llama with `self_attn.delta` in each layer, which transformers' Llama leaves unread.

    A key's bias b is A softplus(delta(v)), per KV head, of the values of all KV heads, as in the authors'
    file; where their weights have no `self_attn.A` it is delta(v) (unverified). The softmax is over
    q.k / sqrt(d) + b. Blocks are ranked as by `infllm-v2`: the first ones, the query's own and the window's
    are read, with the best others up to `by_query`. Then b is averaged over the same stretches, a block has
    the largest of those that touch it, and the best blocks fill up the budget.

    Attributes:
        budget: KV tokens a query reads per layer and head, in whole blocks. The authors' is 4096.
        by_query: Those of them that are chosen by the query, with the blocks that are always read. Default
            2112 (the authors' 33 blocks).
        weights: The checkpoint's folder, which holds delta (and A).
        kernel: Tokens of a stretch; two strides. Default 32 (the authors').
        stride: Tokens from one stretch to the next. Default 16 (the authors').
        block: Tokens of a block. Default 64 (the authors').
        first_blocks: Leading blocks that are always read. Default 1 (the authors').
        window: Tokens before the own block whose blocks are always read. Default 1024 (the authors').
        dense_layers: Layers left dense, without a bias too. Default none.
    """

    name: ClassVar[str] = "nosa"
    title: ClassVar[str] = "NOSA: blocks by mean-pooled keys, then by a bias of the values; trained"
    paper: ClassVar[str] = "2510.13602"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "KV tokens read per query, layer and head, in whole blocks"
    whole: ClassVar[str] = "block"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".self_attn.delta.", ".self_attn.A")

    by_query: int = 2112
    kernel: int = 32
    stride: int = 16
    block: int = 64
    first_blocks: int = 1
    window: int = 1024

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: Sizes that don't divide each other, budgets below what is always read, or weights
                that aren't there.
        """
        super().__post_init__()
        check_sizes(self, budget="by_query", not_negative=("first_blocks", "window"))
        if self.budget < self.by_query or self.budget % self.block:
            self.refuse("budget", f"must be a multiple of {self.block} from by_query = {self.by_query} on")

    def bias(self, block: QueryBlock) -> Tensor:
        """[B, H_kv, S] of the block's keys.

        Raises:
            WeightsError: The weights hold none of this layer, or are of another shape.
        """
        assert block.v is not None
        values = block.v.transpose(1, 2).flatten(2)  # [B, S, H_kv d]
        here = self._layers.get(block.layer, {})
        weight = here.get("self_attn.delta.weight")
        if weight is None or weight.shape != (block.v.shape[1], values.shape[-1]):
            raise WeightsError(
                f"{self.name}: expected self_attn.delta.weight [{block.v.shape[1]}, {values.shape[-1]}] for "
                f"layer {block.layer} in {self.weights}, got "
                + ("none" if weight is None else str(list(weight.shape)))
            )
        found = F.linear(
            values,
            weight.to(values),
            None if "self_attn.delta.bias" not in here else here["self_attn.delta.bias"].to(values),
        )
        if "self_attn.A" in here:
            found = here["self_attn.A"].to(values) * F.softplus(found)
        return found.transpose(1, 2)

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S]."""
        if bool((block.positions < self.budget).all()):
            return block.visible
        per_block, blocks = self.block // self.stride, -(-block.k.shape[2] // self.block)
        means = stretch_means(block.k, self.kernel, self.stride)
        seen = whole_stretches(block.positions, means.shape[2], self.kernel, self.stride)
        own = block.positions.clamp(min=0)[:, None, :, None] // self.block
        index = torch.arange(blocks, device=means.device)
        scores = largest_by_block(group_shares(block, means, seen), per_block, blocks, fill=0.0)
        forced = always_read(own, blocks, first=self.first_blocks, local=self.window // self.block)
        by_query = keep_top(
            scores.masked_fill(forced, float("inf")), self.by_query // self.block, index <= own
        )
        pooled = stretch_means(self.bias(block)[..., None], self.kernel, self.stride)[..., 0]
        pooled = pooled[:, :, None].masked_fill(~seen, float("-inf"))
        fill = largest_by_block(pooled, per_block, blocks, fill=float("-inf"))
        chosen = keep_top(fill.masked_fill(by_query, float("inf")), self.budget // self.block, index <= own)
        return as_tokens(chosen, block, self.block) & block.visible

    def logits(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S], with each key's bias."""
        bias = self.bias(block).repeat_interleave(block.q.shape[1] // block.k.shape[1], dim=1)
        return block.logits + bias[:, :, None]

    def kv_reads(self, tokens: int) -> int:
        """Tokens of the chosen blocks, the last of them as far as it goes."""
        if tokens <= self.budget:
            return tokens
        return self.budget - self.block + (tokens - 1) % self.block + 1

    def index_reads(self, tokens: int) -> int:
        """Every whole stretch, where not all is read; its bias is a number."""
        return 0 if tokens <= self.budget else (tokens - self.kernel) // self.stride + 1

    @cached_property
    def _layers(self) -> dict[int, dict[str, Tensor]]:
        return self.by_layer()
