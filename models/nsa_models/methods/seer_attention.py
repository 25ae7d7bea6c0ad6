"""SeerAttention-R: blocks of keys chosen by a gate that was trained beside the model, in decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nsa_models.methods._base import Budgeted
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._gate import DecodeGate
from nsa_models.methods._pooled import as_tokens


@dataclass(frozen=True, kw_only=True)
class SeerAttention(DecodeGate, Budgeted):
    """SeerAttention-R: a gate scores blocks of keys for each decoded query (arXiv 2506.08889).

    The gate is trained on a frozen model and published apart from it: give the model's own path as the model
    and the gate's as `weights`. `DecodeGate` says how it scores. Read are the best `budget` / `block` blocks
    and the last one. Prompts are read dense.

    The authors' code rotates a block that fills up in decode at its last position, and one of a prompt at its
    first; here all are at their first, so that a choice doesn't depend on where the prompt ended. Their
    choice by a threshold is `seer-attention-threshold`, their gate for prompts `seer-attention-prefill`.
    Models whose rotary embedding scales queries (YaRN) or changes with the length are refused: what a key was
    before can't be told.

    Attributes:
        budget: KV tokens of the blocks that are chosen, in whole blocks (their seerattn_token_budget); the
            last block is read besides.
        weights: A folder or a file with the gate as safetensors; theirs is a pickle (attn_gate_weights.pth).
        block: Tokens of a block (seerattn_gate_block_size). Default 64 (the authors').
        pooling: What is taken of a block's keys, in this order (seerattn_k_seq_pooling_type without its K).
            Default maxminavg (the authors').
        rope: RoPE in the gate (seerattn_use_rope). Default true (the authors').
        dense_layers: Layers left dense: those before seerattn_start_layer. Default none.
    """

    name: ClassVar[str] = "seer-attention"
    title: ClassVar[str] = "SeerAttention-R: blocks by a trained gate, in decode"
    paper: ClassVar[str] = "2506.08889"
    budget_unit: ClassVar[str] = "KV tokens of chosen blocks per decoded query, layer and head"
    whole: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty block, a budget that isn't whole blocks, or weights that aren't there.
        """
        super().__post_init__()
        if self.budget % self.block:
            self.refuse("budget", f"must be a multiple of {self.block} KV tokens: whole blocks are read")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, 1, S]."""
        scores = self.scores(block)
        own = block.positions[:, None, :, None] // self.block
        index = torch.arange(scores.shape[-1], device=scores.device)
        chosen = keep_top(scores, self.budget // self.block, index <= own) | (index == own)
        return as_tokens(chosen, block, self.block) & block.visible

    def kv_reads(self, tokens: int) -> int:
        """Of a head whose best blocks are without the last one, which it reads besides."""
        last = (tokens - 1) % self.block + 1
        return min(tokens, self.budget + last)

    def kv_reads_least(self, tokens: int) -> int:
        """Of a head that has the last block among its best."""
        last = (tokens - 1) % self.block + 1
        return min(tokens, self.budget - self.block + last)
