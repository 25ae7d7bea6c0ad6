"""Cuts requests into pieces that are answered one at a time, by whichever worker is free."""

from __future__ import annotations

from collections.abc import Sequence

from nsa_eval.engine import Request

_CHARACTERS = {"cpu": 2**15, "cuda": 2**20}
"""A piece's size, in characters of its prompts: some batches of a CPU, and a batch that fills a large GPU, at
about four characters a token."""
_LONGEST = 4
"""A piece may grow to so many times that size to keep prompts with a common beginning together."""


def pieces(requests: Sequence[Request], device: str) -> list[list[Request]]:
    """Cut requests of one kind into pieces.

    Prompts that begin alike stay together as far as they can, since what they share is read once. Neither the
    number of workers nor what is answered already changes a piece, so batches, and with them the last bits of
    a score, are the same in every run.

    Args:
        requests: Each key once, in any order.
        device: Type of the device that answers: cpu, cuda.

    Returns:
        The pieces, those with the longest prompts first, so that no worker is left alone with one at the end.
    """
    limit = _CHARACTERS.get(device, _CHARACTERS["cuda"])
    order = sorted(requests, key=lambda request: (str(request.arguments[0]), request.key))
    found: list[list[Request]] = []
    size = 0
    last = ""
    for request in order:
        text = str(request.arguments[0])
        more = sum(len(part) for part in request.arguments if isinstance(part, str))
        half = min(len(last), len(text)) // 2 + 1
        alike = bool(found) and last[:half] == text[:half]
        if not found or (size + more > limit and not alike) or size + more > _LONGEST * limit:
            found.append([])
            size = 0
        found[-1].append(request)
        size += more
        last = text
    return sorted(found, key=lambda piece: -max(len(str(request.arguments[0])) for request in piece))
