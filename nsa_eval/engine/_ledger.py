"""Which requests are answered already, and where new answers go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from nsa_eval.engine._prompts import Origin
from nsa_eval.store import AuditEvent, Response, ResponseStore, request_key


@dataclass(slots=True)
class Ticket:
    """One request of a call."""

    arguments: tuple[Any, ...]
    origin: Origin
    key: str
    seed: int
    """For sampling; the same whatever model answers, so that two models draw the same numbers."""


class Ledger:
    """Asks the store first, and puts each response as soon as it exists."""

    def __init__(
        self, store: ResponseStore | None, context: str, on_response: Callable[[int], None] | None
    ) -> None:
        """Args are those of the Engine."""
        self._store = store
        self._context = context
        self._on_response = on_response
        self.answered = 0
        """Requests answered so far, stored ones included."""
        self.from_store = 0
        """How many of them were in the store before."""
        self.audit: list[AuditEvent] = []

    def open(self, requests: Sequence[Instance], kind: str) -> list[Ticket]:
        """Name every request by its content; equal requests get equal keys."""
        seen: Counter[int] = Counter()
        tickets = []
        for request in requests:
            # lm-eval asks for k answers by listing the same Instance k times.
            repeat = seen[id(request)]
            seen[id(request)] += 1
            doc = request.doc if isinstance(request.doc, Mapping) else {"doc": request.doc}
            task = request.task_name or ""
            key, plain = (
                request_key(
                    context=context,
                    request_type=kind,
                    task=task,
                    doc=doc,
                    arguments=request.args,
                    repeat=repeat,
                )
                for context in (self._context, "")
            )
            tickets.append(Ticket(request.args, Origin(task, request.doc_id), key, int(plain[:15], 16)))
        return tickets

    def note(self, events: Iterable[AuditEvent]) -> None:
        """Add events to the audit; the choices of one question give the same event once."""
        known = set(self.audit)
        for event in events:
            if event not in known:
                known.add(event)
                self.audit.append(event)


class Call:
    """The answers of one call, by key."""

    def __init__(self, ledger: Ledger, tickets: list[Ticket]) -> None:
        """Look up what is stored already."""
        self._ledger = ledger
        self.tickets = tickets
        self._count = Counter(ticket.key for ticket in tickets)
        self._found: dict[str, Response] = {}
        store = ledger._store
        if store is not None:
            stored = ((key, store.get(key)) for key in self._count)
            self._found = {key: response for key, response in stored if response is not None}
        self._report(self._found, stored=True)

    def missing(self, key: str) -> bool:
        """Whether this request has no answer yet."""
        return key not in self._found

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return len(self._found) == len(self._count)

    def first_tickets(self) -> list[Ticket]:
        """One ticket for each distinct request, answered or not, in the order given."""
        return list({ticket.key: ticket for ticket in reversed(self.tickets)}.values())[::-1]

    def finish(self, responses: Mapping[str, Response]) -> None:
        """Store a batch of responses, then report them."""
        if self._ledger._store is not None:
            self._ledger._store.put_many(responses)
        self._found.update(responses)
        self._report(responses, stored=False)

    def responses(self) -> list[Response]:
        """The answers in the order of the requests; their events join the audit in that order."""
        answers = [self._found[ticket.key] for ticket in self.tickets]
        self._ledger.note(event for answer in answers for event in answer.events)
        return answers

    def _report(self, keys: Iterable[str], *, stored: bool) -> None:
        count = sum(self._count[key] for key in keys)
        self._ledger.answered += count
        self._ledger.from_store += count if stored else 0
        if count and self._ledger._on_response is not None:
            self._ledger._on_response(count)
