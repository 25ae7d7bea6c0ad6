"""What families with a cache share: how the model takes it and gives it back, and how rows are copied."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from nsa_models.families._contract import Family, Rows
from nsa_models.families._declared import accepts

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""Names by which transformers' models take a cache and give it back."""


class CacheFamily(Family):
    """Rows of equal length in one of transformers' own caches."""

    def __init__(
        self, model: PreTrainedModel, *, positions: bool = True, argument: str | None = None
    ) -> None:
        """Declare that one token continues the cache.

        Args:
            model: The model.
            positions: Hand on `position_ids`: some models count from 0 in each forward when given none.
            argument: By what name the model takes its cache; None for the first that it names.
        """
        super().__init__(model)
        self.positions = positions
        self.argument = argument or cache_argument(model) or CACHE_ARGUMENTS[0]

    def empty(self, rows: int) -> Rows:
        """`rows` rows of transformers' cache for this config."""
        return Rows(cache=DynamicCache(config=self.model.config), lengths=[0] * rows)

    def _continued(self, tokens: Tensor, counts: list[int], rows: Rows) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": tokens, "use_cache": True}
        if rows.cache is not None:
            given[self.argument] = rows.cache
        if self.positions:
            given["position_ids"] = positions(tokens, counts, rows.lengths)
        return given

    def absorb(self, output: Any, tokens: Tensor, counts: list[int], rows: Rows) -> None:  # noqa: ANN401 - a ModelOutput
        """Keep the cache that the model gave back."""
        rows.cache = getattr(output, self.argument)
        rows.lengths = [length + count for length, count in zip(rows.lengths, counts, strict=True)]

    def select(self, rows: Rows, indices: list[int]) -> Rows:
        """Copy rows by transformers' own reordering."""
        assert rows.cache is not None, "nothing was read yet"
        cache: Cache = copy.copy(rows.cache)
        cache.layers = [_detached(layer) for layer in rows.cache.layers]
        index = torch.tensor(indices, dtype=torch.long, device=self.model.device)
        # reorder_cache is an index_select; unlike batch_select_indices, every kind of layer has it.
        cache.reorder_cache(index)
        mask = None if rows.mask is None else rows.mask[index]
        return Rows(cache=cache, lengths=[rows.lengths[i] for i in indices], mask=mask)


def cache_argument(model: PreTrainedModel) -> str | None:
    """By what name a model takes its cache, or None when it names none of those known."""
    return next((name for name in CACHE_ARGUMENTS if accepts(model, name)), None)


def takes_positions(model: PreTrainedModel) -> tuple[bool, ...]:
    """Ways to try, the better first: with positions where the model takes them, and without."""
    return (True, False) if accepts(model, "position_ids") else (False,)


def positions(tokens: Tensor, counts: list[int], lengths: list[int]) -> Tensor:
    """Positions [B or 1, N] of the next tokens of rows that have read `lengths` tokens.

    Padding gets its row's last position: a learned position table may have no further ones.
    """
    width = tokens.shape[1]
    columns = torch.arange(width, device=tokens.device)
    if len(set(lengths)) == 1 and all(count == width for count in counts):
        return (columns + lengths[0]).expand(len(counts), width)
    first = torch.tensor(lengths, device=tokens.device)[:, None]
    last = first + torch.tensor(counts, device=tokens.device)[:, None].clamp(min=1) - 1
    return torch.minimum(first + columns, last)


def _detached(layer: Any) -> Any:  # noqa: ANN401 - transformers' layer classes share no typed base
    """A copy that can be reordered without changing the original.

    Reordering replaces tensors, so they needn't be copied; what holds them by name or number must be.
    """
    twin = copy.copy(layer)
    for name, value in vars(twin).items():
        if isinstance(value, (dict, list)):
            setattr(twin, name, copy.copy(value))
    return twin
