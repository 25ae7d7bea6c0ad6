"""What the driver of a run asks of an executor."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from nsa_eval.config import EngineSpec, ExecutorSpec, ModelSpec, Variant
from nsa_eval.store import ResponseStore

if TYPE_CHECKING:
    from nsa_eval.engine import Emit, Request
    from nsa_eval.executors._worker import VariantFacts


class Executor(Protocol):
    """Holds one checkpoint at a time, as one of its variants, and answers requests with it.

    Cutting requests into pieces is the executor's, by `pieces`: what is answered together depends on the
    requests alone, so that every executor gives the same responses to the last bit.
    """

    def load(self, checkpoint: ModelSpec) -> None:
        """Load a checkpoint on every worker, in place of the one before.

        Raises:
            ModelLoadError: It can't be loaded.
        """
        ...

    def use(self, variant: Variant) -> VariantFacts:
        """Become a variant of the loaded checkpoint.

        Raises:
            ModelLoadError: A config field that can't be set.
            UserError: A setting or a method that the model can't take.
        """
        ...

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Answer requests of one kind; returns when every missing one has its response in the store.

        Args:
            requests: Each key once, answered ones too, as batches are planned from all.
            missing: Keys that need an answer.
            emit: Receives responses that are stored, as they come.
        """
        ...

    def close(self) -> None:
        """Let workers and weights go."""
        ...


def make_executor(spec: ExecutorSpec, *, settings: EngineSpec, store: ResponseStore) -> Executor:
    """The executor that a config names: the module of that name beside this file has `make`.

    Args:
        spec: The config's `executor`.
        settings: The config's `engine`.
        store: Where responses go; its lock is held by this process.

    Raises:
        UserError: A package that it needs isn't installed, or its cluster can't be reached.
    """
    module = importlib.import_module(f"nsa_eval.executors.{spec.kind}")
    executor: Executor = module.make(spec, settings=settings, store=store)
    return executor
