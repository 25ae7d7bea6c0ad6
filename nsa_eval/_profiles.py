"""What a run leaves for later plans, and says of what it paid once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsa_eval._json import read_mapping
from nsa_eval._words import seconds_text
from nsa_eval.config import Variant
from nsa_eval.rundir import RunDirectory

_TOLD = 1.0
"""Seconds of warm-up that are worth a line."""


def leave_profiles(variants: Iterable[Variant], directory: RunDirectory) -> list[str]:
    """Keep the profiles of variants that were just evaluated.

    Returns:
        A note on what was paid once, where that is seconds.
    """
    from nsa_eval.estimate import keep_profile, profile_of
    from nsa_eval.store import CostSheet

    paid: list[tuple[str, float]] = []
    for variant in variants:
        file = directory.path / variant.name / "costs.json"
        sheet = CostSheet.model_validate(read_mapping(file, "Evaluate again."))
        profile = profile_of(sheet, variant, run=directory.path.resolve().name)
        if profile is not None:
            keep_profile(profile)
            paid.append((variant.name, profile.warm_up_seconds))
    return _note(paid)


def _note(paid: Sequence[tuple[str, float]]) -> list[str]:
    whole = sum(seconds for _, seconds in paid)
    if whole < _TOLD:
        return []
    each = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in paid)
    return [f"warm-up {seconds_text(whole)} ({each}): paid once, and in no figure of the costs"]
