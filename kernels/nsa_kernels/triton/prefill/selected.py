"""Selected attention, forward, with the gates and the sum of the branches in its epilogue.

A program owns one query of one group. Its G heads (padded to 16) go on from what `forced` left, over the
blocks that this query chose; these lie wholly before it, so that none needs a mask.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.prefill.online import attend
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    bulk_copies,
    descriptor,
    launch_options,
    precision,
    split_width,
)


def selected_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    gates: Tensor,
    o_cmp: Tensor,
    o_win: Tensor,
    o_forced: Tensor,
    lse_forced: Tensor,
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
        blocks: Selected blocks, int32 [B, N, H_kv, n]: ascending, then -1, the forced ones among them.
        gates: [B, N, H, 3].
        o_cmp: Output of the compressed branch [B, N, H, D_v], contiguous.
        o_win: Output of the window branch [B, N, H, D_v], contiguous.
        o_forced: Attention to the forced blocks alone [B, N, H, D_v], contiguous.
        lse_forced: Its log-sum-exp [B, N, H], in units of log2.
        grid: Positions and sizes.
        save: Keep what the backward pass needs.
        config: Launch configuration; None = the shipped one.

    Returns:
        The gated sum [B, N, H, D_v]; the branch's own output [B, N, H, D_v] and its log-sum-exp float32 [B,
        N, H] in units of log2 (both empty without `save`).
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped("selected_forward", max(width, value_width), q.device))
    main, rest = split_width(width)
    size = grid.geometry.select_block
    bn = min(chosen["BN"], max(MIN_DOT, size & -size))
    tma = bool(chosen.get("TMA")) and rest == 0 and bulk_copies(k, v)
    out = torch.empty_like(o_cmp)
    own = torch.empty_like(o_cmp) if save else o_cmp.new_empty(0)
    lse = torch.empty(q.shape[:3] if save else (0,), dtype=torch.float32, device=q.device)
    launch(_selected_forward_kernel, (grid.queries, grid.batch * grid.kv_heads))(
        q,
        descriptor(k, bn) if tma else k,
        descriptor(v, bn) if tma else v,
        blocks,
        gates,
        o_cmp,
        o_win,
        o_forced,
        lse_forced,
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
        SELECT=size,
        COUNT=grid.geometry.select_count,
        COUNT_P=triton.next_power_of_2(grid.geometry.select_count),
        TMA=tma,
        SAVE=save,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return out, own, lse


@triton.jit(do_not_specialize=("queries", "stride_gb"))
def _selected_forward_kernel(
    Q, K, V, Blocks, Gates, Compressed, Window, Forced, ForcedLse, Out, Own, Lse, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_gb, stride_gn, stride_gh, stride_gc, queries, kv_heads, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr,
    SELECT: tl.constexpr, COUNT: tl.constexpr, COUNT_P: tl.constexpr, TMA: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns one query of one group."""
    query = tl.program_id(0)
    batch = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    position = tl.load(Starts + batch) + query
    end = tl.load(Ends + batch)
    batch64 = batch.to(tl.int64)
    query64 = query.to(tl.int64)
    head = tl.arange(0, GP)
    held = head < G
    first_head = kv_head.to(tl.int64) * G
    rows = (batch64 * queries + query64) * kv_heads * G + first_head + head  # of [B, N, H], contiguous
    elements = rows[:, None] * DV + tl.arange(0, DV)[None, :]
    if position < end:
        q_rows = Q + batch64 * stride_qb + query64 * stride_qn + (first_head + head)[:, None] * stride_qh
        q = tl.load(q_rows + tl.arange(0, DK)[None, :], mask=held[:, None], other=0.0)
        q_rest = q
        if DR:
            q_rest = tl.load(q_rows + DK + tl.arange(0, DR)[None, :], mask=held[:, None], other=0.0)
        slot = tl.arange(0, COUNT_P)
        chosen = Blocks + ((batch64 * queries + query64) * kv_heads + kv_head) * COUNT + slot
        chosen = tl.load(chosen, mask=slot < COUNT, other=-1)
        used = tl.sum((chosen >= 0).to(tl.int32), 0)
        if TMA:
            k = K
            v = V
        else:
            k = K + batch64 * stride_kb + kv_head.to(tl.int64) * stride_kh
            v = V + batch64 * stride_vb + kv_head.to(tl.int64) * stride_vh

        acc = tl.load(Forced + elements, mask=held[:, None], other=0.0).to(tl.float32)
        top = tl.load(ForcedLse + rows, mask=held, other=0.0)
        total = tl.full([GP], 1.0, tl.float32)
        STEPS: tl.constexpr = (SELECT + BN - 1) // BN
        UNEVEN: tl.constexpr = SELECT % BN != 0
        # The first of the list and the last two are the forced ones.
        for step in tl.range(STEPS, (used - 2) * STEPS):
            # Out of a register, not out of memory: the keys' addresses must not wait for another load.
            block = tl.sum(tl.where(slot == step // STEPS, chosen, 0), 0)
            at = block * SELECT + step % STEPS * BN
            stop = tl.full([GP], (block + 1) * SELECT, tl.int32)
            acc, top, total = attend(
                acc, top, total, q, q_rest, k, v, stride_ks, stride_vs, batch, kv_head, at,
                (block + 1) * SELECT, stop, stop, scale_log2, BN, DK, DR, DV, UNEVEN, False, TMA, PRECISION,
            )  # fmt: skip

        acc = acc / total[:, None]
        gates = Gates + batch64 * stride_gb + query64 * stride_gn + (first_head + head) * stride_gh
        g_cmp = tl.load(gates, mask=held, other=0.0).to(tl.float32)
        g_slc = tl.load(gates + stride_gc, mask=held, other=0.0).to(tl.float32)
        g_win = tl.load(gates + 2 * stride_gc, mask=held, other=0.0).to(tl.float32)
        compressed = tl.load(Compressed + elements, mask=held[:, None], other=0.0).to(tl.float32)
        window = tl.load(Window + elements, mask=held[:, None], other=0.0).to(tl.float32)
        result = g_cmp[:, None] * compressed + g_slc[:, None] * acc + g_win[:, None] * window
        tl.store(Out + elements, result.to(Out.dtype.element_ty), mask=held[:, None])
        if SAVE:
            tl.store(Own + elements, acc.to(Own.dtype.element_ty), mask=held[:, None])
            tl.store(Lse + rows, top + tl.log2(total), mask=held)
    else:
        nothing = tl.zeros([GP, DV], tl.float32)
        tl.store(Out + elements, nothing.to(Out.dtype.element_ty), mask=held[:, None])
        if SAVE:
            tl.store(Own + elements, nothing.to(Own.dtype.element_ty), mask=held[:, None])
            tl.store(Lse + rows, tl.full([GP], float("inf"), tl.float32), mask=held)
