"""Bounds of generation settings: values that no model can be asked with are refused before one is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nsa_settings import did_you_mean

_MOST_TOKENS = 1 << 32
_MOST_STOPS = 1000


def generation_problems(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with its value) of each setting that is out of range; unknown keys are let through.

    Args:
        settings: lm-eval's generation settings, by its names or transformers'.
    """
    for key, value in settings.items():
        if key in _CHECKS and value is not None:
            allowed, fits = _CHECKS[key]
            if not fits(value):
                yield key, f"expected {allowed}, got {value!r}"


def _number(value: Any) -> bool:  # noqa: ANN401 - whatever was given
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: _number(value) and value == int(value) and least <= value <= _MOST_TOKENS


def _stops(value: Any) -> bool:  # noqa: ANN401 - whatever was given
    listed = [value] if isinstance(value, str) else value
    return (
        isinstance(listed, list | tuple)
        and len(listed) <= _MOST_STOPS
        and all(stop is None or isinstance(stop, str) for stop in listed)
    )


def unknown_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, that it is unknown) of each setting that the engine doesn't have; others may have it."""
    for key, value in settings.items():
        if value is not None and key not in _CHECKS and key not in ENGINES_OWN:
            yield key, f"no generation setting of the engine{did_you_mean(key, [*_CHECKS, *ENGINES_OWN])}"


ENGINES_OWN = (
    *("min_new_tokens", "num_beams", "num_return_sequences", "repetition_penalty", "length_penalty"),
    *("early_stopping", "use_cache"),
)
"""Settings whose values the engine looks at when a request is made."""
_TOKENS = ("a whole number of tokens from 1", _whole(1))
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"), _TOKENS),
    "temperature": ("a number from 0", lambda value: _number(value) and value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1),
    "top_k": ("a whole number from 0", _whole(0)),
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    "until": ("text or a list of texts", _stops),
}
