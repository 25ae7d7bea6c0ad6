"""Many queries against lists of key blocks: a program owns a tile of queries of one head, or of a few.

Heads that share a list and a KV head stand in one tile as long as its rows allow it, so that keys are loaded
once for them. A list is looked through before its keys are read: what lies behind the tile's last query is
left out, and whether it is in order is found out on the way. Of the blocks then only those at the diagonal
(and, with `low`, at the front) need a mask.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.block_lists import BlockLists
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.prefill.online import attend, load_rows
from nsa_kernels.triton.tiles import (
    LOG2E,
    bulk_copies,
    descriptor,
    launch_options,
    precision,
    rows_contiguous,
    wide,
)

_SCAN = 512
"""Entries of a list that are looked at together."""


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    start: Tensor,
    ends: Tensor,
    low: Tensor | None,
    causal: bool,
    scale: float,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `nsa_kernels.blocks.block_attention`.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k].
        v: Values [B, S, H_kv, D_v].
        lists: Blocks of each tile.
        start: Position of each row's first query, int32 [B].
        ends: Valid tokens of each row, int32 [B], at most S.
        low: First key that each query may see, int32 [B, N], or None.
        causal: Whether queries see nothing behind themselves.
        scale: Factor on q.k.
        config: Launch configuration; None = the shipped one.

    Returns:
        Output [B, N, H, D_v]; log-sum-exp float32 [B, N, H].
    """
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    (batch, queries, heads, width), value_width = q.shape, v.shape[-1]
    kv_heads, listed, tiles = k.shape[2], lists.firsts.shape[1], lists.counts.shape[2]
    chosen = dict(config or shipped(_stage(lists.query_block), max(width, value_width), q.device))
    bn = min(chosen["BN"], lists.key_block)
    group, shared = heads // kv_heads, heads // listed
    # With members each head has words of its own, which a tile of several would read just as well.
    pack = math.gcd(group, shared)
    pack = min(pack & -pack, max(1, chosen["BM"] // lists.query_block))
    tma = bool(chosen.get("TMA")) and bulk_copies(k, v)
    out = q.new_empty(batch, queries, heads, value_width)
    lse = torch.empty(batch, queries, heads, dtype=torch.float32, device=q.device)
    columns, members = lists.columns, lists.members
    launch(block_prefill_kernel, (tiles, batch * (heads // pack)))(
        q,
        descriptor(k, bn) if tma else k,
        descriptor(v, bn) if tma else v,
        k,
        v,
        out,
        lse,
        lists.firsts.contiguous(),
        lists.counts.contiguous(),
        lists.counts if columns is None else columns.contiguous(),
        lists.counts if lists.column_counts is None else lists.column_counts.contiguous(),
        lists.counts if low is None else low.contiguous(),
        lists.counts if members is None else members.contiguous(),
        start,
        ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        queries,
        tiles,
        heads,
        listed,
        lists.firsts.shape[-1],
        0 if columns is None else columns.shape[-1],
        0 if members is None else members.shape[-1],
        scale * LOG2E,
        GROUP=group,
        SHARED=shared,
        PACK=pack,
        BQ=lists.query_block,
        BN=bn,
        KEY_BLOCK=lists.key_block,
        DK=width,
        DV=value_width,
        CAUSAL=causal,
        LOW=low is not None,
        COLUMNS=columns is not None,
        MEMBERS=members is not None,
        SCAN=_SCAN,
        TMA=tma,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, lse


def _stage(query_block: int) -> str:
    return "block_prefill" if query_block <= 64 else "block_prefill_128"


@triton.jit
def key_of(List, step, steps, SUB: tl.constexpr, BN: tl.constexpr):
    """First key of a step; behind the last step that of the last, and 0 where there is none."""
    step = tl.maximum(tl.minimum(step, steps - 1), 0)
    return tl.load(List + step // SUB, mask=steps > 0, other=0) + step % SUB * BN


@triton.jit
def attend_columns(
    acc, top, total, q, k, v, stride_k, stride_v, key, limit, low, high, scale_log2,
    DK: tl.constexpr, DV: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds single keys to the running softmax of each row: `online.attend` for keys [BN] from anywhere."""
    keep = key < limit
    keys = load_rows(k, key.to(tl.int64), stride_k, True, keep, DK)
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale_log2
    seen = key[None, :] < high[:, None]
    if LOW:
        seen = seen & (key[None, :] >= low[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores - shift[:, None])
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(p, 1)
    values = load_rows(v, key.to(tl.int64), stride_v, True, keep, DV)
    acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit(do_not_specialize=("queries", "tiles", "width", "column_width"))
def block_prefill_kernel(
    Q, K, V, K_rows, V_rows, Out, Lse, Firsts, Counts, Columns, Column_counts, Low, Members, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    queries, tiles, heads, lists, width, column_width, words, scale_log2,
    GROUP: tl.constexpr, SHARED: tl.constexpr, PACK: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
    KEY_BLOCK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, LOW: tl.constexpr,
    COLUMNS: tl.constexpr, MEMBERS: tl.constexpr, SCAN: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, B * H / PACK). Rows of a tile: queries of its first head, then of the next."""
    BM: tl.constexpr = BQ * PACK
    SUB: tl.constexpr = KEY_BLOCK // BN
    # Steps that the diagonal can touch: they neither overlap nor leave room between two such.
    EDGE: tl.constexpr = (BQ - 1 + BN + BN - 1) // BN if CAUSAL else 1
    BEHIND: tl.constexpr = 1 << 30
    # The last tiles have the longest lists: they go first.
    tile = tiles - 1 - tl.program_id(0)
    units = heads // PACK
    batch = tl.program_id(1) // units
    first_head = tl.program_id(1) % units * PACK
    kv_head = first_head // GROUP
    start = tl.load(Starts + batch)
    end = tl.load(Ends + batch)
    begin = start + tile * BQ
    last = tl.minimum(tl.minimum(begin + BQ, start + queries), end)
    limit = last if CAUSAL else end
    limit = tl.where(begin < last, limit, 0)

    row = tl.arange(0, BM)
    query = tile * BQ + row % BQ
    head = first_head + row // BQ
    position = start + query
    real = (query < queries) & (position < end)
    high = tl.where(real, (position + 1) if CAUSAL else end, 0)
    low = tl.zeros([BM], tl.int32)
    latest = 0
    if LOW:
        low = tl.load(Low + batch * queries + query, mask=real, other=0)
        latest = tl.max(low, 0)

    # The list: how much of it counts, how much of that may need `low`, and whether it is in order.
    listed = (wide(batch) * lists + first_head // SHARED) * tiles + tile
    count = tl.minimum(tl.load(Counts + listed), width)
    list_at = Firsts + listed * width
    entry = tl.arange(0, SCAN)
    used = tl.zeros([SCAN], tl.int32)
    front = tl.zeros([SCAN], tl.int32)
    wrong = tl.zeros([SCAN], tl.int32)
    for at in tl.range(0, count, SCAN):
        inside = at + entry < count
        first = tl.load(list_at + at + entry, mask=inside, other=BEHIND)
        before = tl.load(list_at + at + entry - 1, mask=inside & (at + entry > 0), other=-KEY_BLOCK)
        used += (first < limit).to(tl.int32)
        front += (first < latest).to(tl.int32)
        wrong += (inside & (first - before < KEY_BLOCK)).to(tl.int32)
    blocks = tl.sum(used, 0)
    disorder = tl.sum(wrong, 0)

    final = tl.load(list_at + blocks - 1, mask=blocks > 0, other=0)
    steps = tl.where(blocks > 0, (blocks - 1) * SUB + tl.minimum(tl.cdiv(limit - final, BN), SUB), 0)
    whole = 0
    head_steps = 0
    if not MEMBERS:
        whole = tl.maximum(steps - EDGE, 0)
        head_steps = tl.minimum(tl.sum(front, 0) * SUB, whole)

    q_at = Q + wide(batch) * stride_qb + wide(tile) * BQ * stride_qn
    q_at += ((row % BQ) * stride_qn + head.to(tl.int64) * stride_qh)[:, None] + tl.arange(0, DK)[None, :]
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    k = K_rows + wide(batch) * stride_kb + wide(kv_head) * stride_kh
    v = V_rows + wide(batch) * stride_vb + wide(kv_head) * stride_vh
    k_tiles = K if TMA else k
    v_tiles = V if TMA else v
    acc = tl.zeros([BM, DV], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)

    # Where a step's keys begin is asked for a step ahead: no load of keys waits for another.
    at = key_of(list_at, 0, steps, SUB, BN)
    if LOW:
        for step in tl.range(0, head_steps):
            following = key_of(list_at, step + 1, steps, SUB, BN)
            acc, top, total = attend(
                acc, top, total, q, q, k_tiles, v_tiles, stride_ks, stride_vs, batch, kv_head, at, limit, low,
                high, scale_log2, BN, DK, 0, DV, True, True, TMA, PRECISION,
            )  # fmt: skip
            at = following
    for step in tl.range(head_steps, whole):
        following = key_of(list_at, step + 1, steps, SUB, BN)
        acc, top, total = attend(
            acc, top, total, q, q, k_tiles, v_tiles, stride_ks, stride_vs, batch, kv_head, at, limit, low,
            high, scale_log2, BN, DK, 0, DV, False, False, TMA, PRECISION,
        )  # fmt: skip
        at = following
    for step in tl.range(whole, steps):
        following = key_of(list_at, step + 1, steps, SUB, BN)
        upto = high
        if MEMBERS:
            block = at // KEY_BLOCK
            word = ((wide(batch) * heads + head) * queries + query) * words + block // 32
            word = tl.load(Members + word, mask=real & (block // 32 < words), other=0)
            upto = tl.where((word >> (block % 32)) & 1 != 0, high, 0)
        acc, top, total = attend(
            acc, top, total, q, q, k_tiles, v_tiles, stride_ks, stride_vs, batch, kv_head, at, limit, low,
            upto, scale_log2, BN, DK, 0, DV, True, LOW, TMA, PRECISION,
        )  # fmt: skip
        at = following

    if COLUMNS:
        singles = tl.minimum(tl.load(Column_counts + listed), column_width)
        single_at = Columns + listed * column_width
        column = tl.arange(0, BN)
        for at_column in tl.range(0, singles, BN):
            inside = at_column + column < singles
            key = tl.load(single_at + at_column + column, mask=inside, other=BEHIND)
            before = tl.load(
                single_at + at_column + column - 1, mask=inside & (at_column + column > 0), other=-1
            )
            disorder += tl.sum((inside & (key <= before)).to(tl.int32), 0)
            acc, top, total = attend_columns(
                acc, top, total, q, k, v, stride_ks, stride_vs, key, limit, low, high, scale_log2, DK, DV,
                LOW, PRECISION,
            )  # fmt: skip

    some = real & (total > 0)
    out = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    lse = tl.where(some, (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453, float("-inf"))
    # Keys that a list names twice would count twice, and none may look like an answer.
    out = tl.where(disorder > 0, float("nan"), out)
    lse = tl.where(disorder > 0, float("nan"), lse)
    place = (wide(batch) * queries + query) * heads + head  # of [B, N, H], contiguous
    tl.store(Lse + place, lse, mask=query < queries)
    place = place[:, None] * DV + tl.arange(0, DV)[None, :]
    tl.store(Out + place, out.to(Out.dtype.element_ty), mask=(query < queries)[:, None])
