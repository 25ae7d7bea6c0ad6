"""Which queries chose a selection block: the chosen blocks turned around, in memory O(N * n).

The queries are cut in chunks. A *cell* is one (row, KV head, chunk, block), and each cell has the list of the
chunk's queries that chose the block. Lists are cut in pieces of bounded length, and the pieces stand in one
list of work, cells in order: work that is close in the list reads the same chunk.

The order of the queries in a list is not fixed (it is that of integer atomics); its members are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.triton.tiles import Grid

_ENTRIES = 1024
"""Entries of the chosen blocks to a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLists:
    """The lists, and their pieces as a list of work whose length is known on the host.

    Cell ((b * H_kv + h) * chunks + chunk) * blocks + j.
    """

    chunks: int
    """Chunks of queries in a row."""
    blocks: int
    """Selection blocks that any query can choose."""
    queries: Tensor
    """The lists, one behind the other, int32 [B * N * H_kv * n]; a query counts from its chunk's start."""
    cells: Tensor
    """Cell of each piece, int32 [pieces]; undefined where the piece is empty."""
    firsts: Tensor
    """Where the piece starts in `queries`, int64 [pieces]; undefined where it is empty."""
    counts: Tensor
    """Queries in the piece, int32 [pieces]; the empty ones, with 0, come last."""


def query_lists(blocks: Tensor, grid: Grid, *, chunk: int, piece: int) -> QueryLists:
    """Lists the queries that chose each block.

    Args:
        blocks: Chosen blocks int32 [B, N, H_kv, n], -1 = unused; none twice for a query.
        grid: The call.
        chunk: Queries to a chunk.
        piece: Longest piece of a list.

    Returns:
        The lists and the work.
    """
    blocks = blocks.contiguous()
    device = blocks.device
    chunks, num_blocks = triton.cdiv(grid.queries, chunk), grid.geometry.num_select_blocks(grid.longest)
    cells = grid.batch * grid.kv_heads * chunks * num_blocks
    pieces = min(_reached(grid, chunk, chunks, num_blocks) + blocks.numel() // piece, blocks.numel())
    lengths = torch.zeros(cells, dtype=torch.int32, device=device)
    ranks = torch.empty_like(blocks)
    entries = blocks[0].numel()
    programs = (triton.cdiv(entries, _ENTRIES), grid.batch)
    sizes = (entries, grid.kv_heads, chunks, num_blocks)
    options = {"COUNT": blocks.shape[-1], "CHUNK": chunk, "ENTRIES": _ENTRIES}
    _rank_kernel[programs](blocks, lengths, ranks, *sizes, **options)
    lists = QueryLists(
        chunks=chunks,
        blocks=num_blocks,
        queries=torch.empty(blocks.numel(), dtype=torch.int32, device=device),
        cells=torch.empty(pieces, dtype=torch.int32, device=device),
        firsts=torch.empty(pieces, dtype=torch.int64, device=device),
        counts=torch.zeros(pieces, dtype=torch.int32, device=device),
    )
    _fill_kernel[programs](
        blocks,
        lengths,
        ranks,
        lengths.cumsum(0),
        ((lengths + (piece - 1)) // piece).cumsum(0),
        lists.queries,
        lists.cells,
        lists.firsts,
        lists.counts,
        *sizes,
        PIECE=piece,
        **options,
    )
    return lists


def _reached(grid: Grid, chunk: int, chunks: int, num_blocks: int) -> int:
    """Cells that may have queries: where the rows' start is known, those of blocks that begin in time."""
    if grid.padded:
        return grid.batch * grid.kv_heads * chunks * num_blocks
    start = grid.longest - grid.queries
    ends = (start + min(first + chunk, grid.queries) for first in range(0, grid.queries, chunk))
    return grid.batch * grid.kv_heads * sum(grid.geometry.num_select_blocks(end) for end in ends)


@triton.jit
def _entries(
    Blocks,
    entries,
    kv_heads,
    chunks,
    num_blocks,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Offsets of this program's entries, their queries and their cells, and which of them count."""
    batch = tl.program_id(1)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    offset = batch.to(tl.int64) * entries + entry
    block = tl.load(Blocks + offset, mask=entry < entries, other=-1)
    kv_head = (entry // COUNT) % kv_heads
    query = entry // (COUNT * kv_heads)
    cell = ((batch * kv_heads + kv_head) * chunks + query // CHUNK) * num_blocks + block
    return offset, query, cell, (block >= 0) & (block < num_blocks)


@triton.jit
def _rank_kernel(
    Blocks,
    Lengths,
    Ranks,
    entries,
    kv_heads,
    chunks,
    num_blocks,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Counts each cell's queries and gives each entry a place in its cell's list."""
    offset, _, cell, used = _entries(Blocks, entries, kv_heads, chunks, num_blocks, COUNT, CHUNK, ENTRIES)
    rank = tl.atomic_add(Lengths + cell, 1, mask=used, sem="relaxed")
    tl.store(Ranks + offset, rank, mask=used)


@triton.jit
def _fill_kernel(
    Blocks,
    Lengths,
    Ranks,
    List_ends,
    Piece_ends,
    Queries,
    Cells,
    Firsts,
    Counts,
    entries,
    kv_heads,
    chunks,
    num_blocks,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """Writes the lists; the entry at the head of a piece writes the piece's work as well."""
    offset, query, cell, used = _entries(Blocks, entries, kv_heads, chunks, num_blocks, COUNT, CHUNK, ENTRIES)
    rank = tl.load(Ranks + offset, mask=used, other=1)
    length = tl.load(Lengths + cell, mask=used, other=0)
    place = tl.load(List_ends + cell, mask=used, other=0) - length + rank
    tl.store(Queries + place, query % CHUNK, mask=used)
    heads = used & (rank % PIECE == 0)
    pieces = (length + PIECE - 1) // PIECE
    work = tl.load(Piece_ends + cell, mask=heads, other=0) - pieces + rank // PIECE
    tl.store(Cells + work, cell, mask=heads)
    tl.store(Firsts + work, place, mask=heads)
    tl.store(Counts + work, tl.minimum(length - rank, PIECE), mask=heads)
