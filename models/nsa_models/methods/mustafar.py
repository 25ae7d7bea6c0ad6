"""Mustafar: the largest elements of each key and value, for all tokens but the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, keep_top


@dataclass(frozen=True, kw_only=True)
class Mustafar(Budgeted):
    """Mustafar: keys and values pruned element by element, token by token (arXiv 2505.22913).

    Prompts are read dense. In decode every token is read, but of tokens more than `local` before the query
    only the `budget` elements of largest magnitude are left of each key (after RoPE) and of each value; the
    others count as 0. It is what the authors call Kt_Mag, Vt_Mag, their best. Their sparsity s of D elements
    keeps D - max(1, int(s D)) + 1: of 128, 0.5 keeps 65 and 0.7 keeps 40.

    Attributes:
        budget: Elements kept of each key vector, and of each value unless `value_elements` says otherwise.
        value_elements: Elements kept of each value vector; 0 (default): as many as of a key.
        local: Tokens before a query's own that are whole. Default 32 (the authors').
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "mustafar"
    title: ClassVar[str] = "Mustafar: largest elements of each key and value, in decode"
    paper: ClassVar[str] = "2505.22913"
    phase: ClassVar[Phase] = "decode"
    budget_unit: ClassVar[str] = "elements kept of each key and value vector of a token; all tokens are read"
    of_context: ClassVar[bool] = False
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    value_elements: int = 0
    local: int = 32

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A negative number.
        """
        super().__post_init__()
        for field in ("value_elements", "local"):
            if getattr(self, field) < 0:
                self.refuse(field, "must be at least 0")

    def select(self, block: QueryBlock) -> Tensor:
        """[B, 1, 1, S] every token."""
        return block.visible

    def logits(self, block: QueryBlock) -> Tensor:
        """[B, H, 1, S] with what is left of the keys."""
        return block.dot(block.q, self._left(block, block.k, self.budget)) * block.scaling

    def values(self, block: QueryBlock, v: Tensor) -> Tensor:
        """[B, H_kv, S, d_v] what is left of them."""
        return self._left(block, v, self.value_elements or self.budget)

    def kv_reads(self, tokens: int) -> int:
        """All tokens, of most of them a part."""
        return tokens

    def vector_share(self, tokens: int, width: int) -> float:
        """Elements without their places, which a bitmap of one bit an element would hold."""
        whole = min(tokens, self.local + 1)
        left = min(width, self.budget) + min(width, self.value_elements or self.budget)
        return (whole + (tokens - whole) * left / (2 * width)) / tokens

    def _left(self, block: QueryBlock, x: Tensor, count: int) -> Tensor:
        """Keys or values x [B, H_kv, S, d] as the one query of each row finds them."""
        s = torch.arange(x.shape[2], device=x.device)
        old = block.positions - s > self.local  # [B, S]
        return x.masked_fill(old[:, None, :, None] & ~largest(x, count), 0.0)


def largest(x: Tensor, count: int) -> Tensor:
    """The `count` elements of largest magnitude of x [..., d]; booleans."""
    return keep_top(x.abs(), count, torch.ones_like(x, dtype=torch.bool))
