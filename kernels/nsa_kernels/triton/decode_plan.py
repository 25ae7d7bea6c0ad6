"""How a decode is cut into programs, and the scratch memory that passes between its launches."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.triton.configs import config as shipped_config
from nsa_kernels.triton.tiles import MIN_DOT, processors, split_width


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
    values: int
    """Columns of the values to a program of the third launch."""
    value_slices: int
    """Programs to a pair in the third launch."""


@functools.lru_cache(maxsize=256)
def plan(
    geometry: BlockGeometry,
    size: int,
    pairs: int,
    value_dim: int,
    group: int,
    count: int,
    items: tuple[tuple[str, int], ...],
) -> Plan:
    """Cuts a decode into programs.

    Args:
        geometry: Block sizes.
        size: Tokens that the cache can hold, S.
        pairs: B * H_kv.
        value_dim: D_v.
        group: G.
        count: Multiprocessors of the device.
        items: The configuration's items.
    """
    config = dict(items)
    pieces = geometry.select_block // geometry.stride
    shares = geometry.block // geometry.stride
    keys = min(config["keys"], max(MIN_DOT, config["keys"] * 32 // max(32, triton.next_power_of_2(group))))
    tile_blocks = max(1, keys // triton.next_power_of_2(pieces))
    tiles = triton.cdiv(num_blocks(size, geometry), tile_blocks * pieces)
    tile_run = max(1, triton.cdiv(tiles * pairs, config["programs"] * count))
    window_tiles = triton.cdiv(min(geometry.window, size), config["window_keys"])
    window_run = min(max(1, tile_run * keys // config["window_keys"]), max(1, window_tiles))
    blocks = max(1, geometry.num_select_blocks(size))
    # Few pieces make the last ranking cheap, short pieces the first.
    rank_blocks = max(config["blocks"], min(512, triton.next_power_of_2(triton.cdiv(blocks, 16))))
    rank_blocks = max(
        min(rank_blocks, triton.next_power_of_2(blocks)), triton.next_power_of_2(geometry.select_count)
    )
    # Narrow slices while there are processors to spare: each slice reads all selected keys.
    width = max(MIN_DOT, triton.next_power_of_2(value_dim))
    values = min(width, max(MIN_DOT, config["values"]))
    while values < width and pairs * triton.cdiv(value_dim, values) > count:
        values *= 2
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
        values=values,
        value_slices=triton.cdiv(value_dim, values),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One call's plan, outputs and scratch, and the constants of its kernels."""

    plan: Plan
    config: Mapping[str, int]
    pairs: int
    out: Tensor
    blocks: Tensor | None
    partial: Tensor
    """float32, `splits + window_splits` shares to a pair, the window's first (see decode_tile.py)."""
    stats: Tensor
    reference: Tensor
    """float32 [pair, tile, G]: the m that a tile's pooled scores refer to."""
    pooled: Tensor
    """float32 [pair, tile, spill + 1, G, tile_blocks]."""
    base: Tensor
    """float32 [pair, G, D_v]: the compressed and the window branch, gated."""
    candidate_value: Tensor
    """float32 [pair, piece, n padded]: importance of each piece's best blocks, best first."""
    candidate_block: Tensor
    """int32, their indices."""
    ranked: Tensor
    """int32 [pair, blocks]: bits of the importance, where a piece is ranked in parts."""
    score: dict[str, Any]
    """Constants of the first launch."""
    rank: dict[str, Any]
    attend: dict[str, Any]


def prepare(
    q: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    geometry: BlockGeometry,
    return_blocks: bool,
    config: Mapping[str, int] | None,
) -> Work:
    """Plans a call and allocates its memory."""
    batch, heads, key_dim = q.shape
    size, kv_heads, value_dim = k_slc.shape[1], k_slc.shape[2], v_slc.shape[3]
    group, pairs = heads // kv_heads, batch * kv_heads
    config = config or shipped_config("decode", max(key_dim, value_dim), q.device)
    p = plan(geometry, size, pairs, value_dim, group, processors(q.device), tuple(config.items()))

    next_power = triton.next_power_of_2
    count, rows, padded_group = geometry.select_count, next_power(geometry.select_block), next_power(group)
    count_p, shares, splits = next_power(count), p.splits + p.window_splits, next_power(max(1, p.splits))
    tile_rows = max(MIN_DOT, 128 * 32 // max(32, padded_group))
    # What a program holds of partials at a time: 64 values a thread.
    held = 8192 // (padded_group * config["columns"])
    candidates = next_power(p.rank_pieces) * count_p
    wide = padded_group > 32 or p.rank_blocks > 256
    rank_warps = 8 if wide else config["rank_warps"]
    attend_warps = 8 if padded_group > 32 else config["attend_warps"]
    partial, stats, reference, pooled, base, candidate_value = scratch(
        q.device,
        pairs * shares * group * value_dim,
        pairs * shares * 2 * group,
        pairs * p.tiles * group,
        pairs * p.tiles * (p.spill + 1) * group * p.tile_blocks,
        pairs * group * value_dim,
        pairs * p.rank_pieces * count_p,
        dtype=torch.float32,
    )
    ranked, candidate_block = scratch(
        q.device,
        pairs * p.rank_pieces * p.rank_blocks,
        pairs * p.rank_pieces * count_p,
        dtype=torch.int32,
    )
    key_main, key_rest = padded_split(key_dim)
    widths = {
        "G": group,
        "GP": max(MIN_DOT, padded_group),
        "DK": key_main,
        "DR": key_rest,
        "DK_END": key_dim,
        "DV": max(MIN_DOT, next_power(value_dim)),
        "DV_END": value_dim,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    cut = {
        "BLOCK": geometry.block,
        "STRIDE": geometry.stride,
        "PIECES": p.pieces,
        "SHARES": geometry.block // geometry.stride,
        "SPILL": p.spill,
        "BJ": p.tile_blocks,
        "WINDOW": geometry.window,
        "WINDOW_SPLITS": p.window_splits,
        "BW": config["window_keys"],
    }
    selection = {
        "SELECT_BLOCK": geometry.select_block,
        "COUNT": count,
        "COUNT_P": count_p,
        "BN": p.rank_blocks,
    }
    overlap = bool(config.get("overlap", 0)) and q.is_cuda
    pdl = {"launch_pdl": True} if overlap else {}
    score = {**widths, **cut, "PP": next_power(p.pieces), "OVERLAP": overlap}
    rank = {
        **cut,
        **selection,
        "G": group,
        "GROUP": padded_group,
        "DV_END": value_dim,
        "SPLITS": splits,
        "WINDOW_SHARES": next_power(p.window_splits),
        "BK": min(128, p.rank_blocks),
        "DS": config["columns"],
        "RUN": min(splits, max(1, held)),
        "RUN_W": min(next_power(p.window_splits), max(1, held // 4)),
        "OVERLAP": overlap,
        **pdl,
    }
    attend = {
        **{name: value for name, value in widths.items() if name != "DV"},
        **selection,
        "VALUES": p.values,
        "CANDIDATES": candidates,
        "BK": candidates if candidates <= 256 else 64,
        "LT": max(MIN_DOT, min(rows, tile_rows)),
        "RETURN_BLOCKS": return_blocks,
        "OVERLAP": overlap,
        **pdl,
    }
    blocks = (
        torch.empty(batch, kv_heads, count, dtype=torch.int32, device=q.device) if return_blocks else None
    )
    return Work(
        plan=p,
        config=config,
        pairs=pairs,
        out=q.new_empty(batch, heads, value_dim),
        blocks=blocks,
        partial=partial,
        stats=stats,
        reference=reference,
        pooled=pooled,
        base=base,
        candidate_value=candidate_value,
        candidate_block=candidate_block,
        ranked=ranked,
        score={**score, "num_warps": config["score_warps"], "num_stages": config["score_stages"]},
        rank={**rank, "num_warps": rank_warps},
        attend={**attend, "num_warps": attend_warps, "num_stages": config["attend_stages"]},
    )


def rows_contiguous(x: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def padded_split(width: int) -> tuple[int, int]:
    """`split_width`, with widths that it refuses padded to the next power of 2 by masks."""
    try:
        return split_width(width)
    except ValueError:
        return max(MIN_DOT, triton.next_power_of_2(width)), 0


def scratch(device: torch.device, *sizes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Parts of one allocation, each aligned to 16 bytes and never empty."""
    aligned = [max(4, -(-size // 4) * 4) for size in sizes]
    whole = torch.empty(sum(aligned), dtype=dtype, device=device)
    return tuple(torch.split(whole, aligned))
