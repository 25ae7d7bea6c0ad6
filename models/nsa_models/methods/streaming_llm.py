"""StreamingLLM: attention sinks and a window, at positions of cache slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Budgeted):
    """StreamingLLM: the first tokens and the latest, whatever they say (arXiv 2309.17453).

    Token by token, query t reads the first `first` keys, the `budget - first` keys before it and its own;
    what falls out of the window is gone. A key's position is its slot in the cache and the query's is min(t,
    budget): distances to recent keys are true, a sink s stands at distance min(t, budget) - s.

    Here keys keep the positions that the model gave them, and the query is turned by min(t, budget) - t for
    the sinks instead, which is the same product. So the rotary embedding must be known, and must not change
    its frequencies with the length. Prompts roll through the window too; the authors' demonstration cuts a
    long prompt first and reads the rest dense, which is another method.

    Attributes:
        budget: KV tokens kept per layer and head, sinks among them; a query reads its own token besides.
        first: Sinks. Default 4 (the authors').
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "streaming-llm"
    title: ClassVar[str] = "StreamingLLM: attention sinks and recent tokens"
    paper: ClassVar[str] = "2309.17453"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "KV tokens kept per layer and head; a query reads its own besides"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "layer"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True
    needs_rotary: ClassVar[bool] = True

    first: int = 4

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A negative number of sinks, or no room for a recent token.
        """
        super().__post_init__()
        if self.first < 0:
            self.refuse("first", "must be at least 0 tokens")
        if self.budget <= self.first:
            self.refuse(
                "budget", f"must be above first = {self.first}: the rest is what a query sees before it"
            )

    def select(self, block: QueryBlock) -> Tensor:
        """[B, 1, n, S]."""
        return select(block.positions, block.k.shape[2], first=self.first, recent=self.budget - self.first)

    def logits(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S], sinks at the distance of their slots."""
        assert block.rotate is not None  # declared by needs_rotary
        if self.first == 0 or block.k.shape[2] <= self.budget + 1:  # nobody's slot is before its position
            return block.logits
        moved = slot_position(block.positions, self.budget) - block.positions
        sinks = block.k[:, :, : self.first]
        to_sinks = block.dot(block.rotate(block.q, moved), sinks) * block.scaling
        return torch.cat([to_sinks, block.logits[..., sinks.shape[2] :]], dim=-1)

    def kv_reads(self, tokens: int) -> int:
        """Sinks, recent tokens and the query's own."""
        return min(tokens, self.budget + 1)

    def kv_kept(self, tokens: int) -> int:
        """Sinks and recent tokens."""
        return min(tokens, self.budget)


def select(positions: Tensor, keys: int, *, first: int, recent: int) -> Tensor:
    """Keys s < first, and t - recent <= s <= t; booleans [B, 1, n, keys] for queries t = positions [B, n]."""
    t = positions[:, None, :, None]
    s = torch.arange(keys, device=positions.device)
    return (s <= t) & ((s < first) | (t - s <= recent))


def slot_position(positions: Tensor, budget: int) -> Tensor:
    """Where a query stands in the cache of `budget` slots: behind all of them once they are full."""
    return positions.clamp(max=budget)
