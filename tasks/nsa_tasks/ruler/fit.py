"""The official generators' way to a request's length: a search for the size, then a step back on overflow."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._threads import each, threads

_DRAWS_AT_FLOOR = 100
"""Tries at a generator's smallest size. The official loop goes on for ever there; a draw may be a little
shorter than the one before it, but not after so many."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample's request."""

    prompt: str
    prefix: str
    """Start of the answer, without the space before it."""
    answers: tuple[str, ...]


Place = tuple[Any, ...]
"""States of a generator's random streams."""
Count = Callable[[str, str], int]
"""Exact tokens of the request that a prompt and a prefix make, without its reply."""


class TooSmallError(Exception):
    """A size has too few places for what is hidden there."""


class Generator(ABC):
    """Draws samples of any size from one stream of draws."""

    step: int
    """By how much the size falls on overflow; also the smallest size that is searched."""

    @abstractmethod
    def draw(self, index: int, size: int) -> Drawn:
        """Draw sample number `index` at a size.

        Raises:
            TooSmallError: The size can't hold it.
        """

    @abstractmethod
    def place(self) -> Place:
        """Where the stream of draws is."""

    @abstractmethod
    def go_back(self, place: Place) -> None:
        """Draw on from a place where the stream was before."""

    def trial(self, size: int) -> tuple[Drawn, int]:
        """A draw that the search measures, and tokens to add to its own."""
        return self.draw(0, size), 0

    def most(self, room: int, tokens_of: Callable[[int], int]) -> int:
        """Where the search starts from above: three times what one draw at the step makes of it.

        Args:
            room: Tokens of the request, reply included.
            tokens_of: Draws at a size, and counts that draw's own tokens.
        """
        return max(int(room / (tokens_of(self.step) / self.step) * 3), 2 * self.step)


def search(generator: Generator, room: int, new_tokens: int, count: Count) -> int:
    """Find the largest size whose draw fits, by bisection with one draw a size.

    Args:
        generator: Draws.
        room: Tokens of the request, reply included.
        new_tokens: Of the reply.
        count: Counts a request.

    Returns:
        The size, or the step where none fitted: the samples tell then.
    """

    def measured(size: int) -> int:
        drawn, _ = generator.trial(size)
        return count(drawn.prompt, drawn.prefix)

    low, high = generator.step, generator.most(room, measured)
    found = generator.step
    while low <= high:
        middle = (low + high) // 2
        drawn, more = generator.trial(middle)
        if count(drawn.prompt, drawn.prefix) + more + new_tokens <= room:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def fitted(
    generator: Generator,
    index: int,
    size: int,
    room: int,
    new_tokens: int,
    count: Count,
    *,
    larger: int | None = None,
) -> tuple[Drawn, int, int]:
    """Draw a sample that fits its length: at the size found, else at one a step smaller, and so on.

    Args:
        generator: Draws.
        index: The sample's number.
        size: The first size that is tried.
        room: Tokens of the request, reply included.
        new_tokens: Of the reply.
        count: Counts a request.
        larger: Tokens of a draw at a larger size, if one was tried before.

    Returns:
        The sample, its size, and the exact tokens of its request without the reply.

    Raises:
        TaskParameterError: The length is too short for the smallest size.
    """
    tokens, at_floor = larger, 0
    while at_floor < _DRAWS_AT_FLOOR:
        try:
            drawn = generator.draw(index, size)
        except TooSmallError:
            break
        tokens = count(drawn.prompt, drawn.prefix)
        if tokens + new_tokens <= room:
            return drawn, size, tokens
        if size > generator.step:
            size -= generator.step
        else:
            at_floor += 1
    if tokens is None:
        raise TaskParameterError(f"length {room:,} is too short. Use longer lengths.")
    raise TaskParameterError(
        f"length {room:,} is too short: its smallest request takes {tokens:,} of this tokenizer's "
        f"tokens, and the reply {new_tokens}. Use lengths of at least {tokens + new_tokens:,}, "
        "better a tenth more."
    )


def samples_ahead(
    generator: Generator, samples: int, size: int, room: int, new_tokens: int, count: Count
) -> list[tuple[Drawn, int, int]]:
    """Draw samples as `fitted` does one after another, and count those that are drawn ahead side by side.

    Nearly all the time goes into counting, and what is drawn next depends on a count only where a sample was
    too long: then the stream goes back behind it, and so many fewer are drawn ahead the next time.

    Args:
        generator: Draws.
        samples: How many.
        size: The size found.
        room: Tokens of a request, reply included.
        new_tokens: Of the reply.
        count: Counts a request; may be asked by several threads at once.

    Returns:
        `[fitted(generator, index, size, room, new_tokens, count) for index in range(samples)]`

    Raises:
        TaskParameterError: As `fitted`.
    """
    most = ahead = 4 * threads()
    found: list[tuple[Drawn, int, int]] = []
    while len(found) < samples:
        drawn, places = _drawn_ahead(generator, len(found), min(ahead, samples - len(found)), size)
        counts = each(lambda one: count(one.prompt, one.prefix), drawn, first_alone=False)
        fits = list(itertools.takewhile(lambda tokens: tokens + new_tokens <= room, counts))
        found += [(one, size, tokens) for one, tokens in zip(drawn, fits, strict=False)]
        ahead = min(most, 2 * ahead)
        if len(fits) < len(drawn) or not drawn:
            long = bool(drawn) and size > generator.step  # known to be too long: a step smaller is next
            generator.go_back(places[len(fits) + long])
            smaller = size - generator.step if long else size
            larger = counts[len(fits)] if long else None
            found.append(fitted(generator, len(found), smaller, room, new_tokens, count, larger=larger))
            ahead = max(1, len(fits))
    return found


def _drawn_ahead(generator: Generator, begin: int, number: int, size: int) -> tuple[list[Drawn], list[Place]]:
    """So many samples, fewer where one can't be drawn; and the place before each and behind the last."""
    drawn: list[Drawn] = []
    places = [generator.place()]
    for index in range(begin, begin + number):
        try:
            drawn.append(generator.draw(index, size))
        except (TooSmallError, TaskParameterError):  # told when its turn has come
            generator.go_back(places[-1])
            break
        places.append(generator.place())
    return drawn, places
