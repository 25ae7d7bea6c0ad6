"""Families of models: how the rows of a batch are fed to an architecture, continued and copied.

A family is one file with a class that declares what its rows can do (`Family`) and `candidates`, which says
for which models it is worth a try. `family_of` tries them in order, most able first, and takes the first one
whose own way of feeding rows gives the logits of plain forwards (`_probe.py`). What a config says, or the
class of a cache, can only rule out the more able ones (`_declared.py`).

To add one: write the file, and put its `candidates` into `_ORDER`, before those it is preferred to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel

from nsa_models.families import equal_rows, full_attention, ours, own_cache, recurrent, uncached
from nsa_models.families._contract import Family, FamilyError, Note, Restrictions, Rows, SteadyDecoder
from nsa_models.families._declared import Declared, accepts, activation_bytes
from nsa_models.families._limits import check_fits
from nsa_models.families._probe import Probe, holds_narrowed

__all__ = [
    "Family",
    "FamilyError",
    "Note",
    "Restrictions",
    "Rows",
    "SteadyDecoder",
    "accepts",
    "activation_bytes",
    "check_fits",
    "family_of",
]

_ORDER: tuple[Callable[[PreTrainedModel, Declared], Iterator[Family]], ...] = (
    full_attention.candidates,
    equal_rows.candidates,
    recurrent.candidates,
    own_cache.candidates,
)
"""Most able first. `ours` is told by its class, and `uncached` is what remains."""


@torch.inference_mode()
def family_of(model: PreTrainedModel) -> Family:
    """Find out how a model's rows are fed, by some twenty short forwards (forty where it has windows).

    Nothing may be attached to the model that makes a cached forward differ from a plain one on purpose (a
    sparse attention method): probe first, attach then, and tell the engine by `Restrictions`.

    Args:
        model: In eval mode, on its device.

    Returns:
        The most able family that holds for it.

    Raises:
        FamilyError: Not a causal language model, or one that can't be run on token ids alone.
    """
    declared = Declared.of(model)
    own = next(iter(ours.candidates(model, declared)), None)
    if own is not None:
        return own
    probe = Probe(model, declared)
    for candidates in _ORDER:
        for family in candidates(model, declared):
            if probe.holds(family) and holds_narrowed(model, declared, family):
                family.padded = probe.padded
                return family
    last = uncached.UncachedFamily(model, padded=probe.padded)
    last.plain = probe.plain.arguments
    return last
