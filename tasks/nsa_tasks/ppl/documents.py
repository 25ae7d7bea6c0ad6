"""Documents of the task: the first texts of a source that reach the last bucket's end."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nsa_tasks._errors import TaskDataError, TaskParameterError
from nsa_tasks._threads import each
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.data import Data
from nsa_tasks.ppl.parameters import ALL, PositionParams
from nsa_tasks.ppl.sources import Book, books
from nsa_tasks.ppl.windows import ShortTextError, WindowCutter


@dataclass(frozen=True, slots=True)
class Built:
    """A document, and the text that stands in its requests."""

    row: dict[str, Any]
    """What lm-eval writes beside the requests: sizes and hashes, not the text again."""
    pieces: tuple[str, ...]
    """What is given before the first scored token (nothing where BOS is), then each bucket's text."""


def build(params: PositionParams, ends: Sequence[int], data: Data, tokens: RequestTokens) -> list[Built]:
    """Cut the first documents that are long enough.

    Args:
        params: Says how many documents.
        ends: Where buckets end, in tokens.
        data: The source's records.
        tokens: Encodes text as the model's requests do.

    Raises:
        TaskDataError: Fewer documents are long enough than are asked for.
        TaskParameterError: A document that this tokenizer can't be cut in.
    """
    cutter = WindowCutter(tokens)
    wanted = len(data.records) if isinstance(params.documents, str) else params.documents
    found: list[Built] = []
    longest = 0

    def make(book: Book) -> Built | int:
        try:
            return document(book, ends, data, cutter, tokens)
        except ShortTextError as error:
            return int(error.args[0])
        except TaskParameterError as error:
            raise TaskParameterError(f"{params.task}: {book.place}: {error}; take other buckets") from None

    left = books(data)
    # Never more at once than are wanted: all of them would be read one by one, too.
    while batch := list(itertools.islice(left, wanted - len(found))):
        for made in each(make, batch) if tokens.for_threads else map(make, batch):
            if isinstance(made, Built):
                found.append(made)
            else:
                longest = max(longest, made)
    if not found or (len(found) < wanted and params.documents != ALL):
        asked = "one is needed" if params.documents in (ALL, 1) else f"{wanted} are asked for"
        fewer = f"set documents = {len(found)}, " if found else ""
        raise TaskDataError(
            f"{params.task}: {len(found)} of the {len(data.records)} documents of {params.source} have "
            f"{ends[-1]:,} tokens or more, and {asked}: {fewer}take shorter buckets"
            + (f" (the longest of the others has at most {longest:,})" if longest else "")
            + ", or another source."
        )
    return found


def document(
    book: Book, ends: Sequence[int], data: Data, cutter: WindowCutter, tokens: RequestTokens
) -> Built:
    """Cut one text.

    Args:
        book: The text.
        ends: Where buckets end, in tokens.
        data: The source that it is from.
        cutter: Cuts as the tokenizer allows.
        tokens: Encodes text as the model's requests do.

    Raises:
        ShortTextError: It has fewer tokens than the last bucket's end.
        TaskParameterError: This tokenizer can't be cut in it.
    """
    window = cutter.cut(book.text, ends)
    text = book.text[: window.cuts[-1]]
    edges = [0, *window.cuts] if window.cuts[0] else list(window.cuts)
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    if not window.cuts[0]:
        pieces = ["", *pieces]
    row = {
        "id": book.id,
        "source": data.name,
        "buckets": list(ends),
        "positions": list(window.positions),
        "tokens": list(window.tokens),
        "bytes": [len(piece.encode()) for piece in pieces[1:]],
        "starts_with": tokens.tokenizer.decode(cutter.starts) if cutter.starts else "",
        "given": window.positions[0] - len(cutter.starts),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return Built(row, tuple(pieces))
