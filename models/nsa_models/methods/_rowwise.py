"""Attention row by row, for methods that remember: where a row may go on from, and what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nsa_models.methods._base import MethodError
from nsa_models.methods._block import QueryBlock, Rotate, block_rows, grouped
from nsa_models.methods._listed import backend_for
from nsa_models.methods._memory import Memories, Memory, RowMemory
from nsa_models.methods._placement import Placement
from nsa_models.methods._reads import Now
from nsa_models.methods._rowlisted import RowListed, RowTokens
from nsa_models.methods._rowmethod import RowMethod

# Last places by which two ways to sum a key's numbers differ at most.
_ROUNDINGS, _ROUNDINGS_HALF = 64, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What all rows of a layer have in common in one forward."""

    scaling: float
    number: int
    rotate: Rotate | None
    phase: Now
    deepest: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row's new queries, and all of its keys."""

    number: int
    """In the batch."""
    columns: slice | Tensor
    """Its tokens among the columns of the forward; [n] where they stand apart."""
    first: int
    """Position of the first of them."""
    end: int
    queries: Tensor
    """[1, H, n, d_k]."""
    keys: Tensor
    """[1, H_kv, end, d_k]."""
    memory: Memory
    layer: _Layer

    def block(self, start: int, stop: int) -> QueryBlock:
        """Queries `start`..`stop` - 1 and the keys up to the last of them."""
        return QueryBlock(
            q=self.queries[:, :, start - self.first : stop - self.first],
            k=self.keys[:, :, :stop],
            positions=torch.arange(start, stop, device=self.keys.device)[None],
            scaling=self.layer.scaling,
            layer=self.layer.number,
            rotate=self.layer.rotate,
            memory=self.memory,
        )

    def part(self, start: int, stop: int) -> slice | Tensor:
        """Columns of the forward that have queries `start`..`stop` - 1."""
        if isinstance(self.columns, slice):
            shift = self.columns.start - self.first
            return slice(start + shift, stop + shift)
        return self.columns[start - self.first : stop - self.first]

    def parts(self) -> Iterator[tuple[int, int]]:
        """Spans of queries whose cells fit into memory."""
        most = block_rows(self.queries, self.end)
        return pairwise([*range(self.first, self.end, most), self.end])


def attend_rows(
    method: RowMethod,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    memories: Memories,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None,
    phase: Now,
    deepest: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `attend`, for a method that takes one row at a time; what it remembers goes on in `memories`.

    Args:
        method: Says which keys.
        q: [B, H, n, d_k].
        k: [B, H_kv, S, d_k], column s at position s.
        v: [B, H_kv, S, d_v].
        place: Where the queries stand.
        memories: Of the B rows.
        scaling: Factor of q.k.
        layer: Index of the layer.
        rotate: See `QueryBlock`.
        phase: What the forward is.
        deepest: Whether it is the last layer in which the method acts, whose keys tell rows apart best:
            there it is looked whether a row goes on with its own.

    Returns:
        [B, H, n, d_v] in q's dtype, 0 for padding; and the KV tokens read by each row's queries over all
        heads, [B].

    Raises:
        MethodError: A row doesn't go on where its memory ends.
    """
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    read = torch.zeros(q.shape[0], dtype=torch.long, device=q.device)
    common = _Layer(scaling=scaling, number=layer, rotate=rotate, phase=phase, deepest=deepest)
    for row in _rows(method, q, k, place, memories, common):
        if method.looks_ahead(phase):
            for start, stop in row.parts():
                method.observe(row.block(start, stop))
        values = v[row.number : row.number + 1, :, : row.end].to(row.keys.dtype)
        for start, stop in _chosen_together(method, row):
            block = row.block(start, stop)
            keep = method.select(block) & block.visible
            weights = method.logits(block).masked_fill(~keep, float("-inf")).softmax(-1)
            weights = weights.masked_fill(~keep, 0.0)
            out[row.number][:, row.part(start, stop)] = grouped(weights, values[:, :, :stop])[0].to(q.dtype)
            read[row.number] += keep.sum() * (q.shape[1] // keep.shape[1])
            method.learn(block, weights)
    return out, read


def attend_rows_by_lists(
    method: RowListed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    memories: Memories,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None,
    phase: Now,
    deepest: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `attend_rows`, by kernels over lists of what is read: nothing is made of queries by keys.

    Raises:
        MethodError: A row doesn't go on where its memory ends, or nothing attends by lists of such tensors.
    """
    backend = backend_for(method, q.device, q.dtype, width=q.shape[3], value_width=v.shape[3])
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    read = [0] * q.shape[0]
    common = _Layer(scaling=scaling, number=layer, rotate=rotate, phase=phase, deepest=deepest)
    for row in _rows(method, q, k, place, memories, common, dtype=q.dtype):
        tokens = RowTokens(
            q=row.queries[0],
            k=row.keys[0],
            v=v[row.number, :, : row.end],
            first=row.first,
            scaling=scaling,
            rotate=rotate,
            memory=row.memory,
            backend=backend,
        )
        made, read[row.number] = method.attend(tokens, list(_chosen_together(method, row)))
        out[row.number][:, row.columns] = made
    return out, torch.tensor(read).to(q.device, non_blocking=True)


def observe_rows(
    method: RowMethod,
    q: Tensor,
    k: Tensor,
    place: Placement,
    memories: Memories,
    *,
    scaling: float,
    layer: int,
    rotate: Rotate | None,
    phase: Now,
    deepest: bool = True,
) -> None:
    """Show a method the queries of a forward that it leaves dense; args as for `attend_rows`.

    Raises:
        MethodError: A row doesn't go on where its memory ends.
    """
    common = _Layer(scaling=scaling, number=layer, rotate=rotate, phase=phase, deepest=deepest)
    for row in _rows(method, q, k, place, memories, common):
        for start, stop in row.parts():
            method.observe(row.block(start, stop))


def _chosen_together(method: RowMethod, row: _Row) -> Iterator[tuple[int, int]]:
    """Spans of queries that choose together."""
    if row.layer.phase == "decode":  # a step chooses for one token: what is remembered ends at it
        return pairwise(range(row.first, row.end + 1))
    units = method.units(row.first, row.end)
    return row.parts() if units is None else pairwise(units)


def _rows(
    method: RowMethod,
    q: Tensor,
    k: Tensor,
    place: Placement,
    memories: Memories,
    layer: _Layer,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[_Row]:
    """Rows with tokens in this forward, float32 at least where no dtype is named.

    Memory has seen a row's when the next is asked for.
    """
    if dtype is None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if len(memories.rows) != q.shape[0]:
        raise MethodError(
            f"{method.name}: {q.shape[0]} rows came with the memory of {len(memories.rows)}; rows of a cache "
            "and their memory are copied and joined together (Attached.fresh)"
        )
    for number, remembered in enumerate(memories.rows):
        columns, first, count = _tokens(place, number)
        if not count:
            continue
        end = first + count
        keys = k[number : number + 1, :, :end]
        memory = _enter(method, remembered, keys, layer, first=first, end=end)
        yield _Row(
            number=number,
            columns=columns,
            first=first,
            end=end,
            queries=q[number : number + 1, :, columns].to(dtype),
            keys=keys.to(dtype),
            memory=memory,
            layer=layer,
        )
        memory.seen = end
        if layer.deepest:
            memory.last = keys[0, :, -1].clone()  # a view would keep the whole cache alive


def _tokens(place: Placement, row: int) -> tuple[slice | Tensor, int, int]:
    """A row's tokens among the columns of the forward, the position of the first, and their number."""
    new = place.together(row)
    if new is not None:
        return new.where, new.position, new.count
    columns = torch.arange(place.positions.shape[1], device=place.positions.device)
    if place.real is not None:
        columns = columns[place.real[row]]
    return columns, int(place.positions[row, columns[0]]) if len(columns) else 0, len(columns)


def _enter(method: RowMethod, row: RowMemory, keys: Tensor, layer: _Layer, *, first: int, end: int) -> Memory:
    """The memory of a row in a layer, as tokens `first`..`end` - 1 come; anew where they are its first.

    Raises:
        MethodError: It ends elsewhere or is another row's, or the method needs a prompt whole.
    """
    if first == 0:
        row.layers[layer.number] = Memory(own=method.begin(), step=row.step)
    memory = row.layers.get(layer.number) or Memory()
    if memory.seen != first:
        raise MethodError(
            f"{method.name}: a row goes on with its token {first}, and what the method remembers of it ends "
            f"before token {memory.seen}; under this method, read each row from its first token on, and copy "
            "and join what is remembered along with the cache (Attached.fresh)"
        )
    # It makes a GPU wait, so one layer looks.
    if layer.deepest and memory.last is not None and not _is_key(memory.last, keys[0, :, first - 1]):
        raise MethodError(
            f"{method.name}: a row goes on with its token {first}, and what the method remembers is of "
            "another row: a cache was reordered (a beam search, rows that left a batch) and the memory "
            "wasn't with it (Attached.fresh)"
        )
    if layer.phase == "prefill" and memory.prompt is not None:
        raise MethodError(
            f"{method.name}: a prompt goes on at token {first}, behind decode steps from token "
            f"{memory.prompt} on; read the whole as a new prompt"
        )
    if layer.phase == "prefill" and first > 0 and not method.chunked_prefill:
        raise MethodError(
            f"{method.name}: it needs a prompt whole, and this one came in pieces, of which one begins at "
            f"token {first}"
        )
    if layer.phase == "decode" and memory.prompt is None:
        memory.prompt = first
    memory.end = end
    return memory


def _is_key(known: Tensor, now: Tensor) -> bool:
    """Whether a token's key [H_kv, d_k] is the one that is known of it.

    A cache of latents (MLA) holds no keys: they are made of it in each forward, and round by its shape.
    """
    if torch.equal(known, now):
        return True
    ulp = torch.finfo(now.dtype).eps
    # Products of 16 bits are summed in more.
    near = _ROUNDINGS_HALF * ulp if now.element_size() == 2 else _ROUNDINGS * ulp
    return torch.allclose(known, now, rtol=near, atol=near * float(now.abs().mean()))
