"""Decoders whose cache can't have holes: sliding windows, chunks, ALiBi, states that any piece continues."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel

from nsa_models.families._cached import CacheFamily, cache_argument, takes_positions
from nsa_models.families._contract import Family
from nsa_models.families._declared import Declared

ORDER = 20
"""Its place among the families: smaller numbers are tried first."""


class EqualRowsFamily(CacheFamily):
    """Rows of equal length, continued by any number of tokens.

    A sliding cache drops columns by their number, and a local window counts them: a hole in a shorter row
    would be counted as a token. So only rows of equal length are continued together.
    """

    name = "equal rows"

    def __init__(self, model: PreTrainedModel, *, positions: bool = True) -> None:
        """Declare all but ragged rows; `holds` in _probe.py checks it."""
        super().__init__(model, positions=positions)
        self.continuable = self.shared = True


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """What to try for any model that takes a cache."""
    if cache_argument(model):
        for positions in takes_positions(model):
            yield EqualRowsFamily(model, positions=positions)
