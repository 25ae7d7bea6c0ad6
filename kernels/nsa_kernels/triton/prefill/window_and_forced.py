"""The window and the forced blocks, forward: keys that neighbouring queries share."""

from collections.abc import Mapping

from torch import Tensor

from nsa_kernels.triton.configs import shipped
from nsa_kernels.triton.hopper import conditions
from nsa_kernels.triton.prefill.forced import forced_forward
from nsa_kernels.triton.prefill.window import window_forward
from nsa_kernels.triton.tiles import Grid
from nsa_kernels.types import Caches

OutputLse = tuple[Tensor, Tensor]


def window_and_forced_forward(
    q: Tensor, caches: Caches, grid: Grid, *, config: Mapping[str, int] | None = None
) -> tuple[OutputLse, OutputLse]:
    """Both in one launch where the kernel for Hopper serves, else one after the other.

    Args:
        q: Queries [B, N, H, D_k].
        caches: Of these, k_win and v_win, k_slc and v_slc.
        grid: Positions and sizes.
        config: Launch configuration of the kernel for Hopper, nothing where that does not serve; None = the
            shipped one.

    Returns:
        Output and log-sum-exp of the window and of the forced blocks, as `window_forward` and
        `forced_forward` give them.
    """
    keys_values = (caches.k_win, caches.v_win, caches.k_slc, caches.v_slc)
    if conditions.serves(q, keys_values, grid):
        from nsa_kernels.triton.hopper.launch import window_and_forced_hopper  # needs Gluon

        chosen = config or shipped("window_and_forced_hopper", conditions.WIDTH, q.device)
        return window_and_forced_hopper(q, *keys_values, grid, chosen)
    return window_forward(q, *keys_values[:2], grid), forced_forward(q, *keys_values[2:], grid)
