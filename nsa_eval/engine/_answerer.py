"""A loaded model that answers requests: what a worker holds. It knows no store and no task."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, resolve_max_length
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval._devices import device_bytes, device_name
from nsa_eval.config import EngineSpec
from nsa_eval.engine._batching import Limits
from nsa_eval.engine._generating import Replier
from nsa_eval.engine._lines import Reply, ReplyRequest
from nsa_eval.engine._looking import look_all
from nsa_eval.engine._meter import Meter
from nsa_eval.engine._methods import remarks_on, restrictions_of
from nsa_eval.engine._prompts import Prompt, PromptEncoder, Windows, split_spaces
from nsa_eval.engine._reader import NonFiniteLogitsError, Reader
from nsa_eval.engine._requests import Request
from nsa_eval.engine._sampling import GenerationSettings
from nsa_eval.engine._scoring import LogLikelihood, Scorer, units_of
from nsa_eval.engine._shares import by_budget, method_at
from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent, Cost, Response
from nsa_models import Compilations, trained_sparsity, warm_up
from nsa_models.dma import settle_ties
from nsa_models.families import Family, check_fits, family_of
from nsa_models.methods import Attached, Method, MethodError, MethodShare, WeightsError, attach
from nsa_models.once import once

# Requests whose texts are encoded together: some megabytes of them, for all cores to have some.
_FORESEEN = 64

T = TypeVar("T")
Emit = Callable[[Mapping[str, Response]], None]
"""Receives finished responses by key, a batch at a time."""


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


class Answerer:
    """Answers requests with one model, in batches that depend on nothing but the requests."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        settings: EngineSpec,
        method: Method | MethodShare | None = None,
    ) -> None:
        """Take a model that is on its device; set to eval mode here.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            max_length: Most tokens of prompt and reply together; None: what config or tokenizer say.
            settings: The engine's settings.
            method: A sparse-attention method, put on the model until `close`; at a share of each prompt it is
                put on anew for each budget that comes of it.

        Raises:
            UserError: A max_length below 2, or a method that the model can't take.
        """
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length must be at least 2 tokens, got {max_length}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self._events: list[AuditEvent] = []
        self.max_length = max_length or self._default_max_length()
        self.prompts = PromptEncoder(
            tokenizer,
            max_length=self.max_length,
            truncation=settings.truncation,
            add_bos_token=settings.add_bos_token,
            parity=settings.parity,
        )
        self._events += self.prompts.events
        settle_ties(model)
        trained = trained_sparsity(model.config)
        for remark in trained.notes if trained else ():
            self._events.append(AuditEvent(kind="trained_sparse", detail=remark))
        self._reader: Reader | None = None
        self._meter = Meter(model)
        self._warmed: set[tuple[frozenset[int], int, int]] = set()
        self.compiled = Compilations()
        """Kernels that were compiled before they were needed, and the seconds that it took."""
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

    def answer(self, requests: Sequence[Request], *, missing: Collection[str], emit: Emit) -> None:
        """Answer requests of one kind.

        Batches are planned from all of them, missing or not, so that a resumed run computes the rest just as
        the first one would have.

        Args:
            requests: Each key once.
            missing: The keys that need an answer.
            emit: Called as soon as a batch is finished.

        Raises:
            UserError: A request that can't be asked (too long by policy, an unknown setting), a method whose
                weights don't fit the model, or too little memory for one request.
            NonFiniteLogitsError: NaN or infinite logits; what was finished before was emitted.
        """
        if not missing:
            return
        work = {
            "loglikelihood": self._score,
            "loglikelihood_rolling": self._score_windows,
            "generate_until": self._generate,
            "look": self._look,
        }[requests[0].kind]
        try:
            work(requests, missing, emit)
        except WeightsError as error:
            raise UserError(str(error)) from None
        except torch.OutOfMemoryError as error:
            chunk = self._reader.prefill_chunk if self._reader else self.settings.prefill_chunk
            raise UserError(
                f"too little device memory for one request at a time: {str(error).splitlines()[0]} Lower "
                f"prefill_chunk (now {chunk}) or max_length (now {self.max_length}), "
                "or use a narrower dtype. Responses finished before are stored"
            ) from error

    def prepared(self) -> tuple[Reader, Limits]:
        """The reader, made when there is something to compute: a fully stored run never runs the model.

        Raises:
            ModelLoadError: Not a causal language model, or it doesn't fit its tokenizer or max_length.
        """
        if self._reader is None:
            check_fits(self.model, self.tokenizer, self.max_length)
            # The probe's forwards are the first: libraries set themselves up in them.
            with once(self.model.device):
                self._reader = Reader(self.model, prefill_chunk=self.settings.prefill_chunk)
        return self._reader, Limits.of(self._reader.family, self.settings.batch_size)

    def scorer(self) -> Scorer:
        """What scores token ids."""
        reader, limits = self.prepared()
        return Scorer(reader, limits, share_prefixes=self.settings.share_prefixes)

    def _attach(self, method: Method) -> Attached:
        """Find out how the model is fed, then put the method on it, and obey what it declares."""
        check_fits(self.model, self.tokenizer, self.max_length)
        with once(self.model.device):
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
        label = method.label if self._share is None else self._share.label
        self._events += [
            AuditEvent(kind="method", detail=f"{label}: {remark}")
            for remark in (*attached.notes, *remarks_on(method))
        ]
        try:
            self._reader = Reader(
                self.model,
                prefill_chunk=self.settings.prefill_chunk,
                restrictions=restrictions_of(method),
                family=family,
            )
        except WeightsError as error:  # as in `answer`: its probe runs the model
            attached.detach()
            raise UserError(str(error)) from None
        return attached

    def _by_budget(self, items: Sequence[T], length: Callable[[T], int]) -> Iterator[tuple[list[T], int]]:
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

    def _score(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        prompts: list[Prompt] = []
        for some in _slices(requests):
            pairs = [split_spaces(*request.arguments[:2]) for request in some]
            self.prompts.foresee(text for head, tail in pairs for text in (head, head + tail) if head)
            prompts += [
                self.prompts.pair(
                    request.arguments[0],
                    request.arguments[1],
                    request.origin,
                    truncation=request.truncation,
                )
                for request in some
            ]

        def scored(scores: list[tuple[int, LogLikelihood]]) -> None:
            texts = [prompts[name] for name, _ in scores]
            costs = self._meter.scored(
                [len(text.context) for text in texts], [len(text.continuation) for text in texts]
            )
            emit(
                {
                    requests[name].key: _response(score, prompts[name], cost)
                    for (name, score), cost in zip(scores, costs, strict=True)
                    if math.isfinite(score[0])
                }
            )
            for name, (value, _) in scores:
                self._check_finite(value, requests[name])

        asked = [(name, prompt.context, prompt.continuation) for name, prompt in enumerate(prompts)]
        self._warm_up([len(p.context) + len(p.continuation) - 1 for p in prompts], rows=len(missing))
        for group, longest in self._by_budget(asked, lambda one: len(one[1]) + len(one[2])):
            scorer = self.scorer()
            self._meter.start(longest)  # texts were encoded until here
            scorer.run(units_of(group), wanted=lambda name: requests[name].key in missing, emit=scored)

    def _score_windows(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        windows: list[Windows] = []
        for some in _slices(requests):
            self.prompts.foresee(request.arguments[0] for request in some)
            windows += [self.prompts.windows(request.arguments[0], request.origin) for request in some]
        owners = [(index, window) for index, found in enumerate(windows) for window in found.pairs]
        values: list[list[float]] = [[] for _ in requests]
        costs = [Cost() for _ in requests]

        def answer(indices: list[int]) -> None:
            emit(
                {
                    requests[i].key: Response(
                        value=math.fsum(values[i]),
                        prompt_tokens=1,
                        new_tokens=sum(len(tail) for _, tail in windows[i].pairs),
                        events=windows[i].events,
                        cost=costs[i],
                    )
                    for i in indices
                }
            )

        def scored(scores: list[tuple[int, LogLikelihood]]) -> None:
            ready = []
            texts = [owners[name][1] for name, _ in scores]
            taken = self._meter.scored([len(head) for head, _ in texts], [len(tail) for _, tail in texts])
            for (name, (value, _)), cost in zip(scores, taken, strict=True):
                index = owners[name][0]
                costs[index] += cost
                self._check_finite(value, requests[index])
                values[index].append(value)
                if len(values[index]) == len(windows[index].pairs):
                    ready.append(index)
            answer(ready)

        answer([i for i, found in enumerate(windows) if not found.pairs and requests[i].key in missing])
        pairs = [(name, context, tail) for name, (_, (context, tail)) in enumerate(owners)]
        self._warm_up([len(head) + len(tail) - 1 for _, head, tail in pairs], rows=len(missing))
        for group, longest in self._by_budget(pairs, lambda one: len(one[1]) + len(one[2])):
            scorer = self.scorer()
            self._meter.start(longest)  # texts were encoded until here
            scorer.run(
                units_of(group), wanted=lambda name: requests[owners[name][0]].key in missing, emit=scored
            )

    def _generate(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        asked: list[ReplyRequest] = []
        prompts: list[Prompt] = []
        for name, request in enumerate(requests):
            if name % _FORESEEN == 0:
                self.prompts.foresee(one.arguments[0] for one in requests[name : name + _FORESEEN])
            text, given = request.arguments
            settings = GenerationSettings.parse(given, request.origin, parity=self.settings.parity)
            prompt = self.prompts.generation(
                text, budget=settings.budget, origin=request.origin, truncation=request.truncation
            )
            prompt.events += [
                AuditEvent(kind="setting", task=request.origin.task, detail=note) for note in settings.notes
            ]
            prompts.append(prompt)
            asked.append(
                ReplyRequest.of(name, prompt.context, settings, request.seed, request.origin, request.key)
            )

        reader, limits = self.prepared()
        self._warm_up(
            [len(prompt.context) for prompt in prompts],
            rows=len(missing),
            new_tokens=max(one.settings.budget for one in asked) + 1,
        )
        notes = [AuditEvent(kind=note.kind, detail=note.detail) for note in reader.family.notes]

        def replied(replies: list[Reply]) -> None:
            emit(
                {
                    requests[reply.name].key: Response(
                        value=reply.text,
                        prompt_tokens=len(prompts[reply.name].context),
                        new_tokens=reply.new_tokens,
                        finished=reply.finished,
                        # Stored, so that a resumed run, which may never run the model, reports it too.
                        events=[*prompts[reply.name].events, *notes],
                        cost=reply.cost,
                    )
                    for reply in replies
                }
            )

        for group, longest in self._by_budget(asked, lambda one: len(one.tokens)):
            reader, limits = self.prepared()
            replier = Replier(
                reader,
                self.tokenizer,
                limits,
                share_prefixes=self.settings.share_prefixes,
                cuda_graphs=self.settings.cuda_graphs == "auto" and reader.graphs,
                meter=self._meter,
            )
            self._meter.start(longest)  # prompts were encoded until here
            replier.run(group, wanted=lambda name: requests[name].key in missing, emit=replied)

    def _look(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        wanted = [request for request in requests if request.key in missing]
        look_all(self.model, self.prompts, wanted, emit, chunk=self.prepared()[0].prefill_chunk)

    def _warm_up(self, prompts: Sequence[int], *, rows: int, new_tokens: int = 0) -> None:
        """Compile what such prompts and replies will launch, in parallel and before the clock starts."""
        reader, limits = self.prepared()
        if self.model.device.type != "cuda" or not prompts:
            return
        each = max(prompts) + new_tokens
        most = max(1, min(limits.rows, rows, limits.cache_tokens // max(1, each)))
        asked = (frozenset(prompts), most, new_tokens)
        if asked in self._warmed:
            return
        self._warmed.add(asked)
        with once(self.model.device):
            made = warm_up(
                self.model,
                prompts=prompts,
                rows={1, most},
                chunk=reader.prefill_chunk,
                new_tokens=new_tokens,
                graphs=self.settings.cuda_graphs == "auto" and reader.graphs,
            )
        self.compiled.kernels += made.kernels
        self.compiled.cached += made.cached
        self.compiled.compile_seconds += made.compile_seconds
        self.compiled.wall_seconds += made.wall_seconds

    def _check_finite(self, value: float, request: Request) -> None:
        if not math.isfinite(value):
            reader, _ = self.prepared()
            raise NonFiniteLogitsError.at(reader.name, request.origin, f"a log-likelihood of {value}")


def _slices(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Requests whose texts are encoded together: neighbours share contexts."""
    for start in range(0, len(requests), _FORESEEN):
        yield requests[start : start + _FORESEEN]


def _response(score: Any, prompt: Prompt, cost: Cost) -> Response:  # noqa: ANN401  (a LogLikelihood, whose tuple pydantic checks)
    return Response(
        value=score,
        prompt_tokens=len(prompt.context),
        new_tokens=len(prompt.continuation),
        events=prompt.events,
        cost=cost,
    )
