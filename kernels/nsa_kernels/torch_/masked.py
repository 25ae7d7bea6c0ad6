"""Short sequences: every branch is dense attention under a mask.

Up to a few thousand tokens this beats any gather, on a GPU above all: no index leaves the device and each
step is one large kernel. Queries go in runs of 512, so that a run touches only the keys before its end; the
mask [R, 512, S] is the largest intermediate. Training keeps the activations of a few SDPA calls a layer.

Queries before n * l' (1024 in the paper's geometry) select every block: theirs is plain causal attention,
and nothing is scored.
"""

import torch
from torch import Tensor

from nsa_kernels.selection import all_blocks, block_importance, blocks_to_mask, select_blocks
from nsa_kernels.torch_ import branches
from nsa_kernels.torch_.problem import Problem

RUN = 512
"""Queries in a run; round, for the alignment that CUDA's masked kernel asks for."""


def masked_attention(p: Problem, *, return_blocks: bool) -> tuple[Tensor, Tensor | None]:
    """NSA by masks; the plain twin of `chunked_attention`.

    Args:
        p: The problem; with an int `start` a run skips the keys after it.
        return_blocks: Also return the selection.

    Returns:
        out [R, G, N, D_v] and blocks int32 [R, N, n] or None.
    """
    outputs, chosen, first = [], [], 0
    sizes = _run_sizes(p)
    # split, not slices: its backward is one concatenation in place of a full-size sum for every run.
    for q, gates in zip(p.q.split(sizes, dim=2), p.gates.split(sizes, dim=2), strict=True):
        o_slc, blocks = _selected(p, q, first, return_blocks=return_blocks)
        o_cmp = branches.compressed(p, q, first)
        o_win = branches.window(p, q, first)
        outputs.append(branches.mix(gates, o_cmp, o_slc, o_win))
        if blocks is not None:
            chosen.append(blocks)
        first += q.shape[2]
    return torch.cat(outputs, dim=2), torch.cat(chosen, dim=1) if return_blocks else None


def choose_blocks(p: Problem, probabilities: Tensor, first: int) -> Tensor:
    """Blocks of the queries whose probabilities over compressed keys [R, G, M, C'] are given: [R, M, n]."""
    last = first + probabilities.shape[2]
    count = p.geometry.num_select_blocks(p.keys_before(last))
    importance = block_importance(probabilities.sum(1), p.geometry, count)
    return select_blocks(importance, p.positions(first, last), p.geometry)


def _run_sizes(p: Problem) -> list[int]:
    """Lengths of the runs: first the queries that select everything, if theirs is plain causal attention."""
    count = p.q.shape[2]
    head = min(count, p.geometry.reach) if isinstance(p.start, int) and p.start == 0 else 0
    sizes = [head] if head else []
    sizes += [min(RUN, count - i) for i in range(head, count, RUN)]
    return sizes


def _selected(p: Problem, q: Tensor, first: int, *, return_blocks: bool) -> tuple[Tensor, Tensor | None]:
    """Selected branch of a run [R, G, M, D_v], and its blocks [R, M, n] (None where nobody needed them)."""
    last = first + q.shape[2]
    positions, keys = p.positions(first, last), p.keys_before(last)
    k, v = p.k_slc[:, :keys], p.v_slc[:, :keys]
    if keys <= p.geometry.reach:
        blocks = all_blocks(positions, p.geometry).expand(q.shape[0], -1, -1) if return_blocks else None
        if isinstance(p.start, int) and p.start == 0 and first == 0 and q.shape[2] == keys:
            return branches.attend(q, k, v, causal=True, scale=p.scale), blocks
        causal = torch.arange(keys, device=q.device) <= positions.unsqueeze(-1)
        return branches.attend(q, k, v, mask=branches.over_heads(causal), scale=p.scale), blocks
    blocks = choose_blocks(p, branches.compressed_probabilities(p, q, first), first)
    mask = blocks_to_mask(blocks, positions, keys, p.geometry)
    return branches.attend(q, k, v, mask=mask.unsqueeze(1), scale=p.scale), blocks
