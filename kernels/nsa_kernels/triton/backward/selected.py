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
from nsa_kernels.triton.tiles import MIN_DOT, Grid, queries_per_tile, split_width


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
    chosen = dict(config or shipped("selected_backward", max(width, value_width), q.device))
    queries = queries_per_tile(chosen.pop("BM"), grid)
    size = grid.geometry.select_block
    keys = max(MIN_DOT, min(chosen.pop("BN"), triton.next_power_of_2(size)))
    chunk = chosen.pop("CHUNK")
    lists = query_lists(blocks, grid, chunk=chunk, piece=chosen.pop("PIECE"))
    # A gate as a factor of every probability is a shift of the log-sum-exp. It and delta stand side by side:
    # one copy a row brings both.
    shifts = torch.stack((lse - gates[..., 1].float().log2(), dgates[..., 1]), -1)
    dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
    dv = torch.zeros(v.shape, dtype=torch.float32, device=v.device)
    main, rest = split_width(width)
    if chosen.pop("HALVES") and rest == 0 and main > MIN_DOT:
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
        SIZE=size,
        CHUNK=chunk,
        G=grid.group,
        GP=grid.padded_group,
        BQ=max(queries, MIN_DOT // grid.padded_group),
        BN=keys,
        DK=main,
        DR=rest,
        DV=value_width,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **chosen,
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
    q,
    k,
    v,
    dout,
    shifts,
    dq,
    dk,
    dv,
    queries,
    cells,
    firsts,
    counts,
    starts,
    ends,
    q_b,
    q_n,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    dout_b,
    dout_n,
    dout_h,
    dq_b,
    dq_n,
    dq_h,
    dk_b,
    dk_s,
    dk_h,
    dv_b,
    dv_s,
    dv_h,
    length,
    heads,
    kv_heads,
    chunks,
    blocks,
    scale_log2,
    scale,
    PACKED: tl.constexpr,
    SIZE: tl.constexpr,
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
    count = tl.load(counts + tl.program_id(0))
    if count == 0:
        return
    cell = tl.load(cells + tl.program_id(0))
    queries += tl.load(firsts + tl.program_id(0))
    block = cell % blocks
    chunk = (cell // blocks) % chunks
    head = (cell // (blocks * chunks) % kv_heads).to(tl.int64)
    b = (cell // (blocks * chunks * kv_heads)).to(tl.int64)
    start = tl.load(starts + b) + chunk * CHUNK
    end = tl.minimum(tl.load(ends + b), tl.load(starts + b) + length)  # no query sees what stands behind

    first_query = chunk.to(tl.int64) * CHUNK
    q += b * q_b + first_query * q_n + head * G * q_h
    dout += b * dout_b + first_query * dout_n + head * G * dout_h
    shifts += ((b * length + first_query) * heads + head * G) * 2
    dq += b * dq_b + first_query * dq_n + head * G * dq_h

    inside = tl.program_id(1) * BN + tl.arange(0, BN)
    position = block * SIZE + inside
    mine = (inside < SIZE) & (position < end)
    # Keys that are not this program's stand behind every query: the causal mask takes them out.
    position = tl.where(mine, position, 2147483647)
    first_key = block.to(tl.int64) * SIZE
    k += b * k_b + first_key * k_s + head * k_h
    v += b * v_b + first_key * v_s + head * v_h
    key = inside[:, None]
    column = tl.arange(0, DK)[None, :]
    value_column = tl.arange(0, DV)[None, :]
    keys = tl.load(k + key * k_s + column, mask=mine[:, None], other=0.0)
    values = tl.load(v + key * v_s + value_column, mask=mine[:, None], other=0.0)
    key_grad = tl.zeros([BN, DK], tl.float32)
    value_grad = tl.zeros([BN, DV], tl.float32)
    if DR > 0:
        rest_column = DK + tl.arange(0, DR)[None, :]
        rest_keys = tl.load(k + key * k_s + rest_column, mask=mine[:, None], other=0.0)
        rest_grad = tl.zeros([BN, DR], tl.float32)

    # Pointers in three axes: the compiler then sees that a thread's heads and columns lie at fixed distances.
    # In two, rows and columns, it kept an offset for each and spilled them.
    h = tl.arange(0, GP)
    if G < GP:
        h = tl.minimum(h, G - 1)  # rows that stand for nothing repeat one that does, and count for nothing
    wide_h = h
    if PACKED:  # known to the compiler, these strides cost no registers
        q_h = DK + DR
        dq_h = DK + DR
        dout_h = DV
    else:
        wide_h = h.to(tl.int64)
    main = tl.arange(0, DK)[None, None, :]
    x_offset = (wide_h * q_h)[None, :, None]
    y_offset = (wide_h * dout_h)[None, :, None] + tl.arange(0, DV)[None, None, :]
    dx_offset = (wide_h * dq_h)[None, :, None]
    if DR > 0:
        rest = DK + tl.arange(0, DR)[None, None, :]
    row = tl.arange(0, BQ * GP)
    # Only a chunk with queries before the block's end needs the causal mask: it has keys behind a query, or
    # behind the row's end.
    masked = (start < (block + 1) * SIZE) | (SIZE % BN != 0)
    for first in range(0, count, BQ):
        place = first + row // GP
        one = tl.load(queries + tl.minimum(first + tl.arange(0, BQ), count - 1))
        x = tl.load(q + (one * q_n)[:, None, None] + (x_offset + main))
        y = tl.load(dout + (one * dout_n)[:, None, None] + y_offset)
        pair = ((one * heads)[:, None] + h[None, :]) * 2
        pair = tl.load(shifts + pair[:, :, None] + tl.arange(0, 2)[None, None, :])
        x = tl.reshape(x, [BQ * GP, DK])
        y = tl.reshape(y, [BQ * GP, DV])
        shift, mean = tl.split(tl.reshape(pair, [BQ * GP, 2]))
        real = (place < count) & (row % GP < G)
        shift = tl.where(real, shift, float("inf"))

        s = tl.dot(keys, tl.trans(x), input_precision=PRECISION)
        if DR > 0:
            z = tl.load(q + (one * q_n)[:, None, None] + (x_offset + rest))
            z = tl.reshape(z, [BQ * GP, DR])
            s = tl.dot(rest_keys, tl.trans(z), s, input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - shift[None, :])
        if masked:
            last = start + tl.load(queries + tl.minimum(place, count - 1))
            p = tl.where(position[:, None] <= last[None, :], p, 0.0)
        dp = tl.dot(values, tl.trans(y), input_precision=PRECISION)
        value_grad = tl.dot(p.to(y.dtype), y, value_grad, input_precision=PRECISION)
        ds = (p * (dp - mean[None, :])).to(x.dtype)
        key_grad = tl.dot(ds, x, key_grad, input_precision=PRECISION)
        if DR > 0:
            rest_grad = tl.dot(ds, z, rest_grad, input_precision=PRECISION)
        dx = tl.trans(tl.dot(tl.trans(keys), ds, input_precision=PRECISION))
        add = dq + (one * dq_n)[:, None, None]
        _add(add + (dx_offset + main), dx, real, G, BQ, GP, DK)
        if DR > 0:
            dz = tl.trans(tl.dot(tl.trans(rest_keys), ds, input_precision=PRECISION))
            _add(add + (dx_offset + rest), dz, real, G, BQ, GP, DR)

    dk += b * dk_b + first_key * dk_s + head * dk_h + key * dk_s
    dv += b * dv_b + first_key * dv_s + head * dv_h + key * dv_s
    tl.atomic_add(dk + column, key_grad * scale, mask=mine[:, None], sem="relaxed")
    tl.atomic_add(dv + value_column, value_grad, mask=mine[:, None], sem="relaxed")
    if DR > 0:
        tl.atomic_add(dk + rest_column, rest_grad * scale, mask=mine[:, None], sem="relaxed")
