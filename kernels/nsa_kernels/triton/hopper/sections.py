"""The keys that a piece of work attends to in each branch, as tiles, for `stream` (Gluon).

Triton (3.6 and 3.7) forgets to carry a number from one round of a loop to the next when it only bounds loops
inside: sections are worked out anew in each round.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nsa_kernels.triton.hopper.parts import blocks_before, piece_at

COMPRESSED = gl.constexpr(0)
WINDOWED = gl.constexpr(1)
FORCED = gl.constexpr(2)


class Source(NamedTuple):
    """Descriptors of a branch's keys and values, and their rows to a batch row."""

    k: Any
    v: Any
    k_pitch: Any
    v_pitch: Any


class Section(NamedTuple):
    """Tiles of keys that a piece of work attends to in a branch; at least one, which may be all masked."""

    begin: Any  # first key of the tile number `apart`; the tiles before that begin with key 0
    apart: Any
    whole: Any  # all rows see the tiles 1 to whole - 1 wholly
    count: Any
    most: Any  # behind the last key that exists for some row


@gluon.jit
def pieces_of(work):
    """How many pieces of work this program owns."""
    return (work.tiles * work.pairs - gl.program_id(0) + gl.num_programs(0) - 1) // gl.num_programs(0)


@gluon.jit
def nth_piece(n, work, SIZES: gl.constexpr):
    """The n-th of them; behind the last there is some other."""
    at = gl.program_id(0) + n * gl.num_programs(0)
    return piece_at(gl.minimum(at, work.tiles * work.pairs - 1), work, SIZES)


@gluon.jit
def section_at(piece, branch, SIZES: gl.constexpr, BN: gl.constexpr):
    """The keys of a branch, whose number may be a constant."""
    first = piece.first
    last = gl.maximum(piece.last, first)
    apart = 0
    if branch == COMPRESSED:
        most = blocks_before(last, SIZES)
        begin = 0
        whole = gl.minimum(blocks_before(first + 1, SIZES), most) // BN
    elif branch == WINDOWED:
        # All rows see the keys from `inner` to `first`. Before it stand BQ - 1 that only the first rows see.
        inner = gl.maximum(first + SIZES.BQ - SIZES.WINDOW, 0)
        most = last
        begin = gl.maximum(inner - BN, 0)
        whole = gl.maximum(first + 1 - begin, 0) // BN
    else:
        # From the block before the first row's own; block 0 apart, if some row stands two blocks behind it.
        own = first // SIZES.SELECT
        last_own = (last - 1) // SIZES.SELECT
        begin = gl.maximum(own - 1, 0) * SIZES.SELECT
        most = last
        apart = gl.where(last_own >= 2, (SIZES.SELECT + BN - 1) // BN, 0)
        whole = 0
        if SIZES.SELECT % BN == 0:
            whole = gl.where((own >= 2) & (own == last_own), apart + (first + 1 - begin) // BN, 0)
    count = apart + (gl.maximum(most - begin, 0) + BN - 1) // BN
    some = last > first
    return Section(
        begin,
        gl.where(some, apart, 0),
        gl.where(some, whole, 0),
        gl.where(some, gl.maximum(count, 1), 1),
        most,
    )


@gluon.jit
def first_key(section, j, BN: gl.constexpr):
    """The first key of tile j."""
    return gl.where(j < section.apart, 0, section.begin - section.apart * BN) + j * BN


@gluon.jit
def seen_by(piece, query, real, branch, SIZES: gl.constexpr):
    """Keys [low, high) that a row sees, besides block 0."""
    position = piece.start + query
    end = position + 1
    low = gl.zeros_like(position)
    if branch == COMPRESSED:
        end = blocks_before(position + 1, SIZES)
    elif branch == WINDOWED:
        low = position - SIZES.WINDOW + 1
    else:
        low = gl.maximum(position // SIZES.SELECT - 1, 0) * SIZES.SELECT
    return low, gl.where(real, end, 0)
