"""Scores and top-n fused: block importance summed over the group, and the n best blocks kept.

A program scores a packed tile of queries against all compressed keys, with the log-sum-exp that compressed attention
left. The importances of its own few queries go to a scratch of its own, [BQ, N / l'] floats that stay in the L2 cache
and are used again for its next tile; nothing of size N * N / d, or N * N / l', exists. Then it finds each query's n-th
largest importance by halving the range of its bits.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.online import load_rows
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    blocks_before,
    launch_options,
    precision,
    processors,
    queries_per_tile,
    row_pointers,
    split_width,
    wide,
)

SEARCH = tuple(
    {"BM": bm, "BN": bn, "OCCUPANCY": occupancy, "num_warps": warps, "num_stages": stages} | limit
    for bm, bn, occupancy, warps, stages, limit in (
        (128, 64, 2, 8, 3, {}),
        (128, 64, 2, 8, 3, {"maxnreg": 128}),
        (128, 64, 2, 8, 2, {"maxnreg": 128}),
        (128, 128, 1, 8, 2, {}),
        (128, 128, 2, 8, 2, {"maxnreg": 128}),
        (128, 128, 1, 8, 3, {}),
        (64, 64, 2, 4, 3, {}),
        (64, 64, 3, 4, 3, {"maxnreg": 160}),
        (64, 128, 2, 4, 2, {}),
        (64, 128, 2, 8, 2, {"maxnreg": 128}),
        (256, 64, 1, 8, 3, {}),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`."""

_LANES = 128
_RANKED = 1 << 15
"""Importances that a program ranks at a time; more would not fit into its registers."""


def select(
    q: Tensor, k: Tensor, lse: Tensor, grid: Grid, *, config: Mapping[str, int] | None = None
) -> Tensor:
    """The n blocks that each token attends to (the definition: `nsa_kernels.selection`).

    Args:
        q: Queries [B, N, H, D_k].
        k: Compressed keys [B, C, H_kv, D_k].
        lse: Log-sum-exp of compressed attention [B, N, H], in units of log2.
        grid: Positions and sizes.
        config: Launch configuration; None = the shipped one.

    Returns:
        int32 [B, N, H_kv, n]: ascending, then -1; all -1 at padding.
    """
    geometry = grid.geometry
    chosen = dict(config or shipped("select", q.shape[-1], q.device))
    main, rest = split_width(q.shape[-1])
    rows = max(1, triton.next_power_of_2(geometry.num_select_blocks(grid.longest)) // _LANES)
    least = max(1, MIN_DOT // grid.padded_group)
    bq = max(least, min(queries_per_tile(chosen["BM"], grid), 16, _RANKED // (rows * _LANES)))
    pieces = geometry.select_block // geometry.stride
    shares = geometry.block // geometry.stride
    back = -(-(shares - 1) // pieces)
    padded_pieces = triton.next_power_of_2(pieces)
    items = triton.cdiv(grid.queries, bq) * grid.batch * grid.kv_heads
    programs = min(items, processors(q.device) * chosen["OCCUPANCY"])
    scratch = torch.empty(programs, 1 + back, bq, rows * _LANES, dtype=torch.float32, device=q.device)
    blocks = torch.empty(
        grid.batch, grid.queries, grid.kv_heads, geometry.select_count, dtype=torch.int32, device=q.device
    )
    _select[(programs,)](
        q,
        k,
        lse,
        scratch,
        blocks,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        grid.queries,
        items,
        grid.batch * grid.kv_heads,
        grid.kv_heads,
        grid.scale_log2,
        G=grid.group,
        GP=grid.padded_group,
        BQ=bq,
        BN=max(chosen["BN"], padded_pieces),
        DK=main,
        DR=rest,
        BLOCK=geometry.block,
        STRIDE=geometry.stride,
        SELECT=geometry.select_block,
        COUNT=geometry.select_count,
        SLOTS=triton.next_power_of_2(geometry.select_count),
        PIECES=pieces,
        PADDED=padded_pieces,
        SHARES=shares,
        BACK=back,
        RANKED=rows,
        LANES=_LANES,
        INDEX_BITS=(rows * _LANES).bit_length(),
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return blocks


@triton.jit
def _score(
    q, q_rest, k, stride_k, lse, scratch, block, most, seen, scale,
    GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, PIECES: tl.constexpr,
    PADDED: tl.constexpr, SHARES: tl.constexpr, BACK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Importance that the keys of the blocks block..block+BN/PADDED-1 give to their own and the next blocks."""
    index = tl.arange(0, BN)
    if PIECES == PADDED:
        key = index
        keep = block * PIECES + key < most
    else:
        key = index // PADDED * PIECES + index % PADDED
        keep = (index % PADDED < PIECES) & (block * PIECES + key < most)
    k += wide(block * PIECES) * stride_k
    # Keys down, queries across: the sum over the heads of a group then lies mostly within a thread.
    scores = tl.dot(load_rows(k, key, stride_k, MASKED, keep, DK), tl.trans(q), input_precision=PRECISION)
    if DR:
        rest = load_rows(k + DK, key, stride_k, MASKED, keep, DR)
        scores = tl.dot(rest, tl.trans(q_rest), scores, input_precision=PRECISION)
    p = tl.exp2(scores * scale - lse[None, :])
    if MASKED:
        p = tl.where(keep[:, None] & ((block * PIECES + key)[:, None] < seen[None, :]), p, 0.0)
    by_query = tl.sum(tl.reshape(p, [BN, BQ, GP]), 2)
    by_piece = tl.reshape(by_query, [BN // PADDED, PADDED, BQ])

    piece = tl.arange(0, PADDED)
    target = scratch + tl.arange(0, BQ)[None, :] * WIDTH + block + tl.arange(0, BN // PADDED)[:, None]
    inside = (block + tl.arange(0, BN // PADDED) < WIDTH)[:, None] & (tl.arange(0, BQ) < BQ)[None, :]
    for back in tl.static_range(0, BACK + 1):
        # In how many ways piece = m - r + back * PIECES, with m < PIECES and r < SHARES.
        place = piece - back * PIECES
        ways = tl.minimum(PIECES - 1, place + SHARES - 1) - tl.maximum(place, 0) + 1
        ways = tl.where(piece < PIECES, tl.maximum(ways, 0), 0).to(tl.float32)
        tl.store(target + back * BQ * WIDTH, tl.sum(by_piece * ways[None, :, None], 1), mask=inside)


@triton.jit
def count_rows(mask):
    """How many are true for each query: bool [A, BQ, LANES] -> int32 [BQ]."""
    return tl.sum(tl.sum(mask.to(tl.int32), 0), 1)


@triton.jit
def largest(ranks, index, COUNT: tl.constexpr, INDEX_BITS: tl.constexpr):
    """The COUNT largest non-negative ranks of each query, lower index first among equals.

    Args:
        ranks: int32 [A, BQ, LANES]; negative = never chosen.
        index: Their index, ascending [A, 1, LANES].
        COUNT: How many to choose.
        INDEX_BITS: Bits of the largest index, and one more.

    Returns:
        bool [A, BQ, LANES]; fewer than COUNT are true where fewer ranks are not negative.
    """
    bound = tl.zeros([ranks.shape[1]], tl.int32)
    for step in tl.range(0, 31):
        candidate = bound | (1 << (30 - step))
        enough = count_rows(ranks >= candidate[None, :, None]) >= COUNT
        bound = tl.where(enough, candidate, bound)
    above = ranks > bound[None, :, None]
    tie = ranks == bound[None, :, None]
    left = COUNT - count_rows(above)
    last = tl.zeros([ranks.shape[1]], tl.int32)
    if tl.max(count_rows(tie) - left, 0) > 0:
        for step in tl.range(0, INDEX_BITS):
            candidate = last | (1 << (INDEX_BITS - 1 - step))
            fits = count_rows(tie & (index < candidate[None, :, None])) <= left
            last = tl.where(fits, candidate, last)
    else:
        last += 1 << INDEX_BITS
    return above | (tie & (index < last[None, :, None]))


@triton.jit
def _select(
    Q, K, Lse, Scratch, Blocks, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kc, stride_kh, N, items, groups, HKV, scale,
    G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECT: tl.constexpr, COUNT: tl.constexpr, SLOTS: tl.constexpr,
    PIECES: tl.constexpr, PADDED: tl.constexpr, SHARES: tl.constexpr, BACK: tl.constexpr, RANKED: tl.constexpr,
    LANES: tl.constexpr, INDEX_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program takes tile after tile, long ones first."""
    WIDTH: tl.constexpr = RANKED * LANES
    TILE: tl.constexpr = BN // PADDED
    scratch = Scratch + tl.program_id(0).to(tl.int64) * ((1 + BACK) * BQ * WIDTH)
    row = tl.arange(0, BQ * GP)
    inner = tl.arange(0, BQ)
    slot = tl.arange(0, SLOTS)
    index = (tl.arange(0, RANKED)[:, None, None] * LANES) + tl.arange(0, LANES)[None, None, :]
    heads = HKV * G
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0)):
        tile = items // groups - 1 - item // groups
        batch = item % groups // HKV
        group = item % groups % HKV
        start = tl.load(Starts + batch)
        end = tl.load(Ends + batch)
        batch64 = wide(batch)
        first = start + tile * BQ
        last = tl.minimum(tl.minimum(first + BQ, start + N), end)  # exclusive
        scored = last > COUNT * SELECT  # below, every block is chosen and none needs a score
        most = tl.where(scored & (first < last), blocks_before(last, BLOCK, STRIDE), 0)
        if most > 0:
            query = tile * BQ + row // GP
            real = (query < N) & (row % GP < G) & (start + query < end)
            q_at = Q + batch64 * stride_qb + wide(group) * G * stride_qh
            q_rows = row_pointers(q_at, tile, row, stride_qn, stride_qh, BQ, GP)
            q = tl.load(q_rows[:, None] + tl.arange(0, DK)[None, :], mask=real[:, None], other=0.0)
            q_rest = q
            if DR:
                rest = q_rows[:, None] + DK + tl.arange(0, DR)[None, :]
                q_rest = tl.load(rest, mask=real[:, None], other=0.0)
            lse_rows = row_pointers(Lse + (batch64 * N * HKV + group) * G, tile, row, heads, 1, BQ, GP)
            lse = tl.load(lse_rows, mask=real, other=float("inf"))
            k = K + batch64 * stride_kb + wide(group) * stride_kh
            seen = tl.where(real, blocks_before(start + query + 1, BLOCK, STRIDE), 0)
            whole = 0
            if PIECES == PADDED:
                whole = blocks_before(first + 1, BLOCK, STRIDE) // BN * TILE
            for block in tl.range(0, whole, TILE):
                _score(
                    q, q_rest, k, stride_kc, lse, scratch, block, most, seen, scale, GP, BQ, BN, DK, DR, PIECES,
                    PADDED, SHARES, BACK, WIDTH, False, PRECISION,
                )  # fmt: skip
            for block in tl.range(whole, tl.cdiv(most, PIECES), TILE):
                _score(
                    q, q_rest, k, stride_kc, lse, scratch, block, most, seen, scale, GP, BQ, BN, DK, DR, PIECES,
                    PADDED, SHARES, BACK, WIDTH, True, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()  # what other warps stored is read below

        position = first + inner
        own = (position // SELECT)[None, :, None]
        importance = tl.zeros([RANKED, BQ, LANES], tl.float32)
        for back in tl.static_range(0, BACK + 1):
            source = index - back
            held = (source >= 0) & (source * PIECES < most) & (source <= own)
            at = scratch + back * BQ * WIDTH + inner[None, :, None] * WIDTH + source
            importance += tl.load(at, mask=held, other=0.0)
        tl.debug_barrier()  # the next tile stores there
        ranks = importance.to(tl.int32, bitcast=True)  # floats that are not negative order as their bits do
        ranks = tl.where((index == 0) | (index == own) | (index == own - 1), 0x7FFFFFFF, ranks)
        here = (position < end)[None, :, None]
        ranks = tl.where((index <= own) & here, ranks, -1)
        picked = largest(ranks, index, COUNT, INDEX_BITS)

        ones = picked.to(tl.int32)
        lanes = tl.sum(ones, 2)
        before = (tl.cumsum(lanes, 0) - lanes)[:, :, None] + tl.cumsum(ones, 2) - ones
        used = tl.sum(lanes, 0)
        stride = HKV * COUNT
        target = Blocks + ((batch64 * N + tile * BQ) * HKV + group) * COUNT + inner * stride
        exists = tile * BQ + inner < N
        indices = index + tl.zeros([1, BQ, 1], tl.int32)
        tl.store(target[None, :, None] + before, indices, mask=picked & exists[None, :, None])
        unused = (slot[None, :] >= used[:, None]) & (slot[None, :] < COUNT) & exists[:, None]
        tl.store(target[:, None] + slot[None, :], tl.full([BQ, SLOTS], -1, tl.int32), mask=unused)
