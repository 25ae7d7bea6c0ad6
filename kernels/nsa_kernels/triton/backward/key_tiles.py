"""Backward of softmax attention over a dense band of keys: five matrix products to a tile.

A program owns a tile of BN keys of one KV head and walks over the packed query tiles that see them, so that
the gradients of its keys are summed over queries and group in registers; those of the queries go out by
atomic additions. The tiles of scores are held transposed, [BN, BM]: then the products that give dV and dK
take P and dS from registers, and that which gives dQ (transposed too) finds dS as it was written.

    P' = g * exp2(S - lse),  dP = dO V^T,  dS = P' * (dP - delta),  dV = P'^T dO,  dK = dS^T Q,  dQ = dS K
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nsa_kernels.triton.tiles import (
    MIN_DOT,
    Grid,
    blocks_before,
    bulk_copies,
    launch_options,
    precision,
    processors,
    queries_per_tile,
    row_pointers,
    split_width,
)

PROGRAMS = 8
"""Programs to a processor, at least, half of which find nothing to do."""
LEAST_CHUNK = 128
"""Queries to a program that chunks are not cut below for the sake of more programs."""


def launch_key_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    delta: Tensor,
    dq: Tensor | None,
    dk: Tensor,
    dv: Tensor,
    grid: Grid,
    config: Mapping[str, int],
    *,
    keys: int,
    window: int,
) -> None:
    """Adds to dq, and to dk and dv: with `window` stores them, without adds to them.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys [B, S or C, H_kv, D_k].
        v: Values [B, S or C, H_kv, D_v].
        dout: Gradient of the gated sum [B, N, H, D_v].
        lse: Logarithm (base 2) of the sums of the softmax, float32 [B, N, H], contiguous; inf for no keys.
        gate: Gate of this branch [B, N, H], not negative; None = `lse` has its logarithm taken off already.
        delta: Its gradient, float32 [B, N, H].
        dq: float32 [B, N, H, D_k], without the factor `scale`; None = it is not wanted.
        dk: Contiguous [B, S or C, H_kv, D_k]; float32 without a window.
        dv: Contiguous [B, S or C, H_kv, D_v]; float32 without a window.
        grid: The call.
        config: BM, BN, CHUNK (queries to a program, a multiple of the tile's; 0 = all), TMA (1: add to dq by
            bulk copies, where the layout lets them), num_warps, num_stages.
        keys: How many keys there are to walk over, at most S or C.
        window: w; 0 = all complete compressed blocks.
    """
    main, rest = split_width(q.shape[-1])
    padded, width_v = grid.padded_group, v.shape[-1]
    launch = _fit(config, q, grid)
    per_tile = queries_per_tile(launch["BM"], grid)
    tiles = triton.cdiv(keys, launch["BN"])
    chunk = _chunk(launch.get("CHUNK", 0), per_tile, tiles * grid.kv_heads * grid.batch, grid)
    chunks = triton.cdiv(grid.queries, chunk)
    # p' = g * exp2(s - lse) = exp2(s - (lse - log2(g))): one operand less in the loop.
    if gate is not None:
        lse = lse - gate.float().log2()
    delta = delta.contiguous()
    bulk = bool(launch.get("TMA", 0)) and not rest and padded == grid.group
    bulk = bulk and dq is not None and bulk_additions(dq)
    _key_tile_backward_kernel[(tiles * grid.kv_heads * grid.batch * chunks,)](
        q,
        k,
        v,
        dout,
        lse,
        delta,
        dq,
        dk,
        dv,
        TensorDescriptor.from_tensor(dq, [1, per_tile, padded, main]) if bulk and dq is not None else None,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *dout.stride()[:3],
        *((0, 0, 0) if dq is None else dq.stride()[:3]),
        grid.queries,
        k.shape[1],
        grid.batch,
        grid.kv_heads,
        tiles,
        chunks,
        chunk,
        grid.scale,
        grid.scale_log2,
        G=grid.group,
        GP=padded,
        BQ=per_tile,
        BN=launch["BN"],
        DK=main,
        DR=rest,
        DV=width_v,
        WINDOW=window,
        BLOCK=grid.geometry.block,
        STRIDE=grid.geometry.stride,
        BULK=bulk,
        DQ=dq is not None,
        PRECISION=precision(q),
        **launch_options(launch),
    )


def bulk_additions(x: Tensor) -> bool:
    """Whether `bulk_copies` can add to a tensor; the interpreter's cannot."""
    return x.is_cuda and bulk_copies(x)


def _fit(config: Mapping[str, int], q: Tensor, grid: Grid) -> dict[str, int]:
    """The configuration, made smaller where float32 or a large group would not fit the shared memory."""
    fitted = dict(config)
    if q.dtype == torch.float32 and q.is_cuda:
        fitted |= {"BM": 16, "BN": min(32, fitted["BN"]), "num_warps": 4, "num_stages": 1}
    if grid.padded_group > fitted["BM"]:
        keys = fitted["BN"] * fitted["BM"] // grid.padded_group
        fitted |= {"BN": max(MIN_DOT, keys), "num_stages": 1}
    return fitted


def _chunk(wanted: int, per_tile: int, programs: int, grid: Grid) -> int:
    """Queries to a program: as wanted, or fewer so that all processors find work; whole tiles."""
    if not wanted:
        return grid.queries
    enough = PROGRAMS * processors(grid.starts.device)
    while wanted > LEAST_CHUNK and programs * -(-grid.queries // wanted) < enough:
        wanted //= 2
    return -(-wanted // per_tile) * per_tile


@triton.jit
def _key_tile_backward_kernel(
    Q, K, V, Dout, Lse, Delta, Dq, Dk, Dv, Dq_box, Starts, Ends,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_dob, stride_don, stride_doh, stride_dqb, stride_dqn, stride_dqh, queries, keys, batches, kv_heads,
    tiles, chunks, chunk, scale, scale_log2, G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr,
    BN: tl.constexpr, DK: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr, STRIDE: tl.constexpr, BULK: tl.constexpr, DQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: BN keys of one KV head, one chunk of the queries.

    The programs of a chunk are neighbours, so that they meet its queries in the L2 cache; the last chunk,
    which sees the most keys, comes first.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    pid //= tiles
    kv_head = pid % kv_heads
    pid //= kv_heads
    batch = (pid % batches).to(tl.int64)
    part = chunks - 1 - pid // batches

    # Queries (by their number in the row, not their position) from `low` on and before `high` see a key of
    # this tile.
    start = tl.load(Starts + batch)
    # No query sees a key behind the last: what stands there may be anything, or not be there at all.
    end = tl.minimum(tl.load(Ends + batch), start + queries)
    real_queries = tl.minimum(queries, end - start)
    first_key = tile * BN
    low = part * chunk
    high = tl.minimum(real_queries, low + chunk)
    if WINDOW:
        low = tl.maximum(low, first_key - start)
        high = tl.minimum(high, first_key + BN - 1 + WINDOW - start)
        valid = end
    else:
        low = tl.maximum(low, first_key * STRIDE + BLOCK - 1 - start)
        valid = blocks_before(end, BLOCK, STRIDE)

    if WINDOW == 0 and low >= high:
        return

    first = low // BQ
    count = tl.maximum(tl.cdiv(high, BQ) - first, 0)

    key = first_key + tl.arange(0, BN)
    seen_from = key - start if WINDOW else key * STRIDE + BLOCK - 1 - start
    column = tl.arange(0, DK)
    column_v = tl.arange(0, DV)
    present = (key < valid)[:, None]
    offset = first_key.to(tl.int64)
    local = tl.arange(0, BN)[:, None]
    K += batch * stride_kb + offset * stride_ks + kv_head.to(tl.int64) * stride_kh
    V += batch * stride_vb + offset * stride_vs + kv_head.to(tl.int64) * stride_vh
    k = tl.load(K + local * stride_ks + column[None, :], present, other=0.0)
    v = tl.load(V + local * stride_vs + column_v[None, :], present, other=0.0)
    dk = tl.zeros((BN, DK), tl.float32)
    dv = tl.zeros((BN, DV), tl.float32)
    if DR:
        column_rest = DK + tl.arange(0, DR)
        k_rest = tl.load(K + local * stride_ks + column_rest[None, :], present, other=0.0)
        dk_rest = tl.zeros((BN, DR), tl.float32)
    else:
        k_rest = 0.0
        dk_rest = 0.0

    first_head = kv_head * G
    Q += batch * stride_qb + first_head.to(tl.int64) * stride_qh
    Dout += batch * stride_dob + first_head.to(tl.int64) * stride_doh
    if DQ:
        Dq += batch * stride_dqb + first_head.to(tl.int64) * stride_dqh
    Lse += batch * queries * kv_heads * G + first_head
    Delta += batch * queries * kv_heads * G + first_head

    turn = 0
    if WINDOW:
        # A query lies in the range of several neighbouring tiles. Started at a multiple of its length, and
        # wrapped, their programs come to the query at the same time, and find it in the L2 cache.
        RANGE: tl.constexpr = (BN + WINDOW - 1 + BQ - 1) // BQ
        turn = (RANGE - first % RANGE) % RANGE
        turn = tl.where(turn < count, turn, 0)
    for step in range(count):
        i = step + turn
        number = first + tl.where(i < count, i, i - count)
        dk, dk_rest, dv = _query_tile(
            number, Q, Dout, Lse, Delta, Dq, Dq_box, batch, first_head,
            stride_qn, stride_qh, stride_don, stride_doh, stride_dqn, stride_dqh, kv_heads * G, real_queries,
            seen_from, k, k_rest, v, dk, dk_rest, dv, scale_log2, G, GP, BQ, DK, DR, DV, WINDOW, BULK,
            DQ, PRECISION,
        )  # fmt: skip

    row = ((batch * keys + offset) * kv_heads + kv_head) + local * kv_heads
    inside = (key < keys)[:, None]
    if WINDOW:
        tl.store(Dk + row * (DK + DR) + column[None, :], (dk * scale).to(Dk.dtype.element_ty), inside)
        tl.store(Dv + row * DV + column_v[None, :], dv.to(Dv.dtype.element_ty), inside)
        if DR:
            tl.store(
                Dk + row * (DK + DR) + column_rest[None, :],
                (dk_rest * scale).to(Dk.dtype.element_ty),
                inside,
            )
    else:
        tl.atomic_add(Dk + row * (DK + DR) + column[None, :], dk * scale, inside, sem="relaxed")
        tl.atomic_add(Dv + row * DV + column_v[None, :], dv, inside, sem="relaxed")
        if DR:
            tl.atomic_add(Dk + row * (DK + DR) + column_rest[None, :], dk_rest * scale, inside, sem="relaxed")


@triton.jit
def _query_tile(
    number, Q, Dout, Lse, Delta, Dq, Dq_box, batch, first_head,
    stride_qn, stride_qh, stride_don, stride_doh, stride_dqn, stride_dqh, heads, real_queries, seen_from, k,
    k_rest, v, dk, dk_rest, dv, scale_log2, G: tl.constexpr, GP: tl.constexpr, BQ: tl.constexpr,
    DK: tl.constexpr, DR: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr, BULK: tl.constexpr,
    DQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The query tile `number` against a tile of keys.

    Every tile is masked. A loop of its own for those without an edge costs more than the masks: with two
    loops to keep values for, the compiler spills.
    """
    row = tl.arange(0, BQ * GP)
    query = number * BQ + row // GP
    column = tl.arange(0, DK)[None, :]
    column_v = tl.arange(0, DV)[None, :]
    real = (query < real_queries) & (row % GP < G)
    q_rows = row_pointers(Q, number, row, stride_qn, stride_qh, BQ, GP)[:, None]
    q = tl.load(q_rows + column, real[:, None], other=0.0)
    dout_rows = row_pointers(Dout, number, row, stride_don, stride_doh, BQ, GP)[:, None]
    dout = tl.load(dout_rows + column_v, real[:, None], other=0.0)
    lse = tl.load(row_pointers(Lse, number, row, heads, 1, BQ, GP), real, other=float("inf"))
    delta = tl.load(row_pointers(Delta, number, row, heads, 1, BQ, GP), real, other=0.0)

    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if DR:
        q_rest = tl.load(q_rows + DK + tl.arange(0, DR)[None, :], real[:, None], other=0.0)
        s = tl.dot(k_rest, tl.trans(q_rest), s, input_precision=PRECISION)
    p = tl.exp2(s * scale_log2 - lse[None, :])
    seen = seen_from[:, None] <= query[None, :]
    if WINDOW:
        seen &= query[None, :] < (seen_from + WINDOW)[:, None]
    p = tl.where(seen, p, 0.0)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    ds = (p * (dp - delta[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, dk, input_precision=PRECISION)
    if DQ:
        dq = tl.trans(tl.dot(tl.trans(k), ds, input_precision=PRECISION))
        if BULK:
            Dq_box.atomic_add([batch.to(tl.int32), number * BQ, first_head, 0], dq.reshape(1, BQ, GP, DK))
        else:
            dq_rows = row_pointers(Dq, number, row, stride_dqn, stride_dqh, BQ, GP)[:, None]
            tl.atomic_add(dq_rows + column, dq, real[:, None], sem="relaxed")
    if DR:
        dk_rest = tl.dot(ds, q_rest, dk_rest, input_precision=PRECISION)
    if DR and DQ:
        dq_rest = tl.trans(tl.dot(tl.trans(k_rest), ds, input_precision=PRECISION))
        dq_rows = row_pointers(Dq, number, row, stride_dqn, stride_dqh, BQ, GP)[:, None]
        tl.atomic_add(dq_rows + DK + tl.arange(0, DR)[None, :], dq_rest, real[:, None], sem="relaxed")
    return dk, dk_rest, dv
