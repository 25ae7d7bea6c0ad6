"""Tells the progress display about every response, with its size, as it passes the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nsa_eval.progress import Progress
from nsa_eval.store import RequestKind, Response, ResponseStore, StoreError


class CountingStore(ResponseStore):
    """A view of an open store that counts tokens; closing the store itself is left to its owner."""

    def __init__(self, store: ResponseStore, progress: Progress) -> None:
        """Wrap `store`, which stays open elsewhere."""
        self._inner, self._progress = store, progress
        self.path = store.path

    def get(self, key: str) -> Response | None:
        """Look a response up; one that is there was paid for in an earlier run."""
        self._progress.begin_work()  # the engine looks everything up first, once the prompts are built
        response = self._inner.get(key)
        if response is not None:
            self._progress.skip(response.prompt_tokens + response.new_tokens)
        return response

    def put_many(self, responses: Mapping[str, Response] | Iterable[tuple[str, Response]]) -> None:
        """Store responses, then count them."""
        new = dict(responses)
        self._inner.put_many(new)
        self._progress.add(sum(r.prompt_tokens + r.new_tokens for r in new.values()))

    def refresh(self) -> dict[str, Response]:
        """Take up what workers have stored, and count it."""
        new = self._inner.refresh()
        self._progress.add(sum(r.prompt_tokens + r.new_tokens for r in new.values()))
        return new

    def unfit(self, key: str, kind: RequestKind) -> StoreError:
        """The inner store knows where it stands."""
        return self._inner.unfit(key, kind)

    def close(self) -> None:
        """Leave the store open: the run's other models use it."""

    def __len__(self) -> int:
        """Responses stored."""
        return len(self._inner)
