"""The kernel for Hopper (Gluon): attention as one stream of tiles.

One program to a multiprocessor takes packed tiles of 128 rows in turn, longest first. Its producer, a warp,
copies queries, keys and values in bulk through rings (`parts`). Its two consumers, warpgroups of 64 rows
each, attend: the product of the weights with the values of a tile of keys runs under the softmax of the next
tile, and while one consumer is in its softmax the tensor cores have the other's products. All branches and
pieces of work are one stream of tiles, so that this goes on where one ends and the next begins.

Matrix products are asynchronous as far as ptxas leaves them so. It serialises those that a loop carries from
one round to the next (warning C7514): hence none is in flight at the edge of a loop. And it moves a wait
ahead of arithmetic that does not need it, softmax included, which would leave the product nothing to run
under: hence `_pin`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.language.nvidia.hopper.tma import async_copy_shared_to_global, store_wait

from nsa_kernels.triton.hopper.parts import (
    CONSUMERS,
    ROWS,
    Work,
    copy,
    landed,
    leave,
    make_ring,
    product_layout,
    row_layout,
    rows_of,
    shared_layout,
)
from nsa_kernels.triton.hopper.sections import (
    COMPRESSED,
    Source,
    first_key,
    nth_piece,
    pieces_of,
    section_at,
    seen_by,
)

CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)
"""Of a thread. Three warpgroups start with 168 each (`maxnreg`), 504 in all, and share them out anew."""


@gluon.jit(
    do_not_specialize=(
        "pitch_k1", "pitch_v1", "pitch_k2", "pitch_v2", "queries", "kv_heads", "tiles", "pairs"
    )
)  # fmt: skip
def attention_kernel(
    Q, K1, V1, K2, V2, Out1, Out2, Lse1, Lse2, Starts, Ends, pitch_k1, pitch_v1, pitch_k2, pitch_v2,
    queries, kv_heads, tiles, pairs, scale_log2, SIZES: gl.constexpr, FIRST: gl.constexpr,
    KEY_SLOTS: gl.constexpr, VALUE_SLOTS: gl.constexpr, QUERY_SLOTS: gl.constexpr,
):  # fmt: skip
    """The branch FIRST, and the next one unless it is None.

    A program owns the pieces of work number program, program + programs, ...
    """
    BRANCHES: gl.constexpr = 1 if K2 is None else 2
    gl.static_assert(SIZES.BQ * SIZES.G == CONSUMERS * ROWS)
    gl.static_assert(FIRST == COMPRESSED or K1.block_type.shape[0] >= SIZES.BQ)  # see `section_at`
    keys = make_ring(K1, KEY_SLOTS, CONSUMERS)
    values = make_ring(V1, VALUE_SLOTS, CONSUMERS)
    upper = make_ring(Q, QUERY_SLOTS, 1)
    lower = make_ring(Q, QUERY_SLOTS, 1)
    fence_async_shared()
    upper_out = gl.allocate_shared_memory(Q.dtype, Q.block_type.shape, Q.layout)
    lower_out = gl.allocate_shared_memory(Q.dtype, Q.block_type.shape, Q.layout)
    work = Work(Starts, Ends, queries, kv_heads, tiles, pairs)
    first = Source(K1, V1, pitch_k1, pitch_v1)
    second = first
    outs = (Out1, Out1, Lse1, Lse1)
    if BRANCHES == 2:
        second = Source(K2, V2, pitch_k2, pitch_v2)
        outs = (Out1, Out2, Lse1, Lse2)
    gl.warp_specialize(
        [
            (_consume, (keys, values, upper, upper_out, outs, work, scale_log2, SIZES, FIRST, BRANCHES, 0)),
            (_consume, (keys, values, lower, lower_out, outs, work, scale_log2, SIZES, FIRST, BRANCHES, 1)),
            (_produce, (keys, values, upper, lower, Q, first, second, work, SIZES, FIRST, BRANCHES)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


# ---- producer


@gluon.jit
def _produce(
    keys, values, upper, lower, Q, first, second, work, SIZES: gl.constexpr, FIRST: gl.constexpr,
    BRANCHES: gl.constexpr,
):  # fmt: skip
    """Copies in the order of reading: keys 0, keys 1, values 0, keys 2, values 1, ..., on and on."""
    D: gl.constexpr = keys.slots.shape[2]
    HALF: gl.constexpr = SIZES.BQ // CONSUMERS
    it = 0
    value_row = 0
    value_column = 0
    pieces = pieces_of(work)
    for n in range(pieces):
        piece = nth_piece(n, work, SIZES)
        query = piece.tile * SIZES.BQ
        copy(upper, n, Q, [piece.batch, query, piece.kv_head * SIZES.G, 0])
        copy(lower, n, Q, [piece.batch, query + HALF, piece.kv_head * SIZES.G, 0])
        if BRANCHES == 1:
            it, value_row = _copy_section(
                keys, values, it, piece, first, first, value_row, value_column, FIRST, SIZES
            )
        else:
            it, value_row = _copy_section(
                keys, values, it, piece, first, second, value_row, value_column, FIRST, SIZES
            )
            it, value_row = _copy_section(
                keys, values, it, piece, second, first, value_row, piece.kv_head * D, FIRST + 1, SIZES
            )
        value_column = piece.kv_head * D
    # Consumers look one section ahead: whatever keys it has.
    copy(keys, it, first.k, [0, 0])
    if BRANCHES == 1:
        copy(values, it - 1, first.v, [value_row, value_column])
    else:
        copy(values, it - 1, second.v, [value_row, value_column])


@gluon.jit
def _copy_section(
    keys, values, it, piece, source, before, value_row, value_column, BRANCH: gl.constexpr,
    SIZES: gl.constexpr,
):  # fmt: skip
    """Keys 0, the last values of the section before, keys 1, values 0, ...; its last values are left.

    Returns the tiles of keys copied so far, and the row of the values that are left.
    """
    BN: gl.constexpr = keys.slots.shape[1]
    section = section_at(piece, BRANCH, SIZES, BN)
    column = piece.kv_head * keys.slots.shape[2]
    key_row = piece.batch * source.k_pitch
    copy(keys, it, source.k, [key_row + first_key(section, 0, BN), column])
    if it > 0:
        copy(values, it - 1, before.v, [value_row, value_column])
    value_row = piece.batch * source.v_pitch
    for j in range(1, section.count):
        copy(keys, it + j, source.k, [key_row + first_key(section, j, BN), column])
        copy(values, it + j - 1, source.v, [value_row + first_key(section, j - 1, BN), column])
    return it + section.count, value_row + first_key(section, section.count - 1, BN)


# ---- consumers


@gluon.jit
def _consume(
    keys, values, queries, staging, outs, work, scale_log2, SIZES: gl.constexpr, FIRST: gl.constexpr,
    BRANCHES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Its 64 rows of each piece: a stream of tiles, section after section. `staging` is for what it writes.

    The first scores of a section run, with their softmax, beside the last values of the one before.
    """
    BN: gl.constexpr = keys.slots.shape[1]
    D: gl.constexpr = keys.slots.shape[2]
    pieces = pieces_of(work)
    piece = nth_piece(0, work, SIZES)
    section = section_at(piece, FIRST, SIZES, BN)
    low, high = _seen(piece, FIRST, work, SIZES, HALF, BN)
    q = _rows(landed(queries, 0))
    s = warpgroup_mma_wait(0, (_start_scores(q, landed(keys, 0)),))
    leave(keys, 0)
    p, top, total = _begin(s, section, low, high, scale_log2, SIZES)
    p = _weights(p, values)
    before = 0  # tiles of earlier sections
    for n in range(pieces * BRANCHES):
        section = section_at(piece, FIRST + n % BRANCHES, SIZES, BN)
        q = _rows(landed(queries, n // BRANCHES))
        acc = gl.zeros([ROWS, D], gl.float32, layout=product_layout(D))
        BEHIND: gl.constexpr = FIRST != COMPRESSED and 2 * SIZES.SELECT + 1 < BN
        if BEHIND and section.apart > 0:  # block 0's tile may reach past the last key as well
            _clear(landed(values, before), 0, section.most)
        for j in range(1, section.whole):
            p, acc, top, total = _step(
                p, acc, top, total, q, keys, values, before, section, j, low, high, scale_log2, SIZES, False
            )
        for j in range(gl.maximum(section.whole, 1), section.count):
            p, acc, top, total = _step(
                p, acc, top, total, q, keys, values, before, section, j, low, high, scale_log2, SIZES, True
            )

        before += section.count
        next_number = (n + 1) // BRANCHES
        next_branch = FIRST + (n + 1) % BRANCHES
        v = landed(values, before - 1)
        _clear(v, first_key(section, section.count - 1, BN), section.most)
        if next_branch == FIRST:
            leave(queries, n // BRANCHES)
        q = _rows(landed(queries, gl.minimum(next_number, pieces - 1)))
        s = _start_scores(q, landed(keys, before))
        acc = warpgroup_mma(p, v, acc, is_async=True)
        next_piece = nth_piece(next_number, work, SIZES)
        next_section = section_at(next_piece, next_branch, SIZES, BN)
        low, high = _seen(next_piece, next_branch, work, SIZES, HALF, BN)
        s = warpgroup_mma_wait(1, (s,))
        leave(keys, before)
        next_p, next_top, next_total = _begin(s, next_section, low, high, scale_log2, SIZES)
        next_total = _pin(next_total)
        acc = warpgroup_mma_wait(0, (acc,))
        leave(values, before - 1)
        _store(staging, outs, n % BRANCHES == 0, acc, top, total, piece, work, SIZES, HALF)
        p = _weights(next_p, values)
        top = next_top
        total = next_total
        piece = next_piece
    store_wait(0)


@gluon.jit
def _seen(piece, branch, work, SIZES: gl.constexpr, HALF: gl.constexpr, BN: gl.constexpr):
    """`seen_by` of the consumer's rows [64]."""
    scores: gl.constexpr = gl.SliceLayout(1, product_layout(BN))
    _, query, _, real = rows_of(piece, work.queries, HALF * ROWS, SIZES, scores)
    return seen_by(piece, query, real, branch, SIZES)


@gluon.jit
def _rows(tile):
    """The heads of neighbouring queries in shared memory as 64 rows."""
    return tile._reinterpret(tile.dtype, [ROWS, tile.shape[3]], shared_layout())


@gluon.jit
def _begin(s, section, low, high, scale_log2, SIZES: gl.constexpr):
    """Weights, top and total of a section's first scores."""
    nothing = gl.full([ROWS], float("-inf"), gl.float32, layout=gl.SliceLayout(1, s.type.layout))
    zeros = gl.zeros_like(nothing)
    p, _, top, total = _softmax(s, nothing, zeros, section, 0, low, high, scale_log2, SIZES, True)
    return p, top, total


@gluon.jit
def _step(
    p, acc, top, total, q, keys, values, before, section, j, low, high, scale_log2, SIZES: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of tile j over the product of the weights p of tile j - 1."""
    s = _start_scores(q, landed(keys, before + j))
    acc = warpgroup_mma(p, landed(values, before + j - 1), acc, is_async=True)
    s = warpgroup_mma_wait(1, (s,))
    leave(keys, before + j)
    weights, fade, top, total = _softmax(s, top, total, section, j, low, high, scale_log2, SIZES, MASKED)
    total = _pin(total)
    acc = warpgroup_mma_wait(0, (acc,))
    leave(values, before + (j - 1))  # a sum of its own: that of above would hold a register meanwhile
    acc = acc * gl.convert_layout(fade, gl.SliceLayout(1, acc.type.layout))[:, None]
    return _weights(weights, values), acc, top, total


@gluon.jit
def _start_scores(q, k):
    BN: gl.constexpr = k.shape[0]
    nothing = gl.zeros([ROWS, BN], gl.float32, layout=product_layout(BN))
    return warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)


@gluon.jit
def _softmax(s, top, total, section, j, low, high, scale_log2, SIZES: gl.constexpr, MASKED: gl.constexpr):
    """One step of online softmax, as in `prefill.online`: weights, factor of all before, top, total."""
    BN: gl.constexpr = s.shape[1]
    if MASKED:
        if j < section.apart:  # block 0, for who stands two blocks behind it
            high = gl.where((low >= SIZES.SELECT) & (high > 0), SIZES.SELECT, 0)
            low = gl.zeros_like(low)
        key = gl.arange(0, BN, layout=gl.SliceLayout(0, s.type.layout))
        at = first_key(section, j, BN)
        seen = (key[None, :] >= (low - at)[:, None]) & (key[None, :] < (high - at)[:, None])
        s = gl.where(seen, s * scale_log2, float("-inf"))
        new_top = gl.maximum(top, gl.max(s, 1))
        shift = gl.where(new_top == float("-inf"), 0.0, new_top)
        p = gl.exp2(s - shift[:, None])
    else:
        new_top = gl.maximum(top, gl.max(s, 1) * scale_log2)
        shift = new_top
        p = gl.exp2(s * scale_log2 - shift[:, None])
    fade = gl.exp2(top - shift)
    return p, fade, new_top, total * fade + gl.sum(p, 1)


@gluon.jit
def _weights(p, values):
    """The weights as the left side of the product with the values."""
    layout: gl.constexpr = gl.DotOperandLayout(0, product_layout(values.slots.shape[2]), 2)
    return gl.convert_layout(p.to(values.slots.dtype), layout)


@gluon.jit
def _clear(v, first, most):
    """Zeroes the values of a section's last tile from key `most` on: they may be NaN, with weights of 0.

    Both consumers do, and write the same bytes.
    """
    BN: gl.constexpr = v.shape[0]
    if first + BN > most:
        layout: gl.constexpr = row_layout(v.shape[1])
        x = v.load(layout)
        key = first + gl.arange(0, BN, layout=gl.SliceLayout(1, layout))
        v.store(gl.where((key < most)[:, None], x, gl.zeros_like(x)))
        fence_async_shared()


@gluon.jit
def _store(staging, outs, first, acc, top, total, piece, work, SIZES: gl.constexpr, HALF: gl.constexpr):
    """Writes the rows' output and log-sum-exp; rows that saw nothing get 0 and +inf."""
    Out1, Out2, Lse1, Lse2 = outs
    scores: gl.constexpr = top.type.layout
    row, query, exists, real = rows_of(piece, work.queries, HALF * ROWS, SIZES, scores)
    some = real & (total > 0)
    divisor = gl.where(some, total, 1.0)
    lse = gl.where(some, top + gl.log2(divisor), float("inf"))
    Lse = gl.where(first, Lse1, Lse2)
    token = piece.batch.to(gl.int64) * work.queries + query  # of [B, N, H], contiguous
    gl.store(Lse + (token * work.kv_heads + piece.kv_head) * SIZES.G + row % SIZES.G, lse, mask=exists)

    sums: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    factor = gl.convert_layout(gl.where(some, 1.0 / divisor, 0.0), sums)
    kept = gl.convert_layout(some, sums)
    out = gl.where(kept[:, None], acc * factor[:, None], 0.0).to(staging.dtype)
    store_wait(0)  # what was written before has been read
    _rows(staging).store(out)
    fence_async_shared()
    at = [piece.batch, piece.tile * SIZES.BQ + HALF * (SIZES.BQ // CONSUMERS), piece.kv_head * SIZES.G, 0]
    if first:
        async_copy_shared_to_global(Out1, at, staging)
    else:
        async_copy_shared_to_global(Out2, at, staging)


@gluon.jit
def _pin(total):
    """The same sums, computed before any wait that follows.

    ptxas does not move a wait over a store to shared memory. This one never happens: sums of powers are not
    negative.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .pred never;
        .reg .b32 address;
        mov.b32 address, 0;
        setp.lt.f32 never, $1, 0f00000000;
        @never st.shared.b32 [address], $1;
        mov.b32 $0, $1;
        }""",
        "=r,r",
        [total],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
