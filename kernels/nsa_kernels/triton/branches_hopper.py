"""What neighbouring queries attend to together, forward, for Hopper: one or two branches a launch.

Compressed attention is one launch, the window and the forced blocks of the selected branch another;
`compressed`, `window` and `forced` have the same in plain Triton, and say what is computed. Here is when the
kernel serves, and its launch; the kernel is in `stream_hopper`.
"""

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from nsa_kernels.triton.configs import table_name
from nsa_kernels.triton.hopper import CONSUMERS, ROWS, Sizes, heads_descriptor, matrix_descriptor, pitch
from nsa_kernels.triton.sections_hopper import COMPRESSED, WINDOWED
from nsa_kernels.triton.stream_hopper import attention_hopper
from nsa_kernels.triton.tiles import Grid, bulk_copies, launch_options, processors

WIDTH = 128
"""The head dimension of keys and values."""
PIECES = 16
"""Pieces of work to a multiprocessor that a call needs: a launch costs the host 0.1 ms more than others."""

SEARCH = tuple(
    {"BN": bn, "KEY_SLOTS": slots, "VALUE_SLOTS": slots, "QUERY_SLOTS": 2, "num_warps": 4, "maxnreg": 168}
    for bn, slots in ((128, 2), (64, 4), (64, 3), (64, 2))
)
"""Candidates for `benchmarks/tune_kernels.py`.

BN: keys to a tile. KEY_SLOTS, VALUE_SLOTS, QUERY_SLOTS: of the rings; of queries two at least.
"""


def serves(q: Tensor, keys_values: Sequence[Tensor], grid: Grid) -> bool:
    """Whether the kernel takes this call, and pays."""
    hopper = table_name(q.device) == "h200"  # its warpgroup instructions exist in capability 9.0 alone
    if not hopper or triton.knobs.runtime.interpret:
        return False
    rows = grid.batch * grid.queries * grid.heads
    return rows >= PIECES * processors(q.device) * CONSUMERS.value * ROWS.value and fits(q, keys_values, grid)


def fits(q: Tensor, keys_values: Sequence[Tensor], grid: Grid) -> bool:
    """Whether the kernel takes tensors of these types, sizes and layouts."""
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and all(x.dtype == q.dtype for x in keys_values)
        and all(x.shape[-1] == WIDTH and x.stride(-1) == 1 for x in (q, *keys_values))
        and 1 < grid.group == grid.padded_group <= ROWS.value
        and bulk_copies(q, *keys_values)
        and all(pitch(x) > 0 for x in keys_values)
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
        config: One of `SEARCH`.

    Returns:
        Output [B, N, H, 128] in the dtype of q, 0 where no block is visible; log-sum-exp float32 [B, N, H] in
        units of log2, +inf there.
    """
    out, lse = _launch(q, [(k, v)], grid, config, COMPRESSED.value)
    return out[0], lse[0]


def near_hopper(
    q: Tensor,
    k_win: Tensor,
    v_win: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    grid: Grid,
    config: Mapping[str, int],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Attention of each query to its window, and to its forced blocks, for tensors that `serves` admits.

    Args:
        q: Queries [B, N, H, 128], bfloat16 or float16.
        k_win: Keys of the window [B, S, H_kv, 128].
        v_win: Values of the window [B, S, H_kv, 128].
        k_slc: Keys of the selected branch [B, S, H_kv, 128].
        v_slc: Values of the selected branch [B, S, H_kv, 128].
        grid: Positions and sizes.
        config: One of `SEARCH`.

    Returns:
        Output and log-sum-exp of the window, and of the forced blocks; as in `compressed_hopper`.
    """
    out, lse = _launch(q, [(k_win, v_win), (k_slc, v_slc)], grid, config, WINDOWED.value)
    return (out[0], lse[0]), (out[1], lse[1])


def _launch(
    q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], grid: Grid, config: Mapping[str, int], first: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and log-sum-exp of the branches from `first` on, which have these keys and values."""
    group, geometry = grid.group, grid.geometry
    bq = CONSUMERS.value * ROWS.value // group
    sizes = Sizes(group, bq, geometry.block, geometry.stride, geometry.select_block, geometry.window)
    tiles, heads = triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads
    half = bq // CONSUMERS.value
    outs = [q.new_empty(q.shape) for _ in sources]
    lses = [torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) for _ in sources]
    none = [None] * (2 - len(sources))
    attention_hopper[(min(tiles * heads, processors(q.device)),)](
        heads_descriptor(q, half, group),
        *(matrix_descriptor(x, config["BN"]) for pair in sources for x in pair),
        *none,
        *none,
        *(heads_descriptor(x, half, group) for x in outs),
        *none,
        *lses,
        *none,
        grid.starts,
        grid.ends,
        *(pitch(x) for pair in sources for x in pair),
        *none,
        *none,
        grid.queries,
        grid.kv_heads,
        tiles,
        heads,
        grid.scale_log2,
        SIZES=sizes,
        FIRST=first,
        **{name: config[name] for name in ("KEY_SLOTS", "VALUE_SLOTS", "QUERY_SLOTS")},
        **launch_options(config),
    )
    return outs, lses
