"""How much a run has to do, and how much of it is done: told to the progress display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsa_eval._gen_kwargs import LM_EVAL_BUDGET
from nsa_eval.plan import Job, repeats_of
from nsa_eval.progress import Progress
from nsa_eval.store import RequestKind, Response, ResponseStore, StoreError

if TYPE_CHECKING:
    from nsa_eval.engine import Request

_GUESSED_TOKENS = 400
"""Tokens of a document of lm-eval's own tasks until its requests are built."""
_CHARACTERS_PER_TOKEN = 4
"""Of English prose; the prompts are tokenized where the model is, and only their proportions matter here."""


@dataclass(frozen=True, slots=True)
class _Size:
    tokens: int = 0
    requests: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.tokens + other.tokens, self.requests + other.requests)


class Workload:
    """The sizes of a run's jobs: guessed from the plan, counted as soon as their requests are built."""

    def __init__(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Begin the display with what the plan says.

        Args:
            jobs: Those that have no results yet.
            progress: Told of every correction.
        """
        self._progress = progress
        self._sizes = {
            (job.variant.name, job.task.label): _Size(
                job.tokens or 0, (job.samples or 0) * (repeats_of(job.task, job.params) or 1)
            )
            for job in jobs
        }
        self._built: set[tuple[str, str]] = set()
        whole = sum(self._sizes.values(), _Size())
        progress.start(whole.tokens, whole.requests)

    def loaded(self, jobs: Iterable[Job], documents: Mapping[str, int]) -> None:
        """Guess jobs of lm-eval's own tasks by their documents.

        Args:
            jobs: Jobs of one checkpoint, whose data is loaded now.
            documents: How many there are, by the task's label.
        """
        for job in jobs:
            key, found = (job.variant.name, job.task.label), documents[job.task.label]
            if not self._sizes[key].requests:
                self._set(key, _Size(found * _GUESSED_TOKENS, found))

    def built(self, variant: str, requests: Sequence[Request], labels: Mapping[str, str]) -> None:
        """Count the requests of one kind that a variant will be asked.

        Args:
            variant: Its name.
            requests: All of them, stored ones too.
            labels: The label of the config's entry, by name of the single task.
        """
        found: dict[str, _Size] = {}
        for request in requests:
            label = labels.get(request.origin.task, request.origin.task)
            found[label] = found.get(label, _Size()) + _Size(size_of(request), 1)
        for label, size in found.items():
            key = (variant, label)
            # A task may ask in two ways, one call each.
            self._set(key, self._sizes[key] + size if key in self._built else size)
            self._built.add(key)
            for other in self._sizes.keys() - self._built:
                if other[1] == label:  # what other variants are asked has about the same size
                    self._set(other, self._sizes[key])

    def _set(self, key: tuple[str, str], size: _Size) -> None:
        before = self._sizes.get(key, _Size())
        self._sizes[key] = size
        self._progress.change_total(size.tokens - before.tokens, size.requests - before.requests)


def size_of(request: Request) -> int:
    """About how many tokens a request is, whatever the answer: its text and the reply's budget."""
    characters = sum(len(part) for part in request.arguments if isinstance(part, str))
    settings = next((part for part in request.arguments if isinstance(part, dict)), None)
    budget = 0 if settings is None else settings.get("max_gen_toks", LM_EVAL_BUDGET)
    reply = budget if isinstance(budget, int) else LM_EVAL_BUDGET
    return characters // _CHARACTERS_PER_TOKEN + reply + 1


class CountingStore(ResponseStore):
    """A view of an open store that counts what passes; closing the store itself is left to its owner."""

    def __init__(self, store: ResponseStore, progress: Progress) -> None:
        """Wrap `store`, which stays open elsewhere."""
        self._inner, self._progress = store, progress
        self.path = store.path
        self._sizes: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def expect(self, requests: Sequence[Request]) -> None:
        """Learn the sizes of requests that will be looked up, or answered."""
        for request in requests:
            self._sizes[request.key] += size_of(request)
            self._counts[request.key] += 1

    def get(self, key: str) -> Response | None:
        """Look a response up; one that is there was paid for in an earlier run."""
        self._progress.begin_work()  # the engine looks everything up first, once the prompts are built
        response = self._inner.get(key)
        if response is not None:
            self._progress.skip(*self._size([key]))
        return response

    def put_many(self, responses: Mapping[str, Response] | Iterable[tuple[str, Response]]) -> None:
        """Store responses, then count them."""
        new = dict(responses)
        self._inner.put_many(new)
        self._progress.add(*self._size(new))

    def refresh(self) -> dict[str, Response]:
        """Take up what workers have stored, and count it."""
        new = self._inner.refresh()
        self._progress.add(*self._size(new))
        return new

    def unfit(self, key: str, kind: RequestKind) -> StoreError:
        """The inner store knows where it stands."""
        return self._inner.unfit(key, kind)

    def close(self) -> None:
        """Leave the store open: the run's other models use it."""

    def _size(self, keys: Iterable[str]) -> tuple[int, int]:
        """Tokens and requests behind keys; each is counted once, however often it passes."""
        taken = [(self._sizes.pop(key, 0), self._counts.pop(key, 0)) for key in keys]
        return sum(size for size, _ in taken), sum(count for _, count in taken)

    def __len__(self) -> int:
        """Responses stored."""
        return len(self._inner)
