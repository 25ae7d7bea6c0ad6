"""Selected attention, forward, block by block: what `selected` computes, in another order.

A query that gathers its blocks moves all their keys and values to its multiprocessor. Here a program holds
one block and lets the queries that chose it come by, a tile of them at a time; what moves is a query's rows,
once to each of its blocks, and its partial results back. These wait in a scratch buffer, a slot for each
chosen block, until a second kernel merges them with what `forced` left, and with the other branches. The
buffer's size bounds the queries in a chunk; chunks follow each other.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.geometry import FORCED_BLOCKS
from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.inverse import query_lists
from nsa_kernels.triton.online import attend, finish
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    descriptor,
    precision,
    queries_per_tile,
    split_width,
    wide,
)

SCRATCH = 1 << 30
"""Bytes of partial results to have at once; a chunk is cut to fit."""
_BASE = {
    "BM": 64,
    "BN": 64,
    "TMA": 1,
    "STREAM": 1,
    "CHUNK": 4096,
    "PIECE": 64,
    "num_warps": 4,
    "num_stages": 3,
    "ROWS": 4,
    "SLOTS": 16,
    "merge_warps": 1,
}
SEARCH: tuple[dict[str, int], ...] = (
    _BASE,
    _BASE | {"STREAM": 0},
    _BASE | {"num_stages": 2},
    _BASE | {"num_stages": 1},
    _BASE | {"TMA": 0},
    _BASE | {"BM": 128, "num_warps": 8},
    _BASE | {"PIECE": 32},
    _BASE | {"PIECE": 128},
    _BASE | {"CHUNK": 2048},
    _BASE | {"CHUNK": 1024, "STREAM": 0},
    _BASE | {"CHUNK": 512, "STREAM": 0},
    _BASE | {"SLOTS": 8},
    _BASE | {"SLOTS": 4},
    _BASE | {"ROWS": 2},
    _BASE | {"ROWS": 8, "SLOTS": 8},
    _BASE | {"ROWS": 16, "merge_warps": 4},
    _BASE | {"ROWS": 16, "SLOTS": 4, "merge_warps": 4},
)
"""Candidates for `benchmarks/tune_kernels.py`."""


def selected_forward_by_block(
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
        config: Launch configuration: BM rows (queries x heads) and BN keys to a tile, CHUNK queries to a
            chunk, PIECE queries to a program, STREAM = 1 for partial results that are the first to leave the
            cache, ROWS rows and SLOTS blocks of a query at a time to merge. None = the shipped one.

    Returns:
        The gated sum [B, N, H, D_v]; the branch's own output [B, N, H, D_v] and its log-sum-exp float32
        [B, N, H] in units of log2 (both empty without `save`).
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = dict(config or shipped("selected_by_block", max(width, value_width), q.device))
    main, rest = split_width(width)
    size, count = grid.geometry.select_block, grid.geometry.select_count
    free = count - FORCED_BLOCKS
    bn = max(MIN_DOT, min(chosen["BN"], triton.next_power_of_2(size)))
    tma = bool(chosen["TMA"]) and rest == 0 and size % bn == 0
    chunk = _chunk(q, value_width, free, grid, most=chosen["CHUNK"])
    chunks, lanes = triton.cdiv(grid.queries, chunk), grid.batch * grid.kv_heads
    rows = min(chunk, grid.queries)
    parts = q.new_empty(grid.batch, rows, grid.kv_heads, free, grid.group, value_width)
    parts_lse = torch.empty(parts.shape[:-1], dtype=torch.float32, device=q.device)
    out = torch.empty_like(o_cmp)
    own = torch.empty_like(o_cmp) if save else o_cmp.new_empty(0)
    lse = torch.empty(q.shape[:3] if save else (0,), dtype=torch.float32, device=q.device)
    lists = query_lists(blocks, grid, chunk=chunk, piece=chosen["PIECE"], free=True)
    keys, values = (descriptor(k, bn), descriptor(v, bn)) if tma else (k, v)
    at_once = min(chosen["ROWS"], grid.padded_group)  # heads of a query
    tile = chosen["ROWS"] // at_once
    for index in range(chunks):
        reached = lists.blocks
        if not grid.padded:
            end = grid.longest - grid.queries + min((index + 1) * chunk, grid.queries)
            reached = grid.geometry.num_select_blocks(end)
        pieces = min(reached + rows * free // chosen["PIECE"], rows * free)
        if pieces:
            _partial_kernel[(pieces, lanes)](
                q,
                keys,
                values,
                parts,
                parts_lse,
                lists.queries,
                lists.cells,
                lists.firsts,
                lists.counts,
                lists.piece_ends,
                *q.stride()[:3],
                *k.stride()[:3],
                *v.stride()[:3],
                index,
                rows,
                chunks,
                lists.blocks,
                grid.kv_heads,
                grid.scale_log2,
                PACKED=q.stride(2) == width,
                SIZE=size,
                CHUNK=chunk,
                COUNT=count,
                FREE=free,
                G=grid.group,
                GP=grid.padded_group,
                BQ=max(queries_per_tile(chosen["BM"], grid), MIN_DOT // grid.padded_group),
                BN=bn,
                DK=main,
                DR=rest,
                DV=value_width,
                TMA=tma,
                STREAM=bool(chosen["STREAM"]),
                PRECISION=precision(q),
                num_warps=chosen["num_warps"],
                num_stages=chosen["num_stages"],
            )
        _merge_kernel[(triton.cdiv(rows, tile) * triton.cdiv(grid.group, at_once), lanes)](
            blocks,
            gates,
            o_cmp,
            o_win,
            o_forced,
            lse_forced,
            parts,
            parts_lse,
            out,
            own,
            lse,
            grid.starts,
            grid.ends,
            *gates.stride(),
            index,
            rows,
            grid.queries,
            grid.kv_heads,
            CHUNK=chunk,
            COUNT=count,
            FREE=free,
            SLOTS=triton.next_power_of_2(count),
            G=grid.group,
            GH=at_once,
            BQ=tile,
            DV=value_width,
            MERGED=min(chosen["SLOTS"], triton.next_power_of_2(max(free, 1))),
            SAVE=save,
            num_warps=chosen["merge_warps"],
            num_stages=1,
        )
    return out, own, lse


def _chunk(q: Tensor, value_width: int, free: int, grid: Grid, *, most: int) -> int:
    """Queries to a chunk: as many as have their partial results in `SCRATCH` bytes, at most `most`."""
    query = max(1, grid.batch * grid.heads * free * value_width * q.element_size())
    chunk = most
    while chunk > 1 and chunk * query > SCRATCH:
        chunk //= 2
    return chunk


@triton.jit(do_not_specialize=["chunk", "rows", "chunks", "blocks"])
def _partial_kernel(
    Q, K, V, Parts, PartsLse, Lists, Cells, Firsts, Counts, PieceEnds,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    chunk, rows, chunks, blocks, HKV, scale,
    PACKED: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr, FREE: tl.constexpr,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    DV: tl.constexpr, TMA: tl.constexpr, STREAM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns a piece of the list of one block: queries of the chunk that chose it."""
    lane = tl.program_id(1)
    first_cell = (lane * chunks + chunk) * blocks
    piece = tl.load(PieceEnds + first_cell - 1, mask=first_cell > 0, other=0) + tl.program_id(0)
    if piece >= tl.load(PieceEnds + first_cell + blocks - 1):
        return
    block = tl.load(Cells + piece) - first_cell
    count = tl.load(Counts + piece)
    Lists += tl.load(Firsts + piece)
    batch = lane // HKV
    group = lane % HKV
    batch64 = wide(batch)
    group64 = wide(group)

    row = tl.arange(0, BQ * GP)
    # Rows that stand for nothing repeat one that does, and are not stored.
    h = tl.minimum(row % GP, G - 1) if G < GP else row % GP
    # Known to the compiler, the stride costs no registers.
    h_offset = h * (DK + DR) if PACKED else h.to(tl.int64) * stride_qh
    Q += batch64 * stride_qb + wide(chunk) * CHUNK * stride_qn + group64 * G * stride_qh
    lane_rows = (batch64 * rows * HKV + group64) * FREE * G
    PartsLse += lane_rows
    Parts += lane_rows * DV

    STEPS: tl.constexpr = (SIZE + BN - 1) // BN
    first_key = block * SIZE
    if not TMA:
        K += batch64 * stride_kb + group64 * stride_kh
        V += batch64 * stride_vb + group64 * stride_vh
    if STEPS == 1:
        if TMA:
            keys = K.load([batch, first_key, group, 0]).reshape(BN, DK)
            values = V.load([batch, first_key, group, 0]).reshape(BN, DV)
        else:
            key = tl.arange(0, BN)[:, None]
            held = key < SIZE
            k_at = K + wide(first_key) * stride_ks + key * stride_ks + tl.arange(0, DK)[None, :]
            v_at = V + wide(first_key) * stride_vs + key * stride_vs + tl.arange(0, DV)[None, :]
            keys = tl.load(k_at, mask=held, other=0.0)
            values = tl.load(v_at, mask=held, other=0.0)
            if DR:
                k_at = K + wide(first_key) * stride_ks + key * stride_ks + DK + tl.arange(0, DR)[None, :]
                rest_keys = tl.load(k_at, mask=held, other=0.0)

    for first in tl.range(0, count, BQ):
        member = tl.load(Lists + tl.minimum(first + tl.arange(0, BQ), count - 1))
        member = tl.reshape(tl.broadcast_to(member[:, None], [BQ, GP]), [BQ * GP])
        x_at = Q + ((member // COUNT) * stride_qn)[:, None] + h_offset[:, None]
        x = tl.load(x_at + tl.arange(0, DK)[None, :])
        x_rest = x
        if DR:
            x_rest = tl.load(x_at + DK + tl.arange(0, DR)[None, :])
        if STEPS == 1:
            s = tl.dot(x, tl.trans(keys), input_precision=PRECISION)
            if DR:
                s = tl.dot(x_rest, tl.trans(rest_keys), s, input_precision=PRECISION)
            if SIZE % BN != 0:
                s = tl.where((tl.arange(0, BN) < SIZE)[None, :], s, float("-inf"))
            top = tl.max(s, 1) * scale
            p = tl.exp2(s * scale - top[:, None])
            total = tl.sum(p, 1)
            acc = tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
            acc = acc * (1.0 / total)[:, None]
            lse = top + tl.log2(total)
        else:
            acc = tl.zeros([BQ * GP, DV], tl.float32)
            top = tl.full([BQ * GP], float("-inf"), tl.float32)
            total = tl.zeros([BQ * GP], tl.float32)
            stop = tl.full([BQ * GP], first_key + SIZE, tl.int32)
            for step in tl.range(0, STEPS):
                acc, top, total = attend(
                    acc, top, total, x, x_rest, K, V, stride_ks, stride_vs, batch, group,
                    first_key + step * BN, first_key + SIZE, stop, stop, scale, BN, DK, DR, DV,
                    SIZE % BN != 0, False, TMA, PRECISION,
                )  # fmt: skip
            acc, lse = finish(acc, top, total)

        stored = (first + row // GP < count) & (row % GP < G)
        # Read again, for fewer live registers.
        member = tl.load(Lists + tl.minimum(first + row // GP, count - 1))
        entry = ((member // COUNT) * HKV * FREE + member % COUNT - 1) * G + row % GP
        tl.store(PartsLse + entry, lse, mask=stored)
        out = Parts + (entry * DV)[:, None] + tl.arange(0, DV)[None, :]
        how: tl.constexpr = ".cs" if STREAM else ""
        tl.store(out, acc.to(Parts.dtype.element_ty), mask=stored[:, None], cache_modifier=how)


@triton.jit(do_not_specialize=["chunk", "rows"])
def _merge_kernel(
    Blocks, Gates, Compressed, Window, Forced, ForcedLse, Parts, PartsLse, Out, Own, Lse, Starts, Ends,
    stride_gb, stride_gn, stride_gh, stride_gc, chunk, rows, N, HKV,
    CHUNK: tl.constexpr, COUNT: tl.constexpr, FREE: tl.constexpr, SLOTS: tl.constexpr, G: tl.constexpr,
    GH: tl.constexpr, BQ: tl.constexpr, DV: tl.constexpr, MERGED: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """A program owns BQ queries of one group, with GH of its heads."""
    lane = tl.num_programs(1) - 1 - tl.program_id(1)  # the parts written last may still be in the cache
    batch = wide(lane // HKV)
    group = lane % HKV
    row = tl.arange(0, BQ * GH)
    SHARES: tl.constexpr = (G + GH - 1) // GH
    head = tl.program_id(0) % SHARES * GH + row % GH
    inner = tl.program_id(0) // SHARES * BQ + row // GH
    query = wide(chunk) * CHUNK + inner
    inside = (inner < rows) & (query < N) & (head < G)
    position = tl.load(Starts + batch) + query
    real = inside & (position < tl.load(Ends + batch))

    lists = (batch * N + query) * HKV + group
    heads = lists * G + head  # of [B, N, H], contiguous
    column = tl.arange(0, DV)[None, :]
    elements = heads[:, None] * DV + column
    slot = tl.arange(0, SLOTS)[None, :]
    used = tl.load(Blocks + lists[:, None] * COUNT + slot, mask=inside[:, None] & (slot < COUNT), other=-1)
    free = tl.sum((used >= 0).to(tl.int32), 1) - (COUNT - FREE)  # negative where not even the forced are used

    entries = (((batch * rows + inner) * HKV + group) * FREE) * G + head
    top = tl.where(real, tl.load(ForcedLse + heads, mask=inside, other=0.0), 0.0)
    acc = tl.load(Forced + elements, mask=inside[:, None], other=0.0).to(tl.float32)
    total = tl.full([BQ * GH], 1.0, tl.float32)
    for first in tl.range(0, FREE, MERGED):
        index = first + tl.arange(0, MERGED)[None, :]
        there = index < free[:, None]
        entry = entries[:, None] + index * G
        parts = Parts + entry[:, :, None] * DV + tl.arange(0, DV)[None, None, :]
        parts = tl.load(parts, mask=there[:, :, None], other=0.0, eviction_policy="evict_first")
        shares = tl.load(PartsLse + entry, mask=there, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(shares, 1))
        shares = tl.exp2(shares - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(shares, 1)
        acc = acc * fade[:, None] + tl.sum(parts.to(tl.float32) * shares[:, :, None], 1)
        top = new_top
    acc = tl.where(real[:, None], acc / total[:, None], 0.0)
    lse = tl.where(real, top + tl.log2(total), float("inf"))

    gates = Gates + batch * stride_gb + query * stride_gn + (group * G + head) * stride_gh
    g_cmp = tl.load(gates, mask=real, other=0.0).to(tl.float32)
    g_slc = tl.load(gates + stride_gc, mask=real, other=0.0).to(tl.float32)
    g_win = tl.load(gates + 2 * stride_gc, mask=real, other=0.0).to(tl.float32)
    compressed = tl.load(Compressed + elements, mask=real[:, None], other=0.0).to(tl.float32)
    window = tl.load(Window + elements, mask=real[:, None], other=0.0).to(tl.float32)
    result = g_cmp[:, None] * compressed + g_slc[:, None] * acc + g_win[:, None] * window
    tl.store(Out + elements, result.to(Out.dtype.element_ty), mask=inside[:, None])
    if SAVE:
        tl.store(Own + elements, acc.to(Own.dtype.element_ty), mask=inside[:, None])
        tl.store(Lse + heads, lse, mask=inside)
