"""The first two launches of a token's step: those of decode, with the token's keys and values appended and
the block that it completes compressed.

The compressed key of that block is ready after the first launch. So the splits of the first do without it.
Each program of the second makes it of its shares and adds it to the denominators and the importance; the
first of a pair puts it into the cache, and leaves it as one more partial of the compressed branch.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.triton.decode_attend import attend_program
from nsa_kernels.triton.decode_phi import fresh_key, mean_program, phi_program, sum_shares
from nsa_kernels.triton.decode_score import place_in_grid, score_program
from nsa_kernels.triton.decode_tile import append, completes, load_query, used_splits, used_tiles
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def step_score_kernel(
    q, k_raw, v_raw, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, k_bulk, v_bulk,
    k_raw_new, v_raw_new, k_slc_new, v_slc_new, k_win_new, v_win_new, lengths,
    k_weight, k_weight_s, k_bias, k_weight_out, k_out_s, k_bias_out, k_pe, k_shares,
    v_weight, v_weight_s, v_bias, v_weight_out, v_out_s, v_bias_out, v_pe, v_shares,
    partial, stats, reference, pooled,
    q_b, q_h, kr_b, kr_s, kr_h, vr_b, vr_s, vr_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h,
    ks_b, ks_s, ks_h, vs_b, vs_s, vs_h, kw_b, kw_s, kw_h, vw_b, vw_s, vw_h,
    krn_b, krn_h, vrn_b, vrn_h, ksn_b, ksn_h, vsn_b, vsn_h, kwn_b, kwn_h, vwn_b, vwn_h,
    scale_log2, kv_heads, shares, tiles, tile_run, window_run, capacity,
    K_KIND: tl.constexpr, K_UNITS: tl.constexpr, K_RUN: tl.constexpr, K_SLICES: tl.constexpr,
    K_SHARES: tl.constexpr, K_PARTS: tl.constexpr, K_ROWS: tl.constexpr, K_DP: tl.constexpr,
    V_KIND: tl.constexpr, V_UNITS: tl.constexpr, V_RUN: tl.constexpr, V_SLICES: tl.constexpr,
    V_SHARES: tl.constexpr, V_PARTS: tl.constexpr, V_ROWS: tl.constexpr, V_DP: tl.constexpr,
    HEADS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, HP: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr, ONE_TILE: tl.constexpr, STREAM: tl.constexpr, BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (K_PARTS + V_PARTS + WINDOW_SPLITS + splits, pairs), with STREAM (pairs, ...): phi, which takes
    longest, first."""
    if OVERLAP:
        gdc_launch_dependents()
    part, pair = place_in_grid(STREAM)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = (pair % kv_heads).to(tl.int64)
    tokens = tl.load(lengths + row).to(tl.int32)
    last = (tokens - 1).to(tl.int64)
    visible = blocks_before(tokens - 1, BLOCK, STRIDE)  # before this token
    start = visible.to(tl.int64) * STRIDE
    if part < K_PARTS:
        k_raw += row * kr_b
        k_raw_new += row * krn_b
        if part == 0:
            k_slc += row * ks_b + kv_head * ks_h
            k_slc_new += row * ksn_b + kv_head * ksn_h
            append(k_raw + last * kr_s + kv_head * kr_h, k_raw_new + kv_head * krn_h, tokens > 0, DK_END)
            append(k_slc + last * ks_s, k_slc_new, tokens > 0, DK_END)
        if completes(tokens, BLOCK, STRIDE):
            k_raw += start * kr_s
            if K_KIND == "mean":
                mean_program(
                    k_raw + kv_head * kr_h, kr_s, k_raw_new + kv_head * krn_h, k_pe,
                    k_shares + pair.to(tl.int64) * DK_END, BLOCK, DK_END, K_ROWS,
                )  # fmt: skip
            elif part * kv_heads + pair % kv_heads < K_SLICES:
                phi_program(
                    part * kv_heads + pair % kv_heads, k_raw, kr_s, kr_h, k_raw_new, krn_h, kv_heads,
                    k_weight, k_weight_s, k_bias, k_weight_out, k_out_s, k_bias_out, k_pe,
                    k_shares + row * kv_heads * K_SHARES * DK_END, K_KIND == "mlp", BLOCK, DK_END, K_UNITS,
                    K_RUN, K_SHARES, HEADS, K_DP, BN, BK, STAGES, PRECISION,
                )  # fmt: skip
    elif part < K_PARTS + V_PARTS:
        v_raw += row * vr_b
        v_raw_new += row * vrn_b
        if part == K_PARTS:
            v_slc += row * vs_b + kv_head * vs_h
            v_slc_new += row * vsn_b + kv_head * vsn_h
            append(v_raw + last * vr_s + kv_head * vr_h, v_raw_new + kv_head * vrn_h, tokens > 0, DV_END)
            append(v_slc + last * vs_s, v_slc_new, tokens > 0, DV_END)
        if completes(tokens, BLOCK, STRIDE):
            v_raw += start * vr_s
            if V_KIND == "mean":
                mean_program(
                    v_raw + kv_head * vr_h, vr_s, v_raw_new + kv_head * vrn_h, v_pe,
                    v_shares + pair.to(tl.int64) * DV_END, BLOCK, DV_END, V_ROWS,
                )  # fmt: skip
            elif (part - K_PARTS) * kv_heads + pair % kv_heads < V_SLICES:
                phi_program(
                    (part - K_PARTS) * kv_heads + pair % kv_heads, v_raw, vr_s, vr_h, v_raw_new, vrn_h,
                    kv_heads,
                    v_weight, v_weight_s, v_bias, v_weight_out, v_out_s, v_bias_out, v_pe,
                    v_shares + row * kv_heads * V_SHARES * DV_END, V_KIND == "mlp", BLOCK, DV_END, V_UNITS,
                    V_RUN, V_SHARES, HEADS, V_DP, BN, BK, STAGES, PRECISION,
                )  # fmt: skip
    else:
        score_program(
            part - K_PARTS - V_PARTS, pair, tokens, visible, q + row * q_b + kv_head * G * q_h, q_h,
            k_cmp + row * kc_b + kv_head * kc_h, v_cmp + row * vc_b + kv_head * vc_h,
            k_win + row * kw_b + kv_head * kw_h, v_win + row * vw_b + kv_head * vw_h,
            k_win_new + row * kwn_b + kv_head * kwn_h, v_win_new + row * vwn_b + kv_head * vwn_h,
            k_bulk, v_bulk, pair // kv_heads, pair % kv_heads,
            partial, stats, reference, pooled, kc_s, vc_s, kw_s, vw_s, scale_log2,
            shares, tiles, tile_run, window_run, capacity, G, GP, DK, DR, DK_END, DV, DV_END, PIECES, PP, BJ,
            SHARES, HP, WINDOW, WINDOW_SPLITS, BW, ONE_TILE, STREAM, PRECISION, True,
        )  # fmt: skip


@triton.jit
def step_attend_kernel(
    q, k_cmp, v_cmp, k_slc, v_slc, k_shares, v_shares, cos, sin, lengths,
    partial, stats, reference, pooled, ranked, denominators, blocks,
    q_b, q_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h, k_b, k_s, k_h, v_b, v_s, v_h, cos_s, sin_s,
    scale_log2, kv_heads, splits, tiles, tile_run, runs, K_SHARES: tl.constexpr, V_SHARES: tl.constexpr,
    G: tl.constexpr, GROUP: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DK_END: tl.constexpr, DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr,
    SHARES: tl.constexpr, BJ: tl.constexpr, SPLITS: tl.constexpr, TILES: tl.constexpr,
    PIECEWISE: tl.constexpr, WINDOW_SPLITS: tl.constexpr, SELECT_BLOCK: tl.constexpr, COUNT: tl.constexpr,
    COUNT_P: tl.constexpr, NB: tl.constexpr, GROUPS: tl.constexpr, WAYS: tl.constexpr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, LT: tl.constexpr, STAGES: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, RETURN_BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (runs of slots, pairs)."""
    if OVERLAP:
        gdc_launch_dependents()
    run = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = (pair % kv_heads).to(tl.int64)
    tokens = tl.load(lengths + row).to(tl.int32)
    q += row * q_b + kv_head * G * q_h
    query, query_rest = load_query(q, q_h, G, GP, DK, DR, DK_END)
    visible = blocks_before(tokens - 1, BLOCK, STRIDE)
    fresh_score = tl.full([GROUP], float("-inf"), dtype=tl.float32)
    if OVERLAP:
        gdc_wait()  # every program waits: the third launch counts on the first being done as well
    if completes(tokens, BLOCK, STRIDE):
        head = tl.arange(0, GROUP)
        column = tl.arange(0, triton.next_power_of_2(DK_END))
        k_shares += pair.to(tl.int64) * K_SHARES * DK_END
        inside = (head < G)[:, None] & (column < DK_END)[None, :]
        exact = tl.load(q + head[:, None] * q_h + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if cos is not None:
            cos += visible.to(tl.int64) * STRIDE * cos_s
            sin += visible.to(tl.int64) * STRIDE * sin_s
        key = fresh_key(k_shares, cos, sin, k_cmp.dtype.element_ty, DK_END, K_SHARES)
        fresh_score = tl.sum(exact * key[None, :], 1) * scale_log2
        fresh_score = tl.where(head < G, fresh_score, float("-inf"))
        if run == 0:
            place = k_cmp + row * kc_b + visible.to(tl.int64) * kc_s + kv_head * kc_h
            tl.store(place + column, key.to(k_cmp.dtype.element_ty), mask=column < DK_END)
            v_shares += pair.to(tl.int64) * V_SHARES * DV_END
            column_v = tl.arange(0, DV)
            value = sum_shares(v_shares, column_v, DV_END, V_SHARES).to(v_cmp.dtype.element_ty)
            place = v_cmp + row * vc_b + visible.to(tl.int64) * vc_s + kv_head * vc_h
            tl.store(place + column_v, value, mask=column_v < DV_END)
            share = pair.to(tl.int64) * (WINDOW_SPLITS + splits + 1 + runs) + WINDOW_SPLITS
            share += used_splits(used_tiles(visible, PIECES, SHARES, BJ), tile_run)
            place = stats + share * 2 * G + head
            tl.store(place, fresh_score, mask=head < G)
            tl.store(place + G, tl.full([GROUP], 1.0, tl.float32), mask=head < G)
            place = partial + (share * G + head[:, None]) * DV_END + column_v[None, :]
            there = (head < G)[:, None] & (column_v < DV_END)[None, :]
            tl.store(place, value.to(tl.float32)[None, :] + tl.zeros([GROUP, DV], tl.float32), mask=there)
    attend_program(
        run, pair, tokens, visible, blocks_before(tokens, BLOCK, STRIDE), query, query_rest, fresh_score,
        k_slc + row * k_b + kv_head * k_h, v_slc + row * v_b + kv_head * v_h, k_s, v_s,
        partial, stats, reference, pooled, ranked, denominators, blocks, scale_log2,
        splits, tiles, tile_run, runs,
        G, GROUP, GP, DK, DR, DK_END, DV, DV_END, PIECES, SHARES, BJ, SPLITS, TILES, PIECEWISE,
        WINDOW_SPLITS, SELECT_BLOCK, COUNT, COUNT_P, NB, GROUPS, WAYS, WIDTH, SLOTS, LT, STAGES,
        RETURN_BLOCKS, PRECISION, True,
    )  # fmt: skip
