"""One new token a row against the cache, in three launches that a CUDA graph can hold.

1. decode_score.py: the compressed and the window branch in splits of the cache, and the scores pooled to
   selection blocks with each split's own maximum as reference;
2. decode_rank.py: the denominators, from these the blocks' importance and the n best of each piece of the
   cache;
   the two branches merged;
3. decode_attend.py: the n best of all, attention to them, and the gated sum.

The grids follow from the tensors' shapes alone; the lengths are read on the device, and programs past a row's
end return at once. No state stays behind between calls.
"""

from collections.abc import Mapping

from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton.decode_attend import attend_kernel
from nsa_kernels.triton.decode_plan import Work, prepare, rows_contiguous
from nsa_kernels.triton.decode_rank import rank_kernel
from nsa_kernels.triton.decode_score import score_kernel
from nsa_kernels.triton.tiles import LOG2E
from nsa_kernels.types import Caches, NSAOutput

SEARCH: tuple[Mapping[str, int], ...] = tuple(
    {
        "keys": keys,
        "window_keys": 64,
        "programs": programs,
        "blocks": 128,
        "columns": columns,
        "values": values,
        "overlap": overlap,
        "score_warps": 4,
        "score_stages": stages,
        "rank_warps": 4,
        "attend_warps": attend_warps,
        "attend_stages": attend_stages,
    }
    for overlap, keys, programs, stages, columns, values, attend_warps, attend_stages in (
        (1, 128, 2, 2, 16, 32, 4, 4),
        (1, 128, 2, 2, 8, 64, 8, 4),
        (0, 128, 2, 2, 8, 64, 8, 4),
        (1, 128, 2, 2, 8, 64, 4, 5),
        (1, 128, 2, 2, 8, 16, 2, 6),
        (1, 128, 4, 1, 8, 32, 4, 6),
    )
)
"""Candidates for `benchmarks/tune_kernels.py`.

keys: compressed keys to a tile. window_keys: tokens to a tile of the window. programs: of the first launch to
a multiprocessor, at most about. blocks: selection blocks that one program ranks. columns: of the values that
one program merges. values: of them, those to a program of the third launch, at least. The rest: warps and
pipeline stages of the three launches.
"""


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
    is never read. Give the whole buffers, not a view that grows with each token, to replay one graph for all
    of them.

    Args:
        q: [B, H, D_k].
        caches: Keys and values; their last dimension contiguous, or they are copied.
        gates: [B, H, 3].
        geometry: Block sizes.
        lengths: Integers [B], at most S.
        scale: Factor on q.k.
        return_blocks: Also return the selected blocks.
        config: Parameters in place of the shipped ones (see `SEARCH`).

    Returns:
        out [B, H, D_v] and blocks int32 [B, H_kv, n] or None.
    """
    q, gates = rows_contiguous(q), rows_contiguous(gates)
    k_cmp, v_cmp, k_slc, v_slc, k_win, v_win = (rows_contiguous(x) for x in caches)
    work = prepare(q, k_slc, v_slc, geometry, return_blocks, config)
    if work.pairs == 0:
        return NSAOutput(work.out, work.blocks)
    p, kv_heads = work.plan, k_slc.shape[2]
    score_kernel[(p.window_splits + p.splits, work.pairs)](
        q,
        k_cmp,
        v_cmp,
        k_win,
        v_win,
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
        p.splits,
        p.tiles,
        p.tile_run,
        p.window_run,
        **work.score,
    )
    rank_kernel[(p.rank_pieces + p.slices, work.pairs)](
        gates,
        lengths,
        work.partial,
        work.stats,
        work.reference,
        work.pooled,
        work.ranked,
        work.candidate_value,
        work.candidate_block,
        work.base,
        *gates.stride()[:2],
        kv_heads,
        p.splits,
        p.tiles,
        p.tile_run,
        p.window_run,
        p.rank_pieces,
        **work.rank,
    )
    return attend(work, q, k_slc, v_slc, gates, lengths, scale)


def attend(
    work: Work, q: Tensor, k_slc: Tensor, v_slc: Tensor, gates: Tensor, lengths: Tensor, scale: float
) -> NSAOutput:
    """The third launch."""
    p = work.plan
    attend_kernel[(p.value_slices, work.pairs)](
        q,
        k_slc,
        v_slc,
        gates,
        lengths,
        work.candidate_value,
        work.candidate_block,
        work.base,
        work.out,
        work.candidate_block if work.blocks is None else work.blocks,
        *q.stride()[:2],
        *k_slc.stride()[:3],
        *v_slc.stride()[:3],
        *gates.stride()[:2],
        scale * LOG2E,
        k_slc.shape[2],
        p.rank_pieces,
        **work.attend,
    )
    return NSAOutput(work.out, work.blocks)
