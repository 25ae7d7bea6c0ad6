"""What SnapKV and its kin share: a prompt's keys are cut once, by what its last queries read."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, grouped
from nsa_models.methods._rowmethod import RowMethod, memory_of

Pool = Literal["avg", "max"]


@dataclass(frozen=True, slots=True)
class _Last:
    """What is remembered of a row in one layer."""

    queries: Tensor
    """[1, H, <= window, d_k] the prompt's last queries."""
    kept: Tensor | None = None
    """[H, N] keys of the prompt that are kept, once it has ended."""


@dataclass(frozen=True, kw_only=True)
class WindowMethod(RowMethod):
    """Prompts are read dense; the keys that their last queries read most are kept, and all later ones.

    Attributes:
        window: Last queries of the prompt that score its keys.
        kernel: Width of the pool over neighbouring keys' scores, odd.
    """

    phase: ClassVar[Phase] = "decode"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    window: int
    kernel: int

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty window, or a kernel that has no middle.
        """
        super().__post_init__()
        if self.window < 1:
            self.refuse("window", "must be at least 1 query")
        if self.kernel < 1 or self.kernel % 2 == 0:
            self.refuse("kernel", "must be odd: as many scores come out of the pool as go in")

    @abstractmethod
    def kept(self, weights: Tensor, groups: int) -> Tensor:
        """The keys of a prompt that are kept.

        Args:
            weights: [H, w, N] of the last w queries, causal; N is above the budget.
            groups: H_kv.

        Returns:
            Booleans [H, N].
        """

    def observe(self, block: QueryBlock) -> None:
        """Keep the last queries, whatever pieces they come in."""
        memory = memory_of(block)
        before = [memory.own.queries] if memory.own is not None else []
        queries = torch.cat([*before, block.q], dim=2)[:, :, -self.window :]
        memory.own = _Last(queries.clone())  # a view would keep all of them alive

    def learn(self, block: QueryBlock, weights: Tensor) -> None:
        """Remember what the first step has found to be kept: nothing is dropped any more."""
        memory = memory_of(block)
        if memory.own is not None and memory.own.kept is None:
            memory.own = replace(memory.own, kept=self._kept(block))

    def select(self, block: QueryBlock) -> Tensor:
        """[1, H, 1, S]."""
        kept = self._kept(block)
        later = block.k.shape[2] - kept.shape[1]
        return torch.nn.functional.pad(kept, (0, later), value=True)[None, :, None]

    def kv_reads(self, tokens: int) -> int:
        """As `stated_reads` for the first decoded token."""
        return self.stated_reads(tokens, prompt=tokens - 1, layer=0)[1]

    def kv_reads_least(self, tokens: int) -> int:
        """Likewise, the least."""
        return self.stated_reads(tokens, prompt=tokens - 1, layer=0)[0]

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """What is kept of the prompt, and all that came after it."""
        return (min(prompt, self.budget) + tokens - prompt,) * 2

    def kv_kept(self, tokens: int) -> int:
        """The budget of a prompt of so many tokens."""
        return min(tokens, self.budget)

    def stated_kept(self, tokens: int, *, prompt: int) -> int:
        """And all that came after it."""
        return self.kv_kept(prompt) + tokens - prompt

    def _kept(self, block: QueryBlock) -> Tensor:
        memory = memory_of(block)
        own: _Last | None = memory.own
        prompt = memory.prompt or 0
        if own is not None and own.kept is not None:
            return own.kept
        heads, groups = block.q.shape[1], block.k.shape[1]
        if own is None or prompt <= self.budget:
            return torch.ones(heads, prompt, dtype=torch.bool, device=block.q.device)
        return self.kept(window_weights(own.queries, block.k[:, :, :prompt], block.scaling), groups)


def window_weights(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Causal attention [H, w, N] of a prompt's last queries [1, H, w, d] to its keys [1, H_kv, N, d]."""
    logits = grouped(queries, keys.transpose(-1, -2))[0] * scaling
    width, count = keys.shape[2], queries.shape[2]
    later = torch.ones(count, width, dtype=torch.bool, device=keys.device).triu(width - count + 1)
    return logits.masked_fill(later, float("-inf")).softmax(-1)


def pooled(scores: Tensor, kernel: int, pool: Pool) -> Tensor:
    """Scores [H, N], each with its neighbours; an average divides by the whole kernel at the edges too."""
    smooth = avg_pool1d if pool == "avg" else max_pool1d
    out: Tensor = smooth(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    return out
