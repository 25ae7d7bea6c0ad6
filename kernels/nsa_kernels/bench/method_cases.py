"""Methods on dense checkpoints that the kernels over lists can run: their sizes, on random data.

A case is a choice (queries and keys in, lists out) and an attention (lists in, output out), timed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nsa_kernels.bench.block_result import BlockSettings
from nsa_kernels.block_choice import (
    best_slashes,
    block_sparse,
    column_and_diagonal_sums,
    moba,
    top_mask,
    vertical_slash,
)
from nsa_kernels.blocks import BlockLists, PageLists, block_attention, page_decode
from nsa_kernels.order_free import block_means
from nsa_kernels.pages import PageExtremes, quest_pages
from nsa_kernels.spans import Merger, Part

SIMULATED = {
    "exact-top": "single keys of each query: no blocks to read",
    "streaming-llm": "a static set, moved to other positions; a cache of sinks and a window would do it",
    "h2o": "evicts by sums of all softmax weights, which no fused kernel gives away",
    "snapkv": "evicts once behind a prompt; its decode is dense attention over fewer keys",
    "tidal-decode": "single keys of each query head",
}
"""Methods that stay references here, and why: their rows say "quality only"."""
_INIT, _LOCAL, _EXEC, _BLOCK, _TOP, _REPRESENTATIVES = 128, 4096, 512, 128, 16, 4
"""InfLLM: first tokens, window, queries to a unit, tokens to a block, a unit's blocks, keys of one."""


@dataclass(slots=True)
class Case:
    """One method with its sizes."""

    name: str
    by: str
    choose: Callable[[], object]
    """Makes the lists and keeps them for `attend`."""
    attend: Callable[[], Tensor]
    """[B, N, H, D]."""
    pairs: Callable[[], int]
    """Query-key pairs over all heads that the lists name."""
    note: str = ""


class _Chosen:
    """What a choice gave, for the attention that follows it."""

    def __init__(self, choose: Callable[[], BlockLists], q: Tensor, k: Tensor, v: Tensor) -> None:
        self._choose, self._given = choose, (q, k, v)
        self.lists: BlockLists | None = None

    def choose(self) -> None:
        self.lists = self._choose()

    def attend(self) -> Tensor:
        assert self.lists is not None
        return block_attention(*self._given, self.lists).out

    def pairs(self) -> int:
        assert self.lists is not None
        q = self._given[0]
        return self.lists.pairs(q.shape[1]) * q.shape[2] // self.lists.counts.shape[1]


def prefill_cases(q: Tensor, k: Tensor, v: Tensor, settings: BlockSettings) -> Iterator[Case]:
    """The methods that choose while a prompt is read.

    Args:
        q: [1, N, H, D].
        k: [1, N, H_kv, D].
        v: [1, N, H_kv, D].
        settings: For the densities.
    """
    tokens = q.shape[1]
    tiles = -(-tokens // 64)
    choices: list[tuple[str, Callable[[], BlockLists], str]] = [
        ("block-sparse 100", partial(block_sparse, q, k), "")
    ]
    choices += [
        (
            f"block-sparse {density:g} of all",
            partial(block_sparse, q, k, top=max(1, int(density * tiles))),
            "",
        )
        for density in settings.densities
        if density in (0.1, 0.2, 0.5)
    ]
    alike = _alike(q)
    choices += [
        ("vertical-slash 1000/6096", partial(vertical_slash, q, k), "diagonals anywhere: nearly all is read"),
        ("vertical-slash 1000/6096, near", partial(_near_slashes, q, k, 1000, 6096), _NEAR),
        ("vertical-slash 30/800, near", partial(_near_slashes, q, k, 30, 800), _NEAR),
        ("moba 4096 x 12", partial(moba, q, k), "a tile reads the union of its queries' chunks"),
        ("moba 512 x 8", partial(moba, q, k, chunk=512, top=8), "a tile reads its queries' union: all"),
        (
            "moba 512 x 8, alike",
            partial(moba, alike, k, chunk=512, top=8),
            f"queries alike in stretches of {_STRETCH}",
        ),
    ]
    for name, choose, note in choices:
        chosen = _Chosen(choose, q, k, v)
        yield Case(name, "lists", chosen.choose, chosen.attend, chosen.pairs, note)
    infllm = InfLLM(q, k, v)
    yield Case(
        f"infllm {_LOCAL} + {_TOP} x {_BLOCK}",
        "lists",
        infllm.choose,
        infllm.attend,
        infllm.pairs,
        "retrieval and attention; scoring representatives and moving positions are left out",
    )


_STRETCH = 512
_NEAR = "half of the diagonals next to the main one, the others in bands of 64"


def _alike(q: Tensor) -> Tensor:
    """Queries that agree with their neighbours more than they differ."""
    tokens = q.shape[1]
    common = q[:, ::_STRETCH].repeat_interleave(_STRETCH, 1)[:, :tokens]
    return q + 4 * common


def _near_slashes(q: Tensor, k: Tensor, vertical: int, slash: int) -> BlockLists:
    """`vertical_slash` with its whole cost, led to diagonals that lie as a trained model's do."""
    columns, offsets = column_and_diagonal_sums(q[:, -64:], k)
    offset = torch.arange(offsets.shape[-1], device=q.device)
    bands = max(1, offset.numel() // 64)
    stride = max(1, bands // max(1, slash // 2 // 64))
    offsets += torch.where(offset < slash // 2, 1e6, torch.where(offset // 64 % stride == 0, 1e3, 0.0))
    return best_slashes(columns, offsets, vertical=vertical, slash=slash)


class InfLLM:
    """InfLLM's two parts (arXiv 2402.04617), merged: a window, and what a unit of 512 queries retrieves.

    Every 512 queries read the first tokens, the blocks of 128 whose representatives their mean query scores
    highest over all heads, and what lies between the blocks and the window; each query its last 4096 keys.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """The static part: every block's representatives, here its first keys, and the window's lists."""
        self.q, self.k, self.v = q, k, v
        tokens = q.shape[1]
        self.units = -(-tokens // _EXEC)
        self.blocks = -(-tokens // _BLOCK)
        keys = k[0, : tokens // _BLOCK * _BLOCK].unflatten(0, (-1, _BLOCK))[:, :_REPRESENTATIVES]
        self.representatives = keys.transpose(0, 2).flatten(1, 2)  # [H_kv, r * blocks, D]
        position = torch.arange(tokens, dtype=torch.int32, device=q.device)
        self.low = (position - _LOCAL + 1).clamp(min=0)[None]
        tile = torch.arange(-(-tokens // 64), device=q.device)
        block = torch.arange(tile.numel(), device=q.device)
        near = (block <= tile[:, None]) & ((block + 1) * 64 > tile[:, None] * 64 - _LOCAL + 1)
        self.window = BlockLists.from_mask(near[None, None], query_block=64, key_block=64)
        self.far: BlockLists | None = None

    def choose(self) -> None:
        """Retrieval: [units, blocks] scores of all heads together, the best blocks before the window."""
        means = block_means(self.q, _EXEC)[0].transpose(0, 1)  # [H, U, D]
        groups = self.representatives.shape[0]
        folded = means.unflatten(0, (groups, -1)).sum(1)  # a group shares its keys: sums come first
        scores = (folded @ self.representatives.float().transpose(1, 2)).sum(0)  # [U, r * blocks]
        scores = scores.unflatten(1, (_REPRESENTATIVES, -1)).sum(1)
        # Blocks that a unit's first query has in its window are no blocks yet.
        unit = torch.arange(self.units, device=scores.device)[:, None] * _EXEC
        block = torch.arange(scores.shape[1], device=scores.device)
        older = (block + 1) * _BLOCK <= unit - _LOCAL + 1
        first = block < _INIT // _BLOCK
        ranked = scores.masked_fill(~older | first, -torch.inf)
        chosen = (top_mask(ranked, min(_TOP, scores.shape[1])) | first) & older
        tiles = chosen.repeat_interleave(_EXEC // 64, 0)[: self.window.counts.shape[2]]
        self.far = BlockLists.from_mask(tiles[None, None], query_block=64, key_block=_BLOCK)

    def attend(self) -> Tensor:
        """[1, N, H, D], float32: the parts, merged by their log-sum-exp."""
        assert self.far is not None
        near = block_attention(self.q, self.k, self.v, self.window, low=self.low)
        far = block_attention(self.q, self.k, self.v, self.far)
        merged = Merger(Part(near.out[0], near.lse[0].T))
        merged.add(Part(far.out[0], far.lse[0].T), slice(0, self.q.shape[1]))
        return merged.out[None]

    def pairs(self) -> int:
        """Of the window exactly, of the far blocks as listed."""
        assert self.far is not None
        tokens, heads = self.q.shape[1:3]
        short = min(tokens, _LOCAL)
        window = short * (short + 1) // 2 + (tokens - short) * _LOCAL
        return heads * (window + self.far.pairs(tokens))


@dataclass(slots=True)
class QuestSet:
    """One set of caches, with their pages' extremes, and a query a row."""

    q: Tensor
    k: Tensor
    v: Tensor
    pages: PageExtremes
    lengths: Tensor
    new: Tensor
    """The last key of each row [B, H_kv, D], which a model has at hand."""
    last: Tensor
    """Where it stands, [B]."""
    budget: int
    lists: PageLists | None = None

    def choose(self) -> None:
        """The new token's page, every page's bound, the best pages."""
        self.pages.append(self.new, self.last)
        scores = self.pages.scores(self.q)
        self.lists = quest_pages(scores, self.lengths, page=self.pages.page, budget=self.budget)

    def attend(self) -> Tensor:
        """[B, H, D]."""
        assert self.lists is not None
        return page_decode(self.q, self.k, self.v, self.lists, lengths=self.lengths)

    def both(self) -> Tensor:
        """One after the other."""
        self.choose()
        return self.attend()

    def with_budget(self, budget: int) -> QuestSet:
        """The same caches."""
        return replace(self, budget=budget, lists=None)


def quest_set(
    length: int, batch: int, settings: BlockSettings, draw: Callable[..., Tensor], *, page: int
) -> QuestSet:
    """Random caches of `length` tokens in `batch` rows, in pages of `page`."""
    shape = (batch, length, settings.kv_heads, settings.head_dim)
    q, k, v = draw(batch, settings.heads, settings.head_dim), draw(*shape), draw(*shape)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=q.device)
    return QuestSet(
        new=k[:, -1].contiguous(),
        last=lengths - 1,
        q=q,
        k=k,
        v=v,
        pages=PageExtremes.of(k, page=page),
        lengths=lengths,
        budget=0,
    )
