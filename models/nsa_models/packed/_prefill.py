"""The attention of one forward over packed pieces of rows: which calls it takes, and each layer's sum.

Every token sees its own piece up to itself, and all of what its row has read before. The first is one causal
call for all pieces. The second goes span by span: rows that have a span in common and stand side by side read
it in one call, and short spans that belong to few tokens each (the contexts of many questions) share a call.
Which calls those are is worked out once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.spans import (
    Merger,
    Part,
    attend,
    attend_pieces,
    key_pieces,
    piece_edges,
    query_pieces,
    takes_cudnn,
    takes_flash,
)
from nsa_models.packed._blocks import Block, Chain, Span, own

# A span of fewer tokens shares a call with others: its keys are copied side by side for that.
_SHORT = 512


class _Reading(NamedTuple):
    """Tokens begin to end of the forward, all of which read `span`."""

    span: Span
    begin: int
    end: int


@dataclass(slots=True)
class _Call:
    """One call of an attention kernel for tokens that read what was there before."""

    spans: list[Span]
    """Their keys, piece by piece; neighbours in one block are one span here."""
    keys: list[int]
    queries: list[int]
    where: slice | Tensor
    """The tokens: all of a slice, or these numbers."""
    edges: tuple[Tensor, Tensor] | None = None

    def pieces(self, *, fast: bool) -> list[_Call]:
        """The same as calls of few sizes, where that makes them faster."""
        if len(self.queries) > 1 or not fast:
            return [self]
        [span], [queries] = self.spans, self.queries
        assert isinstance(self.where, slice)
        rows = list(accumulate(query_pieces(queries, len(span)), initial=self.where.start))
        return [
            _Call([Span(span.block, key, key_end)], [key_end - key], [end - begin], slice(begin, end))
            for begin, end in pairwise(rows)
            for key, key_end in pairwise(accumulate(key_pieces(len(span), end - begin), initial=span.begin))
        ]

    def run(self, q: Tensor, layer: int, scale: float | None) -> Part:
        k, v = (
            parts[0] if len(parts) == 1 else torch.cat(parts)
            for parts in (
                [span.block.k[layer][span.begin : span.end] for span in self.spans],
                [span.block.v[layer][span.begin : span.end] for span in self.spans],
            )
        )
        some = q[self.where]
        if len(self.queries) == 1:
            return attend(some, k, v, causal=False, scale=scale)
        return attend_pieces(
            some, k, v, queries=self.queries, keys=self.keys, causal=False, scale=scale, edges=self.edges
        )


class PackedForward:
    """The `Feed` of one forward over pieces of B rows, packed in order."""

    def __init__(
        self, chains: Sequence[Chain], counts: Sequence[int], *, keep: bool, device: torch.device
    ) -> None:
        """Work out the calls.

        Args:
            chains: What each row has read before.
            counts: Tokens that each row reads now; 0 for a row that reads nothing.
            keep: Whether a block of the new tokens' keys and values is wanted.
            device: Where the model is.
        """
        self.block = Block() if keep else None
        self._layer = 0
        pieces = [(chain, count) for chain, count in zip(chains, counts, strict=True) if count]
        self._counts = [count for _, count in pieces]
        self._edges: tuple[Tensor, Tensor] | None = None
        if len(self._counts) > 1:
            edges = piece_edges(self._counts, device)
            self._edges = (edges, edges)
        self._calls = [
            call
            for depth in range(max((len(chain) for chain, _ in pieces), default=0))
            for call in _calls(_readings(pieces, depth), device)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        """The next layer's attention, as `Feed` has it."""
        layer, self._layer = self._layer, self._layer + 1
        k, v = own(k), own(v)
        if self.block is not None:
            self.block.k.append(k)
            self.block.v.append(v)
        queries = q[0].transpose(0, 1)
        within = attend_pieces(
            queries,
            k,
            v,
            queries=self._counts,
            keys=self._counts,
            causal=True,
            scale=scale,
            edges=self._edges,
        )
        if not self._calls:
            return within.out[None]
        whole = Merger(within)
        fast = takes_flash(queries, v) and takes_cudnn(queries)
        for call in self._calls:
            for piece in call.pieces(fast=fast):
                whole.add(piece.run(queries, layer, scale), piece.where)
        return whole.out.to(q.dtype)[None]


def _readings(pieces: Sequence[tuple[Chain, int]], depth: int) -> list[_Reading]:
    """Who reads the spans at `depth` of the chains; neighbours with the same one read it together."""
    found: list[_Reading] = []
    begin = 0
    for chain, count in pieces:
        end = begin + count
        if depth < len(chain):
            span = chain[depth]
            if found and found[-1].end == begin and found[-1].span == span:
                found[-1] = found[-1]._replace(end=end)
            else:
                found.append(_Reading(span, begin, end))
        begin = end
    return found


def _calls(readings: list[_Reading], device: torch.device) -> list[_Call]:
    long = [one for one in readings if len(one.span) >= _SHORT]
    short = [one for one in readings if len(one.span) < _SHORT]
    calls = [
        _Call([one.span], [len(one.span)], [one.end - one.begin], slice(one.begin, one.end)) for one in long
    ]
    if short:
        queries, keys = [one.end - one.begin for one in short], [len(one.span) for one in short]
        call = _Call(_merged([one.span for one in short]), keys, queries, _where(short, device))
        if len(short) > 1:
            call.edges = (piece_edges(queries, device), piece_edges(keys, device))
        calls.append(call)
    return calls


def _merged(spans: list[Span]) -> list[Span]:
    """Spans one behind another, neighbours in one block as one: less to copy together."""
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is not None and last.block is span.block and last.end == span.begin:
            found[-1] = Span(span.block, last.begin, span.end)
        else:
            found.append(span)
    return found


def _where(readings: list[_Reading], device: torch.device) -> slice | Tensor:
    """The tokens of readings: a slice where they follow each other."""
    if all(a.end == b.begin for a, b in pairwise(readings)):
        return slice(readings[0].begin, readings[-1].end)
    numbers = torch.cat([torch.arange(one.begin, one.end) for one in readings])
    return numbers.to(device, non_blocking=True)
