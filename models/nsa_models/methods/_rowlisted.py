"""Methods that take a row at a time and attend by lists: kernels that read what each unit chose."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from nsa_models.methods._block import Rotate
from nsa_models.methods._listed import Listed
from nsa_models.methods._memory import Memory
from nsa_models.methods._rowmethod import RowMethod


@dataclass(frozen=True, kw_only=True)
class RowTokens:
    """A row's new queries in one layer and all of its keys, in the model's dtype."""

    q: Tensor
    """[H, n, d_k], after RoPE."""
    k: Tensor
    """[H_kv, S, d_k], after RoPE; the last one is the last query's own."""
    v: Tensor
    """[H_kv, S, d_v]."""
    first: int
    """Position of the first query."""
    scaling: float
    """Factor of q.k in the logits."""
    rotate: Rotate | None
    """See `QueryBlock`."""
    memory: Memory
    """What is remembered of the row."""
    backend: str
    """Of `nsa_kernels.blocks`."""


@dataclass(frozen=True, kw_only=True)
class RowListed(RowMethod, Listed):
    """A method of rows that can do by lists what `select`, `logits` and `learn` do with masks."""

    @abstractmethod
    def attend(self, row: RowTokens, units: list[tuple[int, int]]) -> tuple[Tensor, int]:
        """Attention of a row's new queries; what is to be remembered is put into `row.memory.own`.

        Args:
            row: The queries and keys.
            units: First position and the one behind the last of the queries that choose together, in order.

        Returns:
            [H, n, d_v] in q's dtype; and the KV tokens that the queries read over all heads.
        """
