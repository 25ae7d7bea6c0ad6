"""SeerAttention-R: blocks of keys chosen by a gate that was trained beside the model, in decode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import MethodError, Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._pooled import as_tokens
from nsa_models.methods._rotary import Rotation
from nsa_models.methods._weights import Weighted

Pooling = Literal["maxminavg", "maxmin", "maxavg", "minavg", "max", "min", "avg"]

_EPS = 1e-6
"""Of the gate's RMSNorms, fixed in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class SeerAttention(Weighted):
    """SeerAttention-R: a gate scores blocks of keys for each decoded query (arXiv 2506.08889).

    The gate is trained on a frozen model and published apart from it: give the model's own path as the model
    and the gate's as `weights`. Per KV head, queries and keys as they are before RoPE go through linear
    layers: a query's heads at once (`Qproj`), averaged (`Qavgproj`) or averaged alone (`Qavg`), as the shapes
    of the weights tell, and the pooled keys of each whole block. Both get an RMSNorm where the weights have
    one, then RoPE at the query's position and the block's first. Softmax over blocks of the products by
    sqrt(width); the last block, while it isn't whole, stands there with 0. Read are the best `budget` /
    `block` blocks and the last one. Prompts are read dense.

    The authors' code rotates a block that fills up in decode at its last position, and one of a prompt at its
    first; here all are at their first, so that a choice doesn't depend on where the prompt ended. Their gate
    for prompts (arXiv 2410.13276) and choosing by a threshold aren't offered. Models whose rotary embedding
    scales queries (YaRN) or changes with the length are refused: what a key was before can't be told.

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
    phase: ClassVar[Phase] = "decode"
    budget_unit: ClassVar[str] = "KV tokens of chosen blocks per decoded query, layer and head"
    whole: ClassVar[str] = "block"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True
    needs_rotary: ClassVar[bool] = True
    takes_rotation_off: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".attngate_",)

    block: int = 64
    pooling: Pooling = "maxminavg"
    rope: bool = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty block, a budget that isn't whole blocks, or weights that aren't there.
        """
        super().__post_init__()
        if self.block < 1:
            self.refuse("block", "must be at least 1 token")
        if self.budget % self.block:
            self.refuse("budget", f"must be a multiple of {self.block} KV tokens: whole blocks are read")

    def scores(self, block: QueryBlock) -> Tensor:
        """Softmax [B, H_kv, 1, blocks] of one query a row; 0 for blocks behind it.

        Raises:
            MethodError: The gate has none of this layer, or is of another shape.
        """
        assert block.rotate is not None  # declared by needs_rotary
        own = block.positions[:, None, :, None] // self.block
        count = -(-block.k.shape[2] // self.block)
        index = torch.arange(count, device=block.k.device)
        places = torch.arange(block.k.shape[2], device=block.k.device).expand(len(block.k), -1)
        q = self._query(block, block.rotate(block.q, -block.positions))
        k = self._keys(block, block.rotate(block.k, -places))
        if self.rope:
            turn = self._turn(block, q.shape[-1])
            q = turn(q, block.positions)
            k = turn(k, (index[: k.shape[2]] * self.block).expand(len(k), -1))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        logits = torch.nn.functional.pad(logits, (0, count - logits.shape[-1]))
        whole = (index + 1) * self.block <= block.positions[:, None, :, None] + 1
        logits = logits.masked_fill(~whole, 0.0).masked_fill(index > own, float("-inf"))
        return logits.softmax(-1)

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

    def index_reads(self, tokens: int) -> int:
        """A key of every whole block."""
        return tokens // self.block

    # --- the gate ---

    def _query(self, block: QueryBlock, q: Tensor) -> Tensor:
        """[B, H_kv, 1, width] of q [B, H, 1, d] before RoPE."""
        groups = block.k.shape[1]
        heads = q.unflatten(1, (groups, -1))  # [B, H_kv, g, 1, d]
        weight = self._of(block, "attngate_linear_q.weight", optional=True)
        if weight is None:
            made = heads.mean(2)
        elif weight.dim() == 4:
            self._expect(block, weight, [groups, heads.shape[2], q.shape[-1]], "attngate_linear_q.weight")
            made = torch.einsum("bkgni,kgio->bkno", heads, weight.to(q))
        else:
            self._expect(block, weight, [groups, q.shape[-1]], "attngate_linear_q.weight")
            made = torch.einsum("bkni,kio->bkno", heads.mean(2), weight.to(q))
        return self._normed(block, made, "attngate_qnorm.weight")

    def _keys(self, block: QueryBlock, k: Tensor) -> Tensor:
        """[B, H_kv, whole blocks, width] of k [B, H_kv, S, d] before RoPE."""
        whole = k.shape[2] // self.block
        parts = k[:, :, : whole * self.block].unflatten(2, (whole, self.block))
        pools = {"max": parts.amax, "min": parts.amin, "avg": parts.mean}
        names = [self.pooling[at : at + 3] for at in range(0, len(self.pooling), 3)]
        pooled = torch.cat([pools[name](3) for name in names], dim=-1)
        weight = self._of(block, "attngate_linear_k.weight")
        assert weight is not None
        self._expect(block, weight, [k.shape[1], pooled.shape[-1]], "attngate_linear_k.weight")
        made = torch.einsum("bkmi,kio->bkmo", pooled, weight.to(k))
        return self._normed(block, made, "attngate_knorm.weight")

    def _normed(self, block: QueryBlock, x: Tensor, name: str) -> Tensor:
        weight = self._of(block, name, optional=True)
        if weight is None:
            return x
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS) * weight.to(x)

    def _turn(self, block: QueryBlock, width: int) -> Rotation:
        """RoPE in halves over the gate's first dimensions, by the model's own frequencies."""
        model = block.rotate
        if not isinstance(model, Rotation) or 2 * model.inv_freq.numel() > width:
            raise MethodError(
                f"{self.name}: a gate of width {width} is rotated as the model, and layer {block.layer} has "
                "no rotary embedding of at most that width; set rope=false if the gate has none"
            )
        return Rotation(inv_freq=model.inv_freq, interleaved=False, at_end=False)

    def _of(self, block: QueryBlock, name: str, *, optional: bool = False) -> Tensor | None:
        here = self._gates.get(block.layer)
        if here is None or (name not in here and not optional):
            raise MethodError(f"{self.name}: {self.weights} holds no {name} for layer {block.layer}")
        return here.get(name)

    def _expect(self, block: QueryBlock, weight: Tensor, shape: list[int], name: str) -> None:
        if list(weight.shape[:-1]) != shape:
            raise MethodError(
                f"{self.name}: {name} of layer {block.layer} is {list(weight.shape)}; this model with "
                f"pooling {self.pooling} takes {[*shape, 'width']}"
            )

    @cached_property
    def _gates(self) -> dict[int, dict[str, Tensor]]:
        """Of each layer, by the last two parts of their names."""
        return {
            layer: {".".join(name.split(".")[-2:]): tensor for name, tensor in tensors.items()}
            for layer, tensors in self.by_layer().items()
        }
