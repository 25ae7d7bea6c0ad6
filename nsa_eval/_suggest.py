"""The end of an error message: the word that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

from nsa_tasks import closest


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Make `; did you mean 'lengths'?`, or a short list of what there is when nothing is near."""
    known = sorted(set(known))
    near = closest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""
