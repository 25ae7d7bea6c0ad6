"""AnchorAttention: older keys that come near to the largest logit among the first and nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._planned import Planned, block_means, block_of, fitted
from nsa_models.methods._prompt import PromptRow


@dataclass(frozen=True, kw_only=True)
class AnchorAttention(Planned):
    """AnchorAttention: difference-aware sparse attention in stripes (arXiv 2505.23520).

    `block * step` queries make a stretch. A query reads the first stretch and its own up to itself; its
    largest logit there is its anchor. Queries and anchors are averaged over blocks of `block`. A key between
    the first stretch and the query's own is read by a whole stretch of queries if the mean query of any of
    its blocks gives it a logit that is at most `theta` below the mean anchor. Decode steps are dense.

    It has no budget: theta decides. Averages are over the tokens that an incomplete last block has. Two
    public versions of the code search different keys; this is the first one's range, and each key counts
    once.

    Attributes:
        theta: How far a logit may be below the anchor. Default 12 (the authors').
        block: Queries that are averaged. Default 128 (the authors').
        step: Blocks of a stretch. Default 16 (the authors'), 2048 queries with blocks of 128.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "anchor-attention"
    title: ClassVar[str] = "AnchorAttention: keys within theta of the largest near logit, in prefill"
    paper: ClassVar[str] = "2505.23520"
    budget_unit: ClassVar[str] = "none: theta, how far a logit may be below the anchor"
    stated: ClassVar[tuple[str, ...]] = ("theta",)
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"

    theta: float = 12.0
    block: int = 128
    step: int = 16

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty block or stretch.
        """
        super().__post_init__()
        for field, unit in (("block", "query"), ("step", "block")):
            if getattr(self, field) < 1:
                self.refuse(field, f"must be at least 1 {unit}")

    @property
    def stretch(self) -> int:
        """Queries that share what they read of older keys."""
        return self.block * self.step

    def plan(self, row: PromptRow) -> Tensor:
        """Older keys that each stretch reads, booleans [H, stretches, n]."""
        means = block_means(row.q, self.block)
        pooled = block_means(anchors(row, self.block, self.stretch)[..., None], self.block)
        chosen = []
        for begin in range(0, row.length, self.stretch):
            mine = slice(begin // self.block, (begin + self.stretch) // self.block)
            older = torch.zeros(row.q.shape[0], row.length, dtype=torch.bool, device=row.q.device)
            if begin > self.stretch:
                keys = row.k[:, self.stretch : begin]
                near = row.dot(means[:, mine], keys) * row.scaling + self.theta >= pooled[:, mine]
                older[:, self.stretch : begin] = near.any(1)
            chosen.append(older)
        return torch.stack(chosen, dim=1)

    def reads(self, plan: Tensor, positions: Tensor, width: int) -> Tensor:
        """[H, n, S]."""
        mine = block_of(positions, self.stretch, plan.shape[1])
        s = torch.arange(width, device=positions.device)
        always = (s < self.stretch) | (s >= mine[:, None] * self.stretch)
        return fitted(plan[:, mine], width) | always

    def kv_reads(self, tokens: int) -> int:
        """Everything, where all older keys come near."""
        return tokens

    def kv_reads_least(self, tokens: int) -> int:
        """The first stretch, and the own one up to the query."""
        before, own = divmod(tokens - 1, self.stretch)
        return min(before, 1) * self.stretch + own + 1

    def index_reads(self, tokens: int) -> int:
        """Older keys behind the first stretch by each block's mean query, shared by the block's queries."""
        before = (tokens - 1) // self.stretch
        return -(-max(0, before - 1) * self.stretch // self.block)


def anchors(row: PromptRow, block: int, stretch: int) -> Tensor:
    """The largest scaled logit [H, n] of each query among the first stretch and its own up to itself."""
    found = []
    for begin in range(0, row.length, block):  # bounds the logits at block * 2 stretches
        end = min(begin + block, row.length)
        own = begin // stretch * stretch
        s = torch.cat(
            [
                torch.arange(min(stretch, own), device=row.q.device),
                torch.arange(own, end, device=row.q.device),
            ]
        )
        t = torch.arange(begin, end, device=row.q.device)
        logits = row.dot(row.q[:, begin:end], row.k[:, s]) * row.scaling
        found.append(logits.masked_fill(s > t[:, None], float("-inf")).amax(-1))
    return torch.cat(found, dim=1)
