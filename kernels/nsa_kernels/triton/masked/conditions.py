"""When the masked kernels take a call: what they compute too much, against what gathering costs.

Counted for one query of one group, in time: K/V of width D are 4 D bytes a token in 16 bits.

- Gathering reads n - 3 blocks through the L2 cache: (n - 3) l' 4 D bytes. The masked forward computes two
  products with every key before the query for all padded heads: 4 D GP operations a key.
- The backward by lists has five products on n l' keys; the masked one has seven on all keys before the query.
  Where window and selected branch share their keys, the masked products serve the window as well.

D stands on both sides and falls out. The rates are `configs.MASKED`.
"""

import torch
import triton

from nsa_kernels.triton.configs import masked_rates
from nsa_kernels.triton.masked.steps import WORD, WORDS
from nsa_kernels.triton.tiles import MIN_DOT, Grid

MOST_WIDTH = 64
"""Wider heads would need tiles of their own, and those of 128 have kernels for Hopper."""
MOST_BLOCKS = WORDS * WORD.value
"""A row has a bit for each, in registers."""
ANY_DTYPE = False
"""Float32 too: its products have no tensor cores on a GPU. Tests set it in the interpreter."""


def all_chosen(grid: Grid) -> bool:
    """Whether every query of the call sees no more blocks than it may choose."""
    return grid.longest <= grid.geometry.reach


def serves_forward(grid: Grid, width: int, value_width: int, dtype: torch.dtype) -> bool:
    """Whether the masked forward takes the call, and pays."""
    rate = masked_rates(grid.starts.device)
    if rate is None or not fits(grid, width, value_width, dtype):
        return False
    gathered = (grid.geometry.select_count - grid.geometry.forced_blocks) * grid.geometry.select_block
    keys = gathered * rate["FORWARD_TFLOPS"] / (rate["GATHER_TBS"] * grid.padded_group)
    return all_chosen(grid) or mean_keys(grid) <= keys


def serves_backward(grid: Grid, *, shared: bool) -> bool:
    """Whether the masked backward pays for a call whose forward was masked.

    Args:
        grid: The call.
        shared: Window and selected branch have the same keys and values.
    """
    rate = masked_rates(grid.starts.device)
    if rate is None:
        return False
    listed = grid.geometry.reach + (grid.geometry.window if shared else 0)
    keys = listed * 5 * rate["BACKWARD_TFLOPS"] / (7 * rate["LISTS_TFLOPS"])
    return all_chosen(grid) or mean_keys(grid) <= keys


def fits(grid: Grid, width: int, value_width: int, dtype: torch.dtype) -> bool:
    """Whether the kernels can take such a call, and were made for it: a group that leaves rows empty."""
    size = grid.geometry.select_block
    return (
        grid.padded_group < MIN_DOT
        and size >= MIN_DOT
        and size == triton.next_power_of_2(size)
        and grid.geometry.num_select_blocks(grid.longest) <= MOST_BLOCKS
        and all(x == triton.next_power_of_2(x) and x <= MOST_WIDTH for x in (width, value_width))
        and (ANY_DTYPE or dtype in (torch.bfloat16, torch.float16))
    )


def mean_keys(grid: Grid) -> float:
    """Keys before a query, on average, as far as the host knows: half of the queries, and what is before."""
    return max(grid.longest - grid.queries, 0) + min(grid.longest, grid.queries) / 2
