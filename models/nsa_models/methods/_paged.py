"""Decode steps by pages of keys, chosen by each page's extremes, which are kept beside the cache.

The reference makes the extremes of all pages in each step, and so reads every key. Here a step takes its own
key into the extremes of the page that it falls into (`nsa_kernels.pages`), and reads keys and values of the
chosen pages alone. Where nothing kept is of just these keys (`_beside.py`) the extremes are made anew.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from nsa_kernels.blocks import BlockLists, PageLists, page_decode
from nsa_kernels.pages import PageExtremes
from nsa_models.methods._beside import Beside, Held, starts_of_step
from nsa_models.methods._listed import Listed, Run, backend_for
from nsa_models.methods._placement import Placement
from nsa_models.methods._reads import Reads

# Extremes get room for an eighth more tokens than there are, and 1024: they are copied as rarely then.
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
    def choose(self, extremes: PageExtremes, q: Tensor, lengths: Tensor, *, backend: str) -> PageLists:
        """The pages that one query a row reads.

        Args:
            extremes: Of all pages up to the longest row's last.
            q: [B, H, d].
            lengths: [B] tokens of each row, the query's own among them; 0 for a row without one.
            backend: As `nsa_kernels.pages` has them.
        """

    @abstractmethod
    def scored(self, lengths: Tensor) -> Tensor:
        """Pages whose extremes a query reads at so many tokens: `index_reads` is twice that. Integers [B]."""

    def lists(self, run: Run, plan: Any) -> BlockLists:  # noqa: ANN401 - as in `Listed`
        """Never asked: prompts stay dense.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{self.name} acts in decode alone")

    def _check_blocks(self) -> None:
        """Pages may have any size: they are gathered."""


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
    beside: Beside[PageExtremes],
    reads: Reads,
) -> tuple[Tensor, Tensor]:
    """A decode step: what `attend` gives, without looking at all keys.

    Args:
        method: Says which pages.
        q: [B, H, n, d_k], n of 1 but for callers of their own.
        k: [B, H_kv, S, d_k], column s at position s.
        v: [B, H_kv, S, d_v].
        place: Where the queries stand.
        scaling: Factor of q.k.
        layer: Index of the layer.
        held: Where the cache has the layer's keys.
        beside: The extremes that are kept.
        reads: Where to count what choosing reads.

    Returns:
        [B, H, n, d_v] in q's dtype, 0 for a query that sees nothing; and the KV tokens read by all real
        queries over all heads, a 0-d LongTensor.
    """
    backend = backend_for(method, q.device, q.dtype, width=q.shape[3], value_width=v.shape[3])
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    read = q.new_zeros((), dtype=place.positions.dtype)
    for column in range(q.shape[2]):
        lengths = place.positions[:, column] + 1
        if place.real is not None:
            lengths = lengths * place.real[:, column]
        extremes = beside.take(layer, held, place)
        if extremes is None:
            extremes = _made_anew(keys, lengths, place, page=method.page)
            reads.look(rebuilt=lengths.sum())
        else:
            extremes = _with_new(extremes, keys, place, backend=backend)
        queries = q[:, :, column]
        pages = -(-_extent(keys, place) // method.page)
        lists = method.choose(extremes.part(0, pages), queries, lengths, backend=backend)
        out[:, :, column] = page_decode(
            queries, keys, values, lists, lengths=lengths, scale=scaling, backend=backend
        )
        read += lists.reads(q.shape[1], lengths)
        reads.look(scored=2 * method.scored(lengths).sum())
        beside.keep(layer, extremes, held, place)
    return out, read


def _extent(keys: Tensor, place: Placement) -> int:
    """Tokens of the longest row, or more where only the device knows."""
    starts = starts_of_step(place)
    return keys.shape[1] if starts is None else max(starts) + 1


def _made_anew(keys: Tensor, lengths: Tensor, place: Placement, *, page: int) -> PageExtremes:
    """The extremes of rows of `lengths` tokens among keys [B, S, H_kv, d]."""
    starts, extent = starts_of_step(place), _extent(keys, place)
    alike = starts is not None and min(starts) + 1 == extent
    return PageExtremes.of(
        keys[:, :extent],
        page=page,
        lengths=None if alike else lengths,
        capacity=extent + max(extent // _SPARE_PART, _SPARE_TOKENS),
    )


def _with_new(extremes: PageExtremes, keys: Tensor, place: Placement, *, backend: str) -> PageExtremes:
    """The same with each row's new key taken in, which stands behind all others."""
    starts = starts_of_step(place)
    assert starts is not None, "kept of rows that don't go on by a token"
    extent, positions = max(starts) + 1, place.positions[:, 0]
    if extremes.high.shape[1] * extremes.page < extent:
        extremes = extremes.with_room(extent + max(extent // _SPARE_PART, _SPARE_TOKENS))
    if min(starts) + 1 == extent:
        new = keys[:, extent - 1]
    else:
        index = positions[:, None, None, None].expand(-1, 1, *keys.shape[2:])
        new = keys.gather(1, index)[:, 0]
    extremes.append(new, positions, backend=backend)
    return extremes
