"""Decoders that make a cache of their own class and take no other (MiniMax)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.families._cached import CacheFamily, cache_argument, takes_positions
from nsa_models.families._contract import Family, Rows
from nsa_models.families._declared import Declared

ORDER = 40
"""Its place among the families: smaller numbers are tried first."""


class OwnCacheFamily(CacheFamily):
    """Rows of equal length, in whatever the model makes on a first forward without a cache.

    Nothing is known of such a class but that its tensors begin with the batch, which `select` relies on and
    refuses to go without: such a model runs uncached.
    """

    name = "own cache"

    def __init__(self, model: PreTrainedModel, *, positions: bool = True, continuable: bool = True) -> None:
        """Declare what is tried; `holds` in _probe.py checks it."""
        super().__init__(model, positions=positions)
        self.continuable = self.shared = continuable

    def empty(self, rows: int) -> Rows:
        """The model makes its cache on the first forward."""
        return Rows(cache=None, lengths=[0] * rows)

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """Copy the rows of every tensor in the cache.

        Raises:
            ValueError: A tensor that doesn't begin with the batch.
        """
        index = torch.tensor(indices, dtype=torch.long, device=self.model.device)
        cache = _rows_of(rows.cache, index, len(rows.lengths), {})
        return Rows(cache=cache, lengths=[rows.lengths[i] for i in indices])


def _rows_of(part: Any, index: Tensor, rows: int, seen: dict[int, Any]) -> Any:  # noqa: ANN401 - a part of any cache
    """A copy of a cache's part with the rows `index`; what it refers to besides stays shared."""
    if id(part) in seen:
        return seen[id(part)]
    if isinstance(part, Tensor):
        if part.dim() == 0 or part.numel() == 0:
            return part.clone()
        if part.shape[0] != rows:
            raise ValueError(f"a tensor of shape {list(part.shape)} in the cache of {rows} rows")
        return part.index_select(0, index.to(part.device))
    if isinstance(part, dict):
        return {key: _rows_of(value, index, rows, seen) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_rows_of(value, index, rows, seen) for value in part)
    if "cache" in type(part).__module__ or "modeling_" in type(part).__module__:
        twin = seen[id(part)] = copy.copy(part)
        for name, value in vars(part).items():
            setattr(twin, name, _rows_of(value, index, rows, seen))
        return twin
    return part


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """What to try when transformers' cache isn't taken."""
    if cache_argument(model):
        for continuable in (True, False):
            for positions in takes_positions(model):
                yield OwnCacheFamily(model, positions=positions, continuable=continuable)
