"""The inputs of one call in the layout that the torch backend computes in."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.types import Caches


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Inputs with heads first: R = B * H_kv rows, each with its own keys and G = H / H_kv query heads.

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

    @property
    def keys(self) -> int:
        """S, the tokens that the caches hold."""
        return self.k_slc.shape[1]

    @property
    def needs_grad(self) -> bool:
        """Whether autograd will want to go back through this call."""
        tensors = (self.q, self.gates, self.k_cmp, self.v_cmp, self.k_slc, self.v_slc, self.k_win, self.v_win)
        return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)

    def queries(self, first: int, last: int) -> "Problem":
        """The same problem for the queries first..last-1 alone."""
        q, gates = self.q[:, :, first:last], self.gates[:, :, first:last]
        return replace(self, q=q, gates=gates, start=self.start + first)

    def positions(self, first: int, last: int) -> Tensor:
        """Positions of the queries first..last-1: [last - first] with a common start, [R, ...] else."""
        offsets = torch.arange(first, last, device=self.q.device)
        return offsets + (self.start.unsqueeze(-1) if isinstance(self.start, Tensor) else self.start)

    def keys_before(self, last: int) -> int:
        """Keys that the queries before number `last` can see at most, known without asking the device."""
        return min(self.start + last, self.keys) if isinstance(self.start, int) else self.keys


def heads_first(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    start: int | Tensor,
    lengths: Tensor | None,
    scale: float,
) -> tuple[Problem, Tensor | None]:
    """Brings the arguments of `nsa_attention` into the layout of `Problem`.

    With `lengths`, everything at or after a row's length is replaced by zeros, so that a NaN in the padding
    cannot reach a sum as 0 * NaN, forward or backward.

    Returns:
        The problem, and which queries are real, bool [B, N] (None: all).
    """
    batch, count = q.shape[:2]
    kv_heads = caches.k_slc.shape[2]
    real = None
    if lengths is not None:
        steps = torch.arange(count, device=q.device)
        positions = steps + (start.unsqueeze(-1) if isinstance(start, Tensor) else start)
        real = ((positions >= 0) & (positions < lengths.unsqueeze(-1))).expand(batch, count)
        q, gates = zero_unless(real, q), zero_unless(real, gates)
        caches = zero_padding(caches, lengths, geometry)
    return Problem(
        q=_grouped(q, kv_heads),
        **{name: x.transpose(1, 2).flatten(0, 1) for name, x in caches._asdict().items()},
        gates=_grouped(gates, kv_heads),
        start=start.clamp(min=0).repeat_interleave(kv_heads) if isinstance(start, Tensor) else start,
        geometry=geometry,
        scale=scale,
    ), real


def heads_last(out: Tensor, batch: int) -> Tensor:
    """[R, G, N, D_v] -> [B, N, H, D_v]."""
    grouped: Tensor = out.unflatten(0, (batch, -1))
    return grouped.permute(0, 3, 1, 2, 4).flatten(2, 3)


def blocks_last(blocks: Tensor, batch: int) -> Tensor:
    """[R, N, n] -> [B, N, H_kv, n]."""
    grouped: Tensor = blocks.unflatten(0, (batch, -1))
    return grouped.transpose(1, 2)


def zero_padding(caches: Caches, lengths: Tensor, geometry: BlockGeometry) -> Caches:
    """Zeros for the tokens from lengths [B] on, and for the compression blocks that reach into them."""
    tokens = torch.arange(caches.k_slc.shape[1], device=lengths.device)
    ends = torch.arange(caches.k_cmp.shape[1], device=lengths.device) * geometry.stride + geometry.block
    real, complete = tokens < lengths.unsqueeze(-1), ends <= lengths.unsqueeze(-1)
    k_cmp, v_cmp, *rest = caches
    return Caches(
        zero_unless(complete, k_cmp), zero_unless(complete, v_cmp), *(zero_unless(real, x) for x in rest)
    )


def zero_unless(keep: Tensor, x: Tensor) -> Tensor:
    """X [B, S, ..., D] where keep [B, S], else 0; no gradient passes where it is 0."""
    return torch.where(keep[..., None, None], x, 0)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[B, N, H, D] -> [R, G, N, D]."""
    groups: Tensor = x.unflatten(2, (kv_heads, x.shape[2] // kv_heads))
    return groups.permute(0, 2, 3, 1, 4).flatten(0, 1)
