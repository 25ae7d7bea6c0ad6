"""Long sequences: queries in runs, nothing larger than a run's scores, memory linear in N.

On a CPU the runs are so short that a run's scores and gathered keys stay in the cache: that, and not the
arithmetic, decides the speed there. For training each run is a checkpoint: its inputs and its blocks are
kept, the rest is computed again on the way back.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nsa_kernels.torch_ import branches
from nsa_kernels.torch_.gathered import block_table, gathered
from nsa_kernels.torch_.masked import choose_blocks
from nsa_kernels.torch_.problem import Problem
from nsa_kernels.torch_.scratch import Scratch

CPU_ELEMENTS = 1 << 21
"""Largest intermediate of a run on a CPU (8 MiB in float32), a share of the last-level cache."""
GPU_ELEMENTS = 1 << 27
"""The same on a GPU, which only large runs keep busy."""
SHORT_RUN = 16
"""Queries that a run should have at least; where there are many rows they take turns instead."""
TRAIN_RUN = 256
"""Queries in a run under autograd at least: a run's backward visits the gradients of the whole cache."""


def chunked_attention(p: Problem, *, return_blocks: bool) -> tuple[Tensor, Tensor | None]:
    """NSA in runs of queries.

    Args:
        p: The problem.
        return_blocks: Also return the selection.

    Returns:
        out [R, G, N, D_v] and blocks int32 [R, N, n] or None.
    """
    rows, run = _tile(p)
    one_run = _training_run if p.needs_grad else _run
    scratch = Scratch(enabled=not p.needs_grad)
    outputs, chosen = [], []
    for part in _take_turns(p, rows):
        tables = block_table(part.k_slc, p.geometry), block_table(part.v_slc, p.geometry)
        first = 0
        # split, not slices: its backward is one concatenation in place of a full-size sum for every run.
        for q, gates in zip(part.q.split(run, dim=2), part.gates.split(run, dim=2), strict=True):
            out, blocks = one_run(part, tables, q, gates, first, scratch)
            outputs.append(out)
            chosen.append(blocks)
            first += q.shape[2]
    runs = -(-p.q.shape[2] // run)
    return _assemble(outputs, runs, 2), _assemble(chosen, runs, 1) if return_blocks else None


def _run(
    p: Problem, tables: tuple[Tensor, Tensor], q: Tensor, gates: Tensor, first: int, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """One run without autograd: out [R, G, M, D_v] and blocks [R, M, n] from one pass over the scores."""
    probabilities = branches.compressed_probabilities(p, q, first, scratch)
    blocks = choose_blocks(p, probabilities, first)
    seen = probabilities.shape[-1]
    o_cmp = torch.bmm(probabilities.to(q.dtype).flatten(1, 2), p.v_cmp[:, :seen]).view(*q.shape[:3], -1)
    o_slc = gathered(p, tables, q, blocks, first, scratch)
    return branches.mix(gates, o_cmp, o_slc, branches.window(p, q, first)), blocks


def _training_run(
    p: Problem, tables: tuple[Tensor, Tensor], q: Tensor, gates: Tensor, first: int, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """As `_run`, differentiable, as a checkpoint; the choice of blocks is made once and kept."""
    blocks = choose_blocks(p, branches.compressed_probabilities(p, q, first), first)

    def compute(q: Tensor, gates: Tensor) -> Tensor:
        o_cmp = branches.compressed(p, q, first)
        o_slc = gathered(p, tables, q, blocks, first, scratch)
        return branches.mix(gates, o_cmp, o_slc, branches.window(p, q, first))

    out: Tensor = checkpoint(compute, q, gates, use_reentrant=False, preserve_rng_state=False)
    return out, blocks


def _tile(p: Problem) -> tuple[int, int]:
    """Rows and queries of a run, so that the scores and the gathered keys keep to their size."""
    rows, group, count, dim = p.q.shape
    budget = CPU_ELEMENTS if p.q.device.type == "cpu" else GPU_ELEMENTS
    reach = p.geometry.reach * max(dim, p.v_slc.shape[-1])
    each = max(group * p.k_cmp.shape[1], reach, group * p.geometry.window)
    rows = max(1, min(rows, budget // (SHORT_RUN * each)))
    run = max(1, budget // (rows * each))
    if p.needs_grad:
        run = max(run, TRAIN_RUN)
    return rows, min(run, count)


def _take_turns(p: Problem, rows: int) -> Iterator[Problem]:
    """The problem in parts of so many rows."""
    total = p.q.shape[0]
    if rows >= total:
        yield p
        return
    tensors = ("q", "k_cmp", "v_cmp", "k_slc", "v_slc", "k_win", "v_win", "gates")
    for i in range(0, total, rows):
        part = {name: getattr(p, name)[i : i + rows] for name in tensors}
        start = p.start[i : i + rows] if isinstance(p.start, Tensor) else p.start
        yield replace(p, **part, start=start)


def _assemble(pieces: list[Tensor], runs: int, dim: int) -> Tensor:
    """Joins the runs of each turn along `dim`, then the turns along the rows."""
    turns = [torch.cat(pieces[i : i + runs], dim=dim) for i in range(0, len(pieces), runs)]
    return torch.cat(turns) if len(turns) > 1 else turns[0]
