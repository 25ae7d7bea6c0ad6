"""The word that was probably meant."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str], *, strict: bool = False) -> str | None:
    """Find the known word that a wrong one was probably meant to be.

    Args:
        word: What was given.
        known: What there is.
        strict: Only a word that is one or two letters away. Otherwise also one that is merely alike, or that
            starts with `word` (`needle` for `needle_single`).

    Returns:
        The word, or None.
    """
    listed = sorted(set(known))
    near = difflib.get_close_matches(word, listed, n=1, cutoff=0.8 if strict else 0.6)
    if not near and not strict and len(word) >= 3:
        near = [name for name in listed if name.startswith(word)][:1]
    return near[0] if near else None
