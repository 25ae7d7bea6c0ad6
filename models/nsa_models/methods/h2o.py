"""H2O: the keys that have received most attention so far, beside the latest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._reads import Now
from nsa_models.methods._rowmethod import RowMethod, for_query_heads, group_sum, lengthened, memory_of

Variant = Literal["drop", "mask", "oneshot"]


@dataclass(frozen=True, slots=True)
class _Heavy:
    """What is remembered of a row in one layer."""

    scores: Tensor
    """[H_kv, S] attention received, summed over queries and the group's heads."""
    kept: Tensor | None = None
    """[H_kv, S'] "drop": what is in the cache; "mask": what the next step sees, itself included."""


@dataclass(frozen=True, kw_only=True)
class H2O(RowMethod):
    """H2O: eviction of the keys that have received least attention (arXiv 2306.14048).

    A key's score is the attention it has received, summed over queries, after their softmax. Its authors'
    programs know one head a key; here the scores of a KV head's group are added, so that a cache can drop
    what isn't kept. Keys keep their positions. The programs read the paper in three ways:

    - `drop`: prompts are read dense; then, and after each decoded token, the latest `recent` keys stay and
      the highest scores of the others up to the budget. What is dropped is gone, and its score with it.
    - `mask`: nothing is dropped. The window of a step counts the coming token, so that the token which leaves
      it is unseen for one step, and may then come back as a heavy one. Sizes may be parts of the prompt.
    - `oneshot`: their lm-eval program. Each layer scores its keys by the whole prompt, and every query of the
      prompt reads the highest ones and `recent` tokens before it. A choice by queries that come later: its
      log-likelihoods aren't a language model's. Decode steps are dense.

    Attributes:
        budget: KV tokens kept per layer and KV head: first, heavy and recent ones. With "drop" a query reads
            its own besides, with "oneshot" its own and tokens that it sees in two ways.
        recent: Latest tokens, always kept. Default 1024 (of the authors' 2048 for "drop").
        first: Leading tokens, always kept. Default 0: the paper has none; NSA's comparison asks for 128.
        variant: "drop" (default), "mask" or "oneshot".
        heavy_ratio: Heavy tokens as a part of the prompt, rounded down, where that is fewer than the budget
            leaves. Default 0: not so; the authors' 0.1 for "mask" and "oneshot".
        recent_ratio: Recent tokens likewise.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "h2o"
    title: ClassVar[str] = "H2O: keys that received most attention, beside the latest, in decode"
    paper: ClassVar[str] = "2306.14048"
    phase: ClassVar[Phase] = "decode"
    budget_unit: ClassVar[str] = "KV tokens kept per layer and KV head; a decoded query reads its own besides"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "KV head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True

    recent: int = 1024
    first: int = 0
    variant: Variant = "drop"
    heavy_ratio: float = 0.0
    recent_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A size out of range, no room for a heavy token, or parts of the prompt with "drop".
        """
        super().__post_init__()
        if self.recent < 1:
            self.refuse("recent", "must be at least 1 token")
        if self.first < 0:
            self.refuse("first", "must be at least 0 tokens")
        if self.budget <= self.first + self.recent:
            self.refuse(
                "budget",
                f"must be above first + recent = {self.first + self.recent} KV tokens: the rest are heavy",
            )
        for field in ("heavy_ratio", "recent_ratio"):
            ratio = getattr(self, field)
            if not 0 <= ratio <= 1:
                self.refuse(field, "must be within 0 and 1")
            if ratio and self.variant == "drop":
                self.refuse(field, 'is for the variants "mask" and "oneshot"')
        if self.variant == "oneshot":
            self.redeclare(phase="prefill", chunked_prefill=False, shared_prefixes=False, lm_scores=False)

    # --- what is remembered ---

    def looks_ahead(self, phase: Now) -> bool:
        """With "oneshot", all queries of the prompt are summed before one of them chooses."""
        return self.variant == "oneshot"

    def observe(self, block: QueryBlock) -> None:
        """Add what the block's queries give to each key under dense attention."""
        memory = memory_of(block)
        weights = block.logits.masked_fill(~block.visible, float("-inf")).softmax(-1)
        memory.own = _Heavy(_added(memory.own, weights, block.k.shape[1]))

    def learn(self, block: QueryBlock, weights: Tensor) -> None:
        """Add what a decoded token gives, and drop what the next one will not see."""
        memory = memory_of(block)
        if self.variant == "oneshot":
            return
        scores = _added(self._settled(block), weights, block.k.shape[1])
        memory.own = self._after(scores, self._seen(block), prompt=memory.prompt or 0)

    # --- what is read ---

    def select(self, block: QueryBlock) -> Tensor:
        """[1, H, n, S]."""
        if self.variant == "oneshot":
            return self._oneshot(block)
        return for_query_heads(self._seen(block), block.q.shape[1])

    def kv_reads(self, tokens: int) -> int:
        """As `stated_reads` for the first decoded token, or the most of a prompt's query."""
        return self.stated_reads(tokens, prompt=self._prompt(tokens), layer=0)[1]

    def kv_reads_least(self, tokens: int) -> int:
        """Likewise, the least."""
        return self.stated_reads(tokens, prompt=self._prompt(tokens), layer=0)[0]

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """What is kept and the query's own; "oneshot": its window, and heavy tokens behind it."""
        heavy, recent = self._sizes(prompt)
        if self.variant == "drop":
            return (min(tokens, self.budget + 1),) * 2
        if self.variant == "mask":
            kept = self.first + heavy + recent
            return (tokens if tokens - 1 <= kept else kept,) * 2
        always = min(tokens, self.first + recent + 1)
        if heavy >= prompt - self.first:
            return tokens, tokens
        return always, min(tokens, always + heavy)

    def kv_kept(self, tokens: int) -> int:
        """The budget; everything with "mask" and "oneshot"."""
        return min(tokens, self.budget) if self.variant == "drop" else tokens

    # --- steps of the definition ---

    def _prompt(self, tokens: int) -> int:
        return tokens if self.variant == "oneshot" else tokens - 1

    def _sizes(self, prompt: int) -> tuple[int, int]:
        """Heavy and recent tokens for a prompt of so many."""
        heavy, recent = self.budget - self.first - self.recent, self.recent
        if self.heavy_ratio:
            heavy = min(heavy, int(self.heavy_ratio * prompt))
        if self.recent_ratio:
            recent = min(recent, int(self.recent_ratio * prompt))
        return heavy, recent

    def _settled(self, block: QueryBlock) -> _Heavy:
        """Memory before this step; at the first one, what is left of the prompt."""
        memory = memory_of(block)
        own: _Heavy | None = memory.own
        if own is None:  # nothing came before
            own = _Heavy(block.k.new_zeros(block.k.shape[1], 0))
        if own.kept is not None:
            return own
        seen = own.scores.shape[1]
        return self._after(own.scores, torch.ones_like(own.scores, dtype=torch.bool), prompt=seen)

    def _seen(self, block: QueryBlock) -> Tensor:
        """[H_kv, S] what this step sees."""
        kept = self._settled(block).kept
        assert kept is not None
        return _with_one_more(kept) if self.variant == "drop" else kept

    def _after(self, scores: Tensor, seen: Tensor, *, prompt: int) -> _Heavy:
        """What is kept for the next step.

        Args:
            scores: [H_kv, S] of all tokens so far.
            seen: [H_kv, S] those that the last step saw.
            prompt: Tokens of the prompt.
        """
        heavy, recent = self._sizes(prompt)
        width = scores.shape[1]
        s = torch.arange(width, device=scores.device)
        pinned, latest = s < self.first, s >= width - recent
        if self.variant == "drop":
            if width <= self.budget:
                return _Heavy(scores, seen)
            return _Heavy(scores, pinned | latest | keep_top(scores, heavy, seen & ~pinned & ~latest))
        if width <= self.first + heavy + recent:
            return _Heavy(scores, _with_one_more(torch.ones_like(scores, dtype=torch.bool)))
        chosen = pinned | keep_top(scores, heavy, ~pinned & ~latest)
        # A score is forgotten with its key; the token about to leave the window keeps its own.
        scores = scores * (chosen | latest)
        window = s >= width + 1 - recent
        return _Heavy(scores, _with_one_more(chosen | window) if recent else lengthened(chosen, width + 1))

    def _oneshot(self, block: QueryBlock) -> Tensor:
        memory = memory_of(block)
        scores: Tensor = memory.own.scores
        heavy, recent = self._sizes(memory.end)
        width = block.k.shape[2]
        pinned = torch.arange(scores.shape[1], device=scores.device) < self.first
        chosen = pinned | keep_top(scores, heavy, ~pinned)
        t = block.positions[:, None, :, None]
        near = t - torch.arange(width, device=scores.device) <= recent
        return near | for_query_heads(chosen[:, :width], block.q.shape[1])


def _with_one_more(x: Tensor) -> Tensor:
    """x [H, S] with one more column that is True."""
    return torch.nn.functional.pad(x, (0, 1), value=True)


def _added(own: _Heavy | None, weights: Tensor, groups: int) -> Tensor:
    """Scores [H_kv, S] with those of weights [1, H, n, S] added."""
    new = group_sum(weights[0].sum(1), groups)
    return new if own is None else lengthened(own.scores, new.shape[1]) + new
