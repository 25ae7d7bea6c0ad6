"""Gradient of the selected branch, all five products in one pass over the blocks.

A program holds one selection block (keys, values and both their gradients) and goes through the queries of
one chunk that chose it, a few at a time: with all heads of their group they fill the rows of a tile, so the
products run on full tiles however the queries chose. dK and dV stay in registers until the end; dQ is added
up in float32 in memory, which a chunk of queries lets stay in the cache.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.backward.query_lists import query_lists
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import MIN_DOT, Grid, launch_options, precision, queries_per_tile, split_width


def selected_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    gates: Tensor,
    dgates: Tensor,
    blocks: Tensor,
    dq: Tensor,
    grid: Grid,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the selected branch.

    Args:
        q: Queries [B, N, H, D_k].
        k: Keys of the branch [B, S, H_kv, D_k].
        v: Values of the branch [B, S, H_kv, D_v].
        dout: Gradient of the gated sum of the branches [B, N, H, D_v].
        lse: Log-sum-exp of the branch's scores in units of log2, float32 [B, N, H].
        gates: Gates [B, N, H, 3], not negative; the branch's is the second.
        dgates: Gradients of the gates [B, N, H, 3], float32: <dout, out of the branch>.
        blocks: Chosen blocks int32 [B, N, H_kv, n], -1 = unused.
        dq: float32 [B, N, H, D_k]; the branch's gradient is added, but for the factor `grid.scale`.
        grid: The call.
        config: Parameters of the launch: BM rows and BN keys to a tile, CHUNK queries to a chunk, PIECE
            queries to a program, HALVES = 1 for keys in halves, num_warps, num_stages. None = the shipped.

    Returns:
        Gradients of k and v, in their dtypes; 0 at padding.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    chosen = config or shipped("selected_backward", max(width, value_width), q.device)
    queries = queries_per_tile(chosen["BM"], grid)
    size = grid.geometry.select_block
    keys = max(MIN_DOT, min(chosen["BN"], triton.next_power_of_2(size)))
    chunk = chosen["CHUNK"]
    lists = query_lists(blocks, grid, chunk=chunk, piece=chosen["PIECE"])
    # A gate as a factor of every probability is a shift of the log-sum-exp. It and delta stand side by side:
    # one copy a row brings both.
    shifts = torch.stack((lse - gates[..., 1].float().log2(), dgates[..., 1]), -1)
    dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
    dv = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    main, rest = split_width(width)
    if chosen["HALVES"] and rest == 0 and main > MIN_DOT:
        main = rest = main // 2
    _selected_backward_kernel[(lists.counts.numel(), triton.cdiv(size, keys))](
        q,
        k,
        v,
        dout,
        shifts,
        dq,
        dk,
        dv,
        lists.queries,
        lists.cells,
        lists.firsts,
        lists.counts,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *dout.stride()[:3],
        *dq.stride()[:3],
        *dk.stride()[:3],
        *dv.stride()[:3],
        grid.queries,
        grid.heads,
        grid.kv_heads,
        lists.chunks,
        lists.blocks,
        grid.scale_log2,
        grid.scale,
        PACKED=q.stride(2) == width and dout.stride(2) == value_width and dq.stride(2) == width,
        SELECT=size,
        CHUNK=chunk,
        G=grid.group,
        GP=grid.padded_group,
        BQ=max(queries, MIN_DOT // grid.padded_group),
        BN=keys,
        DK=main,
        DR=rest,
        DV=value_width,
        PRECISION=precision(q),
        **launch_options(chosen),
    )
    return dk.to(k.dtype), dv.to(v.dtype)


@triton.jit
def _add(
    place, rows, real, G: tl.constexpr, BQ: tl.constexpr, GP: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Adds rows [BQ * GP, WIDTH] in memory, those that are `real`."""
    rows = tl.reshape(rows, [BQ, GP, WIDTH])
    if G == GP:
        tl.atomic_add(place, rows, sem="relaxed")
    else:
        tl.atomic_add(place, rows, mask=tl.reshape(real, [BQ, GP])[:, :, None], sem="relaxed")


@triton.jit
def _selected_backward_kernel(
    Q,
    K,
    V,
    Dout,
    Shifts,
    Dq,
    Dk,
    Dv,
    Queries,
    Cells,
    Firsts,
    Counts,
    Starts,
    Ends,
    stride_qb,
    stride_qn,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_dob,
    stride_don,
    stride_doh,
    stride_dqb,
    stride_dqn,
    stride_dqh,
    stride_dkb,
    stride_dks,
    stride_dkh,
    stride_dvb,
    stride_dvs,
    stride_dvh,
    queries,
    heads,
    kv_heads,
    chunks,
    blocks,
    scale_log2,
    scale,
    PACKED: tl.constexpr,
    SELECT: tl.constexpr,
    CHUNK: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BQ: tl.constexpr,
    BN: tl.constexpr,
    DK: tl.constexpr,
    DR: tl.constexpr,
    DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One piece of one list, against (a part of) its block. Scores stand keys x rows."""
    count = tl.load(Counts + tl.program_id(0))
    if count == 0:
        return
    cell = tl.load(Cells + tl.program_id(0))
    Queries += tl.load(Firsts + tl.program_id(0))
    block = cell % blocks
    chunk = (cell // blocks) % chunks
    kv_head = (cell // (blocks * chunks) % kv_heads).to(tl.int64)
    batch = (cell // (blocks * chunks * kv_heads)).to(tl.int64)
    start = tl.load(Starts + batch) + chunk * CHUNK
    # No query sees what stands behind.
    end = tl.minimum(tl.load(Ends + batch), tl.load(Starts + batch) + queries)

    first_query = chunk.to(tl.int64) * CHUNK
    Q += batch * stride_qb + first_query * stride_qn + kv_head * G * stride_qh
    Dout += batch * stride_dob + first_query * stride_don + kv_head * G * stride_doh
    Shifts += ((batch * queries + first_query) * heads + kv_head * G) * 2
    Dq += batch * stride_dqb + first_query * stride_dqn + kv_head * G * stride_dqh

    inside = tl.program_id(1) * BN + tl.arange(0, BN)
    position = block * SELECT + inside
    mine = (inside < SELECT) & (position < end)
    # Keys that are not this program's stand behind every query: the causal mask takes them out.
    position = tl.where(mine, position, 2147483647)
    first_key = block.to(tl.int64) * SELECT
    K += batch * stride_kb + first_key * stride_ks + kv_head * stride_kh
    V += batch * stride_vb + first_key * stride_vs + kv_head * stride_vh
    key = inside[:, None]
    column = tl.arange(0, DK)[None, :]
    value_column = tl.arange(0, DV)[None, :]
    k = tl.load(K + key * stride_ks + column, mask=mine[:, None], other=0.0)
    v = tl.load(V + key * stride_vs + value_column, mask=mine[:, None], other=0.0)
    dk = tl.zeros([BN, DK], tl.float32)
    dv = tl.zeros([BN, DV], tl.float32)
    if DR > 0:
        rest_column = DK + tl.arange(0, DR)[None, :]
        k_rest = tl.load(K + key * stride_ks + rest_column, mask=mine[:, None], other=0.0)
        dk_rest = tl.zeros([BN, DR], tl.float32)

    # Pointers in three axes: the compiler then sees that a thread's heads and columns lie at fixed distances.
    # In two, rows and columns, it kept an offset for each and spilled them.
    head = tl.arange(0, GP)
    if G < GP:
        # Rows that stand for nothing repeat one that does, and count for nothing.
        head = tl.minimum(head, G - 1)
    head64 = head
    if PACKED:  # known to the compiler, these strides cost no registers
        stride_qh = DK + DR
        stride_dqh = DK + DR
        stride_doh = DV
    else:
        head64 = head.to(tl.int64)
    main = tl.arange(0, DK)[None, None, :]
    q_offset = (head64 * stride_qh)[None, :, None]
    dout_offset = (head64 * stride_doh)[None, :, None] + tl.arange(0, DV)[None, None, :]
    dq_offset = (head64 * stride_dqh)[None, :, None]
    if DR > 0:
        rest = DK + tl.arange(0, DR)[None, None, :]
    row = tl.arange(0, BQ * GP)
    # Only a chunk with queries before the block's end needs the causal mask: it has keys behind a query, or
    # behind the row's end.
    masked = (start < (block + 1) * SELECT) | (SELECT % BN != 0)
    for first in range(0, count, BQ):
        place = first + row // GP
        query = tl.load(Queries + tl.minimum(first + tl.arange(0, BQ), count - 1))
        q = tl.load(Q + (query * stride_qn)[:, None, None] + (q_offset + main))
        dout = tl.load(Dout + (query * stride_don)[:, None, None] + dout_offset)
        pair = ((query * heads)[:, None] + head[None, :]) * 2
        pair = tl.load(Shifts + pair[:, :, None] + tl.arange(0, 2)[None, None, :])
        q = tl.reshape(q, [BQ * GP, DK])
        dout = tl.reshape(dout, [BQ * GP, DV])
        lse, delta = tl.split(tl.reshape(pair, [BQ * GP, 2]))
        real = (place < count) & (row % GP < G)
        lse = tl.where(real, lse, float("inf"))

        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if DR > 0:
            q_rest = tl.load(Q + (query * stride_qn)[:, None, None] + (q_offset + rest))
            q_rest = tl.reshape(q_rest, [BQ * GP, DR])
            s = tl.dot(k_rest, tl.trans(q_rest), s, input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - lse[None, :])
        if masked:
            last = start + tl.load(Queries + tl.minimum(place, count - 1))
            p = tl.where(position[:, None] <= last[None, :], p, 0.0)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
        ds = (p * (dp - delta[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
        if DR > 0:
            dk_rest = tl.dot(ds, q_rest, dk_rest, input_precision=PRECISION)
        dq = tl.trans(tl.dot(tl.trans(k), ds, input_precision=PRECISION))
        add = Dq + (query * stride_dqn)[:, None, None]
        _add(add + (dq_offset + main), dq, real, G, BQ, GP, DK)
        if DR > 0:
            dq_rest = tl.trans(tl.dot(tl.trans(k_rest), ds, input_precision=PRECISION))
            _add(add + (dq_offset + rest), dq_rest, real, G, BQ, GP, DR)

    Dk += batch * stride_dkb + first_key * stride_dks + kv_head * stride_dkh + key * stride_dks
    Dv += batch * stride_dvb + first_key * stride_dvs + kv_head * stride_dvh + key * stride_dvs
    tl.atomic_add(Dk + column, dk * scale, mask=mine[:, None], sem="relaxed")
    tl.atomic_add(Dv + value_column, dv, mask=mine[:, None], sem="relaxed")
    if DR > 0:
        tl.atomic_add(Dk + rest_column, dk_rest * scale, mask=mine[:, None], sem="relaxed")
