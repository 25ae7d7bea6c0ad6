"""SeerAttention-R by a threshold: blocks of keys that get a share of a trained gate's softmax, in decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nsa_models.methods._block import QueryBlock
from nsa_models.methods._gate import DecodeGate
from nsa_models.methods._pooled import as_tokens


@dataclass(frozen=True, kw_only=True)
class SeerAttentionThreshold(DecodeGate):
    """SeerAttention-R by a threshold: the gate of `seer-attention` without a budget (arXiv 2506.08889).

    Read are the blocks whose share of the gate's softmax is above `threshold`, and the last one. Prompts are
    read dense. Where blocks that fill up in decode stand in the gate is as in `seer-attention`, and so are
    the models that are refused. It has no budget: the threshold decides, head by head.

    Attributes:
        threshold: Share of the gate's softmax, from 0 and below 1 (seerattn_threshold with
            seerattn_sparsity_method=threshold). At 0 all blocks are read whose share isn't 0. Default 0.002,
            within what the authors name for their gate of prompts; for this one they name no value.
        weights: A folder or a file with the gate as safetensors; theirs is a pickle (attn_gate_weights.pth).
        block: Tokens of a block (seerattn_gate_block_size). Default 64 (the authors').
        pooling: What is taken of a block's keys, in this order (seerattn_k_seq_pooling_type without its K).
            Default maxminavg (the authors').
        rope: RoPE in the gate (seerattn_use_rope). Default true (the authors').
        dense_layers: Layers left dense: those before seerattn_start_layer. Default none.
    """

    name: ClassVar[str] = "seer-attention-threshold"
    title: ClassVar[str] = "SeerAttention-R by a threshold: blocks by a trained gate, in decode"
    paper: ClassVar[str] = "2506.08889"
    budget_unit: ClassVar[str] = (
        "none: threshold, the share of the gate's softmax above which a block is read"
    )
    stated: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: float = 2e-3

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No share, an empty block, or weights that aren't there.
        """
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            self.refuse("threshold", "must be from 0 and below 1")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, 1, S]."""
        scores = self.scores(block)
        own = block.positions[:, None, :, None] // self.block
        index = torch.arange(scores.shape[-1], device=scores.device)
        chosen = (scores > self.threshold) | (index == own)
        return as_tokens(chosen, block, self.block) & block.visible

    def kv_reads(self, tokens: int) -> int:
        """Everything, where the gate's shares are even."""
        return tokens

    def kv_reads_least(self, tokens: int) -> int:
        """The last block."""
        return (tokens - 1) % self.block + 1
