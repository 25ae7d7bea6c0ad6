"""SnapKV: the prompt's keys that its last queries read most, with their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._block import keep_top
from nsa_models.methods._window import Pool, WindowMethod, pooled


@dataclass(frozen=True, kw_only=True)
class SnapKV(WindowMethod):
    """SnapKV: eviction at the end of the prompt, by the prompt's last queries (arXiv 2404.14469).

    The prompt is read dense. A key's score is the attention that the last `window` queries give it, summed,
    then pooled with its neighbours'. The window and the highest scores before it are kept, per query head, as
    the authors' program does it, whose cache holds a head for each query head. What comes after the prompt is
    kept whole. Positions stay. A prompt below the budget loses nothing.

    Attributes:
        budget: KV tokens kept of a prompt per layer and query head, the window among them; a decoded token
            reads itself and those decoded before it besides.
        window: Last queries of the prompt. Default 32 (the authors').
        kernel: Width of the pool. Default 5 (their class; their LongBench runs take 7).
        pool: "avg" (default, their class) or "max" (their LongBench runs).
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "snapkv"
    title: ClassVar[str] = "SnapKV: prompt keys that its last queries read most, in decode"
    paper: ClassVar[str] = "2404.14469"
    budget_unit: ClassVar[str] = "KV tokens kept of the prompt per layer and query head; later ones besides"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"

    window: int = 32
    kernel: int = 5
    pool: Pool = "avg"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: No room beside the window, or what the base class refuses.
        """
        super().__post_init__()
        if self.budget <= self.window:
            self.refuse("budget", f"must be above window = {self.window}: the window is kept whole")

    def kept(self, weights: Tensor, groups: int) -> Tensor:
        """The window, and the best before it."""
        width = weights.shape[-1]
        before = width - self.window
        scores = pooled(weights[:, :, :before].sum(1), self.kernel, self.pool)
        chosen = keep_top(scores, self.budget - self.window, torch.ones_like(scores, dtype=torch.bool))
        return torch.nn.functional.pad(chosen, (0, self.window), value=True)
