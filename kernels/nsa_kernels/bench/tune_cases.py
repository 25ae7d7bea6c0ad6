"""Launch configurations of the kernel over lists, as `tune` measures them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nsa_kernels.block_choice import block_sparse
from nsa_kernels.block_lists import BlockLists

CANDIDATES = [
    (64, {"BM": 64, "BN": 64, "TMA": tma, "num_warps": 4, "num_stages": stages} | more)
    for tma in (0, 1)
    for stages in (1, 2, 3)
    for more in ({}, {"maxnreg": 168})
] + [
    (128, {"BM": 128, "BN": bn, "TMA": 1, "num_warps": 8, "num_stages": stages})
    for bn in (64, 128)
    for stages in (1, 2, 3)
]
"""(queries to a tile, configuration)."""


def tuned_lists(q: Tensor, k: Tensor, tile: int) -> BlockLists:
    """For each tile of queries a fifth of all blocks of `tile` keys; q [1, N, H, D], k likewise."""
    tiles = -(-q.shape[1] // tile)
    return block_sparse(q, k, top=max(1, tiles // 5), block=tile)


def attend_with(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, config: Mapping[str, int]) -> Tensor:
    """Causal attention by lists with a launch configuration of one's own, [1, N, H, D]."""
    from nsa_kernels.triton.blocks import prefill

    start = torch.zeros(1, dtype=torch.int32, device=q.device)
    out: Tensor
    out, _ = prefill(
        q, k, v, lists, start=start, ends=start + k.shape[1], low=None, causal=True,
        scale=q.shape[-1] ** -0.5, config=config,
    )  # fmt: skip
    return out
