"""The first two launches of a token's step: those of decode, with the token's keys and values appended and
the block that it completes compressed.

The compressed key of that block is ready after the first launch. So the splits of the first do without it,
and each program of the second makes it of its shares, scores it, and adds it to what the splits have left.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.triton.decode_phi import completes, fresh_key, mean_program, phi_program, sum_shares
from nsa_kernels.triton.decode_rank import rank_program
from nsa_kernels.triton.decode_score import load_query, score_program
from nsa_kernels.triton.decode_tile import append
from nsa_kernels.triton.tiles import blocks_before


@triton.jit
def step_score_kernel(
    q, k_raw, v_raw, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win,
    k_raw_new, v_raw_new, k_slc_new, v_slc_new, k_win_new, v_win_new, lengths,
    k_weight, k_weight_s, k_bias, k_weight_out, k_out_s, k_bias_out, k_pe, k_shares,
    v_weight, v_weight_s, v_bias, v_weight_out, v_out_s, v_bias_out, v_pe, v_shares,
    partial, stats, reference, pooled,
    q_b, q_h, kr_b, kr_s, kr_h, vr_b, vr_s, vr_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h,
    ks_b, ks_s, ks_h, vs_b, vs_s, vs_h, kw_b, kw_s, kw_h, vw_b, vw_s, vw_h,
    krn_b, krn_h, vrn_b, vrn_h, ksn_b, ksn_h, vsn_b, vsn_h, kwn_b, kwn_h, vwn_b, vwn_h,
    scale_log2, kv_heads, splits, tiles, tile_run, window_run,
    K_KIND: tl.constexpr, K_UNITS: tl.constexpr, K_RUN: tl.constexpr, K_SLICES: tl.constexpr,
    K_SHARES: tl.constexpr, K_PARTS: tl.constexpr, K_ROWS: tl.constexpr, K_DP: tl.constexpr,
    V_KIND: tl.constexpr, V_UNITS: tl.constexpr, V_RUN: tl.constexpr, V_SLICES: tl.constexpr,
    V_SHARES: tl.constexpr, V_PARTS: tl.constexpr, V_ROWS: tl.constexpr, V_DP: tl.constexpr,
    HP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    G: tl.constexpr, GP: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DK_END: tl.constexpr,
    DV: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, PP: tl.constexpr, BJ: tl.constexpr,
    SHARES: tl.constexpr, SPILL: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    BW: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (K_PARTS + V_PARTS + WINDOW_SPLITS + splits, pairs): phi, which takes longest, first."""
    if OVERLAP:
        gdc_launch_dependents()
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
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
            elif part * kv_heads + kv_head < K_SLICES:
                phi_program(
                    part * kv_heads + kv_head, k_raw, kr_s, kr_h, k_raw_new, krn_h, kv_heads,
                    k_weight, k_weight_s, k_bias, k_weight_out, k_out_s, k_bias_out, k_pe,
                    k_shares + row * kv_heads * K_SHARES * DK_END, K_KIND == "mlp", BLOCK, DK_END, K_UNITS,
                    K_RUN, K_SHARES, HP, K_DP, BN, BK, STAGES, PRECISION,
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
            elif (part - K_PARTS) * kv_heads + kv_head < V_SLICES:
                phi_program(
                    (part - K_PARTS) * kv_heads + kv_head, v_raw, vr_s, vr_h, v_raw_new, vrn_h, kv_heads,
                    v_weight, v_weight_s, v_bias, v_weight_out, v_out_s, v_bias_out, v_pe,
                    v_shares + row * kv_heads * V_SHARES * DV_END, V_KIND == "mlp", BLOCK, DV_END, V_UNITS,
                    V_RUN, V_SHARES, HP, V_DP, BN, BK, STAGES, PRECISION,
                )  # fmt: skip
    else:
        query, query_rest = load_query(q + row * q_b + kv_head * G * q_h, q_h, G, GP, DK, DR, DK_END)
        score_program(
            part - K_PARTS - V_PARTS, pair, tokens, visible, query, query_rest,
            k_cmp + row * kc_b + kv_head * kc_h, v_cmp + row * vc_b + kv_head * vc_h,
            k_win + row * kw_b + kv_head * kw_h, v_win + row * vw_b + kv_head * vw_h,
            k_win_new + row * kwn_b + kv_head * kwn_h, v_win_new + row * vwn_b + kv_head * vwn_h,
            partial, stats, reference, pooled, kc_s, vc_s, kw_s, vw_s, scale_log2,
            splits, tiles, tile_run, window_run, G, GP, DK, DR, DK_END, DV, DV_END, PIECES, PP, BJ, SHARES,
            SPILL, WINDOW, WINDOW_SPLITS, BW, PRECISION, True,
        )  # fmt: skip


@triton.jit
def step_rank_kernel(
    q, k_cmp, v_cmp, k_shares, v_shares, cos, sin, gates, lengths,
    partial, stats, reference, pooled, ranked, candidate_value, candidate_block, base,
    q_b, q_h, kc_b, kc_s, kc_h, vc_b, vc_s, vc_h, cos_s, sin_s, gate_b, gate_h,
    scale_log2, kv_heads, splits, tiles, tile_run, window_run, pieces,
    K_SHARES: tl.constexpr, V_SHARES: tl.constexpr, DK_END: tl.constexpr,
    G: tl.constexpr, GROUP: tl.constexpr, DV_END: tl.constexpr, PIECES: tl.constexpr, SHARES: tl.constexpr,
    BJ: tl.constexpr, SPILL: tl.constexpr, SELECT_BLOCK: tl.constexpr, COUNT: tl.constexpr,
    COUNT_P: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, WINDOW_SPLITS: tl.constexpr,
    WINDOW_SHARES: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DS: tl.constexpr,
    RUN: tl.constexpr, RUN_W: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid (pieces + column slices, pairs); the first piece writes the key, each slice its columns of the
    value."""
    part = tl.program_id(0)
    pair = tl.program_id(1)
    row = (pair // kv_heads).to(tl.int64)
    kv_head = pair % kv_heads
    tokens = tl.load(lengths + row).to(tl.int32)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    visible = blocks_before(tokens - 1, BLOCK, STRIDE)
    fresh_score = tl.full([GROUP], float("-inf"), dtype=tl.float32)
    fresh_value = tl.zeros([DS], dtype=tl.float32)
    if completes(tokens, BLOCK, STRIDE):
        head = tl.arange(0, GROUP)
        column = tl.arange(0, triton.next_power_of_2(DK_END))
        k_shares += pair.to(tl.int64) * K_SHARES * DK_END
        q += row * q_b + kv_head * G * q_h
        inside = (head < G)[:, None] & (column < DK_END)[None, :]
        query = tl.load(q + head[:, None] * q_h + column[None, :], mask=inside, other=0.0)
        if cos is not None:
            cos += visible.to(tl.int64) * STRIDE * cos_s
            sin += visible.to(tl.int64) * STRIDE * sin_s
        key = fresh_key(k_shares, cos, sin, k_cmp.dtype.element_ty, DK_END, K_SHARES)
        fresh_score = tl.sum(query.to(tl.float32) * key[None, :], 1) * scale_log2
        fresh_score = tl.where(head < G, fresh_score, float("-inf"))
        if part == 0:
            place = k_cmp + row * kc_b + visible.to(tl.int64) * kc_s + kv_head * kc_h
            tl.store(place + column, key.to(k_cmp.dtype.element_ty), mask=column < DK_END)
        elif part >= pieces:
            v_shares += pair.to(tl.int64) * V_SHARES * DV_END
            column_v = (part - pieces) * DS + tl.arange(0, DS)
            value = sum_shares(v_shares, column_v, DV_END, V_SHARES).to(v_cmp.dtype.element_ty)
            place = v_cmp + row * vc_b + visible.to(tl.int64) * vc_s + kv_head * vc_h
            tl.store(place + column_v, value, mask=column_v < DV_END)
            fresh_value = value.to(tl.float32)
    rank_program(
        part, pair, tokens, visible, fresh_score, fresh_value,
        gates + row * gate_b + kv_head * G * gate_h, gate_h, partial, stats, reference, pooled, ranked,
        candidate_value, candidate_block, base, splits, tiles, tile_run, window_run, pieces,
        G, GROUP, DV_END, PIECES, SHARES, BJ, SPILL, SELECT_BLOCK, COUNT, COUNT_P, SPLITS, WINDOW,
        WINDOW_SPLITS, WINDOW_SHARES, BW, BN, BK, DS, RUN, RUN_W, True,
    )  # fmt: skip
