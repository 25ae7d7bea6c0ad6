"""Selected attention, forward, with the gates and the sum of the branches in its epilogue.

A program owns one query of one group. Its G heads (padded to 16) meet the query's blocks one after another; the
query's own block, the last of the ascending list, is the only one that needs a mask.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.online import load_rows
from nsa_kernels.triton.tiles import MIN_DOT, Grid, launch_options, precision, split_width, wide

SEARCH = tuple(
    {"BN": bn, "SWAP": swap, "num_warps": warps, "num_stages": stages}
    for bn, swap, warps, stages in (
        (64, 0, 2, 2),
        (64, 0, 4, 2),
        (64, 0, 2, 3),
        (64, 0, 1, 2),
        (64, 0, 4, 3),
        (32, 0, 2, 3),
        (32, 0, 1, 3),
        (32, 0, 2, 4),
        (64, 1, 4, 2),
        (64, 1, 4, 3),
        (64, 1, 4, 4),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`."""


def selected_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    gates: Tensor,
    o_cmp: Tensor,
    o_win: Tensor,
    grid: Grid,
    *,
    save: bool,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention of each query to the tokens of its blocks, gated and added to the other branches.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S, H_kv, D_k].
        v: Values [B, S, H_kv, D_v].
        blocks: Selected blocks, int32 [B, N, H_kv, n]: ascending, the query's own last, then -1.
        gates: [B, N, H, 3].
        o_cmp: Output of the compressed branch [B, N, H, D_v], contiguous.
        o_win: Output of the window branch [B, N, H, D_v], contiguous.
        grid: Positions and sizes.
        save: Keep what the backward pass needs.
        config: Launch configuration; None = the shipped one.

    Returns:
        The gated sum [B, N, H, D_v]; the branch's own output [B, N, H, D_v] and its log-sum-exp float32 [B, N, H] in
        units of log2 (both empty without `save`).
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped("selected_forward", max(width, value_width), q.device))
    main, rest = split_width(width)
    out = torch.empty_like(o_cmp)
    own = torch.empty_like(o_cmp) if save else o_cmp.new_empty(0)
    lse = torch.empty(q.shape[:3] if save else (0,), dtype=torch.float32, device=q.device)
    bn = min(chosen["BN"], max(MIN_DOT, grid.geometry.select_block & -grid.geometry.select_block))
    _selected_forward[(grid.queries, grid.batch * grid.kv_heads)](
        q,
        k,
        v,
        blocks,
        gates,
        o_cmp,
        o_win,
        out,
        own,
        lse,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *gates.stride(),
        grid.queries,
        grid.kv_heads,
        grid.scale_log2,
        G=grid.group,
        GP=max(grid.padded_group, MIN_DOT),
        BN=bn,
        DK=main,
        DR=rest,
        DV=value_width,
        SELECT=grid.geometry.select_block,
        COUNT=grid.geometry.select_count,
        SLOTS=triton.next_power_of_2(grid.geometry.select_count),
        SWAP=chosen.get("SWAP", 0),
        SAVE=save,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, own, lse


@triton.jit
def _attend_block(
    acc, top, total, q, q_rest, k, v, stride_k, stride_v, first, stop, scale,
    BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr, SWAP: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the keys first..min(first+BN, stop)-1 to the running softmax of one query's heads.

    With SWAP, keys run down and heads across: acc is [DV, GP], and a matrix product has 64 rows or more, as Hopper's
    wide tensor-core instruction wants them, instead of the 16 of a group.
    """
    key = tl.arange(0, BN)
    keep = first + key < stop
    k += wide(first) * stride_k
    v += wide(first) * stride_v
    keys = load_rows(k, key, stride_k, MASKED, keep, DK)
    axis: tl.constexpr = 0 if SWAP else 1
    if SWAP:
        scores = tl.dot(keys, tl.trans(q), input_precision=PRECISION)
    else:
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    if DR:
        rest = load_rows(k + DK, key, stride_k, MASKED, keep, DR)
        if SWAP:
            scores = tl.dot(rest, tl.trans(q_rest), scores, input_precision=PRECISION)
        else:
            scores = tl.dot(q_rest, tl.trans(rest), scores, input_precision=PRECISION)
    scores *= scale
    if MASKED:
        scores = tl.where(tl.expand_dims(keep, 1 - axis), scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis))
    p = tl.exp2(scores - tl.expand_dims(new_top, axis))
    fade = tl.exp2(top - new_top)
    total = total * fade + tl.sum(p, axis)
    values = load_rows(v, key, stride_v, MASKED, keep, DV)
    acc = acc * tl.expand_dims(fade, axis)
    if SWAP:
        acc = tl.dot(tl.trans(values), p.to(values.dtype), acc, input_precision=PRECISION)
    else:
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def _selected_forward(
    Q, K, V, Blocks, Gates, Compressed, Window, Out, Own, Lse, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_gb, stride_gn, stride_gh, stride_gc, N, HKV, scale,
    G: tl.constexpr, GP: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    SELECT: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr, SWAP: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0)
    batch = (tl.program_id(1) // HKV).to(tl.int64)
    group = (tl.program_id(1) % HKV).to(tl.int64)
    position = tl.load(Starts + batch) + query
    end = tl.load(Ends + batch)
    query64 = query.to(tl.int64)
    head = tl.arange(0, GP)
    wide = tl.arange(0, DV)
    axis: tl.constexpr = 0 if SWAP else 1
    heads = (batch * N + query64) * HKV * G + group * G  # this group's first row of [B, N, H]
    if SWAP:
        rows = (heads + head)[None, :] * DV + wide[:, None]
    else:
        rows = (heads + head)[:, None] * DV + wide[None, :]
    inside = tl.expand_dims(head < G, axis) & tl.expand_dims(wide < DV, 1 - axis)
    if position < end:
        q_rows = Q + batch * stride_qb + query64 * stride_qn + (group * G + head)[:, None] * stride_qh
        valid = (head < G)[:, None]
        q = tl.load(q_rows + tl.arange(0, DK)[None, :], mask=valid, other=0.0)
        q_rest = q
        if DR:
            q_rest = tl.load(q_rows + DK + tl.arange(0, DR)[None, :], mask=valid, other=0.0)
        mine = Blocks + ((batch * N + query64) * HKV + group) * COUNT
        slot = tl.arange(0, SLOTS)
        chosen = tl.load(mine + slot, mask=slot < COUNT, other=-1)
        used = tl.sum((chosen >= 0).to(tl.int32), 0)
        k = K + batch * stride_kb + group * stride_kh
        v = V + batch * stride_vb + group * stride_vh

        if SWAP:
            acc = tl.zeros([DV, GP], tl.float32)
        else:
            acc = tl.zeros([GP, DV], tl.float32)
        top = tl.full([GP], float("-inf"), tl.float32)
        total = tl.zeros([GP], tl.float32)
        STEPS: tl.constexpr = (SELECT + BN - 1) // BN
        UNEVEN: tl.constexpr = SELECT % BN != 0
        for step in tl.range(0, (used - 1) * STEPS):
            # Out of a register, not out of memory: the keys' addresses must not wait for another load.
            block = tl.sum(tl.where(slot == step // STEPS, chosen, 0), 0)
            acc, top, total = _attend_block(
                acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, block * SELECT + step % STEPS * BN,
                (block + 1) * SELECT, scale, BN, DK, DR, DV, SWAP, UNEVEN, PRECISION,
            )  # fmt: skip
        own = position // SELECT * SELECT
        for first in tl.range(own, position + 1, BN, num_stages=1):
            acc, top, total = _attend_block(
                acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, first, position + 1, scale,
                BN, DK, DR, DV, SWAP, True, PRECISION,
            )  # fmt: skip

        acc = acc / tl.expand_dims(total, axis)
        gates = Gates + batch * stride_gb + query64 * stride_gn + (group * G + head) * stride_gh
        g_cmp = tl.load(gates, mask=head < G, other=0.0).to(tl.float32)
        g_slc = tl.load(gates + stride_gc, mask=head < G, other=0.0).to(tl.float32)
        g_win = tl.load(gates + 2 * stride_gc, mask=head < G, other=0.0).to(tl.float32)
        compressed = tl.load(Compressed + rows, mask=inside, other=0.0).to(tl.float32)
        window = tl.load(Window + rows, mask=inside, other=0.0).to(tl.float32)
        result = tl.expand_dims(g_slc, axis) * acc
        result += tl.expand_dims(g_cmp, axis) * compressed + tl.expand_dims(g_win, axis) * window
        tl.store(Out + rows, result.to(Out.dtype.element_ty), mask=inside)
        if SAVE:
            tl.store(Own + rows, acc.to(Own.dtype.element_ty), mask=inside)
            tl.store(Lse + heads + head, top + tl.log2(total), mask=head < G)
    else:
        if SWAP:
            nothing = tl.zeros([DV, GP], tl.float32)
        else:
            nothing = tl.zeros([GP, DV], tl.float32)
        tl.store(Out + rows, nothing.to(Out.dtype.element_ty), mask=inside)
        if SAVE:
            tl.store(Own + rows, nothing.to(Own.dtype.element_ty), mask=inside)
            tl.store(Lse + heads + head, tl.full([GP], float("inf"), tl.float32), mask=head < G)
