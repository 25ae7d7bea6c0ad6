"""Recurrent decoders: a state that one token at a time continues."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel

from nsa_models.families._cached import CacheFamily, cache_argument, takes_positions
from nsa_models.families._contract import Family
from nsa_models.families._declared import Declared

ORDER = 30
"""Its place among the families: smaller numbers are tried first."""


class RecurrentFamily(CacheFamily):
    """Rows of equal length; prompts are read in one forward, and replies go on token by token.

    Many recurrent layers begin from nothing, cached state or not, when a forward has more than one token.
    """

    name = "recurrent"


def candidates(model: PreTrainedModel, declared: Declared) -> Iterator[Family]:
    """What to try when several tokens don't continue the cache."""
    if cache_argument(model):
        for positions in takes_positions(model):
            yield RecurrentFamily(model, positions=positions)
