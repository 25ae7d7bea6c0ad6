"""Quest: pages of keys, chosen by an upper bound of q.k from each page's extremes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.blocks import PageLists
from nsa_kernels.pages import LEAST_PAGES, PageExtremes, best_pages, quest_pages, with_tokens
from nsa_models.methods._base import Budgeted, Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._paged import Paged

Reading = Literal["eval", "kernel"]


@dataclass(frozen=True, kw_only=True)
class Quest(Paged, Budgeted):
    """Quest: query-aware choice of KV pages while decoding (arXiv 2406.10774).

    Keys stand in pages of `page` tokens, the last one incomplete. Over its keys after RoPE, a page
    scores sum_d max(q_d max_d, q_d min_d), an upper bound of their q.k, and the query reads the pages of
    highest score whole. Prompts are read dense. The authors' two programs read the paper differently:

    - `eval`, their evaluation: max(3, min(budget, N) // page) of all pages; the last page is not forced, so
      that a head may leave out the newest tokens, and reads fewer than the budget when it takes the last one.
    - `kernel`, their CUDA kernels: budget // page pages, of which the last is always one and isn't scored.

    Comparisons at one budget give Quest tokens that are always read, which the authors' programs don't have.
    With `first` or `local`, whole pages of the rest of the budget are chosen among those that hold any other
    token, and none is forced.

    Attributes:
        budget: KV tokens a query reads per layer and head while decoding, rounded down to whole pages.
        page: Tokens of a page. Default 16 (the authors').
        reading: "eval" (default) or "kernel".
        first: Leading tokens that are always read. Default 0 (the authors').
        local: Latest tokens that are always read, the query's own among them. Default 0 (the authors').
        fast: Keep the pages' extremes beside the cache and read the chosen pages by kernels, on a GPU and in
            16 bits (`Paged`). Default false.
        dense_layers: Layers left dense. Default 0 and 1 (the authors').
    """

    name: ClassVar[str] = "quest"
    title: ClassVar[str] = "Quest: pages of highest upper bound of q.k, in decode"
    paper: ClassVar[str] = "2406.10774"
    phase: ClassVar[Phase] = "decode"
    budget_unit: ClassVar[str] = "KV tokens read per decoded query, layer and head, in whole pages"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "query head"
    chunked_prefill: ClassVar[bool] = True
    shared_prefixes: ClassVar[bool] = True
    lm_scores: ClassVar[bool] = True
    simulated: ClassVar[bool] = True
    version: ClassVar[int] = 2

    page: int = 16
    reading: Reading = "eval"
    first: int = 0
    local: int = 0
    dense_layers: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: An empty page, an unknown reading, a budget of fewer pages than the reading takes, or
                tokens that are always read with the reading that forces a page.
        """
        super().__post_init__()
        if self.page < 1:
            self.refuse("page", "must be at least 1 token")
        for field in ("first", "local"):
            if getattr(self, field) < 0:
                self.refuse(field, "must be at least 0 tokens")
        if self._fixed:
            if self.reading == "kernel":
                self.refuse("reading", 'must be "eval" with first or local: "kernel" forces the last page')
            if self.budget < self._fixed + self.page:
                self.refuse(
                    "budget",
                    f"must be at least first + local + page = {self._fixed + self.page} KV tokens",
                )
        pages = LEAST_PAGES if self.reading == "eval" and not self._fixed else 1
        if self.budget < pages * self.page:
            self.refuse(
                "budget",
                f"must be at least {pages * self.page} KV tokens: the {self.reading} reading takes {pages} "
                f"page{'s' if pages > 1 else ''} of {self.page} at least",
            )

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, 1, S]."""
        if self._fixed:
            return select_beside(
                block.q,
                block.k,
                block.positions,
                pages=(self.budget - self._fixed) // self.page,
                page=self.page,
                first=self.first,
                local=self.local,
            )
        return select(
            block.q, block.k, block.positions, budget=self.budget, page=self.page, reading=self.reading
        )

    def choose(
        self, extremes: PageExtremes, q: Tensor, lengths: Tensor, scored: Tensor, *, backend: str
    ) -> PageLists:
        """As `select`, by extremes that are kept."""
        if not self._fixed:
            scores = extremes.scores(q, counts=scored, backend=backend)
            return quest_pages(
                scores, lengths, page=self.page, budget=self.budget, reading=self.reading, backend=backend
            )
        # Pages that hold a token behind the leading and in front of the latest ones, which stand together.
        begin = self.first // self.page
        among = extremes.part(min(begin, extremes.high.shape[1] - 1), extremes.high.shape[1])
        count = (self.budget - self._fixed) // self.page
        chosen = best_pages(
            among.scores(q, counts=scored, backend=backend),
            (lengths - self.local - begin * self.page).clamp(min=0),
            page=self.page,
            budget=count * self.page,
            least=count,
            backend=backend,
        )
        chosen = replace(chosen, firsts=chosen.firsts + begin * self.page)
        return with_tokens(chosen, lengths, first=self.first, local=self.local)

    def scored(self, lengths: Tensor) -> Tensor:
        """Pages that `index_reads` counts."""
        if self._fixed:
            lengths = (lengths - self.local - self.first // self.page * self.page).clamp(min=0)
        pages = (lengths + self.page - 1).div(self.page, rounding_mode="floor")
        return (pages - 1).clamp(min=0) if self.reading == "kernel" else pages

    def kv_reads(self, tokens: int) -> int:
        """Tokens of the chosen pages; with "eval", of a head that doesn't take an incomplete last page."""
        if self._fixed:
            return tokens if tokens <= self._fixed else self._fixed + sum(self._beside(tokens, most=True))
        pages, last = self._pages(tokens)
        chosen = self._chosen(tokens)
        if chosen == pages:
            return tokens
        return chosen * self.page if self.reading == "eval" else (chosen - 1) * self.page + last

    def kv_reads_least(self, tokens: int) -> int:
        """As `kv_reads`, of a head that takes the last page."""
        if self._fixed:
            return tokens if tokens <= self._fixed else self._fixed + sum(self._beside(tokens, most=False))
        pages, last = self._pages(tokens)
        chosen = self._chosen(tokens)
        return tokens if chosen == pages else (chosen - 1) * self.page + last

    def index_reads(self, tokens: int) -> int:
        """Both extremes of every page that is scored."""
        if self._fixed:
            return 2 * len(self._others(tokens))
        pages, _ = self._pages(tokens)
        return 2 * pages if self.reading == "eval" else 2 * (pages - 1)

    @property
    def _fixed(self) -> int:
        """Tokens that are always read."""
        return self.first + self.local

    def _others(self, tokens: int) -> list[int]:
        """Tokens that each page has beside those that are always read, where it has any."""
        end = tokens - self.local
        starts = range(self.first // self.page * self.page, end, self.page)
        return [min(start + self.page, end) - max(start, self.first) for start in starts]

    def _beside(self, tokens: int, *, most: bool) -> list[int]:
        """Tokens of the chosen pages, of the head that finds most or fewest in them."""
        count = (self.budget - self._fixed) // self.page
        return sorted(self._others(tokens), reverse=most)[:count]

    def _pages(self, tokens: int) -> tuple[int, int]:
        """Pages, and tokens of the last one."""
        pages = -(-tokens // self.page)
        return pages, tokens - (pages - 1) * self.page

    def _chosen(self, tokens: int) -> int:
        pages, _ = self._pages(tokens)
        if self.reading == "eval":
            return min(max(LEAST_PAGES, min(self.budget, tokens) // self.page), pages)
        return min(self.budget // self.page, pages)


def select(q: Tensor, k: Tensor, positions: Tensor, *, budget: int, page: int, reading: Reading) -> Tensor:
    """The keys that one query a row reads.

    Args:
        q: [B, H, 1, d].
        k: [B, H_kv, S, d], key s at position s.
        positions: [B, 1] of the queries.
        budget: KV tokens.
        page: Tokens of a page.
        reading: See `Quest`.

    Returns:
        Booleans [B, H, 1, S].
    """
    tokens = (positions + 1)[:, None, :, None]  # [B, 1, 1, 1]
    scores = page_scores(q, k, positions, page)
    pages = (tokens + page - 1).div(page, rounding_mode="floor")
    index = torch.arange(scores.shape[-1], device=q.device)
    if reading == "eval":
        count = tokens.clamp(max=budget).div(page, rounding_mode="floor").clamp(min=LEAST_PAGES)
        chosen = keep_top(scores, count, index < pages, most=max(LEAST_PAGES, budget // page))
    else:
        last = index == pages - 1
        chosen = last | keep_top(scores, budget // page - 1, index < pages - 1)
    s = torch.arange(k.shape[2], device=q.device)
    return chosen.repeat_interleave(page, dim=-1)[..., : k.shape[2]] & (s < tokens)


def select_beside(
    q: Tensor, k: Tensor, positions: Tensor, *, pages: int, page: int, first: int, local: int
) -> Tensor:
    """The keys that one query a row reads where some are always read.

    Args:
        q: [B, H, 1, d].
        k: [B, H_kv, S, d], key s at position s.
        positions: [B, 1] of the queries.
        pages: How many are chosen.
        page: Tokens of a page.
        first: Keys s < first are read.
        local: Keys t - local < s <= t are read.

    Returns:
        Booleans [B, H, 1, S].
    """
    t = positions[:, None, :, None]  # [B, 1, 1, 1]
    scores = page_scores(q, k, positions, page)
    begins = torch.arange(scores.shape[-1], device=q.device) * page
    holds_others = (begins + page > first) & (begins <= t - local)
    chosen = keep_top(scores, pages, holds_others)
    s = torch.arange(k.shape[2], device=q.device)
    always = (s < first) | (s > t - local)
    return (chosen.repeat_interleave(page, dim=-1)[..., : k.shape[2]] | always) & (s <= t)


def page_scores(q: Tensor, k: Tensor, positions: Tensor, page: int) -> Tensor:
    """An upper bound of q.k over the keys of each page, [B, H, 1, pages]; 0 for a page that isn't visible.

    Args:
        q: [B, H, 1, d].
        k: [B, H_kv, S, d], key s at position s.
        positions: [B, 1] of the queries; a page holds no key behind its row's query.
        page: Tokens of a page.
    """
    extremes = PageExtremes.of(k.transpose(1, 2), page=page, lengths=positions[:, 0] + 1)
    return extremes.scores(q[:, :, 0], backend="torch")[:, :, None]
