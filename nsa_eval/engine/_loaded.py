"""A loaded model, ready to be asked: the sparse method on it, its reader, and the kernels compiled for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, resolve_max_length
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval._devices import device_bytes, device_name
from nsa_eval._words import sentence
from nsa_eval.config import EngineSpec
from nsa_eval.engine._batching import Limits
from nsa_eval.engine._meter import Meter
from nsa_eval.engine._methods import remarks_on, restrictions_of
from nsa_eval.engine._prompts import PromptEncoder
from nsa_eval.engine._reader import Reader
from nsa_eval.engine._shares import by_budget, method_at
from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent
from nsa_models import trained_sparsity, warm_up
from nsa_models.dma import settle_ties
from nsa_models.families import Family, check_fits, family_of
from nsa_models.methods import Attached, Method, MethodError, MethodShare, attach
from nsa_models.once import once
from nsa_models.shortage import one_kind_of_shortage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model once it is loaded, as plain data that travels between processes."""

    max_length: int
    """Most tokens of prompt and reply together."""
    parameters: int
    dtype: str
    """As torch writes it: torch.bfloat16."""
    device: str
    """Its type: cpu, cuda."""
    device_name: str = ""
    """Its own name; nothing of a model that runs elsewhere."""
    device_bytes: int | None = None
    """Its memory in all."""
    weights_bytes: int = 0
    """Of parameters and buffers."""
    events: tuple[AuditEvent, ...] = ()
    """What was assumed about the model itself."""


class LoadedModel:
    """A model with its tokenizer, as a variant of a run asks it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        settings: EngineSpec,
        method: Method | MethodShare | None = None,
    ) -> None:
        """Args are those of `Answerer`, and so is what is raised."""
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length must be at least 2 tokens, got {max_length}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self._events: list[AuditEvent] = []
        self.max_length = max_length or self._default_max_length()
        self.prompts = PromptEncoder(tokenizer, max_length=self.max_length, settings=settings)
        self._events += self.prompts.events
        settle_ties(model)
        trained = trained_sparsity(model.config)
        for remark in trained.notes if trained else ():
            self._events.append(AuditEvent(kind="trained_sparse", detail=remark))
        self.meter = Meter(model)
        self._warmed: set[tuple[frozenset[int], int, int]] = set()
        self._reader: Reader | None = None
        self._family: Family | None = None
        self._share = method if isinstance(method, MethodShare) else None
        first = method
        if isinstance(method, MethodShare):
            first = method_at(method, method.budget(self.max_length))
        self._attached = self._attach(first) if isinstance(first, Method) else None

    def close(self) -> None:
        """Take the method off the model."""
        if self._attached is not None:
            self._attached.detach()

    @property
    def facts(self) -> ModelFacts:
        """What a reader of the scores has to know of the model."""
        return ModelFacts(
            max_length=self.max_length,
            parameters=self.model.num_parameters(),
            dtype=str(self.model.dtype),
            device=self.model.device.type,
            device_name=device_name(self.model.device),
            device_bytes=device_bytes(self.model.device),
            weights_bytes=self.model.get_memory_footprint(),
            events=tuple(self._events),
        )

    @property
    def prefill_chunk(self) -> int | str:
        """Tokens of a row that one forward reads at most; "auto" while nothing has been read."""
        return self._reader.prefill_chunk if self._reader else self.settings.prefill_chunk

    def reader(self) -> Reader:
        """The reader, made when there is something to compute: a fully stored run never runs the model.

        Raises:
            ModelLoadError: Not a causal language model, or it doesn't fit its tokenizer or max_length.
        """
        if self._reader is None:
            check_fits(self.model, self.tokenizer, self.max_length)
            # The probe's forwards are the first: libraries set themselves up in them.
            with once(self.model.device):
                self._reader = Reader(self.model, prefill_chunk=self.settings.prefill_chunk)
        return self._reader

    def limits(self) -> Limits:
        """What one batch may hold, by the memory that is free now."""
        kept = 1.0
        if self._attached is not None:  # masked keys stay in the cache: a method never takes less
            kept = max(1.0, self._attached.method.kv_kept(self.max_length) / self.max_length)
        return Limits.of(self.reader().family, self.settings.batch_size, kept=kept)

    def replays(self) -> bool:
        """Whether decode steps may be replayed from CUDA graphs."""
        return self.settings.cuda_graphs == "auto" and self.reader().graphs

    def by_budget(self, items: Sequence[T], length: Callable[[T], int]) -> Iterator[tuple[list[T], int]]:
        """Items with the method as it is for them: all, or those of each budget; and tokens of the longest.

        Args:
            items: Texts of any kind.
            length: Tokens of one.
        """
        groups = by_budget(self._share, items, length) if self._share else [(None, [*items])]
        for method, some in groups:
            if method is not None and self._attached is not None and self._attached.method != method:
                self._attached.detach()
                said = len(self._events)
                self._attached = self._attach(method)
                del self._events[said:]  # the same of every budget
            yield some, max(map(length, some), default=0)

    def warm_up(self, prompts: Sequence[int], *, rows: int, new_tokens: int = 0) -> None:
        """Compile what such prompts and replies will launch, in parallel and before the clock starts.

        Args:
            prompts: Tokens of each.
            rows: How many of them are read together at most.
            new_tokens: Of the longest reply.
        """
        if self.model.device.type != "cuda" or not prompts:
            return
        limits = self.limits()
        each = max(prompts) + new_tokens
        most = max(1, min(limits.rows, rows, limits.cache_tokens // max(1, each)))
        asked = (frozenset(prompts), most, new_tokens)
        if asked in self._warmed:
            return
        self._warmed.add(asked)
        with once(self.model.device):
            warm_up(
                self.model,
                prompts=prompts,
                rows={1, most},
                chunk=self.reader().prefill_chunk,
                new_tokens=new_tokens,
                graphs=self.replays(),
            )

    def _attach(self, method: Method) -> Attached:
        """Find out how the model is fed, then put the method on it, and obey what it declares."""
        check_fits(self.model, self.tokenizer, self.max_length)
        with _told_shortage(), once(self.model.device):
            family = self._family or family_of(self.model, own_attention=True)
        self._family = family
        if not family.caches:
            acts = "acts on prompts alone, not" if method.phase == "prefill" else "acts"
            raise UserError(
                f"{method.label} {acts} while decoding from a cache, and models of type "
                f"{self.model.config.model_type!r} are run without one"
            )
        try:
            attached = attach(self.model, method)
        except MethodError as error:
            raise UserError(str(error)) from None
        try:
            with _told_shortage():
                self._reader = Reader(
                    self.model,
                    prefill_chunk=self.settings.prefill_chunk,
                    restrictions=restrictions_of(method),
                    family=family,
                )
        except BaseException as error:  # its probe runs the model
            attached.detach()
            if isinstance(error, MethodError):
                raise UserError(str(error)) from None
            raise
        label = method.label if self._share is None else self._share.label
        self._events += [
            AuditEvent(kind="method", detail=f"{label}: {remark}")
            for remark in (*attached.notes, *remarks_on(method))
        ]
        return attached

    def _default_max_length(self) -> int:
        found = int(resolve_max_length(self.model.config, self.tokenizer, default=0))
        if found:
            return found
        self._events.append(
            AuditEvent(
                kind="default_max_length",
                detail="neither config nor tokenizer names a maximum length; lm-eval's default is used",
                after=DEFAULT_MAX_LENGTH,
            )
        )
        return int(DEFAULT_MAX_LENGTH)


@contextmanager
def _told_shortage() -> Iterator[None]:
    """Tell a lack of memory while a model is tried, before there is any request.

    Raises:
        UserError: Not even a few tokens fit.
    """
    try:
        with one_kind_of_shortage():
            yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"too little device memory to try the model on a few tokens: {sentence(error)} See "
            "what else runs on the device, or use a narrower dtype"
        ) from error
