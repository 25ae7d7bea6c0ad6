"""Compressed attention, forward, for Hopper: copies, matrix products and softmax run side by side (Gluon).

One program to a multiprocessor takes packed tiles of 128 rows in turn, longest first. Its producer, a warp,
copies tiles of BN keys and values in bulk through two rings (`hopper`). Its two consumers, warpgroups of 64
rows each, attend: the product of the weights with the values of tile j - 1 runs under the softmax of tile j,
and while one consumer is in its softmax the tensor cores have the other's products. `compressed` has the same
in plain Triton, and says what is computed.

Matrix products are asynchronous as far as ptxas leaves them so. It serialises those that a loop carries from
one round to the next (warning C7514): hence none is in flight at the edge of a loop. And it moves a wait
ahead of arithmetic that does not need it, softmax included, which would leave the product nothing to run
under: hence `_pin`.
"""

from collections.abc import Mapping

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from nsa_kernels.triton.configs import table_name
from nsa_kernels.triton.hopper import (
    ROWS,
    Sizes,
    Work,
    blocks_before,
    copy,
    landed,
    leave,
    load_queries,
    make_ring,
    matrix_descriptor,
    piece_at,
    pitch,
    product_layout,
    row_layout,
    rows_of,
    shared_layout,
    store_rows,
)
from nsa_kernels.triton.tiles import Grid, bulk_copies, launch_options, processors

WIDTH = 128
"""The head dimension of keys and values."""
CONSUMERS = gl.constexpr(2)
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)
"""Of a thread. Three warpgroups start with 168 each (`maxnreg`), 504 in all, and share them out anew."""

SEARCH = tuple(
    {"BN": bn, "KEY_SLOTS": keys, "VALUE_SLOTS": values, "PROGRAMS": 1, "num_warps": 4, "maxnreg": 168}
    for bn, keys, values in ((128, 2, 2), (128, 3, 2), (64, 4, 4))
)
"""Candidates for `benchmarks/tune_kernels.py`."""


def serves(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> bool:
    """Whether `compressed_hopper` takes these tensors on their device."""
    hopper = table_name(q.device) == "h200"  # its warpgroup instructions exist in capability 9.0 alone
    return hopper and not triton.knobs.runtime.interpret and fits(q, k, v, grid)


def fits(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> bool:
    """Whether the kernel takes tensors of these types, sizes and layouts."""
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] == k.shape[-1] == v.shape[-1] == WIDTH
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        and grid.padded_group <= ROWS.value
        and bulk_copies(k, v)
        and 0 < pitch(k) == pitch(v)
    )


def compressed_hopper(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, config: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the complete compression blocks, for tensors that `serves` admits.

    Args:
        q: Queries [B, N, H, 128], bfloat16 or float16.
        k: Compressed keys [B, C, H_kv, 128].
        v: Compressed values [B, C, H_kv, 128].
        grid: Positions and sizes.
        config: BN, keys to a tile; KEY_SLOTS and VALUE_SLOTS of the rings; PROGRAMS to a multiprocessor; and
            the launch's options.

    Returns:
        Output [B, N, H, 128] in the dtype of q, 0 where no block is visible; log-sum-exp float32 [B, N, H] in
        units of log2, +inf there.
    """
    group, geometry = grid.padded_group, grid.geometry
    sizes = Sizes(grid.group, group, CONSUMERS.value * ROWS.value // group, geometry.block, geometry.stride)
    tiles, heads = triton.cdiv(grid.queries, sizes.BQ), grid.batch * grid.kv_heads
    out = q.new_empty(q.shape)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _compressed_hopper[(min(tiles * heads, processors(q.device) * config["PROGRAMS"]),)](
        q,
        matrix_descriptor(k, config["BN"]),
        matrix_descriptor(v, config["BN"]),
        out,
        lse,
        grid.starts,
        grid.ends,
        *q.stride()[:3],
        pitch(k),
        grid.queries,
        grid.kv_heads,
        tiles,
        heads,
        grid.scale_log2,
        SIZES=sizes,
        KEY_SLOTS=config["KEY_SLOTS"],
        VALUE_SLOTS=config["VALUE_SLOTS"],
        **launch_options(config),
    )
    return out, lse


@gluon.jit(do_not_specialize=("pitch", "N", "HKV", "tiles", "heads"))
def _compressed_hopper(
    Q, K, V, Out, Lse, Starts, Ends, stride_qb, stride_qn, stride_qh, pitch, N, HKV, tiles, heads, scale,
    SIZES: gl.constexpr, KEY_SLOTS: gl.constexpr, VALUE_SLOTS: gl.constexpr,
):  # fmt: skip
    """A program owns the pieces of work number program, program + programs, ..."""
    D: gl.constexpr = K.block_type.shape[1]
    gl.static_assert(SIZES.BQ * SIZES.GP == CONSUMERS * ROWS)
    keys = make_ring(K, KEY_SLOTS, CONSUMERS)
    values = make_ring(V, VALUE_SLOTS, CONSUMERS)
    fence_async_shared()
    upper = gl.allocate_shared_memory(K.dtype, [ROWS, D], shared_layout())
    lower = gl.allocate_shared_memory(K.dtype, [ROWS, D], shared_layout())
    work = Work(Starts, Ends, N, HKV, tiles, heads)
    tensors = (Q, Out, Lse, stride_qb, stride_qn, stride_qh, scale)
    gl.warp_specialize(
        [
            (_consume, (keys, values, upper, tensors, work, SIZES, 0)),
            (_consume, (keys, values, lower, tensors, work, SIZES, ROWS)),
            (_produce, (keys, values, pitch, work, SIZES)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def _produce(keys, values, pitch, work, SIZES: gl.constexpr):
    """Copies in the order of reading: keys 0, keys 1, values 0, keys 2, values 1, ..."""
    BN: gl.constexpr = keys.slots.shape[1]
    D: gl.constexpr = keys.slots.shape[2]
    before = 0  # tiles of earlier pieces
    for at in range(gl.program_id(0), work.tiles * work.heads, gl.num_programs(0)):
        piece = piece_at(at, work, SIZES, BN)
        row = piece.batch * pitch
        column = piece.group * D
        for j in range(piece.count + 1):
            if j < piece.count:
                copy(keys, before + j, row + j * BN, column)
            if j > 0:
                copy(values, before + j - 1, row + (j - 1) * BN, column)
        before += piece.count


@gluon.jit
def _consume(keys, values, queries, tensors, work, SIZES: gl.constexpr, FIRST: gl.constexpr):
    """Rows FIRST .. FIRST + 63 of each piece; `queries` is shared memory for them."""
    Q, Out, Lse, stride_qb, stride_qn, stride_qh, scale = tensors
    BN: gl.constexpr = keys.slots.shape[1]
    D: gl.constexpr = keys.slots.shape[2]
    scores: gl.constexpr = gl.SliceLayout(1, product_layout(BN))
    before = 0
    for at in range(gl.program_id(0), work.tiles * work.heads, gl.num_programs(0)):
        piece = piece_at(at, work, SIZES, BN)
        queries.store(load_queries(Q, piece, work, stride_qb, stride_qn, stride_qh, FIRST, SIZES, D))
        fence_async_shared()
        _, query, _, real = rows_of(piece, work.N, FIRST, SIZES, scores)
        high = gl.where(real, blocks_before(piece.start + query + 1, SIZES), 0)
        acc, top, total = _attend(queries, keys, values, before, piece, high, scale)
        store_rows(Out, Lse, acc, top, total, piece, work, FIRST, SIZES)
        before += piece.count


@gluon.jit
def _attend(q, keys, values, before, piece, high, scale):
    """Sum of p * v, top and total of 64 rows. Waits for every tile once and leaves it once."""
    BN: gl.constexpr = keys.slots.shape[1]
    D: gl.constexpr = keys.slots.shape[2]
    scores: gl.constexpr = gl.SliceLayout(1, product_layout(BN))
    acc = gl.zeros([ROWS, D], gl.float32, layout=product_layout(D))
    top = gl.full([ROWS], float("-inf"), gl.float32, layout=scores)
    total = gl.zeros([ROWS], gl.float32, layout=scores)
    if piece.count > 0:
        s = warpgroup_mma_wait(0, (_start_scores(q, landed(keys, before)),))
        leave(keys, before)
        p, _, top, total = _softmax(s, top, total, 0, high, scale, True)
        p = _weights(p, values)
        for j in range(1, piece.whole):
            p, acc, top, total = _step(p, acc, top, total, q, keys, values, before, j, high, scale, False)
        for j in range(gl.maximum(piece.whole, 1), piece.count):
            p, acc, top, total = _step(p, acc, top, total, q, keys, values, before, j, high, scale, True)
        last = piece.count - 1
        v = landed(values, before + last)
        _clear(v, last * BN, piece.most)
        acc = warpgroup_mma_wait(0, (warpgroup_mma(p, v, acc, is_async=True),))
        leave(values, before + last)
    return acc, top, total


@gluon.jit
def _step(p, acc, top, total, q, keys, values, before, j, high, scale, MASKED: gl.constexpr):
    """Scores and softmax of tile j over the product of the weights p of tile j - 1."""
    BN: gl.constexpr = keys.slots.shape[1]
    s = _start_scores(q, landed(keys, before + j))
    acc = warpgroup_mma(p, landed(values, before + j - 1), acc, is_async=True)
    s = warpgroup_mma_wait(1, (s,))
    leave(keys, before + j)
    weights, fade, top, total = _softmax(s, top, total, j * BN, high, scale, MASKED)
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
def _softmax(s, top, total, first, high, scale, MASKED: gl.constexpr):
    """One step of online softmax, as in `online.attend`: weights, factor of all before, top, total."""
    if MASKED:
        key = first + gl.arange(0, s.shape[1], layout=gl.SliceLayout(0, s.type.layout))
        s = gl.where(key[None, :] < high[:, None], s * scale, float("-inf"))
        new_top = gl.maximum(top, gl.max(s, 1))
        shift = gl.where(new_top == float("-inf"), 0.0, new_top)
        p = gl.exp2(s - shift[:, None])
    else:
        new_top = gl.maximum(top, gl.max(s, 1) * scale)
        shift = new_top
        p = gl.exp2(s * scale - shift[:, None])
    fade = gl.exp2(top - shift)
    return p, fade, new_top, total * fade + gl.sum(p, 1)


@gluon.jit
def _weights(p, values):
    """The weights as the left side of the product with the values."""
    layout: gl.constexpr = gl.DotOperandLayout(0, product_layout(values.slots.shape[2]), 2)
    return gl.convert_layout(p.to(values.slots.dtype), layout)


@gluon.jit
def _clear(v, first, most):
    """Zeroes the values from key `most` on, which may be NaN. Both consumers do, and write the same bytes."""
    BN: gl.constexpr = v.shape[0]
    if first + BN > most:
        layout: gl.constexpr = row_layout(v.shape[1])
        x = v.load(layout)
        key = first + gl.arange(0, BN, layout=gl.SliceLayout(1, layout))
        v.store(gl.where((key < most)[:, None], x, gl.zeros_like(x)))
        fence_async_shared()


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
