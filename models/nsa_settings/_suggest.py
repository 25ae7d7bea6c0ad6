"""The end of an error message: the word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Make `; did you mean 'lengths'?`, or a short list of what there is when nothing is near."""
    known = sorted(set(known))
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably to be; None where none is near."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and len(word) >= 3:
        near = [name for name in known if name.startswith(word)][:1]
    return near[0] if near else None
