"""The window and the forced blocks, forward: keys that neighbouring queries share."""

from collections.abc import Mapping

from torch import Tensor

from nsa_kernels.triton.configs import config as shipped
from nsa_kernels.triton.forced import forced_forward
from nsa_kernels.triton.optional import on_hopper
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.triton.window import window_forward
from nsa_kernels.types import Caches

SEARCH = on_hopper.SEARCH if on_hopper else ()
"""Candidates for `benchmarks/tune_kernels.py`; those of the plain kernels are in `window` and `forced`."""

OutputLse = tuple[Tensor, Tensor]


def near_forward(
    q: Tensor, caches: Caches, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[OutputLse, OutputLse]:
    """Both in one launch where `branches_hopper` serves, else one after the other.

    Args:
        q: Queries [B, N, H, D_k].
        caches: Of these, k_win and v_win, k_slc and v_slc.
        grid: Positions and sizes.
        config: Launch configuration of `branches_hopper`, nothing where that does not serve; None = shipped.

    Returns:
        Output and log-sum-exp of the window and of the forced blocks, as `window_forward` and
        `forced_forward` give them.
    """
    near = (caches.k_win, caches.v_win, caches.k_slc, caches.v_slc)
    if on_hopper and on_hopper.serves(q, near, grid):
        chosen = config or shipped("near_hopper", on_hopper.WIDTH, q.device)
        return on_hopper.near_hopper(q, *near, grid, chosen)
    return window_forward(q, *near[:2], grid), forced_forward(q, *near[2:], grid)
