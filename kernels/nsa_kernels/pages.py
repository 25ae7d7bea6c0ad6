"""Quest's pages on the device: the extremes of every page, kept as tokens come, and the pages a query reads.

Quest (arXiv 2406.10774) bounds q.k over a page of keys by sum_d max(q_d max_d, q_d min_d) and reads the pages
of highest bound. Extremes of 16-bit keys are 16-bit numbers, so that keeping them changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.ahead import real_device
from nsa_kernels.block_choice import top_indices
from nsa_kernels.block_lists import PageLists

LEAST_PAGES = 3
"""The evaluation code of the paper never chooses fewer pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageExtremes:
    """Largest and smallest keys of each page of a cache; of pages without tokens, anything finite."""

    high: Tensor
    """[B, P, H_kv, D]."""
    low: Tensor
    """[B, P, H_kv, D]."""
    page: int
    """Tokens to a page."""

    @classmethod
    def of(
        cls, k: Tensor, *, page: int, lengths: Tensor | None = None, capacity: int | None = None
    ) -> PageExtremes:
        """The extremes of the keys of a prompt.

        Args:
            k: [B, S, H_kv, D], key s at position s.
            page: Tokens to a page.
            lengths: Tokens of each row, integers [B]; None = S.
            capacity: Tokens that there shall be room for; None = S.
        """
        batch, size, kv_heads, width = k.shape
        pages, kept = -(-size // page), -(-max(size, capacity or 0) // page)
        hidden = None
        if lengths is not None:
            hidden = (torch.arange(size, device=k.device) >= lengths[:, None])[:, :, None, None]
        made = []
        for fill, reduce in ((-torch.inf, torch.amax), (torch.inf, torch.amin)):
            filled = k if hidden is None else k.masked_fill(hidden, fill)
            if size % page:
                filled = F.pad(filled, (0, 0, 0, 0, 0, pages * page - size), value=fill)
            extreme = reduce(filled.unflatten(1, (pages, page)), dim=2)
            if hidden is not None:
                extreme = extreme.masked_fill(extreme.isinf(), 0.0)
            room = k.new_zeros(batch, kept, kv_heads, width)
            room[:, :pages] = extreme
            made.append(room)
        return cls(high=made[0], low=made[1], page=page)

    def part(self, first: int, end: int) -> PageExtremes:
        """Pages `first`..`end` - 1 alone: a view."""
        return replace(self, high=self.high[:, first:end], low=self.low[:, first:end])

    def with_room(self, tokens: int) -> PageExtremes:
        """The same with room for so many tokens a row at least; itself where it has that."""
        missing = -(-tokens // self.page) - self.high.shape[1]
        if missing <= 0:
            return self
        high, low = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (self.high, self.low))
        return replace(self, high=high, low=low)

    def append(self, k: Tensor, positions: Tensor, *, backend: str = "auto") -> None:
        """Take in one new key a row, in place; nothing of it makes a GPU wait.

        Args:
            k: [B, H_kv, D].
            positions: Where it stands, integers [B]: behind all that the row has.
            backend: "auto" (the kernel on a GPU), "torch" or "triton".
        """
        if _by_kernel(backend, k.device) and self.high.dtype == k.dtype:
            from nsa_kernels.triton.blocks import append

            with torch.cuda.device_of(k):
                append(self.high, self.low, k, positions.int(), page=self.page)
            return
        row = torch.arange(k.shape[0], device=k.device)
        number = positions.long() // self.page
        begins = (positions % self.page == 0)[:, None, None]
        for kept, pick in ((self.high, torch.maximum), (self.low, torch.minimum)):
            kept[row, number] = torch.where(begins, k, pick(kept[row, number], k))

    def scores(self, q: Tensor, *, counts: Tensor | None = None, backend: str = "auto") -> Tensor:
        """The bound of q.k for every page.

        Args:
            q: [B, H, D].
            counts: Pages of each row that are asked for, integers [B]: the kernel reads no others. None = P.
            backend: "auto" (the kernel on a GPU, for heads of a power of 2), "torch" or "triton".

        Returns:
            float32 [B, H, P], or float64 of float64 keys; of pages without tokens, and of those that aren't
            asked for, anything.
        """
        width = q.shape[-1]
        if backend == "auto":
            made = real_device(q.device).type == "cuda" and width >= 16 and width & (width - 1) == 0
            backend = "triton" if made and q.dtype == self.high.dtype else "torch"
        if backend == "triton":
            from nsa_kernels.triton.blocks import page_scores

            with torch.cuda.device_of(q):
                found: Tensor = page_scores(
                    q, self.high, self.low, counts=None if counts is None else counts.int()
                )
                return found
        wide = torch.promote_types(q.dtype, torch.float32)
        kv_heads = self.high.shape[2]
        grouped = q.to(wide).unflatten(1, (kv_heads, q.shape[1] // kv_heads))  # [B, H_kv, G, D]
        high, low = (x.to(wide).permute(0, 2, 3, 1) for x in (self.high, self.low))
        # max(q max, q min) is q max where q > 0, and q min elsewhere.
        bound: Tensor = grouped.clamp(min=0) @ high + grouped.clamp(max=0) @ low
        return bound.flatten(1, 2)


def quest_pages(
    scores: Tensor,
    lengths: Tensor,
    *,
    page: int,
    budget: int,
    reading: Literal["eval", "kernel"] = "eval",
    backend: str = "auto",
) -> PageLists:
    """The pages that each query head reads, as `nsa_models.methods.quest` defines both readings.

    Args:
        scores: [B, H, P] of `PageExtremes.scores`.
        lengths: Tokens of each row, the query's own among them, integers [B].
        page: Tokens to a page.
        budget: KV tokens.
        reading: "eval": max(3, min(budget, N) // page) of all pages. "kernel": budget // page pages, of which
            the last is always one and isn't scored.
        backend: "auto" (the kernel on a GPU), "torch" or "triton".

    Returns:
        The pages in any order; of equal scores the lower page.

    Raises:
        ValueError: A budget of fewer pages than the reading takes.
    """
    least = LEAST_PAGES if reading == "eval" else 1
    if budget < page * least:
        raise ValueError(f"the {reading} reading of Quest takes more than {budget} tokens in pages of {page}")
    return best_pages(
        scores,
        lengths,
        page=page,
        budget=budget,
        least=least,
        forced=reading == "kernel",
        backend=backend,
    )


def best_pages(
    scores: Tensor,
    lengths: Tensor,
    *,
    page: int,
    budget: int,
    least: int,
    forced: bool = False,
    backend: str = "auto",
) -> PageLists:
    """The pages of highest score of each head.

    Args:
        scores: [B, H, P] of `PageExtremes.scores`.
        lengths: Tokens of each row in these pages, integers [B].
        page: Tokens to a page.
        budget: KV tokens: budget // page pages at most.
        least: Pages that are taken whatever the budget. Without `forced`, a row of fewer tokens than the
            budget takes its tokens // page, as far as they reach this.
        forced: A row's last page is always one of them, and its score doesn't count.
        backend: "auto" (the kernel on a GPU), "torch" or "triton".

    Returns:
        The pages in any order; of equal scores the lower page.
    """
    if _by_kernel(backend, scores.device):
        from nsa_kernels.triton.blocks import MOST_PAGES
        from nsa_kernels.triton.blocks import best_pages as launch

        if scores.shape[-1] <= MOST_PAGES:
            with torch.cuda.device_of(scores):
                firsts, counts = launch(
                    scores, lengths.int(), page=page, budget=budget, least=least, forced=forced
                )
            return PageLists(firsts=firsts, counts=counts, page=page)
    most = max(least, budget // page)
    index = torch.arange(scores.shape[-1], device=scores.device)
    pages = ((lengths + page - 1) // page)[:, None, None]  # [B, 1, 1]
    ranked = scores.float().masked_fill(index >= pages, -torch.inf)
    if forced:
        # Above all that is scored, if that be infinite.
        ranked = ranked.clamp(max=torch.finfo(torch.float32).max).masked_fill(index == pages - 1, torch.inf)
        count = torch.full_like(lengths, most)[:, None]
    else:
        count = (lengths.clamp(max=budget) // page).clamp(min=least)[:, None]
    best = top_indices(ranked, min(most, scores.shape[-1]))
    count = torch.minimum(count, pages[..., 0]).expand(scores.shape[:2])
    return PageLists(firsts=(best * page).int(), counts=count.int().contiguous(), page=page)


def with_tokens(lists: PageLists, lengths: Tensor, *, first: int, local: int) -> PageLists:
    """Pages, and the tokens that are read whatever was chosen, as lists of single tokens, each once.

    A page that holds such tokens and others can't be a page of the lists: those would count twice.

    Args:
        lists: Chosen pages.
        lengths: Tokens of each row, the query's own among them, integers [B].
        first: Leading tokens that are always there.
        local: Latest tokens that are always there.
    """
    firsts, device = lists.firsts, lists.firsts.device
    near = (lengths.int() - local)[:, None, None]  # [B, 1, 1]: where the latest tokens begin
    slot = torch.arange(firsts.shape[-1], device=device)[:, None]
    pages = firsts[..., None] + torch.arange(lists.page, dtype=torch.int32, device=device)  # [B, L, W, page]
    used = (slot < lists.counts[..., None, None]) & (pages >= first) & (pages < near[..., None])
    leading = torch.arange(first, dtype=torch.int32, device=device)
    latest = near + torch.arange(local, dtype=torch.int32, device=device)
    shape = (*firsts.shape[:2], -1)
    always = torch.cat([leading.expand(*near.shape[:2], -1), latest], -1)
    there = torch.cat([(leading < lengths[:, None, None]).expand(*near.shape[:2], -1), latest >= first], -1)
    tokens = torch.cat([always.expand(shape), pages.flatten(2)], -1)
    kept = torch.cat([there.expand(shape), used.flatten(2)], -1)
    # Those that aren't kept all go to a place of their own, which is cut off.
    place = torch.where(kept, kept.cumsum(-1) - 1, kept.shape[-1])
    ordered = tokens.new_zeros(*tokens.shape[:2], tokens.shape[-1] + 1).scatter_(-1, place, tokens)
    counts = kept.sum(-1, dtype=torch.int32)
    return PageLists(firsts=ordered[..., :-1].contiguous(), counts=counts, page=1)


def _by_kernel(backend: str, device: torch.device) -> bool:
    return backend == "triton" or (backend == "auto" and real_device(device).type == "cuda")
