"""Putting needles into filler, and cutting the filler so that a request has the length that it should."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import Haystack, close_sentence, cut_points, sentence_ends
from nsa_tasks.sizing import largest_that_fits


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
class Request:
    """A needle request at one size of its filler."""

    layout: Layout
    text: str
    """The request's text, as the model gets it."""
    tokens: int
    """Exact token count of the text."""
    filler: int
    """Characters of filler in it."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A request cut to its length, or the best that the filler allows."""

    request: Request
    exhausted: bool
    """The filler ended before the request was full."""
    filler_tokens: int
    """Tokens of filler that were there to use."""
    piece: int
    """Tokens of the next piece of filler, which did not fit any more, with what was dropped before it."""


def fill(
    stretch: str,
    haystack: Haystack,
    needles: Sequence[str],
    depths: Sequence[float],
    budget: int,
    tokens: RequestTokens,
    render: Callable[[str], str],
) -> Filled:
    """Use as much of a stretch of filler as fits a request's budget.

    Args:
        stretch: Filler to cut from.
        haystack: Says where it may be cut and how it is joined to a needle.
        needles: Sentences to insert.
        depths: Percent, one for each needle.
        budget: Tokens for the whole request without its reply.
        tokens: Counts tokens.
        render: Turns a context into the request's text.

    Raises:
        TooShortError: The budget cannot hold needles and question alone.
    """
    ends = sentence_ends(stretch)
    cuts = np.concatenate([[0], ends if haystack.whole_sentences else cut_points(stretch)])
    token_at = _token_positions(stretch, cuts, tokens)

    def request(size: int) -> Request:
        filler = stretch[: cuts[size]]
        if filler and not haystack.whole_sentences:
            filler = close_sentence(filler)
        layout = lay_out(
            filler, needles, depths, ends[: int(np.searchsorted(ends, len(filler)))], haystack.joiner
        )
        text = render(layout.context)
        return Request(layout, text, tokens.count(text), len(filler))

    fit = largest_that_fits(request, token_at, budget)
    # From what was kept (closing a sentence drops dashes and the like before its stop) to the next cut.
    piece = stretch[fit.document.filler : cuts[min(fit.size + 1, len(cuts) - 1)]]
    return Filled(
        fit.document, fit.exhausted, int(token_at[-1]), len(tokens.encode(piece, special=False).ids)
    )


def _token_positions(
    stretch: str, cuts: npt.NDArray[np.int64], tokens: RequestTokens
) -> npt.NDArray[np.float64]:
    """Count the tokens before each cut: by offsets where there are some, else in proportion to characters."""
    encoding = tokens.encode(stretch, special=False)
    if encoding.ends is None:
        return np.asarray(cuts * (len(encoding.ids) / max(len(stretch), 1)), dtype=np.float64)
    return np.searchsorted(encoding.ends, cuts, side="right").astype(np.float64)
