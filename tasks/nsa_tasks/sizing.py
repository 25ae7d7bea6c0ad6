"""Documents as long as their request should be: the largest content that fits, counted in exact tokens.

A request of length L is BOS, chat template, prompt, answer prefix and the reply's budget, in tokens of the
model's own tokenizer (`RequestTokens` counts them). A family builds its document at some size (words of
filler, sentences, other documents) and `largest_that_fits` finds the size; `check_filled` makes sure that the
finished prompt is what its cell says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nsa_tasks._errors import TaskParameterError

SLACK = 2
"""Tokens: a request this much below its length is full; the next word may take more than are left."""
ROUNDING = 6
"""Tokens that a prompt may lack beyond the piece that didn't fit: a full stop and white space around the cut
are read differently from one cut to the next."""


class Counted(Protocol):
    """A document on trial."""

    @property
    def tokens(self) -> int:
        """Exact tokens of its whole request, without the reply."""
        ...


T = TypeVar("T", bound=Counted)


@dataclass(frozen=True, slots=True)
class Fit(Generic[T]):
    """The largest document that fits."""

    document: T
    size: int
    """Which size it has, from 0."""
    exhausted: bool
    """Even the largest size left room: there was not enough to fill the request with."""


class TooShortError(Exception):
    """Not even the smallest document fits. `args[0]` is its token count."""


def largest_that_fits(
    build: Callable[[int], T], positions: npt.NDArray[np.float64], budget: int, *, slack: int = SLACK
) -> Fit[T]:
    """Find the largest document that fits a budget.

    Each trial is counted exactly, and the size moves by the tokens that were missing or too many. That takes
    two or three trials; bisection bounds it when a tokenizer behaves oddly.

    Args:
        build: Makes the document of a size; each size holds what the one before it holds.
        positions: For every size, about how many tokens of content it has, ascending. A guess
            costs trials, never exactness.
        budget: Tokens for the whole request without its reply.
        slack: Stop at a document that leaves no more than this.

    Raises:
        TooShortError: The smallest document is longer than the budget.
    """
    low, best = 0, build(0)
    if best.tokens > budget:
        raise TooShortError(best.tokens)
    high = len(positions)  # size `low` fits; size `high` does not, or is past the end
    wanted = float(positions[0]) + budget - best.tokens
    steps = 0
    while high - low > 1 and budget - best.tokens > slack:
        # Proportional steps close in at once on ordinary text; after a few, bisection makes sure of the end.
        size = int(np.searchsorted(positions, wanted, side="right")) - 1 if steps < 8 else (low + high) // 2
        size = min(max(size, low + 1), high - 1)
        trial = build(size)
        if trial.tokens <= budget:
            low, best = size, trial
        else:
            high = size
        wanted = float(positions[size]) + budget - trial.tokens
        steps += 1
    return Fit(best, low, low == len(positions) - 1 and budget - best.tokens > slack)


def plain_largest_that_fits(build: Callable[[int], T], sizes: int, budget: int) -> Fit[T]:
    """The same by counting every size: slow and obvious, for tests.

    Raises:
        TooShortError: The smallest document is longer than the budget.
    """
    best = build(0)
    if best.tokens > budget:
        raise TooShortError(best.tokens)
    size = 0
    while size + 1 < sizes and (trial := build(size + 1)).tokens <= budget:
        size, best = size + 1, trial
    return Fit(best, size, size == sizes - 1 and budget > best.tokens)


def check_filled(what: str, *, tokens: int, budget: int, piece: int) -> None:
    """Make sure that a finished prompt is as long as its cell says.

    Args:
        what: The document, for the message.
        tokens: Exact tokens of the finished prompt.
        budget: What it should have: the request's length without the reply.
        piece: Tokens of the piece of content that did not fit any more: a word, a character of a script
            without spaces, a sentence. A prompt may be short by it and by `ROUNDING`, and never longer.

    Raises:
        TaskParameterError: It is longer, or shorter by more.
    """
    if tokens > budget or budget - tokens > piece + ROUNDING:
        raise TaskParameterError(
            f"{what}: the finished prompt has {tokens:,} of this tokenizer's tokens where {budget:,} are "
            f"asked for (up to {piece + ROUNDING} fewer are rounding): the filler can't be cut to it. Take "
            "another haystack or tokenizer, or run the model without its chat template."
        )
