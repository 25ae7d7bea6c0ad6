"""Which requests are answered already, and where new answers go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from nsa_eval.engine._requests import Request
from nsa_eval.store import AuditEvent, Response, ResponseStore


class Ledger:
    """What was asked so far: how much of it, how much the store knew, and what is to be told of it."""

    def __init__(
        self,
        store: ResponseStore | None,
        on_response: Callable[[int], None] | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        """Nothing is answered yet.

        Args:
            store: Where responses are looked up.
            on_response: Called with the number of requests just answered.
            keeps: Put responses into the store as they come; otherwise whoever answers has done so.
        """
        self._store = store
        self._keeps = keeps
        self._on_response = on_response
        self.answered = 0
        """Requests answered so far, stored ones included."""
        self.from_store = 0
        """How many of them were in the store before."""
        self.audit: list[AuditEvent] = []

    def note(self, events: Iterable[AuditEvent]) -> None:
        """Add events to the audit; the choices of one question give the same event once."""
        known = set(self.audit)
        for event in events:
            if event not in known:
                known.add(event)
                self.audit.append(event)


class Call:
    """The answers of one call, by key."""

    def __init__(self, ledger: Ledger, requests: Sequence[Request]) -> None:
        """Look up what is stored already.

        Raises:
            StoreError: A stored value of another type than its request is answered with.
        """
        self._ledger = ledger
        self.requests = requests
        self._count = Counter(request.key for request in requests)
        self._found: dict[str, Response] = {}
        store = ledger._store
        if store is not None:
            stored = ((key, store.get(key)) for key in self._count)
            self._found = {key: response for key, response in stored if response is not None}
            kinds = {request.key: request.kind for request in requests}
            for key, response in self._found.items():
                if not response.answers(kinds[key]):
                    raise store.unfit(key, kinds[key])
        self._report(self._found, stored=True)

    @property
    def missing(self) -> frozenset[str]:
        """The keys that have no answer yet."""
        return frozenset(key for key in self._count if key not in self._found)

    def distinct(self) -> list[Request]:
        """One of each key, answered or not, in the order given."""
        return list({request.key: request for request in reversed(self.requests)}.values())[::-1]

    def take(self, responses: Mapping[str, Response]) -> None:
        """Take a batch of responses: stored first, then reported."""
        if self._ledger._keeps and self._ledger._store is not None:
            self._ledger._store.put_many(responses)
        self._found.update(responses)
        self._report(responses, stored=False)

    def responses(self) -> list[Response]:
        """The answers in the order of the requests; their events join the audit in that order."""
        answers = [self._found[request.key] for request in self.requests]
        self._ledger.note(event for answer in answers for event in answer.events)
        return answers

    def _report(self, keys: Iterable[str], *, stored: bool) -> None:
        count = sum(self._count[key] for key in keys)
        self._ledger.answered += count
        self._ledger.from_store += count if stored else 0
        if count and self._ledger._on_response is not None:
            self._ledger._on_response(count)
