"""A block of queries with the keys of their rows, and the attention over a chosen part of the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from nsa_models.methods._memory import Memory
from nsa_models.methods._placement import Placement

# Cells [B, H, queries, S] of one block: some four tensors of so many float32 are alive at once, 64 MiB each
# on a CPU and 512 MiB each on a GPU.
_CELLS_CPU = 2**24
_CELLS_CUDA = 2**27
# Of so many a GPU makes a running sum in some 50 us, which is what a wait costs where nothing else runs.
_FEW_CELLS = 2**22

Rotate = Callable[[Tensor, Tensor], Tensor]
"""(queries [B, H, n, d], [B, n] positions to add) -> the queries as they would be at those positions."""


@dataclass(frozen=True, kw_only=True)
class QueryBlock:
    """Queries of one layer and all keys of their rows, without holes: key column s is position s.

    Tensors are float32, or float64 where the model is.
    """

    q: Tensor
    """[B, H, n, d_k], after RoPE, as the model made it."""
    k: Tensor
    """[B, H_kv, S, d_k], after RoPE. What stands behind a row's last token is finite and never visible."""
    v: Tensor | None = None
    """[B, H_kv, S, d_v] values, for methods that choose by them."""
    positions: Tensor
    """[B, n] position of each query, -1 for padding that sees nothing."""
    scaling: float
    """Factor of q.k in the logits."""
    layer: int
    """Index of the layer."""
    rotate: Rotate | None = None
    """Moves queries to other positions; given to methods that declare `needs_rotary`."""
    memory: Memory | None = None
    """What is remembered of the row; given to methods that take one row at a time, as blocks of one row."""
    plans: Sequence[Any] | None = None
    """What `Method.plan` decided for each row's prompt, None for a row without tokens; None for methods that
    take prompts in pieces, and in decode."""

    @cached_property
    def visible(self) -> Tensor:
        """[B, 1, n, S] keys up to each query's own position."""
        columns = torch.arange(self.k.shape[2], device=self.k.device)
        return columns <= self.positions[:, None, :, None]

    @cached_property
    def logits(self) -> Tensor:
        """[B, H, n, S] scaled q.k, of all keys."""
        return self.dot(self.q, self.k) * self.scaling

    def dot(self, q: Tensor, keys: Tensor) -> Tensor:
        """Unscaled products [B, H, n, X] of q [B, H, n, d] with keys [B, H_kv, X, d] of each head's group."""
        return grouped(q, keys.transpose(-1, -2))


def grouped(x: Tensor, of_group: Tensor) -> Tensor:
    """x [B, H, n, a] @ of_group [B, H_kv, a, b] -> [B, H, n, b], without a copy of a group for each head."""
    heads, groups, n = x.shape[1], of_group.shape[1], x.shape[2]
    folded = x.unflatten(1, (groups, heads // groups)).flatten(2, 3)
    product: Tensor = (folded @ of_group).unflatten(2, (heads // groups, n)).flatten(1, 2)
    return product


def keep_top(
    scores: Tensor, count: int | Tensor, among: Tensor, *, most: int | None = None, waits: bool = True
) -> Tensor:
    """The `count` highest scores of the last axis; of equal ones, the lower index.

    Args:
        scores: [..., S].
        count: How many; a LongTensor that broadcasts to [..., 1] where it differs.
        among: Booleans that broadcast to [..., S]: candidates. Where there are fewer, all are kept.
        most: What no count exceeds, where that is known: to ask a tensor makes a GPU wait.
        waits: Whether many cells may be looked through for ties, which makes a GPU wait too.

    Returns:
        Booleans [..., S].
    """
    low = torch.finfo(scores.dtype).min
    among = among.expand(scores.shape)
    candidates = scores.clamp(min=low).masked_fill(~among, float("-inf"))
    wanted = torch.full((), count, device=scores.device) if isinstance(count, int) else count
    wanted = wanted.expand(*scores.shape[:-1], 1).clamp(min=0, max=scores.shape[-1])
    if isinstance(count, int):
        most = count
    elif most is None:
        most = int(wanted.max()) if wanted.numel() else 0
    most = min(max(most, 0), scores.shape[-1])
    if most == 0:
        return torch.zeros_like(among)
    values = candidates.topk(most, dim=-1).values
    bar = values.gather(-1, (wanted - 1).clamp(min=0))
    reaching = (candidates >= bar) & among & (wanted > 0)
    if waits and _worth_asking(reaching) and bool((reaching.sum(-1, keepdim=True) <= wanted).all()):
        return reaching
    # topk has no rule for ties: of those at the bar, take from the left while there is room.
    above = reaching & (candidates > bar)
    equal = reaching & ~above
    room = wanted - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


def _worth_asking(cells: Tensor) -> bool:
    """Whether to look for ties costs less than to sort them out: it makes a GPU wait."""
    return not cells.is_cuda or cells.numel() > _FEW_CELLS


class Selector(Protocol):
    """What `attend` asks of a method."""

    @property
    def phase(self) -> str:
        """Where it acts (see `Method.phase`)."""
        ...

    def select(self, block: QueryBlock) -> Tensor:
        """The keys that a block of queries reads (see `Method.select`)."""
        ...

    def logits(self, block: QueryBlock) -> Tensor:
        """Logits of the softmax (see `Method.logits`)."""
        ...

    def values(self, block: QueryBlock, v: Tensor) -> Tensor:
        """Values of the keys (see `Method.values`)."""
        ...


def block_rows(q: Tensor, keys: int) -> int:
    """Queries of q [B, H, n, d] that go into one block, for its cells with so many keys to fit."""
    cells = _CELLS_CUDA if q.is_cuda else _CELLS_CPU
    return max(1, cells // (q.shape[0] * q.shape[1] * keys))


def attend(
    method: Selector,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None,
    plans: Sequence[Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the keys that `method` selects: the reference, which keeps all keys.

    Args:
        method: Says which keys.
        q: [B, H, n, d_k].
        k: [B, H_kv, S, d_k], column s at position s.
        v: [B, H_kv, S, d_v].
        place: Where the queries stand.
        scaling: Factor of q.k.
        layer: Index of the layer.
        rotate: See `QueryBlock`.
        plans: See `QueryBlock`.

    Returns:
        [B, H, n, d_v] in q's dtype, 0 for a query that sees nothing; and the KV tokens read by each row's
        real queries over all heads, a LongTensor [B].
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = k.to(dtype), v.to(dtype)
    heads, length = q.shape[1:3]
    rows = block_rows(q, k.shape[2])
    if method.phase == "decode":
        rows = 1  # a step chooses for one token: page statistics end at it
    out, read = [], torch.zeros(q.shape[0], dtype=torch.long, device=q.device)
    for begin in range(0, length, rows):
        part = slice(begin, min(begin + rows, length))
        # Keys behind the last query of the block are seen by none of it.
        extent = k.shape[2] if place.first is None else min(k.shape[2], place.first + part.stop)
        block = QueryBlock(
            q=q[:, :, part].to(dtype),
            k=k[:, :, :extent],
            v=v[:, :, :extent],
            positions=place.positions[:, part],
            scaling=scaling,
            layer=layer,
            rotate=rotate,
            plans=plans,
        )
        keep = method.select(block) & block.visible
        logits = method.logits(block).masked_fill(~keep, float("-inf"))
        read_by = grouped(logits.softmax(-1), method.values(block, v[:, :, :extent]))
        counts = keep.sum(-1)  # [B, H or 1, n]
        # A row without keys is NaN after the softmax.
        out.append(read_by.masked_fill((counts == 0)[..., None], 0.0).to(q.dtype))
        if place.real is not None:
            counts = counts * place.real[:, None, part]
        read += counts.sum((1, 2)) * (heads // keep.shape[1])
    return torch.cat(out, dim=2), read
