"""Families of models: how the rows of a batch are fed to an architecture, continued and copied.

A family is one file with a class that declares what its rows can do (`Family`), `candidates`, which says for
which models it is worth a try, and `ORDER`, its place among the others: the more able a family, the smaller.
It is found by its file. `family_of` tries them in that order and takes the first one whose own way of feeding
rows gives the logits of plain forwards (`_probe.py`). What a config says, or the class of a cache, can only
rule out the more able ones (`_declared.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from transformers import PreTrainedModel

from nsa_models.families import ours, packed, uncached
from nsa_models.families._contract import Family, FamilyError, Note, Restrictions, Rows, Slots
from nsa_models.families._declared import Declared, accepts, activation_bytes
from nsa_models.families._limits import check_fits
from nsa_models.families._plain import name_of
from nsa_models.families._probe import Probe, holds_narrowed

__all__ = [
    "Family",
    "FamilyError",
    "Note",
    "Restrictions",
    "Rows",
    "Slots",
    "accepts",
    "activation_bytes",
    "by_ability",
    "check_fits",
    "family_of",
    "name_of",
]

Candidates: TypeAlias = Callable[[PreTrainedModel, Declared], Iterator[Family]]


def by_ability() -> dict[str, Candidates]:
    """What each family's file offers to try, by the file's name, most able first.

    `ours` is not among them, which is told by its class, nor `uncached`, which is what remains.

    Raises:
        TypeError: A file without `candidates` or `ORDER`.
    """
    found: dict[str, tuple[int, Candidates]] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_") or info.name in ("ours", "uncached"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        order, candidates = getattr(module, "ORDER", None), getattr(module, "candidates", None)
        if not isinstance(order, int) or candidates is None:
            raise TypeError(
                f"{module.__name__}: the file of a model family needs candidates(model, declared) and ORDER, "
                "a whole number; the name of another file starts with an underscore"
            )
        found[info.name] = (order, candidates)
    return {name: found[name][1] for name in sorted(found, key=lambda name: (found[name][0], name))}


@torch.inference_mode()
def family_of(model: PreTrainedModel, *, own_attention: bool = False) -> Family:
    """Find out how a model's rows are fed, by some twenty short forwards (forty where it has windows).

    Nothing may be attached to the model that makes a cached forward differ from a plain one on purpose (a
    sparse attention method): probe first, attach then, and tell the engine by `Restrictions`.

    Args:
        model: In eval mode, on its device.
        own_attention: Only families that leave the attention to the model: a sparse method will change it.

    Returns:
        The most able family that holds for it.

    Raises:
        FamilyError: Not a causal language model, or one that can't be run on token ids alone.
    """
    declared = Declared.of(model)
    own = next(iter(ours.candidates(model, declared)), None)
    tried = by_ability()
    if own_attention:
        del tried[packed.__name__.rpartition(".")[2]]
    if own is not None:
        for family in [] if own_attention else packed.candidates(model, declared):
            if Probe(model, declared).holds(family):
                return family
        return own
    probe = Probe(model, declared)
    for candidates in tried.values():
        for family in candidates(model, declared):
            if probe.holds(family) and holds_narrowed(model, declared, family):
                family.padded = probe.padded
                return family
    last = uncached.UncachedFamily(model, padded=probe.padded)
    last.plain = probe.plain.arguments
    return last
