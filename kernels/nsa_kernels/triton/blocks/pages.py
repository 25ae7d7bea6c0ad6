"""Quest's bound of q.k for every page: each extreme is read once for all query heads of its KV head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import MIN_DOT, precision, rows_contiguous, wide


def page_scores(q: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """sum_d max(q_d high_d, q_d low_d) of every page.

    Args:
        q: [B, H, D], D a power of 2 from 16 on.
        high: Largest keys of each page, [B, P, H_kv, D] in q's dtype.
        low: Smallest keys.

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
        *q.stride()[:2],
        *high.stride()[:3],
        *low.stride()[:3],
        pages,
        GROUP=group,
        ROWS=max(MIN_DOT, triton.next_power_of_2(group)),
        PAGES=chosen["pages"],
        DK=width,
        PRECISION=precision(q),
        num_warps=chosen["num_warps"],
        num_stages=1,
    )
    return scores


@triton.jit(do_not_specialize=("pages",))
def page_scores_kernel(
    Q, High, Low, Scores, stride_qb, stride_qh, stride_hb, stride_hp, stride_hh, stride_lb, stride_lp,
    stride_lh, pages,
    GROUP: tl.constexpr, ROWS: tl.constexpr, PAGES: tl.constexpr, DK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(P / PAGES), H_kv, B)."""
    kv_head, batch = tl.program_id(1), tl.program_id(2)
    head, column = tl.arange(0, ROWS), tl.arange(0, DK)
    page = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    held, there = head < GROUP, page < pages
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
        mask=there[:, None], other=0.0,
    )  # fmt: skip
    low = tl.load(
        Low + wide(batch) * stride_lb + at * stride_lp + wide(kv_head) * stride_lh + column[None, :],
        mask=there[:, None], other=0.0,
    )  # fmt: skip
    scores = tl.dot(rising, tl.trans(high), input_precision=PRECISION)
    scores = tl.dot(falling, tl.trans(low), scores, input_precision=PRECISION)
    heads = tl.num_programs(1) * GROUP
    place = (wide(batch) * heads + first)[:, None] * pages + page[None, :]
    tl.store(Scores + place, scores, mask=held[:, None] & there[None, :])
