"""The inputs of one call in the layout that the torch backend computes in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Inputs with heads first. R = B * H_kv rows, each with its own keys and G = H / H_kv query heads.

    Every row is finite throughout: what stood in the padding has been replaced by zeros.
    """

    q: Tensor
    """[R, G, N, D_k]."""
    k_cmp: Tensor
    """[R, C, D_k]."""
    v_cmp: Tensor
    """[R, C, D_v]."""
    k_slc: Tensor
    """[R, S, D_k]."""
    v_slc: Tensor
    """[R, S, D_v]."""
    k_win: Tensor
    """[R, S, D_k]."""
    v_win: Tensor
    """[R, S, D_v]."""
    gates: Tensor
    """[R, G, N, 3]."""
    start: int | Tensor
    """Position of the first query: one for all rows, or [R]."""
    geometry: BlockGeometry
    scale: float

    def positions(self, first: int, last: int) -> Tensor:
        """Positions of the queries first..last-1: [last - first] with a common start, else [R, last - first]."""
        offsets = torch.arange(first, last, device=self.q.device)
        return offsets + (self.start.unsqueeze(-1) if isinstance(self.start, Tensor) else self.start)

    def keys_before(self, last: int) -> int:
        """Keys that the queries before number `last` can see at most, known without asking the device."""
        size = self.k_slc.shape[1]
        return min(self.start + last, size) if isinstance(self.start, int) else size


def heads_first(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    k_slc: Tensor,
    v_slc: Tensor,
    k_win: Tensor,
    v_win: Tensor,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    start: int | Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Problem, Tensor | None]:
    """Brings the arguments of `nsa_attention` into the layout of `Problem`.

    With `lengths`, everything at or after a row's length is replaced by zeros, so that a NaN in the padding cannot
    reach a sum through 0 * NaN, in either direction.

    Returns:
        The problem, and which queries are real, bool [B, N] (None: all).
    """
    batch, count, heads, _ = q.shape
    size, kv_heads = k_slc.shape[1], k_slc.shape[2]
    real = None
    if lengths is not None:
        steps = torch.arange(count, device=q.device)
        positions = steps + (start.unsqueeze(-1) if isinstance(start, Tensor) else start)
        real = (positions < lengths.unsqueeze(-1)).expand(batch, count)
        q, gates = _zero_unless(real, q), _zero_unless(real, gates)
        kept = torch.arange(size, device=q.device) < lengths.unsqueeze(-1)
        k_slc, v_slc, k_win, v_win = (_zero_unless(kept, x) for x in (k_slc, v_slc, k_win, v_win))
        ends = torch.arange(k_cmp.shape[1], device=q.device) * geometry.stride + geometry.block
        complete = ends <= lengths.unsqueeze(-1)
        k_cmp, v_cmp = _zero_unless(complete, k_cmp), _zero_unless(complete, v_cmp)

    def grouped(x: Tensor) -> Tensor:  # [B, N, H, ...] -> [R, G, N, ...]
        return x.unflatten(2, (kv_heads, heads // kv_heads)).permute(0, 2, 3, 1, 4).flatten(0, 1)

    def rows(x: Tensor) -> Tensor:  # [B, S, H_kv, D] -> [R, S, D]
        return x.transpose(1, 2).flatten(0, 1)

    problem = Problem(
        q=grouped(q),
        k_cmp=rows(k_cmp),
        v_cmp=rows(v_cmp),
        k_slc=rows(k_slc),
        v_slc=rows(v_slc),
        k_win=rows(k_win),
        v_win=rows(v_win),
        gates=grouped(gates),
        start=start.repeat_interleave(kv_heads) if isinstance(start, Tensor) else start,
        geometry=geometry,
        scale=scale,
    )
    return problem, real


def heads_last(out: Tensor, batch: int) -> Tensor:
    """[R, G, N, D_v] -> [B, N, H, D_v]."""
    return out.unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def blocks_last(blocks: Tensor, batch: int) -> Tensor:
    """[R, N, n] -> [B, N, H_kv, n]."""
    return blocks.unflatten(0, (batch, -1)).transpose(1, 2)


def _zero_unless(keep: Tensor, x: Tensor) -> Tensor:
    return torch.where(keep[..., None, None], x, 0)
