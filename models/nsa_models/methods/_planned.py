"""Methods that choose for a whole prompt at once: by its last queries, or by blocks of its queries.

The grid of blocks begins at a row's own first token, so neither padding nor the blocks of `attend` matter.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_models.methods._base import Method, Phase
from nsa_models.methods._block import QueryBlock
from nsa_models.methods._prompt import PromptRow


@dataclass(frozen=True, kw_only=True)
class Planned(Method):
    """A prefill method whose `plan` sees the whole prompt; decode steps are dense.

    A query's keys depend on later queries: those of its block, or the last of the prompt. So prompts are read
    in one forward, prefixes aren't shared, and log-likelihoods of a prompt aren't a language model's.
    """

    phase: ClassVar[Phase] = "prefill"
    chunked_prefill: ClassVar[bool] = False
    shared_prefixes: ClassVar[bool] = False
    lm_scores: ClassVar[bool] = False
    simulated: ClassVar[bool] = True

    @abstractmethod
    def plan(self, row: PromptRow) -> Any:  # noqa: ANN401 - as in `Method`
        """What `reads` needs to know of the prompt."""

    @abstractmethod
    def reads(self, plan: Any, positions: Tensor, width: int) -> Tensor:  # noqa: ANN401 - as in `Method`
        """The keys that queries of one row read, before causality.

        Args:
            plan: Of the row.
            positions: [n] of the queries, 0 or more. Those behind the prompt are padding: anything goes.
            width: S.

        Returns:
            Booleans [H, n, S].
        """

    def select(self, block: QueryBlock) -> Tensor:
        """[B, H, n, S]."""
        assert block.plans is not None  # chunked_prefill is False
        heads, width = block.q.shape[1], block.k.shape[2]
        nothing = torch.zeros(heads, block.q.shape[2], width, dtype=torch.bool, device=block.q.device)
        rows = [
            nothing if plan is None else self.reads(plan, positions.clamp(min=0), width)
            for plan, positions in zip(block.plans, block.positions, strict=True)
        ]
        return torch.stack(rows) & block.visible


def block_means(x: Tensor, size: int) -> Tensor:
    """Means of x [h, n, d] over blocks of `size` tokens, the last one over those it has: [h, blocks, d]."""
    count = x.shape[1]
    blocks = -(-count // size)
    sums: Tensor = pad(x, (0, 0, 0, blocks * size - count)).unflatten(1, (blocks, size)).sum(2)
    sizes = torch.full((blocks, 1), size, device=x.device)
    sizes[-1] = count - (blocks - 1) * size
    return sums / sizes


def block_sums(x: Tensor, size: int) -> Tensor:
    """Sums of x [h, n] over blocks of `size`, the last one over what it has: [h, blocks]."""
    blocks = -(-x.shape[-1] // size)
    sums: Tensor = pad(x, (0, blocks * size - x.shape[-1])).unflatten(-1, (blocks, size)).sum(-1)
    return sums


def keys_of_blocks(chosen: Tensor, positions: Tensor, *, rows: int, columns: int, width: int) -> Tensor:
    """The keys of chosen blocks, query by query.

    Args:
        chosen: Booleans [H, blocks of queries, blocks of keys].
        positions: [n] of the queries.
        rows: Queries of a block.
        columns: Keys of a block.
        width: S.

    Returns:
        Booleans [H, n, S].
    """
    of_queries = chosen[:, block_of(positions, rows, chosen.shape[1])]
    return fitted(of_queries.repeat_interleave(columns, dim=-1), width)


def block_of(positions: Tensor, size: int, blocks: int) -> Tensor:
    """The block of each position; of padding behind the last block, that one."""
    return positions.div(size, rounding_mode="floor").clamp(max=blocks - 1)


def fitted(keys: Tensor, width: int) -> Tensor:
    """Booleans [..., n] as [..., width]: keys behind a row's prompt aren't read."""
    return pad(keys[..., :width], (0, max(0, width - keys.shape[-1])))


def causal_blocks(blocks: int, device: torch.device) -> Tensor:
    """Booleans [blocks, blocks]: blocks of keys that begin no later than a block of queries."""
    return torch.ones(blocks, blocks, dtype=torch.bool, device=device).tril()


def shared_means(tokens: int, block: int) -> int:
    """Mean keys of the blocks up to a query's own, shared by the block's queries and rounded up."""
    blocks = -(-tokens // block)
    return -(-blocks // block)


def cover(weights: Tensor, share: float) -> Tensor:
    """How many of the largest weights [..., n] it takes to get above `share`, or all and one more: [...]."""
    return 1 + (weights.double().sort(-1, descending=True).values.cumsum(-1) <= share).sum(-1)
