"""Exact-Top: the keys of highest q.k, beside the first and the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, keep_top


@dataclass(frozen=True, kw_only=True)
class ExactTop(Budgeted):
    """Exact-Top: full attention scores choose, sparse attention reads (a baseline of
    arXiv 2502.11089, Table 2).

    Query t reads the first `first` keys, the last `local` ones with its own, and the keys of highest q.k
    among the rest, `budget` in all. It reads every key to choose, so it bounds what choosing by q.k can reach
    and saves nothing by itself. The paper doesn't say whether heads share a choice; here each query head has
    its own.

    Attributes:
        budget: KV tokens a query reads per layer and head, the first and local ones among them.
        first: Leading tokens that are always read. Default 128 (the paper's).
        local: Latest tokens that are always read, the query's own among them. Default 512 (the paper's).
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "exact-top"
    title: ClassVar[str] = "Exact-Top: the highest q.k, beside first and local tokens"
    paper: ClassVar[str] = "2502.11089"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "KV tokens read per query, layer and head"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    first: int = 128
    local: int = 512

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A negative number, or a budget below first + local.
        """
        super().__post_init__()
        for field in ("first", "local"):
            if getattr(self, field) < 0:
                self.refuse(field, "must be at least 0 tokens")
        if self.budget < self.first + self.local:
            self.refuse(
                "budget",
                f"must be at least first + local = {self.first + self.local} KV tokens: they are always read",
            )

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H or 1, n, S]; all visible keys while there are no more than the budget."""
        return select(block.logits, block.positions, budget=self.budget, first=self.first, local=self.local)

    def kv_reads(self, tokens: int) -> int:
        """The budget, or all tokens while there are fewer."""
        return min(tokens, self.budget)

    def index_reads(self, tokens: int) -> int:
        """Every key."""
        return tokens


def select(scores: Tensor, positions: Tensor, *, budget: int, first: int, local: int) -> Tensor:
    """The keys that each query reads.

    Args:
        scores: [B, H, n, S], rising with q.k.
        positions: [B, n] of the queries; key s is at position s.
        budget: Keys in all.
        first: Keys s < first are read.
        local: Keys t - local < s <= t are read.

    Returns:
        Booleans [B, H, n, S], or [B, 1, n, S] where all queries read everything.
    """
    t = positions[:, None, :, None]
    s = torch.arange(scores.shape[-1], device=scores.device)
    visible = s <= t
    if scores.shape[-1] <= budget:
        return visible
    always = visible & ((s < first) | (s > t - local))
    # Beyond the budget, first and local keys don't overlap: what is left of it is the same for all queries.
    chosen = keep_top(scores, budget - first - local, visible & ~always)
    return torch.where(t < budget, visible, always | chosen)
