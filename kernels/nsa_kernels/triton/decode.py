"""One new token a row against the cache, in three launches that a CUDA graph can hold.

1. decode_score.py: the compressed and the window branch in splits of the cache, and the scores pooled to
   selection blocks with each split's own maximum as reference;
2. decode_rank.py: the denominators, from these the blocks' importance and the n best of each piece of the cache;
   the two branches merged;
3. decode_attend.py: the n best of all, attention to them, and the gated sum.

The grids follow from the tensors' shapes alone; the lengths are read on the device, and programs past a row's
end return at once. No state stays behind between calls: the counter of the third launch is cleared by the
first.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.triton.configs import config as shipped_config
from nsa_kernels.triton.decode_attend import attend_kernel
from nsa_kernels.triton.decode_rank import rank_kernel
from nsa_kernels.triton.decode_score import score_kernel
from nsa_kernels.triton.tiles import LOG2E, MIN_DOT, split_width
from nsa_kernels.types import Caches, NSAOutput

SEARCH: tuple[Mapping[str, int], ...] = tuple(
    {
        "keys": keys,
        "window_keys": 64,
        "programs": programs,
        "blocks": 128,
        "columns": columns,
        "slots": slots,
        "score_warps": 4,
        "score_stages": stages,
        "rank_warps": rank_warps,
        "attend_warps": attend_warps,
    }
    for keys, programs, stages, columns, slots, rank_warps, attend_warps in (
        (128, 2, 2, 16, 2, 4, 8),
        (64, 4, 2, 16, 2, 4, 8),
        (64, 2, 3, 16, 2, 4, 8),
        (128, 1, 3, 16, 2, 4, 8),
        (64, 4, 3, 16, 1, 4, 4),
        (64, 3, 3, 32, 1, 8, 8),
        (128, 2, 2, 8, 1, 4, 4),
        (128, 2, 2, 16, 4, 4, 8),
        (128, 2, 2, 16, 1, 8, 8),
        (64, 2, 4, 16, 1, 4, 4),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`.

keys: compressed keys to a tile. window_keys: tokens to a tile of the window. programs: of the first launch to
a multiprocessor, at most about. blocks: selection blocks that one program ranks. columns: of the values that
one program merges. slots: selected blocks to a program. The rest: warps and pipeline stages of the three
launches.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a decode is cut into programs: from shapes alone, so that a captured graph stays right as rows
    grow."""

    pieces: int
    """Compressed keys to a selection block, l'/d."""
    tile_blocks: int
    """Selection blocks to a tile of compressed keys."""
    spill: int
    """Blocks beyond its own that a compressed key can overlap."""
    tiles: int
    """Tiles to the whole cache."""
    tile_run: int
    """Tiles to a program."""
    splits: int
    """Programs to a pair, compressed branch."""
    window_run: int
    """Tiles of the window to a program."""
    window_splits: int
    """Programs to a pair, window branch."""
    rank_blocks: int
    """Selection blocks that one program ranks."""
    rank_pieces: int
    """Programs to a pair that rank."""
    slices: int
    """Programs to a pair that merge columns of the values."""
    chunks: int
    """Programs to a pair in the third launch."""


@functools.lru_cache(maxsize=256)
def plan(
    geometry: BlockGeometry,
    size: int,
    pairs: int,
    value_dim: int,
    processors: int,
    items: tuple[tuple[str, int], ...],
) -> Plan:
    """Cuts a decode into programs.

    Args:
        geometry: Block sizes.
        size: Tokens that the cache can hold, S.
        pairs: B * H_kv.
        value_dim: D_v.
        processors: Multiprocessors of the device.
        items: The configuration's items.
    """
    config = dict(items)
    pieces = geometry.select_block // geometry.stride
    shares = geometry.block // geometry.stride
    tile_blocks = max(1, config["keys"] // triton.next_power_of_2(pieces))
    tiles = triton.cdiv(num_blocks(size, geometry), tile_blocks * pieces)
    tile_run = max(1, triton.cdiv(tiles * pairs, config["programs"] * processors))
    window_tiles = triton.cdiv(min(geometry.window, size), config["window_keys"])
    window_run = min(max(1, tile_run * config["keys"] // config["window_keys"]), max(1, window_tiles))
    blocks = max(1, geometry.num_select_blocks(size))
    # Few pieces make the last ranking cheap, short pieces the first.
    rank_blocks = max(config["blocks"], min(512, triton.next_power_of_2(triton.cdiv(blocks, 16))))
    rank_blocks = max(
        min(rank_blocks, triton.next_power_of_2(blocks)), triton.next_power_of_2(geometry.select_count)
    )
    return Plan(
        pieces=pieces,
        tile_blocks=tile_blocks,
        spill=triton.cdiv(shares - 1, pieces),
        tiles=tiles,
        tile_run=tile_run,
        splits=triton.cdiv(tiles, tile_run),
        window_run=window_run,
        window_splits=triton.cdiv(window_tiles, window_run),
        rank_blocks=rank_blocks,
        rank_pieces=triton.cdiv(blocks, rank_blocks),
        slices=triton.cdiv(value_dim, config["columns"]),
        chunks=triton.cdiv(geometry.select_count, config["slots"]),
    )


def decode(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float,
    return_blocks: bool,
    config: Mapping[str, int] | None = None,
) -> NSAOutput:
    """One token a row; arguments and result as in `nsa_kernels.nsa_decode`.

    The shape of the caches is their capacity: what stands past a row's length, or past its complete blocks,
    is never read. Give the whole buffers, not a view that grows with each token, to replay one graph for all
    of them.

    Args:
        q: [B, H, D_k].
        caches: Keys and values; their last dimension contiguous, or they are copied.
        gates: [B, H, 3].
        geometry: Block sizes.
        lengths: Integers [B], at most S.
        scale: Factor on q.k.
        return_blocks: Also return the selected blocks.
        config: Parameters in place of the shipped ones (see `SEARCH`).

    Returns:
        out [B, H, D_v] and blocks int32 [B, H_kv, n] or None.
    """
    q, gates = _rows_contiguous(q), _rows_contiguous(gates)
    k_cmp, v_cmp, k_slc, v_slc, k_win, v_win = (_rows_contiguous(x) for x in caches)
    batch, heads, key_dim = q.shape
    size, kv_heads, value_dim = k_slc.shape[1], k_slc.shape[2], v_slc.shape[3]
    group, pairs = heads // kv_heads, batch * kv_heads
    config = config or shipped_config("decode", max(key_dim, value_dim), q.device)
    p = plan(geometry, size, pairs, value_dim, _processors(q.device), tuple(config.items()))
    out = q.new_empty(batch, heads, value_dim)
    count = geometry.select_count
    blocks = (
        torch.empty(batch, kv_heads, count, dtype=torch.int32, device=q.device) if return_blocks else None
    )
    if batch == 0:
        return NSAOutput(out, blocks)

    next_power = triton.next_power_of_2
    count_p, shares = next_power(count), p.splits + p.window_splits
    slots = min(config["slots"], count_p)
    candidates = next_power(p.rank_pieces) * count_p
    chunks = triton.cdiv(count, slots)
    partial, stats, reference, pooled, base, chunk_partial, chunk_stats, candidate_value = _scratch(
        q.device,
        pairs * shares * group * value_dim,
        pairs * shares * 2 * group,
        pairs * p.tiles * group,
        pairs * p.tiles * (p.spill + 1) * group * p.tile_blocks,
        pairs * group * value_dim,
        pairs * chunks * group * value_dim,
        pairs * chunks * 2 * group,
        pairs * p.rank_pieces * count_p,
        dtype=torch.float32,
    )
    counter, ranked, candidate_block = _scratch(
        q.device,
        pairs,
        pairs * p.rank_pieces * p.rank_blocks,
        pairs * p.rank_pieces * count_p,
        dtype=torch.int32,
    )

    key_main, key_rest = _padded_split(key_dim)
    widths = {
        "G": group,
        "GP": max(MIN_DOT, next_power(group)),
        "DK": key_main,
        "DR": key_rest,
        "DK_END": key_dim,
        "DV": max(MIN_DOT, next_power(value_dim)),
        "DV_END": value_dim,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    sizes = {"BLOCK": geometry.block, "STRIDE": geometry.stride, "PIECES": p.pieces, "SPILL": p.spill}
    windows = {"WINDOW": geometry.window, "WINDOW_SPLITS": p.window_splits, "BW": config["window_keys"]}
    score_kernel[(shares, pairs)](
        q,
        k_cmp,
        v_cmp,
        k_win,
        v_win,
        lengths,
        partial,
        stats,
        reference,
        pooled,
        counter,
        *q.stride()[:2],
        *k_cmp.stride()[:3],
        *v_cmp.stride()[:3],
        *k_win.stride()[:3],
        *v_win.stride()[:3],
        scale * LOG2E,
        kv_heads,
        p.splits,
        p.tiles,
        p.tile_run,
        p.window_run,
        **widths,
        **sizes,
        **windows,
        PP=next_power(p.pieces),
        BJ=p.tile_blocks,
        SHARES=geometry.block // geometry.stride,
        num_warps=config["score_warps"],
        num_stages=config["score_stages"],
    )
    rank_kernel[(p.rank_pieces + p.slices, pairs)](
        gates,
        lengths,
        partial,
        stats,
        reference,
        pooled,
        ranked,
        candidate_value,
        candidate_block,
        base,
        *gates.stride()[:2],
        kv_heads,
        p.splits,
        p.tiles,
        p.tile_run,
        p.window_run,
        p.rank_pieces,
        G=group,
        GROUP=next_power(group),
        DV_END=value_dim,
        **sizes,
        **windows,
        BJ=p.tile_blocks,
        SELECT_BLOCK=geometry.select_block,
        COUNT=count,
        COUNT_P=count_p,
        SPLITS=next_power(max(1, p.splits)),
        WINDOW_SHARES=next_power(p.window_splits),
        BN=p.rank_blocks,
        BK=min(128, p.rank_blocks),
        DS=config["columns"],
        RUN=8,
        num_warps=config["rank_warps"],
    )
    rows = next_power(geometry.select_block)
    attend_kernel[(chunks, pairs)](
        q,
        k_slc,
        v_slc,
        gates,
        lengths,
        candidate_value,
        candidate_block,
        base,
        chunk_partial,
        chunk_stats,
        counter,
        out,
        blocks if blocks is not None else counter,
        *q.stride()[:2],
        *k_slc.stride()[:3],
        *v_slc.stride()[:3],
        *gates.stride()[:2],
        scale * LOG2E,
        kv_heads,
        p.rank_pieces,
        **widths,
        GROUP=next_power(group),
        SELECT_BLOCK=geometry.select_block,
        COUNT=count,
        COUNT_P=count_p,
        CANDIDATES=candidates,
        BN=p.rank_blocks,
        SLOTS=slots,
        LT=max(MIN_DOT // slots, min(rows, max(1, 128 // slots))),
        CHUNKS=chunks,
        CHUNKS_P=next_power(chunks),
        RUN=min(8, next_power(chunks)),
        RETURN_BLOCKS=return_blocks,
        num_warps=config["attend_warps"],
    )
    return NSAOutput(out, blocks)


def _rows_contiguous(x: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _padded_split(width: int) -> tuple[int, int]:
    """`split_width`, with widths that it refuses padded to the next power of 2 by masks."""
    try:
        return split_width(width)
    except ValueError:
        return max(MIN_DOT, triton.next_power_of_2(width)), 0


def _scratch(device: torch.device, *sizes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Parts of one allocation, each aligned to 16 bytes and never empty."""
    aligned = [max(4, -(-size // 4) * 4) for size in sizes]
    whole = torch.empty(sum(aligned), dtype=dtype, device=device)
    return tuple(torch.split(whole, aligned))


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
