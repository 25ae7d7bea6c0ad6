"""A worker: loads a checkpoint once, becomes its variants one after another, and answers requests."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nsa_eval.config import EngineSpec, ModelSpec, Variant
from nsa_eval.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nsa_eval.engine import Answerer, Emit, ModelFacts, Request
    from nsa_models import RunningBackend
    from nsa_models.methods import Method, MethodShare


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What a worker found when it became a variant; plain data, the same from every worker."""

    model: ModelFacts
    backend: RunningBackend
    """What really computes the attention."""
    attention: str
    """Kind of attention, as the checkpoint's config says: nsa, full, or what a model was trained to read."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Config fields whose values differ from the checkpoint's own."""
    method: dict[str, Any] | None = None
    """The sparse method that is attached, with every parameter."""


class Worker:
    """One process's model."""

    def __init__(self, settings: EngineSpec) -> None:
        """Args: `settings` is the config's `engine`."""
        self._settings = settings
        self._checkpoint: ModelSpec | None = None
        self._weights: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._answerer: Answerer | None = None

    def load(self, checkpoint: ModelSpec) -> None:
        """Load a checkpoint; the one before is let go first.

        Raises:
            ModelLoadError: It can't be loaded.
        """
        import nsa_models
        from nsa_eval._quiet import quiet

        self.close()
        with quiet():
            self._tokenizer = nsa_models.load_tokenizer(checkpoint.path, **checkpoint.source)
            self._weights = nsa_models.load_model(
                checkpoint.path,
                dtype=checkpoint.dtype,
                device=checkpoint.device,
                backend=checkpoint.backend,
                **checkpoint.source,
            )
        self._checkpoint = checkpoint

    def use(self, variant: Variant) -> VariantFacts:
        """Become a variant of the loaded checkpoint.

        Raises:
            ModelLoadError: A config field that can't be set.
            UserError: A setting that the model can't take.
        """
        import nsa_models
        from nsa_eval.engine import Answerer

        assert self._weights is not None, "load comes first"
        assert self._tokenizer is not None
        assert self._checkpoint is not None
        self._release()
        changes = nsa_models.changed_fields(self._weights.config, variant.changes)
        model = nsa_models.with_fields(
            self._weights, changes, trust_remote_code=self._checkpoint.trust_remote_code
        )
        method = _method(variant)
        self._answerer = Answerer(
            model,
            self._tokenizer,
            max_length=self._checkpoint.max_length,
            settings=self._settings,
            method=method,
        )
        return VariantFacts(
            model=self._answerer.facts,
            backend=nsa_models.running_backend(model),
            attention=_attention_of(model.config),
            changes=changes,
            method=method.describe() if method is not None else None,
        )

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Answer a piece of requests (see `Answerer.answer`)."""
        assert self._answerer is not None, "use comes first"
        self._answerer.answer(requests, missing=missing, emit=emit)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        assert self._tokenizer is not None, "load comes first"
        return self._tokenizer

    @property
    def device(self) -> str:
        """Type of the device that the checkpoint is on."""
        assert self._weights is not None, "load comes first"
        return str(self._weights.device.type)

    def close(self) -> None:
        """Let go of the checkpoint's memory."""
        import torch

        if self._weights is None:
            return
        self._release()
        self._weights = self._tokenizer = self._answerer = self._checkpoint = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _release(self) -> None:
        if self._answerer is not None:
            self._answerer.close()
            self._answerer = None


def _method(variant: Variant) -> Method | MethodShare | None:
    """A variant's method.

    Raises:
        UserError: There is none of that name, or it can't have such a budget or option.
    """
    from nsa_models.methods import MethodError, method_at

    method = variant.method
    if method is None:
        return None
    try:
        return method_at(method.name, method.single_budget, **method.options)
    except MethodError as error:
        raise UserError(f"{variant.name}: {error}") from None


def _attention_of(config: Any) -> str:  # noqa: ANN401 - a config of any class
    """What a table calls a model's attention."""
    from nsa_models import trained_sparsity

    trained = trained_sparsity(config)
    return trained.label if trained else str(getattr(config, "attention", "full"))
