"""How a decode is cut into programs, and the scratch memory that passes between its launches."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nsa_kernels.ahead import real_device
from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.tiles import MIN_DOT, bulk_copies, descriptor, precision, processors, split_width

_MOST_PARTIALS = 32
"""Of the window and of the selected branch: the third launch holds them all."""
_MERGE_PROGRAMS = 4
"""Of the third launch to a multiprocessor, about: they hold little and wait for memory."""
_MERGED = 1 << 14
"""Values of partials that a program of it may hold before it takes no more columns."""
_MANY = 300
"""Compressed keys to a multiprocessor from which on reading them takes longer than waiting for them."""
_ENDS = 6
"""What beginning and ending take a program of a stream, in tiles: programs that come in a second round pay it
again."""
_IDLE = 8
"""Where no more than one multiprocessor in so many has a tile to read, tiles are halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a decode is cut into programs: from shapes alone, so that a captured graph stays right as rows
    grow."""

    pieces: int
    """Compressed keys to a selection block, l'/d."""
    tile_blocks: int
    """Selection blocks to a tile of compressed keys."""
    piece_rows: int
    """Rows of a tile to a block."""
    halo_rows: int
    """Rows of a tile's halo to a block."""
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
    stream: bool
    """Whether a program takes its tiles of the compressed branch as stream.py does."""
    ranked: int
    """Selection blocks to the whole cache, padded."""
    rank_tiles: int
    """Tiles whose pooled scores a program of the second launch holds at a time."""
    slots: int
    """Selected blocks to a program of the second launch."""
    runs: int
    """Programs to a pair in the second launch."""
    columns: int
    """Columns of the values to a program of the third launch."""
    slices: int
    """Programs to a pair in the third launch."""

    @property
    def shares(self) -> int:
        """Partials to a pair (see partials.py)."""
        return self.window_splits + self.splits + self.runs


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
    config, next_power = dict(items), triton.next_power_of_2
    pieces = geometry.select_block // geometry.stride
    shares = geometry.block // geometry.stride
    padded_group = next_power(group)
    keys = min(config["keys"], max(MIN_DOT, config["keys"] * 32 // max(32, padded_group)))
    keys_in_all = num_blocks(size, geometry)
    if pairs * triton.cdiv(keys_in_all, keys) <= count // _IDLE:
        keys = max(MIN_DOT, keys // 2)
    tile_blocks = max(1, keys // next_power(max(pieces, shares - 1)))
    # Up to the last block that a key overlaps.
    tiles = triton.cdiv((keys_in_all + shares - 2) // pieces + 1, tile_blocks) if keys_in_all else 0
    window_tiles = triton.cdiv(min(geometry.window, size), config["window_keys"])
    at_once = config["programs"] * count

    def run_of_window(tile_run: int) -> int:
        run = min(max(1, tile_run * keys // config["window_keys"]), max(1, window_tiles))
        return int(max(run, triton.cdiv(window_tiles, _MOST_PARTIALS)))

    def time_in_tiles(tile_run: int) -> int:
        programs = triton.cdiv(tiles, tile_run) + triton.cdiv(window_tiles, run_of_window(tile_run))
        return int(triton.cdiv(programs * pairs, at_once) * (tile_run + _ENDS))

    tile_run = max(1, triton.cdiv(tiles * pairs, at_once))
    # A stream carries a single key from tile to tile, and its tiles have no padded rows.
    fits = shares <= 2 and pieces == next_power(pieces) and pieces <= keys
    stream = bool(config["stream"]) and tile_run > 1 and fits
    if stream and tiles > 1:
        tile_run = min(range(2, tiles + 1), key=time_in_tiles)
    window_run = run_of_window(tile_run)
    # At least a group of blocks for each that is chosen (see `bounds` of choose.py).
    ranked = max(next_power(max(1, geometry.num_select_blocks(size))), tile_blocks, rank_groups(geometry))
    rank_tiles = max(1, config["ranked"] * MIN_DOT // max(MIN_DOT, padded_group) // tile_blocks)
    # One slot a program while there are processors to spare: each program ranks all blocks.
    slots = min(config["slots"], next_power(geometry.select_count))
    most = min(_MOST_PARTIALS, max(1, config["attend_programs"] * count // max(1, pairs)))
    while triton.cdiv(geometry.select_count, slots) > most:
        slots *= 2
    columns, width = config["columns"], next_power(value_dim)
    partials = max(triton.cdiv(window_tiles, window_run), triton.cdiv(geometry.select_count, slots))
    while (
        columns < width
        and pairs * triton.cdiv(value_dim, columns) > _MERGE_PROGRAMS * count
        and 2 * partials * padded_group * columns < _MERGED
    ):
        columns *= 2
    return Plan(
        pieces=pieces,
        tile_blocks=tile_blocks,
        piece_rows=max(next_power(pieces), MIN_DOT // tile_blocks),
        halo_rows=max(next_power(max(1, shares - 1)), MIN_DOT // tile_blocks),
        tiles=tiles,
        tile_run=tile_run,
        splits=triton.cdiv(tiles, tile_run),
        window_run=window_run,
        window_splits=triton.cdiv(window_tiles, window_run),
        stream=stream,
        ranked=ranked,
        rank_tiles=min(rank_tiles, next_power(max(1, tiles))),
        slots=slots,
        runs=triton.cdiv(geometry.select_count, slots),
        columns=columns,
        slices=triton.cdiv(value_dim, columns),
    )


def rank_groups(geometry: BlockGeometry) -> int:
    """Groups of blocks whose maxima bound the n-th largest: a warp's worth, and no fewer than n."""
    return max(32, int(triton.next_power_of_2(geometry.select_count)))


def _shipped(keys: int, width: int, device: torch.device) -> Mapping[str, int]:
    """The configuration for so many compressed keys of all pairs together."""
    many = keys >= _MANY * processors(device)
    return shipped("decode_many" if many else "decode", width, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One call's plan, outputs and scratch, and the constants of its kernels."""

    plan: Plan
    config: Mapping[str, int]
    pairs: int
    out: Tensor
    blocks: Tensor | None
    partial: Tensor
    """float32, `plan.shares` to a pair (see partials.py)."""
    stats: Tensor
    reference: Tensor
    """float32 [pair, tile, G]: the top that a tile's pooled scores refer to."""
    pooled: Tensor
    """float32 [pair, tile, G, tile_blocks]."""
    ranked: Tensor
    """int32 [pair, run, blocks]: bits of the importance; each program reads its own alone."""
    denominators: Tensor
    """float32 [pair, G]: log2-sum-exp of the compressed branch."""
    score: dict[str, Any]
    """Constants of the first launch."""
    attend: dict[str, Any]
    merge: dict[str, Any]


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
    if config is None:
        wide = max(key_dim, value_dim) * q.element_size() // 2  # float32 takes the room of twice the width
        config = _shipped(pairs * num_blocks(size, geometry), wide, q.device)
    p = plan(geometry, size, pairs, value_dim, group, processors(q.device), tuple(config.items()))

    next_power = triton.next_power_of_2
    count, padded_group = geometry.select_count, next_power(group)
    tile_rows = max(MIN_DOT, 128 * 32 // max(32, padded_group))
    wide = 8 if padded_group > 32 else 1
    attend_warps = min(32, max(config["attend_warps"], wide, p.ranked // 1024 if p.ranked > 4096 else 1))
    partial, stats, reference, pooled, denominators = scratch(
        q.device,
        pairs * p.shares * group * value_dim,
        pairs * p.shares * 2 * group,
        pairs * p.tiles * group,
        pairs * p.tiles * group * p.tile_blocks,
        pairs * group,
        dtype=torch.float32,
    )
    (ranked,) = scratch(q.device, pairs * p.runs * p.ranked, dtype=torch.int32)
    key_main, key_rest = padded_split(key_dim)
    overlap = bool(config.get("overlap", 0)) and real_device(q.device).type == "cuda"
    pdl = {"launch_pdl": True} if overlap else {}
    cut = {
        "G": group,
        "DV_END": value_dim,
        "BLOCK": geometry.block,
        "STRIDE": geometry.stride,
        "PIECES": p.pieces,
        "SHARES": geometry.block // geometry.stride,
        "BJ": p.tile_blocks,
        "OVERLAP": overlap,
    }
    widths = {
        "GP": max(MIN_DOT, padded_group),
        "DK": key_main,
        "DR": key_rest,
        "DK_END": key_dim,
        "DV": max(MIN_DOT, next_power(value_dim)),
        "PRECISION": precision(q),
    }
    window = {"WINDOW": geometry.window, "WINDOW_SPLITS": p.window_splits, "BW": config["window_keys"]}
    selection = {"SELECT": geometry.select_block, "COUNT": count, "SLOTS": p.slots}
    score = {
        **cut,
        **widths,
        **window,
        "PP": p.piece_rows,
        "HP": p.halo_rows,
        "ONE_TILE": p.tile_run == 1 and bool(config["early"]),
        "STREAM": p.stream,
    }
    # So many counts, each below the number of blocks, pass between the warps as one number.
    ways = 3 if p.ranked <= 1024 else 2 if p.ranked <= 32768 else 1
    attend = {
        **cut,
        **widths,
        **selection,
        "GROUP": padded_group,
        "SPLITS": next_power(max(1, p.splits)),
        "TILES": p.rank_tiles,
        "PIECEWISE": p.rank_tiles < p.tiles,
        "COUNT_P": next_power(count),
        "NB": p.ranked,
        "GROUPS": rank_groups(geometry),
        "WAYS": ways,
        "WIDTH": 31 // ways,
        "LT": max(MIN_DOT, min(next_power(geometry.select_block), tile_rows)),
        "STAGES": config["attend_stages"],
        "RETURN_BLOCKS": return_blocks,
        **pdl,
    }
    # More warps for more heads: a thread then holds as much of the partials.
    lanes = min(16, config["merge_warps"] * max(1, padded_group // MIN_DOT))
    held = config["merged"] * config["columns"] // p.columns
    merge = {
        **cut,
        **window,
        **selection,
        "GROUP": padded_group,
        "DS": p.columns,
        "LANES": lanes,
        "PART": max(lanes, min(next_power(p.splits), held)),
        "OTHERS": next_power(max(lanes // 2, p.window_splits, p.runs)),
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
        ranked=ranked,
        denominators=denominators,
        score={**score, "num_warps": config["score_warps"], "num_stages": config["score_stages"]},
        attend={**attend, "num_warps": attend_warps},
        merge={**merge, "num_warps": lanes},
    )


def first_grid(plan: Plan, parts: int, pairs: int) -> tuple[int, int]:
    """Of the first launch (see `place_in_grid` of score.py)."""
    return (pairs, parts) if plan.stream else (parts, pairs)


def bulk_tiles(plan: Plan, *compressed: Tensor) -> tuple[TensorDescriptor | None, ...]:
    """Descriptors from which the first launch copies tiles of compressed keys and values; None where it
    loads them by pointers."""
    widths = [x.shape[-1] for x in compressed]
    fit = all(width == max(MIN_DOT, triton.next_power_of_2(width)) for width in widths)
    if not (plan.stream and fit and bulk_copies(*compressed)):
        return (None,) * len(compressed)
    return tuple(descriptor(x, plan.tile_blocks * plan.pieces) for x in compressed)


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
