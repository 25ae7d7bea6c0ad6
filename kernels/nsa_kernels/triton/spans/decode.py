"""One query a row against all of the row's keys, which lie in tiles anywhere in memory.

The keys of a row are dealt to programs, a run of tiles to each; a second launch merges what they found. All
heads of a group share the keys that a program loads. Tiles stand in tables, so a prefix that many rows share
lies in memory once, and which tiles a row has is nothing that a launch depends on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.spans import TILE, SpanTable
from nsa_kernels.triton.tiles import LOG2E, MIN_DOT

# Programs to a multiprocessor over all rows and KV heads: enough to hide what each of them waits for.
_PROGRAMS = 4
_MOST_SPLITS = 64
_MERGED = 16


@triton.jit
def pointed(address, Like, ALIGNED: tl.constexpr):
    """An address as a pointer to elements as `Like` points to."""
    pointer = address.to(tl.pointer_type(Like.dtype.element_ty))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def partial_kernel(
    Q, K_table, V_table, Sizes, Tails, Lengths, Partial, Stats, scale,
    tiles, splits, stride_qr, stride_qh,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D_K: tl.constexpr, D_V: tl.constexpr,
    K_COLUMNS: tl.constexpr, V_COLUMNS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Grid (splits, H_kv, R). ALIGNED: every address is a multiple of 16 bytes."""
    split, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tail = tl.load(Tails + row)
    grown = tl.load(Lengths + row)
    used = tail + (grown + TILE - 1) // TILE
    run = (used + splits - 1) // splits
    first = split * run
    last = tl.minimum(first + run, used)

    head = tl.arange(0, ROWS)
    k_column, v_column, key = tl.arange(0, K_COLUMNS), tl.arange(0, V_COLUMNS), tl.arange(0, TILE)
    place = Q + row * stride_qr + (group * GROUP + head)[:, None] * stride_qh + k_column[None, :]
    q = tl.load(place, mask=(head < GROUP)[:, None] & (k_column < D_K)[None, :], other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_COLUMNS], tl.float32)
    k_inside, v_inside = (k_column < D_K)[None, :], (v_column < D_V)[None, :]
    k_place = key[:, None] * (KV_HEADS * D_K) + group * D_K + k_column[None, :]
    v_place = key[:, None] * (KV_HEADS * D_V) + group * D_V + v_column[None, :]
    # A tile's keys are asked for while the one before is worked on, and its address one tile earlier still:
    # no load waits for another.
    entry = row * tiles
    more = first < last
    k_start = pointed(tl.load(K_table + entry + first, mask=more, other=0), Q, ALIGNED)
    v_start = pointed(tl.load(V_table + entry + first, mask=more, other=0), Q, ALIGNED)
    size = tl.where(
        first >= tail, grown - (first - tail) * TILE, tl.load(Sizes + entry + first, mask=more, other=0)
    )
    size = tl.where(more, size, 0)
    k = tl.load(k_start + k_place, mask=(key < size)[:, None] & k_inside, other=0.0)
    v = tl.load(v_start + v_place, mask=(key < size)[:, None] & v_inside, other=0.0)
    more = first + 1 < last
    k_address = tl.load(K_table + entry + first + 1, mask=more, other=0)
    v_address = tl.load(V_table + entry + first + 1, mask=more, other=0)
    listed = tl.load(Sizes + entry + first + 1, mask=more, other=0)
    for tile in range(first, last):
        following = tile + 1
        more = following < last
        next_size = tl.where(following >= tail, grown - (following - tail) * TILE, listed)
        next_size = tl.where(more, next_size, 0)
        k_start, v_start = pointed(k_address, Q, ALIGNED), pointed(v_address, Q, ALIGNED)
        next_k = tl.load(k_start + k_place, mask=(key < next_size)[:, None] & k_inside, other=0.0)
        next_v = tl.load(v_start + v_place, mask=(key < next_size)[:, None] & v_inside, other=0.0)
        further = following + 1 < last
        k_address = tl.load(K_table + entry + following + 1, mask=further, other=0)
        v_address = tl.load(V_table + entry + following + 1, mask=further, other=0)
        listed = tl.load(Sizes + entry + following + 1, mask=further, other=0)

        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((key < size)[None, :], scores, float("-inf"))
        best = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - best[:, None])
        fade = tl.exp2(top - best)
        acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * fade + tl.sum(weights, 1)
        top = best
        k, v, size = next_k, next_v, next_size
    at = ((row * KV_HEADS + group) * splits + split).to(tl.int64) * GROUP + head
    tl.store(
        Partial + at[:, None] * D_V + v_column[None, :],
        acc,
        mask=(head < GROUP)[:, None] & (v_column < D_V)[None, :],
    )
    tl.store(Stats + at * 2, top, mask=head < GROUP)
    tl.store(Stats + at * 2 + 1, total, mask=head < GROUP)


@triton.jit
def merge_splits_kernel(
    Partial, Stats, Out, splits,
    GROUP: tl.constexpr, D_V: tl.constexpr, V_COLUMNS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Grid (R * H_kv, GROUP)."""
    pair, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, V_COLUMNS)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([V_COLUMNS], tl.float32)
    for first in range(0, splits, MERGED):
        split = first + tl.arange(0, MERGED)
        at = (pair * splits + split) * GROUP + head
        tops = tl.load(Stats + at * 2, mask=split < splits, other=float("-inf"))
        sums = tl.load(Stats + at * 2 + 1, mask=split < splits, other=0.0)
        best = tl.maximum(top, tl.max(tops, 0))
        finite = tl.where(best > float("-inf"), best, 0.0)
        weights = tl.exp2(tops - finite)
        fade = tl.exp2(top - finite)
        parts = tl.load(
            Partial + at[:, None] * D_V + column[None, :],
            mask=(split < splits)[:, None] & (column < D_V)[None, :],
            other=0.0,
        )
        acc = acc * fade + tl.sum(parts * weights[:, None], 0)
        total = total * fade + tl.sum(sums * weights, 0)
        top = best
    out = tl.where(total > 0, acc / tl.where(total > 0, total, 1.0), 0.0)
    place = Out + (pair * GROUP + head) * D_V + column
    tl.store(place, out.to(Out.dtype.element_ty), mask=column < D_V)


def decode(q: Tensor, table: SpanTable, *, kv_heads: int, v_width: int, scale: float | None) -> Tensor:
    """Attention of q [R, H, D_k] as `nsa_kernels.spans.decode_spans` has it."""
    rows, heads, width = q.shape
    group, tiles = heads // kv_heads, table.k.shape[1]
    scale = width**-0.5 if scale is None else scale
    splits = max(1, min(_splits(rows * kv_heads, q.device), tiles))
    partial = torch.empty(rows, kv_heads, splits, group, v_width, dtype=torch.float32, device=q.device)
    stats = torch.empty(rows, kv_heads, splits, group, 2, dtype=torch.float32, device=q.device)
    out = q.new_empty(rows, heads, v_width)
    columns = {"V_COLUMNS": triton.next_power_of_2(v_width)}
    partial_kernel[splits, kv_heads, rows](
        q,
        table.k,
        table.v,
        table.sizes,
        table.tails,
        table.lengths,
        partial,
        stats,
        scale * LOG2E,
        tiles,
        splits,
        *q.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(MIN_DOT, triton.next_power_of_2(group)),
        D_K=width,
        D_V=v_width,
        K_COLUMNS=max(MIN_DOT, triton.next_power_of_2(width)),
        TILE=TILE,
        ALIGNED=all(kv_heads * size * q.element_size() % 16 == 0 for size in (width, v_width)),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=1,
        **(columns | {"V_COLUMNS": max(MIN_DOT, columns["V_COLUMNS"])}),
    )
    merge_splits_kernel[rows * kv_heads, group](
        partial, stats, out, splits, GROUP=group, D_V=v_width, MERGED=_MERGED, num_warps=1, **columns
    )
    return out


def _splits(pairs: int, device: torch.device) -> int:
    """Programs to each row and KV head: a power of 2, so that batches of other sizes share them."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    )
    return min(_MOST_SPLITS, int(triton.next_power_of_2(max(1, _PROGRAMS * processors // max(1, pairs)))))
