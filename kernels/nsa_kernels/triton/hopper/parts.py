"""What a kernel for Hopper is made of (Gluon): rings of tiles in shared memory, and rows of packed queries.

Tiles pass from a copying warp, the *producer*, to computing warpgroups, the *consumers*, through a ring of
slots. Tile number `it`, counted over the life of the program, uses slot it % SLOTS, whose use number
it // SLOTS it is. A slot has two barriers: `full` completes a phase when a copy has landed, `empty` when all
consumers have left the slot. The phase of use r has parity r & 1. Consumers wait for that of `full`; the
producer waits for the one before of `empty`, which a new barrier counts as complete. So neither is ever two
phases ahead of the other.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.language.nvidia.hopper.tma import async_copy_global_to_shared
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nsa_kernels.triton.hopper import conditions
from nsa_kernels.triton.hopper.conditions import pitch

ROWS = gl.constexpr(conditions.ROWS)
CONSUMERS = gl.constexpr(conditions.CONSUMERS)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Constants of a call: those of a packed tile (see `tiles`), and of the geometry."""

    G: int
    BQ: int
    BLOCK: int
    STRIDE: int
    SELECT: int
    WINDOW: int


# ---- layouts


@gluon.constexpr_function
def shared_layout():
    """Of rows of 128 or 256 bytes in shared memory, as bulk copies leave them and products take them."""
    return gl.NVMMASharedLayout(128, 16, 2)


@gluon.constexpr_function
def product_layout(width):
    """Of a warpgroup's product [64, width]."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


@gluon.constexpr_function
def row_layout(width):
    """Of rows that a warpgroup loads or stores, 16 bytes a thread."""
    lanes = width // 8
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])


@gluon.constexpr_function
def heads_layout():
    """As `shared_layout`, of rows that are the heads of neighbouring queries [1, queries, heads, D]."""
    return gl.NVMMASharedLayout(128, 16, 4)


# ---- rings


class Ring(NamedTuple):
    """Where tiles pass from the producer to the consumers."""

    slots: Any  # shared memory, SLOTS tiles
    full: Any  # barriers [SLOTS]
    empty: Any


def matrix_descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """The matrix of `pitch`, from which tiles of `rows` tokens of one head are copied in bulk."""
    batch, count, heads, width = x.shape
    shape = [(batch - 1) * pitch(x) + count, heads * width]
    return TensorDescriptor(x, shape, [x.stride(1), 1], [rows, width], shared_layout())


def heads_descriptor(x: Tensor, queries: int, heads: int) -> TensorDescriptor:
    """A tensor [B, N, H, D], of which `heads` of `queries` tokens are copied in bulk as rows of one tile."""
    block = [1, queries, heads, x.shape[-1]]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, heads_layout())


@gluon.jit
def make_ring(source, SLOTS: gl.constexpr, READERS: gl.constexpr):
    """An empty ring for tiles of a descriptor's shape; a fence has to follow before anyone uses it."""
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=READERS)
    shape: gl.constexpr = [SLOTS] + source.block_type.shape  # noqa: RUF005 - Triton unpacks no lists
    slots = gl.allocate_shared_memory(source.dtype, shape, source.layout)
    return Ring(slots, full, empty)


@gluon.jit
def copy(ring, it, source, at):
    """Producer: starts the copy of tile number `it` once all consumers have left its slot."""
    SLOTS: gl.constexpr = ring.slots.shape[0]
    slot = it % SLOTS
    mbarrier.wait(ring.empty.index(slot), (it // SLOTS) & 1 ^ 1)
    full = ring.full.index(slot)
    mbarrier.expect(full, source.block_type.nbytes)
    async_copy_global_to_shared(source, at, full, ring.slots.index(slot))


@gluon.jit
def landed(ring, it):
    """Consumer: the slot of tile number `it`, once its copy is complete."""
    SLOTS: gl.constexpr = ring.slots.shape[0]
    mbarrier.wait(ring.full.index(it % SLOTS), (it // SLOTS) & 1)
    return ring.slots.index(it % SLOTS)


@gluon.jit
def leave(ring, it):
    """Consumer: has read tile number `it`."""
    mbarrier.arrive(ring.empty.index(it % ring.slots.shape[0]), count=1)


# ---- rows of queries


class Work(NamedTuple):
    """The pieces of work of a call: tiles * heads of them."""

    Starts: Any
    Ends: Any
    queries: Any
    kv_heads: Any
    tiles: Any  # of one group's queries
    pairs: Any  # B * H_kv


class Piece(NamedTuple):
    """A packed tile of queries of one group: a piece of work."""

    tile: Any
    batch: Any
    kv_head: Any
    start: Any  # position of query 0
    end: Any
    first: Any  # position of the tile's first query
    last: Any  # and behind its last; at or before the first where none is real


@gluon.jit
def piece_at(at, work, SIZES: gl.constexpr):
    """Piece of work number `at`; long ones go first."""
    tile = work.tiles - 1 - at // work.pairs
    batch = at % work.pairs // work.kv_heads
    start = gl.load(work.Starts + batch)
    end = gl.load(work.Ends + batch)
    first = start + tile * SIZES.BQ
    last = gl.minimum(gl.minimum(first + SIZES.BQ, start + work.queries), end)
    return Piece(tile, batch, at % work.pairs % work.kv_heads, start, end, first, last)


@gluon.jit
def blocks_before(tokens, SIZES: gl.constexpr):
    """As `tiles.blocks_before`, which has no layouts."""
    return gl.where(tokens >= SIZES.BLOCK, (tokens - SIZES.BLOCK) // SIZES.STRIDE + 1, 0)


@gluon.jit
def rows_of(piece, queries, FIRST: gl.constexpr, SIZES: gl.constexpr, layout: gl.constexpr):
    """Rows FIRST .. FIRST + 63 of the tile: row, query, whether it exists, whether it is real."""
    row = FIRST + gl.arange(0, ROWS, layout=layout)
    query = piece.tile * SIZES.BQ + row // SIZES.G
    exists = query < queries
    return row, query, exists, exists & (piece.start + query < piece.end)
