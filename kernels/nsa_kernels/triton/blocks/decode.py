"""One query a row against pages of its cache, anywhere in it: a gather, split over programs, merged.

A list's pages are dealt to programs as runs of `KEYS` tokens, whatever a page's size; the heads of a list
that share a KV head share what is loaded. The merge is that of `spans`.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.block_lists import PageLists
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.spans.decode import merge_splits_kernel
from nsa_kernels.triton.tiles import LOG2E, MIN_DOT, precision, processors, rows_contiguous, wide

_MERGED = 16


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: PageLists,
    *,
    lengths: Tensor,
    scale: float,
    config: Mapping[str, int] | None = None,
) -> Tensor:
    """As `nsa_kernels.blocks.page_decode`; `lengths` int32 [B]."""
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    (batch, heads, width), (kv_heads, value_width) = q.shape, v.shape[2:]
    listed, pages = lists.firsts.shape[1:]
    chosen = dict(config or shipped("block_decode", max(width, value_width), q.device))
    keys = chosen["keys"]
    units = max(kv_heads, listed)  # heads that share a list and a KV head are a unit
    held = heads // units
    rounds = max(1, triton.cdiv(pages * lists.page, keys))
    wanted = max(1, chosen["programs"] * processors(q.device) // (batch * units))
    splits = min(rounds, int(triton.next_power_of_2(wanted)), 64)
    partial = torch.empty(batch * units, splits, held, value_width, dtype=torch.float32, device=q.device)
    stats = torch.empty(batch * units, splits, held, 2, dtype=torch.float32, device=q.device)
    out = q.new_empty(batch, heads, value_width)
    launch(page_partial_kernel, (splits, units, batch))(
        q,
        k,
        v,
        lists.firsts.contiguous(),
        lists.counts.contiguous(),
        lengths,
        partial,
        stats,
        scale * LOG2E,
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        pages,
        splits,
        units,
        listed,
        kv_heads,
        HELD=held,
        ROWS=max(MIN_DOT, triton.next_power_of_2(held)),
        PAGE=lists.page,
        KEYS=keys,
        DK=width,
        DV=value_width,
        PRECISION=precision(q),
        num_warps=chosen["num_warps"],
        num_stages=1,
    )
    launch(merge_splits_kernel, (batch * units, held))(
        partial,
        stats,
        out,
        splits,
        GROUP=held,
        D_V=value_width,
        V_COLUMNS=value_width,
        MERGED=_MERGED,
        num_warps=1,
    )
    return out


@triton.jit
def tokens_of(List, step, count, length, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """Positions of a step's tokens [KEYS], and which of them are there."""
    slot = step * KEYS + tl.arange(0, KEYS)
    page = slot // PAGE
    first = tl.load(List + page, mask=page < count, other=0)
    token = first + slot % PAGE
    return token, (page < count) & (token >= 0) & (token < length)


@triton.jit(do_not_specialize=("pages",))
def page_partial_kernel(
    Q, K, V, Firsts, Counts, Lengths, Partial, Stats, scale_log2,
    stride_qb, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    pages, splits, units, lists, kv_heads,
    HELD: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr, DK: tl.constexpr,
    DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (splits, units, B)."""
    split, unit, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    listed = wide(batch) * lists + unit // (units // lists)
    kv_head = unit // (units // kv_heads)
    list_at = Firsts + listed * pages
    count = tl.minimum(tl.load(Counts + listed), pages)
    length = tl.load(Lengths + batch)
    steps = tl.cdiv(count * PAGE, KEYS)
    run = tl.cdiv(steps, splits)
    first = split * run
    last = tl.minimum(first + run, steps)

    head = tl.arange(0, ROWS)
    k_column, v_column = tl.arange(0, DK), tl.arange(0, DV)
    q_at = Q + wide(batch) * stride_qb + (unit * HELD + head)[:, None] * stride_qh + k_column[None, :]
    q = tl.load(q_at, mask=(head < HELD)[:, None], other=0.0)
    k_at = K + wide(batch) * stride_kb + wide(kv_head) * stride_kh + k_column[None, :]
    v_at = V + wide(batch) * stride_vb + wide(kv_head) * stride_vh + v_column[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DV], tl.float32)
    # Keys are asked for while those before are worked on, and their pages a step earlier still.
    token, there = tokens_of(list_at, first, tl.where(first < last, count, 0), length, PAGE, KEYS)
    at = token.to(tl.int64)[:, None]
    k = tl.load(k_at + at * stride_ks, mask=there[:, None], other=0.0)
    v = tl.load(v_at + at * stride_vs, mask=there[:, None], other=0.0)
    token, next_there = tokens_of(
        list_at, first + 1, tl.where(first + 1 < last, count, 0), length, PAGE, KEYS
    )  # fmt: skip
    for step in range(first, last):
        at = token.to(tl.int64)[:, None]
        next_k = tl.load(k_at + at * stride_ks, mask=next_there[:, None], other=0.0)
        next_v = tl.load(v_at + at * stride_vs, mask=next_there[:, None], other=0.0)
        token, further = tokens_of(
            list_at, step + 2, tl.where(step + 2 < last, count, 0), length, PAGE, KEYS
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = tl.where(there[None, :], scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(best == float("-inf"), 0.0, best)
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(top - shift)
        acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * fade + tl.sum(weights, 1)
        top = best
        k, v, there, next_there = next_k, next_v, next_there, further
    place = ((wide(batch) * units + unit) * splits + split) * HELD + head
    tl.store(Partial + place[:, None] * DV + v_column[None, :], acc, mask=(head < HELD)[:, None])
    tl.store(Stats + place * 2, top, mask=head < HELD)
    tl.store(Stats + place * 2 + 1, total, mask=head < HELD)
