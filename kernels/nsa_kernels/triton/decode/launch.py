"""The three launches of decode (see the room's docstring).

The grids follow from the tensors' shapes alone; the lengths are read on the device, and programs past a row's
end return at once. No state stays behind between calls.
"""

from collections.abc import Mapping

from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton.decode.attend import attend_kernel
from nsa_kernels.triton.decode.merge import merge_kernel
from nsa_kernels.triton.decode.plan import bulk_tiles, first_grid, prepare
from nsa_kernels.triton.decode.score import score_kernel
from nsa_kernels.triton.tiles import LOG2E, rows_contiguous
from nsa_kernels.types import Caches, NSAOutput


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
    may be anything. Give the whole buffers, not a view that grows with each token, to replay one graph for
    all of them.

    Args:
        q: [B, H, D_k].
        caches: Keys and values; their last dimension contiguous, or they are copied.
        gates: [B, H, 3].
        geometry: Block sizes.
        lengths: Integers [B], at most S.
        scale: Factor on q.k.
        return_blocks: Also return the selected blocks.
        config: Parameters in place of the shipped ones (see `configs`).

    Returns:
        out [B, H, D_v] and blocks int32 [B, H_kv, n] or None.
    """
    q, gates = rows_contiguous(q), rows_contiguous(gates)
    k_cmp, v_cmp, k_slc, v_slc, k_win, v_win = (rows_contiguous(x) for x in caches)
    work = prepare(q, k_slc, v_slc, geometry, return_blocks, config)
    if work.pairs == 0:
        return NSAOutput(work.out, work.blocks)
    p, kv_heads = work.plan, k_slc.shape[2]
    launch(score_kernel, first_grid(p, p.window_splits + p.splits, work.pairs))(
        q,
        k_cmp,
        v_cmp,
        k_win,
        v_win,
        *bulk_tiles(p, k_cmp, v_cmp),
        lengths,
        work.partial,
        work.stats,
        work.reference,
        work.pooled,
        *q.stride()[:2],
        *k_cmp.stride()[:3],
        *v_cmp.stride()[:3],
        *k_win.stride()[:3],
        *v_win.stride()[:3],
        scale * LOG2E,
        kv_heads,
        p.shares,
        p.tiles,
        p.tile_run,
        p.window_run,
        min(k_cmp.shape[1], v_cmp.shape[1]),
        **work.score,
    )
    launch(attend_kernel, (p.runs, work.pairs))(
        q,
        k_slc,
        v_slc,
        lengths,
        work.partial,
        work.stats,
        work.reference,
        work.pooled,
        work.ranked,
        work.denominators,
        work.blocks,
        *q.stride()[:2],
        *k_slc.stride()[:3],
        *v_slc.stride()[:3],
        scale * LOG2E,
        kv_heads,
        p.splits,
        p.tiles,
        p.tile_run,
        p.runs,
        p.window_splits,
        **work.attend,
    )
    launch(merge_kernel, (p.slices, work.pairs))(
        gates,
        lengths,
        work.partial,
        work.stats,
        work.denominators,
        work.out,
        *gates.stride()[:2],
        kv_heads,
        p.splits,
        p.tile_run,
        p.window_run,
        p.runs,
        **work.merge,
    )
    return NSAOutput(work.out, work.blocks)
