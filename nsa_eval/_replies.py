"""How long each reply of a sample is, and whether it ended by itself: lm-eval's samples hold texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsa_eval.store import ResponseStore

if TYPE_CHECKING:
    from nsa_eval.engine import Request


class AskedReplies:
    """The replies that a variant was asked for, by the document that they belong to."""

    def __init__(self) -> None:
        """Begin with none."""
        self._asked: dict[tuple[str, int], list[str]] = {}

    def note(self, requests: Iterable[Request]) -> None:
        """Take up requests in the order in which lm-eval asks them: a document's one after another."""
        for request in requests:
            document = request.origin.doc_id
            if request.kind == "generate_until" and document is not None:
                place = (request.origin.task, document)
                self._asked.setdefault(place, []).append(request.key)

    def describe(self, samples: Mapping[str, Sequence[dict[str, Any]]], store: ResponseStore) -> None:
        """Write beside the replies of each sample what the store knows of them.

        `new_tokens` has a number for each reply, in their order; `finished` says whether it ended by itself,
        not at its budget. Nothing is written where that isn't known (lm-eval's own classes don't tell).

        Args:
            samples: lm-eval's, by task; changed in place.
            store: Where the replies are.
        """
        for task, rows in samples.items():
            for row in rows:
                asked = self._asked.get((task, row["doc_id"]), ())
                found = [store.get(key) for key in asked]
                known = [one for one in found if one is not None and one.finished is not None]
                if known and len(known) == len(asked):
                    row["new_tokens"] = [one.new_tokens for one in known]
                    row["finished"] = [one.finished for one in known]
