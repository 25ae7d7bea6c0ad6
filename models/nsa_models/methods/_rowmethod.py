"""Methods that take one row at a time: they remember what it has read, or choose for many queries at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsa_models.methods._base import Budgeted
from nsa_models.methods._block import QueryBlock
from nsa_models.methods._memory import Memory
from nsa_models.methods._reads import Now


@dataclass(frozen=True, kw_only=True)
class RowMethod(Budgeted):
    """A method whose choice depends on more than a query and its keys.

    `select` and `logits` are given blocks of one row, with `block.memory`. Queries that the method leaves
    dense are shown to `observe`; `learn` sees the weights of those that it chose for. What is to be
    remembered is put into `block.memory.own`, as a new object each time.
    """

    rowwise: ClassVar[bool] = True

    def begin(self) -> Any:  # noqa: ANN401 - each method's own
        """What is remembered of a row in a layer before its first token."""
        return None

    def units(self, first: int, end: int) -> list[int] | None:
        """Where to cut a prompt's queries `first`..`end` - 1, so that those of one part choose together.

        Returns:
            Rising positions from `first` to `end`; None where any cut will do.
        """
        return None

    def looks_ahead(self, phase: Now) -> bool:
        """Whether `observe` is shown all queries of a forward before the first of them chooses."""
        return False

    def observe(self, block: QueryBlock) -> None:
        """Take note of queries [1, H, n, d] whose attention is dense, or that will choose."""
        return

    def learn(self, block: QueryBlock, weights: Tensor) -> None:
        """Take note of queries that have chosen; `weights` [1, H, n, S] are those of their softmax."""
        return


def memory_of(block: QueryBlock) -> Memory:
    """What is remembered of the one row of a block."""
    assert block.memory is not None, "a block of several rows"
    return block.memory


def start_of(block: QueryBlock) -> int:
    """Position of the first query of a row's block, whose keys end with its last query."""
    return block.k.shape[2] - block.q.shape[2]


def group_sum(x: Tensor, groups: int) -> Tensor:
    """Sum over the query heads of each KV head: x [H, ...] -> [H_kv, ...]."""
    summed: Tensor = x.unflatten(0, (groups, x.shape[0] // groups)).sum(1)
    return summed


def for_query_heads(keep: Tensor, heads: int) -> Tensor:
    """Each KV head's set for all query heads of its group: keep [H_kv, S] -> [1, H, 1, S]."""
    return keep.repeat_interleave(heads // keep.shape[0], dim=0)[None, :, None]


def lengthened(x: Tensor, width: int) -> Tensor:
    """x [..., S] with zeros (False) behind its last column, up to `width` columns."""
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
