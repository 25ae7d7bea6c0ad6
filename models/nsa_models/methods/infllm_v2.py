"""InfLLM-V2: blocks of keys chosen through mean-pooled keys, without weights of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
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


@dataclass(frozen=True, kw_only=True)
class InfLLMV2(Budgeted):
    """InfLLM-V2: a dense model switched to blocks of keys, as MiniCPM4 is trained to be (arXiv 2509.24663).

    Keys after RoPE are averaged over stretches of `kernel` tokens, one every `stride`. Each query head takes
    the softmax over the stretches that end before its query; heads of a KV head add up theirs. A block of
    `block` keys scores the largest sum of the stretches that touch it. Read are the first `first_blocks`
    blocks, the query's own with the window / block before it, and the best others, `budget` / `block` in all.
    A stretch on a border scores the blocks on both sides, so that ties are common: the earlier one is read.

    Parameters carry over from a checkpoint's `sparse_config` by name: kernel_size, kernel_stride,
    init_blocks, block_size, window_size, dense_len. Its `topk` counts blocks, and how is read in two ways:
    `budget` is topk x block_size where topk is the total, and (topk + window_size / block_size) x block_size
    where local blocks come on top, as in the file of MiniCPM-SALA
    (MiniCPM4.1's own is unverified).

    Three differences from the authors' code. There a prompt is sparse for all of its tokens once it has
    `dense_len` of them; here each query goes by its own position, as their decode steps do, so that a prompt
    means the same in pieces: `dense_length=0` is theirs for long prompts. Their later kernels divide by a
    softmax's denominator over stretches four times as long, an approximation; here it is the softmax. And
    `use_nope` (keys before RoPE) isn't offered: no released checkpoint sets it (unverified).

    Attributes:
        budget: KV tokens a query reads per layer and head, in whole blocks, all that is read among them.
        kernel: Tokens of a stretch; two strides. Default 32 (the authors').
        stride: Tokens from one stretch to the next. Default 16 (the authors').
        block: Tokens of a block. Default 64 (the authors').
        first_blocks: Leading blocks that are always read. Default 1 (the authors').
        window: Tokens before the own block whose blocks are always read. Default 2048 (the authors').
        dense_length: Rows of fewer tokens are read dense. Default 8192 (the authors').
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "infllm-v2"
    title: ClassVar[str] = "InfLLM-V2: blocks by mean-pooled keys, beside first and local blocks"
    paper: ClassVar[str] = "2509.24663"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "KV tokens read per query, layer and head, in whole blocks"
    whole: ClassVar[str] = "block"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    kernel: int = 32
    stride: int = 16
    block: int = 64
    first_blocks: int = 1
    window: int = 2048
    dense_length: int = 8192

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: Sizes that don't divide each other, or a budget below what is always read.
        """
        super().__post_init__()
        check_sizes(self, budget="budget", not_negative=("first_blocks", "window", "dense_length"))

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S], or [B, 1, n, S] where all queries are read dense."""
        read_dense = max(self.budget, self.dense_length - 1)
        if block.k.shape[2] <= read_dense:
            return block.visible
        dense = (block.positions + 1)[:, None, :, None] <= read_dense
        means = stretch_means(block.k, self.kernel, self.stride)
        seen = whole_stretches(block.positions, means.shape[2], self.kernel, self.stride)
        blocks = -(-block.k.shape[2] // self.block)
        scores = largest_by_block(
            group_shares(block, means, seen), self.block // self.stride, blocks, fill=0.0
        )
        own = block.positions.clamp(min=0)[:, None, :, None] // self.block
        forced = always_read(own, blocks, first=self.first_blocks, local=self.window // self.block)
        ranked = scores.masked_fill(forced, float("inf"))
        index = torch.arange(blocks, device=scores.device)
        chosen = keep_top(ranked, self.budget // self.block, index <= own)
        return torch.where(dense, block.visible, as_tokens(chosen, block, self.block) & block.visible)

    def kv_reads(self, tokens: int) -> int:
        """Tokens of the chosen blocks, the last of them as far as it goes."""
        if tokens <= max(self.budget, self.dense_length - 1):
            return tokens
        return self.budget - self.block + (tokens - 1) % self.block + 1

    def index_reads(self, tokens: int) -> int:
        """Every whole stretch, where not all is read."""
        if tokens <= max(self.budget, self.dense_length - 1):
            return 0
        return (tokens - self.kernel) // self.stride + 1
