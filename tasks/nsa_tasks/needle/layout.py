"""Putting needles into filler, and cutting the filler so that a request has the length that it should."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import Haystack, sentence_ends, word_ends

# A request this much below its length is full: the next word may take more tokens than are left.
SLACK = 2

# What a cut sentence must not end with before its full stop: commas and the like, dashes, opening quotes.
_OPEN_END = " \n,;:-\u2013\u2014(\"'\u201c\u2018"


@dataclass(frozen=True, slots=True)
class Layout:
    """Filler with needles in it."""

    context: str
    spans: tuple[tuple[int, int], ...]
    """Each needle's characters in the context, in the order in which the needles were given."""


def insertion_point(length: int, depth: float, ends: Sequence[int] | npt.NDArray[np.int64]) -> int:
    """Find where a needle goes.

    Args:
        length: Characters of filler.
        depth: Percent; 0 is right at the start, 100 is appended at the end.
        ends: Positions after each sentence of the filler, ascending.

    Returns:
        `int(length * depth / 100)`, moved back to the end of the previous sentence (or to 0 when there is
        none).
    """
    if depth >= 100:
        return length
    index = bisect_right(ends, int(length * depth / 100))
    return int(ends[index - 1]) if depth > 0 and index else 0


def lay_out(
    filler: str, needles: Sequence[str], depths: Sequence[float], ends: npt.NDArray[np.int64], joiner: str
) -> Layout:
    """Insert needles at their depths.

    Args:
        filler: The haystack's text.
        needles: Sentences to insert.
        depths: Percent, one for each needle.
        ends: Sentence ends of the filler.
        joiner: What parts a needle from the text around it where there is no white space.
    """
    points = [insertion_point(len(filler), depth, ends) for depth in depths]
    order = sorted(range(len(needles)), key=lambda i: (points[i], depths[i] >= 100, i))
    pieces: list[str] = []
    length = 0

    def add(piece: str) -> int:
        """Append a piece, parted from what is there; return where it starts."""
        nonlocal length
        if piece and pieces and not (pieces[-1][-1].isspace() or piece[0].isspace()):
            pieces.append(joiner)
            length += len(joiner)
        start = length
        if piece:
            pieces.append(piece)
            length += len(piece)
        return start

    spans = [(0, 0)] * len(needles)
    done = 0
    for i in order:
        add(filler[done : points[i]])
        done = points[i]
        start = add(needles[i])
        spans[i] = (start, start + len(needles[i]))
    add(filler[done:])
    return Layout("".join(pieces), tuple(spans))


@dataclass(frozen=True, slots=True)
class Filled:
    """A request cut to its length, or the best that the filler allows."""

    layout: Layout
    text: str
    """The request's text, as the model gets it."""
    tokens: int
    """Exact token count of the text."""
    exhausted: bool
    """The filler ended before the request was full."""
    filler_tokens: int
    """Tokens of filler that were there to use."""


class TooShortError(Exception):
    """Even without filler the request does not fit. `args[0]` is its token count."""


def fill(
    stretch: str,
    haystack: Haystack,
    needles: Sequence[str],
    depths: Sequence[float],
    budget: int,
    tokens: RequestTokens,
    request: Callable[[str], str],
) -> Filled:
    """Use as much of a stretch of filler as fits a request's budget.

    The filler is tokenised once to know roughly where to cut; each trial is then counted exactly as a whole
    request, and the cut moves by the tokens that were missing or too many. That takes two or three counts,
    and bisection bounds it when a tokenizer behaves oddly.

    Args:
        stretch: Filler to cut from.
        haystack: Says where it may be cut and how it is joined to a needle.
        needles: Sentences to insert.
        depths: Percent, one for each needle.
        budget: Tokens for the whole request without its reply.
        tokens: Counts tokens.
        request: Turns a context into the request's text.

    Raises:
        TooShortError: The budget cannot hold needles and question alone.
    """
    ends = sentence_ends(stretch)
    cuts = np.concatenate([[0], ends if haystack.whole_sentences else word_ends(stretch)])
    token_at = _token_positions(stretch, cuts, tokens)

    def trial(index: int) -> Filled:
        filler = stretch[: cuts[index]]
        if filler and not haystack.whole_sentences:
            filler = _close(filler)
        layout = lay_out(
            filler, needles, depths, ends[: int(np.searchsorted(ends, len(filler)))], haystack.joiner
        )
        text = request(layout.context)
        return Filled(layout, text, tokens.count(text), False, int(token_at[-1]))

    best = trial(0)
    if best.tokens > budget:
        raise TooShortError(best.tokens)
    low, high = 0, len(cuts)  # cuts[low] fits; cuts[high] does not, or is past the end
    wanted = float(budget - best.tokens)
    steps = 0
    while high - low > 1 and budget - best.tokens > SLACK:
        # Proportional steps close in at once on ordinary text; after a few, bisection makes sure of the end.
        index = int(np.searchsorted(token_at, wanted, side="right")) - 1 if steps < 8 else (low + high) // 2
        index = min(max(index, low + 1), high - 1)
        attempt = trial(index)
        if attempt.tokens <= budget:
            low, best = index, attempt
        else:
            high = index
        wanted = float(token_at[index]) + budget - attempt.tokens
        steps += 1
    exhausted = low == len(cuts) - 1 and budget - best.tokens > SLACK
    return Filled(best.layout, best.text, best.tokens, exhausted, best.filler_tokens)


def _token_positions(
    stretch: str, cuts: npt.NDArray[np.int64], tokens: RequestTokens
) -> npt.NDArray[np.float64]:
    """Count the tokens before each cut: by offsets where there are some, else in proportion to characters."""
    encoding = tokens.encode(stretch, special=False)
    if encoding.ends is None:
        return np.asarray(cuts * (len(encoding.ids) / max(len(stretch), 1)), dtype=np.float64)
    return np.searchsorted(encoding.ends, cuts, side="right").astype(np.float64)


def _close(filler: str) -> str:
    """End a cut sentence with a full stop."""
    closed = filler.rstrip(_OPEN_END)
    return closed if not closed or closed.endswith((".", "!", "?", ".”", '."', "。")) else f"{closed}."
