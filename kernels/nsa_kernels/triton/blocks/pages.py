"""Quest's step in three launches: the new token's page, the bound of q.k for every page, the best pages.

Each extreme is read once for all query heads of its KV head. The best pages are found without sorting: the
score of the last one to take is built bit by bit, by counting how many reach it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import MIN_DOT, precision, rows_contiguous, wide


def page_scores(q: Tensor, high: Tensor, low: Tensor, *, counts: Tensor | None = None) -> Tensor:
    """sum_d max(q_d high_d, q_d low_d) of every page.

    Args:
        q: [B, H, D], D a power of 2 from 16 on.
        high: Largest keys of each page, [B, P, H_kv, D] in q's dtype.
        low: Smallest keys.
        counts: Pages of each row that are read, int32 [B]; the others score 0. None = P.

    Returns:
        float32 [B, H, P].
    """
    q, high, low = rows_contiguous(q), rows_contiguous(high), rows_contiguous(low)
    batch, heads, width = q.shape
    pages, kv_heads = high.shape[1:3]
    chosen = shipped("page_scores", width, q.device)
    scores = torch.empty(batch, heads, pages, dtype=torch.float32, device=q.device)
    group = heads // kv_heads
    launch(page_scores_kernel, (triton.cdiv(pages, chosen["pages"]), kv_heads, batch))(
        q,
        high,
        low,
        scores,
        scores if counts is None else counts,
        *q.stride()[:2],
        *high.stride()[:3],
        *low.stride()[:3],
        pages,
        GROUP=group,
        ROWS=max(MIN_DOT, triton.next_power_of_2(group)),
        PAGES=chosen["pages"],
        COUNTED=counts is not None,
        DK=width,
        PRECISION=precision(q),
        num_warps=chosen["num_warps"],
        num_stages=1,
    )
    return scores


MOST_PAGES = 2**15
"""What one program ranks: so many scores stay in its registers."""


def best_pages(
    scores: Tensor, lengths: Tensor, *, page: int, budget: int, least: int, forced: bool
) -> tuple[Tensor, Tensor]:
    """The pages of highest score of each head, ascending; of equal ones the lower.

    Args:
        scores: float32 [B, H, P], P at most `MOST_PAGES`.
        lengths: Tokens of each row, int32 [B].
        page: Tokens to a page.
        budget: KV tokens: budget // page pages at most.
        least: Pages that are taken whatever the budget. Without `forced`, a row of fewer tokens than the
            budget takes its tokens // page, as far as they reach this.
        forced: The last page is always one of them, and isn't scored.

    Returns:
        firsts int32 [B, H, W] and counts int32 [B, H], as `PageLists` has them.
    """
    batch, heads, pages = scores.shape
    width = min(max(least, budget // page), pages)
    firsts = torch.zeros(batch, heads, width, dtype=torch.int32, device=scores.device)
    counts = torch.empty(batch, heads, dtype=torch.int32, device=scores.device)
    padded = triton.next_power_of_2(pages)
    launch(best_pages_kernel, (heads, batch))(
        scores.contiguous(),
        lengths,
        firsts,
        counts,
        pages,
        width,
        budget,
        PAGE=page,
        LEAST=least,
        FORCED=forced,
        PAGES=padded,
        num_warps=max(1, min(16, padded // 512)),
        num_stages=1,
    )
    return firsts, counts


def append(high: Tensor, low: Tensor, k: Tensor, positions: Tensor, *, page: int) -> None:
    """Takes one new key a row into the extremes of its page, in place.

    Args:
        high: [B, P, H_kv, D], contiguous.
        low: The same.
        k: [B, H_kv, D].
        positions: int32 [B].
        page: Tokens to a page.
    """
    k = rows_contiguous(k)
    batch, kv_heads, width = k.shape
    launch(append_kernel, (kv_heads, batch))(
        high,
        low,
        k,
        positions,
        *high.stride()[:3],
        *k.stride()[:2],
        PAGE=page,
        DK=width,
        COLUMNS=triton.next_power_of_2(width),
        num_warps=1,
        num_stages=1,
    )


@triton.jit
def append_kernel(
    High, Low, K, Positions, stride_hb, stride_hp, stride_hh, stride_kb, stride_kh,
    PAGE: tl.constexpr, DK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid (H_kv, B)."""
    kv_head, batch = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, COLUMNS)
    inside = column < DK
    position = tl.load(Positions + batch)
    begins = position % PAGE == 0
    k = tl.load(K + wide(batch) * stride_kb + wide(kv_head) * stride_kh + column, mask=inside, other=0.0)
    at = wide(batch) * stride_hb + wide(position // PAGE) * stride_hp + wide(kv_head) * stride_hh + column
    high = tl.load(High + at, mask=inside, other=0.0)
    low = tl.load(Low + at, mask=inside, other=0.0)
    tl.store(High + at, tl.where(begins | (k > high), k, high), mask=inside)
    tl.store(Low + at, tl.where(begins | (k < low), k, low), mask=inside)


@triton.jit(do_not_specialize=("pages", "width"))
def best_pages_kernel(
    Scores, Lengths, Firsts, Counts, pages, width, budget,
    PAGE: tl.constexpr, LEAST: tl.constexpr, FORCED: tl.constexpr, PAGES: tl.constexpr,
):  # fmt: skip
    """Grid (H, B)."""
    LOWEST: tl.constexpr = -(2**31)
    HIGHEST: tl.constexpr = 2**31 - 1
    head, batch = tl.program_id(0), tl.program_id(1)
    row = wide(batch) * tl.num_programs(0) + head
    length = tl.load(Lengths + batch)
    there = tl.cdiv(length, PAGE)
    page = tl.arange(0, PAGES)
    scores = tl.load(Scores + row * pages + page, mask=page < pages, other=0.0) + 0.0  # one zero, not two
    bits = scores.to(tl.int32, bitcast=True)
    rising = tl.where(bits >= 0, bits, bits ^ HIGHEST)  # ordered as the scores are
    rising = tl.maximum(rising, LOWEST + 1)
    rising = tl.where(page < there, rising, LOWEST)
    count = width
    if FORCED:
        rising = tl.where(page == there - 1, HIGHEST, rising)
    else:
        count = tl.maximum(tl.minimum(length, budget) // PAGE, LEAST)
    count = tl.minimum(tl.minimum(count, there), width)
    # The largest number that `count` pages reach, from its sign down.
    bar = tl.where(tl.sum((rising >= 0).to(tl.int32), 0) >= count, 0, LOWEST)
    for step in range(31):
        tried = bar + (1 << (30 - step))
        bar = tl.where(tl.sum((rising >= tried).to(tl.int32), 0) >= count, tried, bar)
    above = rising > bar
    room = count - tl.sum(above.to(tl.int32), 0)
    equal = (rising == bar) & (page < there)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(Firsts + row * width + place, page * PAGE, mask=chosen)
    tl.store(Counts + row, count)


@triton.jit(do_not_specialize=("pages",))
def page_scores_kernel(
    Q, High, Low, Scores, Counts, stride_qb, stride_qh, stride_hb, stride_hp, stride_hh, stride_lb, stride_lp,
    stride_lh, pages,
    GROUP: tl.constexpr, ROWS: tl.constexpr, PAGES: tl.constexpr, COUNTED: tl.constexpr, DK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(P / PAGES), H_kv, B)."""
    kv_head, batch = tl.program_id(1), tl.program_id(2)
    head, column = tl.arange(0, ROWS), tl.arange(0, DK)
    page = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    held, there = head < GROUP, page < pages
    read = there
    if COUNTED:
        read = there & (page < tl.load(Counts + batch))
    first = kv_head * GROUP + head
    q = tl.load(
        Q + wide(batch) * stride_qb + first[:, None] * stride_qh + column[None, :],
        mask=held[:, None], other=0.0,
    )  # fmt: skip
    # max(q max, q min) is q max where q > 0, and q min elsewhere.
    rising = tl.where(q > 0, q, 0.0).to(q.dtype)
    falling = tl.where(q < 0, q, 0.0).to(q.dtype)
    at = page.to(tl.int64)[:, None]
    high = tl.load(
        High + wide(batch) * stride_hb + at * stride_hp + wide(kv_head) * stride_hh + column[None, :],
        mask=read[:, None], other=0.0,
    )  # fmt: skip
    low = tl.load(
        Low + wide(batch) * stride_lb + at * stride_lp + wide(kv_head) * stride_lh + column[None, :],
        mask=read[:, None], other=0.0,
    )  # fmt: skip
    scores = tl.dot(rising, tl.trans(high), input_precision=PRECISION)
    scores = tl.dot(falling, tl.trans(low), scores, input_precision=PRECISION)
    heads = tl.num_programs(1) * GROUP
    place = (wide(batch) * heads + first)[:, None] * pages + page[None, :]
    tl.store(Scores + place, scores, mask=held[:, None] & there[None, :])
