"""InfLLM: a window, first tokens, and blocks found by a few keys that stand for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nsa_models.methods._base import Phase
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._rowmethod import RowMethod, lengthened, memory_of, start_of


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What is remembered of a row in one layer."""

    scores: Tensor
    """[H, S] attention that each key got from queries that had it in their window."""
    representatives: Tensor
    """[blocks, H, d_k], without position."""


@dataclass(frozen=True, kw_only=True)
class InfLLM(RowMethod):
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

    def kv_reads(self, tokens: int) -> int:
        """Of a decoded token."""
        return self._reads(tokens - 1, tokens - 1)

    def stated_reads(self, tokens: int, *, prompt: int, layer: int) -> tuple[int, int]:
        """As the unit of the query has it."""
        t = tokens - 1
        whole_unit = t < prompt - 1
        read = self._reads(t // self.unit * self.unit if whole_unit else t, t)
        return read, read

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
        memory = memory_of(block)
        representatives: Tensor = memory.own.representatives
        mean = self._far(block)[0].mean(1)  # [H, d]
        scores = torch.einsum("hd,mhd->m", mean, representatives)
        return keep_top(scores, self.blocks, torch.ones_like(scores, dtype=torch.bool))

    def _far(self, block: QueryBlock) -> Tensor:
        """The queries where they stand to far keys."""
        assert block.rotate is not None  # declared by needs_rotary
        return block.rotate(block.q, self.local - 1 - block.positions)


def _unturned(block: QueryBlock, begin: int, end: int) -> Tensor:
    """Keys `begin`..`end` - 1 without position, [1, H_kv, n, d]."""
    assert block.rotate is not None
    positions = torch.arange(begin, end, device=block.k.device)[None]
    return block.rotate(block.k[:, :, begin:end], -positions)
