"""The launches of the kernel for Hopper, of calls that `conditions.serves` admits.

Compressed attention is one launch, the window and the forced blocks of the selected branch another;
`compressed`, `window` and `forced` of the room `prefill` have the same in plain Triton, and say what is
computed. The kernel is in `stream`.

A configuration: BN, keys to a tile; KEY_SLOTS, VALUE_SLOTS and QUERY_SLOTS of the rings, of queries two at
least; num_warps and maxnreg.
"""

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from nsa_kernels.ahead import launch
from nsa_kernels.triton.hopper.conditions import CONSUMERS, ROWS, pitch
from nsa_kernels.triton.hopper.parts import Sizes, heads_descriptor, matrix_descriptor
from nsa_kernels.triton.hopper.sections import COMPRESSED, WINDOWED
from nsa_kernels.triton.hopper.stream import attention_kernel
from nsa_kernels.triton.tiles import Grid, launch_options, processors


def compressed_hopper(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, config: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query to the complete compression blocks, for tensors that `serves` admits.

    Args:
        q: Queries [B, N, H, 128], bfloat16 or float16.
        k: Compressed keys [B, C, H_kv, 128].
        v: Compressed values [B, C, H_kv, 128].
        grid: Positions and sizes.
        config: Launch configuration.

    Returns:
        Output [B, N, H, 128] in the dtype of q, 0 where no block is visible; log-sum-exp float32 [B, N, H] in
        units of log2, +inf there.
    """
    out, lse = _launch(q, [(k, v)], grid, config, COMPRESSED.value)
    return out[0], lse[0]


def window_and_forced_hopper(
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
        config: Launch configuration.

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
    bq = CONSUMERS * ROWS // group
    sizes = Sizes(group, bq, geometry.block, geometry.stride, geometry.select_block, geometry.window)
    tiles, pairs = triton.cdiv(grid.queries, bq), grid.batch * grid.kv_heads
    half = bq // CONSUMERS
    outs = [q.new_empty(q.shape) for _ in sources]
    lses = [torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) for _ in sources]
    none = [None] * (2 - len(sources))
    launch(attention_kernel, (min(tiles * pairs, processors(q.device)),))(
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
        pairs,
        grid.scale_log2,
        SIZES=sizes,
        FIRST=first,
        **{name: config[name] for name in ("KEY_SLOTS", "VALUE_SLOTS", "QUERY_SLOTS")},
        **launch_options(config),
    )
    return outs, lses
