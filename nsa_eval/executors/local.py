"""Answers requests in this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from nsa_eval.config import EngineSpec, ExecutorSpec, ModelSpec, Variant
from nsa_eval.executors._worker import VariantFacts, Worker
from nsa_eval.store import Response, ResponseStore

if TYPE_CHECKING:
    from nsa_eval.engine import Emit, Request


class LocalExecutor:
    """One worker, in the process of the driver, that writes the driver's own shard."""

    def __init__(self, settings: EngineSpec, store: ResponseStore) -> None:
        """Args are those of `make_executor`."""
        self._worker = Worker(settings)
        self._store = store

    def load(self, checkpoint: ModelSpec) -> None:
        """Load a checkpoint, in place of the one before."""
        self._worker.load(checkpoint)

    def use(self, variant: Variant) -> VariantFacts:
        """Become a variant of the loaded checkpoint."""
        return self._worker.use(variant)

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Answer piece after piece."""
        from nsa_eval.executors._pieces import pieces

        def finish(responses: Mapping[str, Response]) -> None:
            self._store.put_many(responses)
            emit(responses)

        for piece in pieces(requests, self._worker.device):
            self._worker.answer(piece, {request.key for request in piece} & set(missing), finish)

    def close(self) -> None:
        """Let the weights go."""
        self._worker.close()


def make(spec: ExecutorSpec, *, settings: EngineSpec, store: ResponseStore) -> LocalExecutor:
    """The executor of `executor: {kind: local}`."""
    return LocalExecutor(settings, store)
