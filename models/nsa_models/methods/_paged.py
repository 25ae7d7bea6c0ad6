"""Decode steps by pages of keys, chosen by each page's extremes, which are kept beside the cache.

The reference makes the extremes of all pages in each step, and so reads every key. Here a step takes its own
key into the extremes of the page that it falls into (`nsa_kernels.pages`), and reads keys and values of the
chosen pages alone. Where nothing kept is of just these keys (`_beside.py`) the extremes are made anew.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists, PageLists, page_decode
from nsa_kernels.pages import PageExtremes
from nsa_models.methods._beside import Beside, Held, starts_of_step
from nsa_models.methods._listed import Listed, Run, backend_for
from nsa_models.methods._placement import Placement
from nsa_models.methods._reads import Reads

# Room for tokens to come, as a part of those there are and at least: extremes are copied when it is used up.
_SPARE_PART, _SPARE_TOKENS = 8, 1024


@dataclass(frozen=True, kw_only=True)
class Paged(Listed):
    """A method that acts in decode alone, by pages of keys that it chooses by their extremes.

    Attributes:
        page: Tokens of a page, any number.
    """

    sized: ClassVar[str] = "page"

    page: int

    @abstractmethod
    def choose(
        self, extremes: PageExtremes, q: Tensor, lengths: Tensor, scored: Tensor, *, backend: str
    ) -> PageLists:
        """The pages that one query a row reads.

        Args:
            extremes: Of all pages up to the longest row's last.
            q: [B, H, d].
            lengths: Tokens of each row, the query's own among them, int32 [B]; 0 for a row without one.
            scored: What `scored` says of them.
            backend: As `nsa_kernels.pages` has them.
        """

    @abstractmethod
    def scored(self, lengths: Tensor) -> Tensor:
        """Pages whose extremes a query reads at so many tokens: `index_reads` is twice that. Integers [B]."""

    def kv_kept(self, tokens: int) -> int:
        """With `fast`, two extremes for each page besides, which are as much as a token."""
        return super().kv_kept(tokens) + (-(-tokens // self.page) if self.fast else 0)

    def lists(self, run: Run, plan: Any) -> BlockLists:  # noqa: ANN401 - as in `Listed`
        """Never asked: prompts stay dense.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self.name} acts in decode alone")

    def _check_blocks(self) -> None:
        """Pages may have any size: they are gathered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Where rows stand in one step, the same in all layers."""

    lengths: Tensor
    """int32 [B]; 0 for a row without a token."""
    scored: Tensor
    """int32 [B]."""
    vectors: Tensor
    """What choosing reads, see `IndexReads`."""
    starts: tuple[int, ...] | None
    """See `starts_of_step`."""

    @classmethod
    def of(cls, method: Paged, place: Placement, column: int) -> _Step:
        lengths = place.positions[:, column] + 1
        if place.real is not None:
            lengths = lengths * place.real[:, column]
        scored = method.scored(lengths)
        return cls(
            lengths=lengths.int(), scored=scored.int(), vectors=2 * scored.sum(), starts=starts_of_step(place)
        )


class KeptPages(Beside[PageExtremes]):
    """Each layer's extremes."""

    def __init__(self) -> None:
        """Nothing is known."""
        super().__init__()
        self._step: _Step | None = None

    def step(self, method: Paged, place: Placement) -> _Step:
        """The step of one token a row that is under way: what a layer has worked out is every layer's."""
        starts, last = starts_of_step(place), self._step
        known = last is not None and starts is not None and last.starts == starts
        if last is None or not known or last.lengths.device != place.positions.device:
            last = self._step = _Step.of(method, place, 0)
        return last

    def take(self, layer: int, held: Held, place: Placement) -> PageExtremes | None:
        """As `Beside.take`; what was made in inference mode may be written in no other."""
        found = super().take(layer, held, place)
        writable = found is None or torch.is_inference_mode_enabled() or not found.high.is_inference()
        return found if writable else None


def step_by_pages(
    method: Paged,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    *,
    scaling: float,
    layer: int,
    held: Held,
    kept: KeptPages,
    reads: Reads,
) -> tuple[Tensor, Tensor]:
    """A decode step: what `attend` gives, without looking at all keys.

    Args:
        method: Says which pages.
        q: [B, H, n, d_k], n of 1 but for callers of their own: later ones make the extremes anew.
        k: [B, H_kv, S, d_k], column s at position s.
        v: [B, H_kv, S, d_v].
        place: Where the queries stand.
        scaling: Factor of q.k.
        layer: Index of the layer.
        held: Where the cache has the layer's keys.
        kept: The extremes that are known.
        reads: Where to count what choosing reads.

    Returns:
        [B, H, n, d_v] in q's dtype, 0 for a query that sees nothing; and the KV tokens read by all real
        queries over all heads, a 0-d LongTensor.
    """
    backend = backend_for(method, q.device, q.dtype, width=q.shape[3], value_width=v.shape[3])
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    out, read = [], []
    for column in range(q.shape[2]):
        alone = q.shape[2] == 1
        step = kept.step(method, place) if alone else _Step.of(method, place, column)
        extremes = kept.take(layer, held, place)
        if extremes is None:
            extremes = _made_anew(keys, step, page=method.page)
            reads.look(rebuilt=step.lengths.sum())
        else:
            extremes = _with_new(extremes, keys, step, backend=backend)
        kept.keep(layer, extremes, held, place)
        queries, pages = q[:, :, column], -(-_extent(keys, step) // method.page)
        lists = method.choose(extremes.part(0, pages), queries, step.lengths, step.scored, backend=backend)
        found = page_decode(
            queries, keys, values, lists, lengths=step.lengths, scale=scaling, backend=backend
        )
        out.append(found[:, :, None])
        read.append(lists.reads(q.shape[1], step.lengths))
        reads.look(scored=step.vectors)
    return (out[0], read[0]) if len(out) == 1 else (torch.cat(out, 2), torch.stack(read).sum())


def _extent(keys: Tensor, step: _Step) -> int:
    """Tokens of the longest row, or more where only the device knows."""
    return keys.shape[1] if step.starts is None else max(step.starts) + 1


def _made_anew(keys: Tensor, step: _Step, *, page: int) -> PageExtremes:
    """The extremes of all rows' keys [B, S, H_kv, d]."""
    extent = _extent(keys, step)
    alike = step.starts is not None and min(step.starts) + 1 == extent
    return PageExtremes.of(
        keys[:, :extent].detach(),
        page=page,
        lengths=None if alike else step.lengths,
        capacity=extent + max(extent // _SPARE_PART, _SPARE_TOKENS),
    )


def _with_new(extremes: PageExtremes, keys: Tensor, step: _Step, *, backend: str) -> PageExtremes:
    """The same with each row's new key taken in, which stands behind all others."""
    assert step.starts is not None, "kept of rows that don't go on by a token"
    extent, positions = max(step.starts) + 1, step.lengths - 1
    if extremes.high.shape[1] * extremes.page < extent:
        extremes = extremes.with_room(extent + max(extent // _SPARE_PART, _SPARE_TOKENS))
    if min(step.starts) + 1 == extent:
        new = keys[:, extent - 1]
    else:
        index = positions.long()[:, None, None, None].expand(-1, 1, *keys.shape[2:])
        new = keys.gather(1, index)[:, 0]
    extremes.append(new.detach(), positions, backend=backend)
    return extremes
