"""A part of some queries' attention added to what they have so far, in place."""

import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16


@triton.jit(do_not_specialize=["count", "begin"])
def merge_kernel(
    Out, Lse, Part, Part_lse, Index, count, begin,
    stride_n, stride_h, stride_pn, stride_ph, stride_lh, stride_plh, stride_pln,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(count / ROWS), H)."""
    head = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    if INDEXED:  # noqa: SIM108 - a constant of the compilation
        at = tl.load(Index + row, mask=inside, other=0).to(tl.int64)
    else:
        at = (begin + row).to(tl.int64)
    before = tl.load(Lse + head * stride_lh + at, mask=inside, other=0.0)
    new = tl.load(Part_lse + head * stride_plh + row * stride_pln, mask=inside, other=float("-inf"))
    top = tl.maximum(before, new)
    finite = tl.where(top > float("-inf"), top, 0.0)
    kept, share = tl.exp(before - finite), tl.exp(new - finite)
    whole = kept + share
    inverse = tl.where(whole > 0, 1.0 / whole, 0.0)
    column = tl.arange(0, COLUMNS)
    mask = inside[:, None] & (column < WIDTH)[None, :]
    own = Out + at[:, None] * stride_n + head * stride_h + column[None, :]
    other = Part + row.to(tl.int64)[:, None] * stride_pn + head * stride_ph + column[None, :]
    old = tl.load(own, mask=mask, other=0.0)
    added = tl.load(other, mask=mask, other=0.0).to(tl.float32)
    tl.store(own, old * (kept * inverse)[:, None] + added * (share * inverse)[:, None], mask=mask)
    total = tl.where(whole > 0, finite + tl.log(tl.where(whole > 0, whole, 1.0)), float("-inf"))
    tl.store(Lse + head * stride_lh + at, total, mask=inside)


def merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, where: slice | Tensor) -> None:
    """Add a part of n queries to float32 out [N, H, D_v] and lse [H, N], in place.

    Args:
        out: Outputs so far.
        lse: Their log-sum-exps, contiguous.
        part: [n, H, D_v], D_v contiguous.
        part_lse: [H, n] float32.
        where: The part's queries among the N: a slice, or their numbers [n], each once.
    """
    count, heads, width = part.shape
    if count == 0:
        return
    indexed = isinstance(where, Tensor)
    merge_kernel[triton.cdiv(count, _ROWS), heads](
        out,
        lse,
        part,
        part_lse,
        where if isinstance(where, Tensor) else lse,
        count,
        0 if isinstance(where, Tensor) else int(where.start or 0),
        *out.stride()[:2],
        *part.stride()[:2],
        lse.stride(0),
        *part_lse.stride(),
        WIDTH=width,
        COLUMNS=triton.next_power_of_2(width),
        ROWS=_ROWS,
        INDEXED=indexed,
        num_warps=4,
    )
