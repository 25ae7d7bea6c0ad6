"""Checks of what a caller passed: shapes, devices, positions. None of them reads device memory."""

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.types import Caches


def check_attention(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    start: int | Tensor,
    lengths: Tensor | None,
) -> None:
    """Checks the arguments of `nsa_attention`.

    Args:
        q: [B, N, H, D_k].
        caches: Keys and values of the branches.
        gates: [B, N, H, 3].
        geometry: Block sizes.
        start: Position of the first query.
        lengths: Valid tokens, or None.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument.
    """
    if q.dim() != 4:
        raise ValueError(f"q must be [B, N, H, D_k], got {list(q.shape)}")
    batch, count, heads, dim = q.shape
    if count == 0:
        raise ValueError("q holds no queries: N must be at least 1")
    for name, x in caches._asdict().items():
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, length, H_kv, D], got {list(x.shape)}")
    _, size, kv_heads, _ = caches.k_slc.shape
    blocks, value_dim = caches.k_cmp.shape[1], caches.v_slc.shape[3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of KV heads, got H = {heads} and H_kv = {kv_heads}")
    for name, x in caches._asdict().items():
        length = blocks if name.endswith("cmp") else size
        expected = (batch, length, kv_heads, dim if name.startswith("k") else value_dim)
        if tuple(x.shape) != expected:
            raise ValueError(
                f"{name} must be {list(expected)} to fit q, k_slc and v_slc, got {list(x.shape)}"
            )
    if tuple(gates.shape) != (batch, count, heads, 3):
        raise ValueError(f"gates must be [B, N, H, 3] = {[batch, count, heads, 3]}, got {list(gates.shape)}")
    for name, x in {**caches._asdict(), "gates": gates}.items():
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} but q is on {q.device}; move them to one device")
    _check_rows(start, "start", batch, q.device)
    _check_rows(lengths, "lengths", batch, q.device)
    if isinstance(start, int):
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        if lengths is None and start + count > size:
            raise ValueError(
                f"the queries stand at {start}..{start + count - 1} but k_slc holds {size} tokens: append "
                f"the queries' own keys to the cache first, or pass lengths if the queries are padded"
            )
        size = min(size, start + count)
    if blocks < num_blocks(size, geometry):
        raise ValueError(
            f"k_cmp holds {blocks} compressed keys, but {size} tokens have {num_blocks(size, geometry)} "
            f"complete blocks (l = {geometry.block}, d = {geometry.stride}): compress the new tokens first"
        )


def _check_rows(x: int | Tensor | None, name: str, batch: int, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        return
    if tuple(x.shape) != (batch,) or x.is_floating_point() or x.dtype == torch.bool:
        raise ValueError(f"{name} must be integers [B] = [{batch}], got {list(x.shape)} of {x.dtype}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device} but q is on {device}; move it there")
