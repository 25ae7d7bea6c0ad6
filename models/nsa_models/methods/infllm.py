"""InfLLM: a window, first tokens, and blocks found by a few keys that stand for each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_kernels.blocks import BlockLists, block_attention
from nsa_kernels.spans import Merger, Part
from nsa_kernels.window import tile_for, window_lists, window_sums
from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, Rotate, keep_top
from nsa_models.methods._growing import Growing
from nsa_models.methods._listed import Run
from nsa_models.methods._rowlisted import RowListed, RowTokens
from nsa_models.methods._rowmethod import lengthened, memory_of, start_of

_PIECE = 2048
"""Queries or keys that are turned at a time: several tensors of so many in float32 are alive at once."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What is remembered of a row in one layer."""

    scores: Tensor
    """[H, S] attention that each key got from queries that had it in their window."""
    representatives: Tensor
    """[blocks, H, d_k], without position."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of a row in one layer where kernels attend."""

    scores: Tensor
    """[H, n] as in `_Blocks`, of the last keys: those that aren't a block yet."""
    representatives: Tensor
    """[blocks, H, d_k], without position, float32 at least."""
    keys: Growing
    """[H_kv, n, d_k] keys without position in the model's dtype: the far ones, and some ahead."""


@dataclass(frozen=True, kw_only=True)
class InfLLM(RowListed):
    """InfLLM: blocks of far tokens, chosen for a unit of queries by representative keys (arXiv 2402.04617).

    Queries choose in units: `unit` tokens of a prompt, whose last token is one of its own, and each decoded
    token. A query reads the `local` tokens up to its own at their true distances. Of the tokens behind, the
    first `first` and `blocks` blocks of `block` tokens are read, and those that aren't a block yet, all as if
    at distance local - 1. A block is made when a unit ends with `local` tokens and a block's more: of the
    keys that got most attention while they were in the window, `representatives` a head are averaged. The
    blocks whose average has the highest product with the unit's mean query, summed over all heads, are read
    by all heads, and a query's choice depends on later ones of its unit.

    Here keys keep the positions that the model gave them and are turned back for the far ones, so the rotary
    embedding must be known, and must not change its frequencies with the length. A key counts once; the
    authors' program counts some twice in a prompt: those that have left the window of a unit's last query,
    for earlier queries that still have them in theirs.

    Attributes:
        budget: KV tokens a query reads per layer and head: first + local + whole blocks. It reads besides
            what isn't a block yet: 1 to block tokens, and in a prompt up to unit - 1 more.
        first: Leading tokens. Default 128 (the authors').
        local: Latest tokens, the query's own among them. Default 512 (NSA's comparison; the authors' 4096).
        block: Tokens of a block. Default 128 (the authors', with 16 blocks).
        representatives: Keys that are averaged for a block. Default 4 (the authors').
        unit: Tokens of a prompt that choose together, at most local. Default 512 (the authors').
        fast: Read window and blocks by kernels, on a GPU and in 16 bits (`Listed`); keys are then kept once
            more, without their positions, half as much again as the cache. Default false.
        dense_layers: Layers left dense. Default none.
    """

    name: ClassVar[str] = "infllm"
    title: ClassVar[str] = "InfLLM: first and local tokens, and blocks found by representative keys"
    paper: ClassVar[str] = "2402.04617"
    phase: ClassVar[Phase] = "both"
    budget_unit: ClassVar[str] = "KV tokens read per query and layer; those of an unfinished block besides"
    per: ClassVar[Literal["query head", "KV head", "layer"]] = "layer"
    chunked_prefill: ClassVar[bool] = False
    shared_prefixes: ClassVar[bool] = False
    lm_scores: ClassVar[bool] = False
    simulated: ClassVar[bool] = True
    needs_rotary: ClassVar[bool] = True

    first: int = 128
    local: int = 512
    block: int = 128
    representatives: int = 4
    unit: int = 512

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            MethodError: A size out of range, or no room for a block.
        """
        super().__post_init__()
        for field in ("local", "block", "representatives", "unit"):
            if getattr(self, field) < 1:
                self.refuse(field, "must be at least 1")
        if self.first < 0:
            self.refuse("first", "must be at least 0 tokens")
        if self.representatives > self.block:
            self.refuse("representatives", f"must be at most block = {self.block}")
        if self.unit > self.local:
            self.refuse("unit", f"must be at most local = {self.local}: a unit has no far tokens of its own")
        if self.budget < self.first + self.local + self.block:
            self.refuse(
                "budget",
                f"must be at least first + local + block = {self.first + self.local + self.block} KV tokens",
            )
        if self.fast and self._grain < 16:
            self.refuse("first", "must be a multiple of 16 tokens with fast")

    @property
    def blocks(self) -> int:
        """Blocks that a query reads."""
        return (self.budget - self.first - self.local) // self.block

    def units(self, first: int, end: int) -> list[int]:
        """Units from the first token on, and the last token alone."""
        return sorted({*range(first, end - 1, self.unit), end - 1, end})

    def select(self, block: QueryBlock) -> Tensor:
        """[1, 1, n, S]."""
        width = block.k.shape[2]
        first, made = self._made(start_of(block))
        pending = first + made * self.block
        s = torch.arange(width, device=block.k.device)
        t = block.positions[:, None, :, None]
        read = (s < first) | ((s >= pending) & (s <= t))
        if made:
            chosen = self._chosen(block, made).repeat_interleave(self.block)
            read[..., first:pending] |= chosen
        return read

    def logits(self, block: QueryBlock) -> Tensor:
        """[1, H, n, S], far keys at distance local - 1."""
        width = block.k.shape[2]
        if width <= self.local:
            return block.logits
        s = torch.arange(width, device=block.k.device)
        far = block.positions[:, None, :, None] - s >= self.local
        to_far = block.dot(self._far(block), _unturned(block, 0, width)) * block.scaling
        return torch.where(far, to_far, block.logits)

    def learn(self, block: QueryBlock, weights: Tensor) -> None:
        """Add the window's weights, and make the blocks that leave it."""
        memory = memory_of(block)
        own: _Blocks | None = memory.own
        heads, width = block.q.shape[1], block.k.shape[2]
        s = torch.arange(width, device=block.k.device)
        near = block.positions[:, None, :, None] - s < self.local
        scores = (weights * near)[0].sum(1)
        if own is not None:
            scores = scores + lengthened(own.scores, width)
        found = [] if own is None else [own.representatives]
        first, made = self._made(width)
        for number in range(0 if own is None else len(own.representatives), made):
            begin = first + number * self.block
            part = scores[:, begin : begin + self.block]
            best = keep_top(part, self.representatives, torch.ones_like(part, dtype=torch.bool))
            keys = _unturned(block, begin, begin + self.block)[0]
            keys = keys.repeat_interleave(heads // keys.shape[0], dim=0)
            mean = (keys * best[..., None]).sum(1) / self.representatives
            found.append(mean[None])
        kept = torch.cat(found) if found else scores.new_zeros(0, heads, block.k.shape[3])
        memory.own = _Blocks(scores, kept)

    def attend(self, row: RowTokens, units: list[tuple[int, int]]) -> tuple[Tensor, int]:
        """[H, n, d_v] of windows and what units retrieve, merged; and KV tokens read."""
        heads, count = row.q.shape[:2]
        kept = self._kept(row)
        lists, low = window_lists(row.first, count, self.local, row.q.device)
        near = block_attention(
            *_by_token(row.q, row.k, row.v),
            lists,
            start=row.first,
            low=low,
            scale=row.scaling,
            backend=row.backend,
        )
        out, read = near.out[0], 0
        for start, stop, far in self._far_queries(row, units):
            part = slice(start - row.first, stop - row.first)
            whole = Merger(Part(out[part], near.lse[0, part].T))
            if far is not None:
                self._retrieve(row, kept, far, whole, start, stop)
                out[part] = whole.out
            kept = self._learned(row, kept, whole.lse, start, stop)
            # Each query of a unit reads one key more than the one before it.
            asked = stop - start
            read += asked * self._reads(start, start) + asked * (asked - 1) // 2
        row.memory.own = kept
        return out.transpose(0, 1), read * heads

    def lists(self, run: Run, plan: Tensor | None) -> BlockLists:
        """Of a unit's far queries and keys, queries standing `local` keys before where they are.

        Args:
            run: The queries.
            plan: Blocks that are read, rising numbers; None: all far keys.
        """
        grain, width, device = self._grain, run.k.shape[1], run.k.device

        def every(begin: int, end: int) -> Tensor:
            return torch.arange(begin, end, grain, dtype=torch.int32, device=device)

        if plan is None:
            firsts = every(0, width)
        else:
            chosen = plan.int()[:, None] * self.block + every(self.first, self.first + self.block)
            pending = self.first + self._made(run.first + self.local)[1] * self.block
            firsts = torch.cat([every(0, self.first), chosen.flatten(), every(pending, width)])
        tile = tile_for(run.q.shape[1])
        tiles = -(-run.q.shape[1] // tile)
        return BlockLists(
            firsts=firsts.expand(1, 1, tiles, -1),
            counts=torch.full((1, 1, tiles), len(firsts), dtype=torch.int32, device=device),
            query_block=tile,
            key_block=grain,
        )

    def kv_reads(self, tokens: int) -> int:
        """Of a decoded token."""
        return self._reads(tokens - 1, tokens - 1)

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """As the unit of the query has it."""
        t = tokens - 1
        whole_unit = t < prompt - 1
        read = self._reads(t // self.unit * self.unit if whole_unit else t, t)
        return read, read

    def kv_kept(self, tokens: int) -> int:
        """With `fast`, keys without position besides, once there are far ones: half of a KV token each."""
        return tokens + (tokens + 1) // 2 if self.fast and tokens > self.local else tokens

    def index_reads(self, tokens: int) -> int:
        """A representative of each block, where there are more than are read."""
        made = self._made(tokens - 1)[1]
        return made if made > self.blocks else 0

    def _made(self, tokens: int) -> tuple[int, int]:
        """First tokens and blocks that there are once a unit ends with so many tokens."""
        behind = max(0, tokens - self.local)
        first = min(self.first, behind)
        return first, (behind - first) // self.block

    def _reads(self, start: int, t: int) -> int:
        """KV tokens that query t of the unit from `start` on reads."""
        made = self._made(start)[1]
        return t + 1 - max(0, made - self.blocks) * self.block

    def _chosen(self, block: QueryBlock, made: int) -> Tensor:
        """[made] blocks that the unit reads."""
        return self._best(self._far(block)[0], memory_of(block).own.representatives)

    def _best(self, q: Tensor, representatives: Tensor) -> Tensor:
        """[blocks] those that queries [H, n, d] read, which stand where they do to far keys."""
        scores = torch.einsum("hd,mhd->m", q.mean(1), representatives)
        return keep_top(scores, self.blocks, torch.ones_like(scores, dtype=torch.bool))

    def _far(self, block: QueryBlock) -> Tensor:
        """The queries where they stand to far keys."""
        assert block.rotate is not None  # declared by needs_rotary
        return block.rotate(block.q, self.local - 1 - block.positions)

    # --- by kernels ---

    @property
    def _grain(self) -> int:
        """Keys to a block of lists: `first` and `block` are whole ones."""
        return math.gcd(self.first, self.block)

    def _kept(self, row: RowTokens) -> _Kept:
        """What is remembered, with all keys that this forward reads as far ones."""
        kept: _Kept | None = row.memory.own
        width = row.k.shape[1]
        if kept is None:
            wide = torch.promote_types(row.q.dtype, torch.float32)
            nothing = torch.zeros(0, len(row.q), row.q.shape[2], dtype=wide, device=row.q.device)
            kept = _Kept(nothing[..., 0].T, nothing, Growing.like(row.k, room=0))
        keys = kept.keys
        if width - self.local <= keys.count:
            return kept
        keys = keys.with_room(width)
        for begin in range(keys.count, width, _PIECE):
            some = row.k[None, :, begin : begin + _PIECE].to(kept.representatives.dtype)
            keys = keys.extended(_taken_off(row.rotate, some, begin)[0].to(row.k.dtype))
        return replace(kept, keys=keys)

    def _far_queries(
        self, row: RowTokens, units: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int, Tensor | None]]:
        """Units, and their queries [H, n, d] where they stand to far keys; None of units that have none."""
        assert row.rotate is not None
        begin = end = units[0][0]
        turned: Tensor | None = None
        for start, stop in units:
            if stop > self.local and stop > end:  # several units at once: a unit's work is little
                begin, end = start, max(stop, min(start + _PIECE, units[-1][1]))
                q = row.q[None, :, begin - row.first : end - row.first]
                positions = torch.arange(begin, end, device=q.device)[None]
                wide = torch.promote_types(q.dtype, torch.float32)
                turned = row.rotate(q.to(wide), self.local - 1 - positions)[0]
            yield start, stop, None if turned is None else turned[:, start - begin : stop - begin]

    def _retrieve(
        self, row: RowTokens, kept: _Kept, far: Tensor, whole: Merger, start: int, stop: int
    ) -> None:
        """Add to `whole` what a unit's queries `far`, `start`..`stop` - 1, read beyond their windows."""
        chosen = None
        if len(kept.representatives) > self.blocks:
            best = self._best(far, kept.representatives)
            # Rising numbers, without asking the device how many there are.
            chosen = best.byte().argsort(descending=True, stable=True)[: self.blocks]
        near, behind = max(0, self.local - start), stop - self.local
        run = Run(
            q=far[:, near:].to(row.q.dtype),  # those that have a far key
            k=kept.keys.tokens[:, :behind],
            start=start + near - self.local,
            first=start + near - self.local,
            scaling=row.scaling,
        )
        found = block_attention(
            *_by_token(run.q, run.k, row.v[:, :behind]),
            self.lists(run, chosen),
            start=run.start,
            scale=row.scaling,
            backend=row.backend,
        )
        whole.add(Part(found.out[0], found.lse[0].T), slice(near, stop - start))

    def _learned(self, row: RowTokens, kept: _Kept, lse: Tensor, start: int, stop: int) -> _Kept:
        """With what the windows of queries `start`..`stop` - 1 gave, and the blocks that leave them.

        `lse` [H, n] is of all that the queries read.
        """
        sums = window_sums(
            row.q[:, start - row.first : stop - row.first].transpose(0, 1),
            row.k[:, :stop].transpose(0, 1),
            lse,
            window=self.local,
            scale=row.scaling,
            backend=row.backend,
        )
        first, before = self._made(start)
        origin = first + before * self.block  # of the scores
        scores = lengthened(kept.scores, stop - origin)
        scores[:, -sums.shape[1] :] += sums
        first, made = self._made(stop)
        found, pending = kept.representatives, first + made * self.block
        if made > before:
            begin = first + before * self.block
            part = scores[:, begin - origin : pending - origin].unflatten(1, (-1, self.block))
            best = keep_top(part, self.representatives, torch.ones_like(part, dtype=torch.bool)).to(
                found.dtype
            )
            keys = _taken_off(row.rotate, row.k[None, :, begin:pending].to(found.dtype), begin)[0]
            means = torch.einsum(
                "kgnb,knbd->nkgd",
                best.unflatten(0, (len(keys), -1)),
                keys.unflatten(1, (-1, self.block)),
            )
            found = torch.cat([found, means.flatten(1, 2) / self.representatives])
        return replace(kept, scores=scores[:, pending - origin :], representatives=found)


def _by_token(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads first -> a batch of one row, tokens first."""
    return q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]


def _unturned(block: QueryBlock, begin: int, end: int) -> Tensor:
    """Keys `begin`..`end` - 1 without position, [1, H_kv, n, d]."""
    return _taken_off(block.rotate, block.k[:, :, begin:end], begin)


def _taken_off(rotate: Rotate | None, k: Tensor, begin: int) -> Tensor:
    """Keys [1, H_kv, n, d] without their positions, of which the first is `begin`."""
    assert rotate is not None  # declared by needs_rotary
    positions = torch.arange(begin, begin + k.shape[2], device=k.device)[None]
    return rotate(k, -positions)
