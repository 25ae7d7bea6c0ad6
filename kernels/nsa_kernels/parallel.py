"""Context parallelism of NSA's prefill: the sequence is split over processes, keys and values are gathered.

An experiment in what a split costs. NSA reads few keys a query, but nobody knows beforehand which, so every
process needs all keys: K and V are gathered whole, which for grouped heads is little (4 KV heads of 128 at
64k tokens: 134 MB), and each process attends with its own queries. Compressed keys are made where their
blocks begin, and are gathered too.

Queries of later tokens cost more than those of earlier ones, so the sequence is cut into 2 R pieces and
process r of R gets the pieces r and 2 R - 1 - r. The result of a token doesn't depend on the split, but for
the order of additions that a kernel may choose for other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.dispatch import nsa_attention
from nsa_kernels.geometry import BlockGeometry, num_blocks

Compress = Callable[[Tensor], Tensor]
"""Compresses keys or values [B, S, H_kv, D], whose first token is on the block grid, to [B, C, H_kv, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a sequence is dealt to processes: two pieces each, from both ends inwards.

    Raises:
        ValueError: Sizes below 1.
    """

    length: int
    """Tokens of the sequence."""
    ranks: int
    """R."""
    grid: int = 16
    """Pieces begin at multiples of it: the stride of the compression blocks."""

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("length", "ranks", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def piece(self) -> int:
        """Tokens of a piece; the last ones may be shorter or empty."""
        least = -(-self.length // (2 * self.ranks))
        return -(-least // self.grid) * self.grid

    def pieces(self, rank: int) -> tuple[range, range]:
        """Positions of a process's tokens, in the order in which it holds them.

        Raises:
            ValueError: There is no such process.
        """
        if not 0 <= rank < self.ranks:
            raise ValueError(f"there are processes 0 to {self.ranks - 1}, got {rank}")
        first, second = (self._piece(number) for number in (rank, 2 * self.ranks - 1 - rank))
        return first, second

    def take(self, x: Tensor, rank: int) -> Tensor:
        """A process's tokens of x [B, N, ...]."""
        return torch.cat([x[:, part.start : part.stop] for part in self.pieces(rank)], 1)

    def whole(self, shares: list[Tensor]) -> Tensor:
        """The sequence [B, N, ...] of what all processes hold, in their order."""
        parts: dict[int, Tensor] = {}
        for rank, share in enumerate(shares):
            sizes = [len(part) for part in self.pieces(rank)]
            for part, piece in zip(self.pieces(rank), share.split(sizes, 1), strict=True):
                if len(part):
                    parts[part.start] = piece
        return torch.cat([parts[begin] for begin in sorted(parts)], 1)

    def _piece(self, number: int) -> range:
        begin, end = (min(self.length, place * self.piece) for place in (number, number + 1))
        return range(begin, end)


def gather(x: Tensor, split: Split, group: dist.ProcessGroup | None = None) -> Tensor:
    """The whole sequence of a tensor of which each process holds its tokens.

    Args:
        x: [B, own tokens, ...], as `Split.take` has it.
        split: How the sequence is dealt.
        group: The processes; None = all.

    Returns:
        [B, N, ...], the same everywhere.
    """
    sizes = [sum(map(len, split.pieces(rank))) for rank in range(split.ranks)]
    own = sizes[dist.get_rank(group)]
    if x.shape[1] != own:
        raise ValueError(f"process {dist.get_rank(group)} holds {own} tokens of the split, got {x.shape[1]}")
    most = max(sizes)
    # Equal sizes for all: one collective call without sizes to agree on.
    padding = [0, 0] * (x.dim() - 2) + [0, most - own]
    sent = F.pad(x, padding).contiguous() if most > own else x.contiguous()
    received = [torch.empty_like(sent) for _ in range(split.ranks)]
    dist.all_gather(received, sent, group=group)
    return split.whole([part[:, :size] for part, size in zip(received, sizes, strict=True)])


def gather_compressed(
    x: Tensor,
    compress: Compress,
    split: Split,
    geometry: BlockGeometry,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Compressed keys (or values) of the whole sequence, each block made by the process it begins at.

    Args:
        x: Keys or values of the whole sequence [B, N, H_kv, D], gathered.
        compress: phi.
        split: How the sequence is dealt; its grid is a multiple of the stride.
        geometry: Block sizes.
        group: The processes; None = all.

    Returns:
        [B, C, H_kv, D_out], C = num_blocks(N).

    Raises:
        ValueError: Pieces that don't begin on the block grid.
    """
    if split.grid % geometry.stride:
        raise ValueError(
            f"the split's grid must be a multiple of the stride {geometry.stride}, got {split.grid}"
        )
    count = num_blocks(split.length, geometry)
    places = [_block_pieces(split, geometry, rank, count) for rank in range(split.ranks)]
    made = []
    for blocks in places[dist.get_rank(group)]:
        begin = blocks.start * geometry.stride
        # Its last block reaches beyond the piece, into tokens that were gathered.
        end = begin if not len(blocks) else (blocks.stop - 1) * geometry.stride + geometry.block
        made.append(compress(x[:, begin:end]))
    own = torch.cat(made, 1)
    most = max(sum(map(len, blocks)) for blocks in places)
    sent = F.pad(own, (0, 0, 0, 0, 0, most - own.shape[1])).contiguous()
    received = [torch.empty_like(sent) for _ in range(split.ranks)]
    dist.all_gather(received, sent, group=group)
    parts: dict[int, Tensor] = {}
    for held, share in zip(places, received, strict=True):
        at = 0
        for part in held:
            if len(part):
                parts[part.start] = share[:, at : at + len(part)]
            at += len(part)
    return torch.cat([parts[begin] for begin in sorted(parts)], 1) if parts else own


def _block_pieces(split: Split, geometry: BlockGeometry, rank: int, count: int) -> list[range]:
    """Numbers of the compression blocks that begin in each piece of a process."""
    stride = geometry.stride

    def numbers(part: range) -> range:
        begin, end = (min(count, -(-place // stride)) for place in (part.start, part.stop))
        return range(begin, end)

    return [numbers(part) for part in split.pieces(rank)]


def nsa_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    *,
    split: Split,
    geometry: BlockGeometry,
    compress_k: Compress,
    compress_v: Compress,
    k_win: Tensor | None = None,
    v_win: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """NSA's prefill of one sequence (or several of one length) that is split over processes. Forward only.

    Every process of the group calls it with its own tokens, in the order of `Split.take`.

    Args:
        q: Queries [B, n, H, D_k] of this process's tokens.
        k: Their keys [B, n, H_kv, D_k].
        v: Their values [B, n, H_kv, D_v].
        gates: [B, n, H, 3], already through the sigmoid.
        split: How the sequence is dealt.
        geometry: Block sizes.
        compress_k: phi of the keys.
        compress_v: phi of the values.
        k_win: Keys of the window branch where it has its own.
        v_win: Values of the window branch where it has its own.
        scale: Factor on q.k; None = D_k ** -0.5.
        backend: As for `nsa_attention`.
        group: The processes; None = all.

    Returns:
        [B, n, H, D_v] of this process's tokens.

    Raises:
        ValueError: Another number of processes than the split's, or of tokens than this process's.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    if ranks != split.ranks:
        raise ValueError(f"the split is for {split.ranks} processes, and the group has {ranks}")
    keys, values = gather(k, split, group), gather(v, split, group)
    k_cmp = gather_compressed(keys, compress_k, split, geometry, group)
    v_cmp = gather_compressed(values, compress_v, split, geometry, group)
    near_keys = keys if k_win is None else gather(k_win, split, group)
    near_values = values if v_win is None else gather(v_win, split, group)
    outs, begin = [], 0
    for part in split.pieces(rank):
        own = slice(begin, begin + len(part))
        begin += len(part)
        if not len(part):
            continue
        seen, blocks = part.stop, num_blocks(part.stop, geometry)
        outs.append(
            nsa_attention(
                q[:, own], k_cmp[:, :blocks], v_cmp[:, :blocks], keys[:, :seen], values[:, :seen],
                near_keys[:, :seen], near_values[:, :seen], gates[:, own], geometry=geometry,
                start=part.start, scale=scale, backend=backend,
            ).out
        )  # fmt: skip
    return torch.cat(outs, 1) if outs else q.new_empty(*q.shape[:3], v.shape[-1])
