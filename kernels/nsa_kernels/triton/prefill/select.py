"""Scores and top-n fused: block importance summed over the group, and the n best blocks kept.

A program scores a packed tile of queries against all compressed keys, with the log-sum-exp that compressed
attention left. The importances of its own few queries go to a scratch of its own, [BQ, N / l'] floats that
stay in the L2 cache and are used again for its next tile; nothing of size N * N / d, or N * N / l', exists.
Then it finds each query's n-th largest importance by halving the range of its bits.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.prefill.online import load_rows
from nsa_kernels.triton.prefill.packed import first_key, load_queries, rows_of, tile_at
from nsa_kernels.triton.prefill.ranking import keep_largest, list_chosen
from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    blocks_before,
    bulk_copies,
    descriptor,
    launch_options,
    precision,
    processors,
    queries_per_tile,
    row_pointers,
    split_width,
    wide,
)

_LANES = 32
"""Importances across: with the queries of a tile dealt to the warps, a count stays within a warp."""
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
    size = programs * (1 + back) * bq * rows * _LANES
    scratch = torch.empty(size + 1, dtype=torch.float32, device=q.device)
    blocks = torch.empty(
        grid.batch, grid.queries, grid.kv_heads, geometry.select_count, dtype=torch.int32, device=q.device
    )
    bn = max(chosen["BN"], padded_pieces)
    tma = bool(chosen.get("TMA")) and rest == 0 and pieces == padded_pieces and k.shape[1] > 0
    tma = tma and bulk_copies(k)
    launch(_select_kernel, (programs,))(
        q,
        descriptor(k, bn) if tma else k,
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
        BN=bn,
        DK=main,
        DR=rest,
        BLOCK=geometry.block,
        STRIDE=geometry.stride,
        SELECT=geometry.select_block,
        COUNT=geometry.select_count,
        COUNT_P=triton.next_power_of_2(geometry.select_count),
        AT_ONCE=min(16, triton.next_power_of_2(geometry.select_count)),
        PIECES=pieces,
        PIECES_P=padded_pieces,
        SHARES=shares,
        BACK=back,
        RANKED=rows,
        LANES=_LANES,
        TMA=tma,
        BITS=min(rows, 16),
        INDEX_BITS=(rows * _LANES).bit_length(),
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return blocks


@triton.jit
def _score(
    q, q_rest, k, stride_k, batch, head, lse, scratch, block, most, seen, scale_log2,
    GP: tl.constexpr, QUADS: tl.constexpr, PAIRS: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
    DK: tl.constexpr, DR: tl.constexpr, PIECES: tl.constexpr, PIECES_P: tl.constexpr, SHARES: tl.constexpr,
    BACK: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Importance that the keys of the BN / PIECES_P blocks from `block` on give to these and the next."""
    index = tl.arange(0, BN)
    if PIECES == PIECES_P:
        key = index
        keep = block * PIECES + key < most
    else:
        key = index // PIECES_P * PIECES + index % PIECES_P
        keep = (index % PIECES_P < PIECES) & (block * PIECES + key < most)
    if TMA:
        keys = k.load([batch, block * PIECES, head, 0]).reshape(BN, DK)
    else:
        k += wide(block * PIECES) * stride_k
        keys = load_rows(k, key, stride_k, MASKED, keep, DK)
    # Keys down, queries across: the sum over the heads of a group then lies mostly within a thread.
    scores = tl.dot(keys, tl.trans(q), input_precision=PRECISION)
    if DR:
        rest = load_rows(k + DK, key, stride_k, MASKED, keep, DR)
        scores = tl.dot(rest, tl.trans(q_rest), scores, input_precision=PRECISION)
    p = tl.exp2(scores * scale_log2 - lse[None, :])
    if MASKED:
        p = tl.where(keep[:, None] & ((block * PIECES + key)[:, None] < seen[None, :]), p, 0.0)
    # The order of the columns (see `_select`) leaves a query's heads to one thread.
    by_query = tl.sum(tl.sum(tl.reshape(p, [BN, BQ // QUADS, GP // PAIRS, QUADS, PAIRS]), 4), 2)
    by_query = tl.reshape(by_query, [BN, BQ])
    by_piece = tl.reshape(by_query, [BN // PIECES_P, PIECES_P, BQ])

    piece = tl.arange(0, PIECES_P)
    own = block + tl.arange(0, BN // PIECES_P)
    for back in tl.static_range(0, BACK + 1):
        # In how many ways piece = m - r + back * PIECES, with m < PIECES and r < SHARES.
        place = piece - back * PIECES
        ways = tl.minimum(PIECES - 1, place + SHARES - 1) - tl.maximum(place, 0) + 1
        ways = tl.where(piece < PIECES, tl.maximum(ways, 0), 0).to(tl.float32)
        target = own + back
        part = scratch + (back * BQ + tl.arange(0, BQ)[None, :]) * WIDTH + target[:, None]
        tl.store(part, tl.sum(by_piece * ways[None, :, None], 1), mask=(target < WIDTH)[:, None])


@triton.jit(do_not_specialize=("queries", "items", "pairs"))
def _select_kernel(
    Q, K, Lse, Scratch, Blocks, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kc, stride_kh, queries, items, pairs, kv_heads,
    scale_log2, G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, DK: tl.constexpr,
    DR: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SELECT: tl.constexpr, COUNT: tl.constexpr,
    COUNT_P: tl.constexpr, AT_ONCE: tl.constexpr, PIECES: tl.constexpr, PIECES_P: tl.constexpr,
    SHARES: tl.constexpr, BACK: tl.constexpr, RANKED: tl.constexpr, LANES: tl.constexpr,
    INDEX_BITS: tl.constexpr, BITS: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program takes tile after tile, long ones first."""
    WIDTH: tl.constexpr = RANKED * LANES
    TILE: tl.constexpr = BN // PIECES_P
    # The 1 hides the alignment: with vector loads the compiler would deal a query to several warps.
    scratch = Scratch + 1 + tl.program_id(0).to(tl.int64) * ((1 + BACK) * BQ * WIDTH)
    # Columns of the scores: queries in fours and heads in pairs run fastest.
    QUADS: tl.constexpr = 4 if BQ >= 4 else BQ
    PAIRS: tl.constexpr = 2 if GP >= 2 else GP
    column = tl.arange(0, BQ * GP)
    head = column // (PAIRS * QUADS) % (GP // PAIRS) * PAIRS + column % PAIRS
    row = (column // (GP * QUADS) * QUADS + column // PAIRS % QUADS) * GP + head
    inner = tl.arange(0, BQ)
    index = tl.arange(0, RANKED)[None, :, None] * LANES + tl.arange(0, LANES)[None, None, :]
    heads = kv_heads * G
    for item in tl.range(tl.program_id(0), items, tl.num_programs(0)):
        number = items // pairs - 1 - item // pairs
        tile = tile_at(number, item % pairs, Starts, Ends, queries, kv_heads, BQ)
        batch64 = wide(tile.batch)
        first = tile.first
        last = tile.last
        scored = last > COUNT * SELECT  # below, every block is chosen and none needs a score
        most = tl.where(scored & (first < last), blocks_before(last, BLOCK, STRIDE), 0)
        if most > 0:
            position, real = rows_of(tile, row, queries, G, GP, BQ)
            q, q_rest = load_queries(Q, tile, row, real, stride_qb, stride_qn, stride_qh, G, GP, BQ, DK, DR)
            lse_at = Lse + (batch64 * queries * kv_heads + tile.kv_head) * G
            lse_rows = row_pointers(lse_at, number, row, heads, 1, BQ, GP)
            lse = tl.load(lse_rows, mask=real, other=float("inf"))
            k = first_key(K, tile, stride_kb, stride_kh, TMA)
            seen = tl.where(real, blocks_before(position + 1, BLOCK, STRIDE), 0)
            whole = 0
            if PIECES == PIECES_P:
                whole = blocks_before(first + 1, BLOCK, STRIDE) // BN * TILE
            for block in tl.range(0, whole, TILE):
                _score(
                    q, q_rest, k, stride_kc, tile.batch, tile.kv_head, lse, scratch, block, most, seen,
                    scale_log2, GP, QUADS, PAIRS, BQ, BN, DK, DR, PIECES, PIECES_P, SHARES, BACK, WIDTH,
                    False, TMA, PRECISION,
                )  # fmt: skip
            for block in tl.range(whole, tl.cdiv(most, PIECES), TILE):
                _score(
                    q, q_rest, k, stride_kc, tile.batch, tile.kv_head, lse, scratch, block, most, seen,
                    scale_log2, GP, QUADS, PAIRS, BQ, BN, DK, DR, PIECES, PIECES_P, SHARES, BACK, WIDTH, True,
                    TMA, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()  # what other warps stored is read below

        here = first + inner
        own = here // SELECT
        importance = tl.zeros([BQ, RANKED, LANES], tl.float32)
        for back in tl.static_range(0, BACK + 1):
            at = scratch + (back * BQ + inner[:, None, None]) * WIDTH + index
            # Without masks, what was not scored is anything; it gets no rank.
            if back > 1 or BLOCK > 2 * SELECT:
                importance += tl.load(at, mask=(index >= back) & ((index - back) * PIECES < most), other=0.0)
            else:
                importance += tl.load(at)
        tl.debug_barrier()  # the next tile stores there
        # Floats that are not negative order as their bits do. NaN counts as infinite: many of it are a tie.
        ranks = tl.minimum(importance.to(tl.uint32, bitcast=True), 0x7F800000).to(tl.int32)
        ranks = ranks & tl.where(most > 0, -1, 0)  # below COUNT * SELECT nothing was scored: all are chosen
        # The forced blocks need no rank; of the others, only those before them can be chosen: 1 to own - 2.
        free = tl.where(here < tile.end, tl.maximum(own - 2, 0), 0).to(tl.uint32)
        ranks = tl.where((index - 1).to(tl.uint32) < free[:, None, None], ranks, -1)
        forced = tl.where(here < tile.end, tl.minimum(own + 1, 3), 0)
        ranks, least = keep_largest(ranks, index, COUNT - forced, INDEX_BITS)

        target = Blocks + ((batch64 * queries + number * BQ) * kv_heads + tile.kv_head) * COUNT
        target += inner * (kv_heads * COUNT)
        list_chosen(
            target[:, None], (number * BQ + inner < queries)[:, None], ranks, least, own, forced,
            BQ, RANKED, LANES, BITS, COUNT, COUNT_P, AT_ONCE,
        )  # fmt: skip
