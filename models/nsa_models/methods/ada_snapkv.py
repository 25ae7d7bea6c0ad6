"""Ada-SnapKV: SnapKV with one budget for all heads, which goes where scores are high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._block import keep_top
from nsa_models.methods._window import WindowMethod, pooled


@dataclass(frozen=True, kw_only=True)
class AdaSnapKV(WindowMethod):
    """Ada-SnapKV: SnapKV whose heads share their budget (arXiv 2407.11550, as Sparse Frontier reads it).

    As SnapKV, with these differences: a key's score is the highest weight that a query of the window in a
    head of the group gives it, pooled by an average; the first `first` and last `local` tokens are kept;
    each KV head gets its best `least_share` of the budget, and the rest of all heads' budgets goes to the
    best scores of the layer, whosever they are. Heads keep different numbers of keys, the budget on average.

    Attributes:
        budget: KV tokens kept of a prompt per layer and KV head, on average over the layer's heads; a decoded
            token reads itself and those decoded before it besides.
        window: Last queries of the prompt that score. Default 256 (Sparse Frontier's).
        local: Last tokens of the prompt that are kept. Default 128 (likewise).
        first: Leading tokens that are kept. Default 4 (likewise).
        kernel: Width of the pool. Default 7 (likewise).
        least_share: Part of the budget that each head has for itself, rounded down; never fewer than first +
            local. Default 0.2 (likewise).
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "ada-snapkv"
    title: ClassVar[str] = "Ada-SnapKV: SnapKV with one budget over all heads of a layer"
    paper: ClassVar[str] = "2407.11550"
    budget_unit: ClassVar[str] = "KV tokens kept of the prompt per KV head, on average; later ones besides"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"

    window: int = 256
    kernel: int = 7
    local: int = 128
    first: int = 4
    least_share: float = 0.2

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A size out of range, or a budget below what is always kept.
        """
        super().__post_init__()
        for field in ("local", "first"):
            if getattr(self, field) < 0:
                self.refuse(field, "must be at least 0 tokens")
        if not 0 <= self.least_share <= 1:
            self.refuse("least_share", "must be within 0 and 1")
        if self.budget < self.first + self.local:
            self.refuse(
                "budget", f"must be at least first + local = {self.first + self.local}: they are always kept"
            )

    def kept(self, weights: Tensor, groups: int) -> Tensor:
        """Each head's own part, then the best of all heads."""
        heads, _, width = weights.shape
        scores = pooled(weights.unflatten(0, (groups, heads // groups)).amax((1, 2)), self.kernel, "avg")
        s = torch.arange(width, device=weights.device)
        scores = scores.masked_fill((s < self.first) | (s >= width - self.local), float("inf"))
        anywhere = torch.ones_like(scores, dtype=torch.bool)
        own = keep_top(scores, self._least(), anywhere)
        # Of equal scores the lower head, then the lower token.
        shared = keep_top(scores.flatten(), groups * (self.budget - self._least()), ~own.flatten())
        return (own | shared.view_as(own)).repeat_interleave(heads // groups, dim=0)

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """A head may have as little as its own part, or all; over the heads of a layer it is the budget."""
        if prompt <= self.budget:
            return tokens, tokens
        return self._least() + tokens - prompt, tokens

    def mean_reads(self, tokens: int, *, prompt: int, layer: int) -> float:
        """The budget, over the heads of a layer, and all that came after the prompt."""
        return min(prompt, self.budget) + tokens - prompt

    def _least(self) -> int:
        return max(int(self.budget * self.least_share), self.first + self.local)
