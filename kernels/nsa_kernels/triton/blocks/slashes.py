"""Lists of a vertical-slash choice: runs of 64 keys along the chosen diagonals, and the columns beside them.

A run follows from the end of the one before it, so a program walks along its tile's runs, one look-up a run:
the largest chosen offset below a bound stands in a table. The columns are then looked up in the runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.tiles import wide

_COLUMNS = 128


def slash_lists(
    below: Tensor, columns: Tensor, *, tiles: int, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs and columns of every tile of `block` queries.

    Args:
        below: int32 [B, H, N + block + 1]: the largest chosen offset below x, -1 for none.
        columns: int32 [B, H, V]: chosen columns, ascending.
        tiles: T.
        block: Queries to a tile and keys to a run.

    Returns:
        firsts [B, H, T, T + 1], counts [B, H, T], columns [B, H, T, V] and their counts [B, H, T], all int32.
    """
    batch, heads, reach = below.shape
    width, found = tiles + 1, columns.shape[-1]
    firsts = torch.empty(batch, heads, tiles, width, dtype=torch.int32, device=below.device)
    counts = torch.empty(batch, heads, tiles, dtype=torch.int32, device=below.device)
    beside = torch.empty(batch, heads, tiles, found, dtype=torch.int32, device=below.device)
    beside_counts = torch.empty_like(counts)
    grid = (tiles, batch * heads)
    launch(runs_kernel, grid)(
        below.contiguous(), firsts, counts, reach, width, BLOCK=block, num_warps=1, num_stages=1
    )
    launch(columns_kernel, grid)(
        columns.contiguous(),
        firsts,
        counts,
        beside,
        beside_counts,
        width,
        found,
        BLOCK=block,
        COLUMNS=_COLUMNS,
        num_warps=1,
        num_stages=1,
    )
    return firsts, counts, beside, beside_counts


@triton.jit(do_not_specialize=("reach", "width"))
def runs_kernel(Below, Firsts, Counts, reach, width, BLOCK: tl.constexpr):
    """Grid (T, B * H)."""
    tile, pair = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0)
    bottom = (tile + 1) * BLOCK
    below = Below + wide(pair) * reach
    listed = wide(pair) * tiles + tile
    list_at = Firsts + listed * width
    offset = tl.load(below + bottom)
    # Nothing has been opened yet: any run is further than the next one of this.
    end = -2 * BLOCK
    count = 0
    while offset >= 0:
        wanted = tl.maximum(bottom - offset, BLOCK)
        opened = wanted > end + BLOCK
        end = tl.where(opened, wanted, end + BLOCK)
        tl.store(list_at + count, end - BLOCK)
        count += 1
        ahead = bottom - end
        offset = tl.load(below + tl.maximum(ahead, 0), mask=ahead > 0, other=-1)
    tl.store(Counts + listed, count)


@triton.jit(do_not_specialize=("width", "found"))
def columns_kernel(
    Columns, Firsts, Counts, Beside, Beside_counts, width, found, BLOCK: tl.constexpr, COLUMNS: tl.constexpr
):
    """Grid (T, B * H)."""
    tile, pair = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0)
    listed = wide(pair) * tiles + tile
    count = tl.load(Counts + listed)
    list_at = Firsts + listed * width
    kept = 0
    for at in tl.range(0, found, COLUMNS):
        place = at + tl.arange(0, COLUMNS)
        column = tl.load(Columns + wide(pair) * found + place, mask=place < found, other=1 << 30)
        # Bisection: the last run that begins at or before the column.
        floor = tl.full([COLUMNS], -1, tl.int32)
        roof = tl.zeros([COLUMNS], tl.int32) + count
        rounds = count
        while rounds > 0:
            middle = (floor + roof) // 2
            open_ = roof - floor > 1
            first = tl.load(list_at + middle, mask=open_ & (middle >= 0), other=0)
            before = first <= column
            floor = tl.where(open_ & before, middle, floor)
            roof = tl.where(open_ & (first > column), middle, roof)
            rounds = rounds // 2
        first = tl.load(list_at + floor, mask=floor >= 0, other=-BLOCK)
        beside = (column >= first + BLOCK) & (column < (tile + 1) * BLOCK)
        order = tl.cumsum(beside.to(tl.int32), 0)
        tl.store(Beside + listed * found + kept + order - 1, column, mask=beside)
        kept += tl.sum(beside.to(tl.int32), 0)
    tl.store(Beside_counts + listed, kept)
