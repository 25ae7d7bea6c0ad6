"""Answers requests with a loaded model: what a worker holds. It knows no store and no task.

Each kind of request goes the same way: texts become token ids, all of them, so that batches don't depend on
what is answered already; a scorer or a replier works on those whose answers are missing; and what it finds is
emitted as responses, a batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval._words import sentence
from nsa_eval.config import EngineSpec
from nsa_eval.engine._generating import Replier
from nsa_eval.engine._lines import Reply, ReplyRequest
from nsa_eval.engine._loaded import LoadedModel, ModelFacts
from nsa_eval.engine._looking import look_all
from nsa_eval.engine._prompts import Prompt, Windows, split_spaces
from nsa_eval.engine._reader import NonFiniteLogitsError
from nsa_eval.engine._requests import Emit, Request
from nsa_eval.engine._sampling import GenerationSettings
from nsa_eval.engine._scoring import LogLikelihood, Scorer, units_of
from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent, Cost, Response
from nsa_models.methods import Method, MethodShare, WeightsError
from nsa_models.shortage import one_kind_of_shortage

# Requests whose texts are encoded together: some megabytes of them, for all cores to have some.
_FORESEEN = 64

Pair = tuple[list[int], list[int]]
"""Token ids to read, and those behind them to score."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """One pair's score and what it took."""

    index: int
    """Its number among the pairs."""
    score: LogLikelihood
    cost: Cost


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
        self.loaded = LoadedModel(model, tokenizer, max_length=max_length, settings=settings, method=method)
        self._prompts = self.loaded.prompts
        self._settings = settings

    def close(self) -> None:
        """Take the method off the model."""
        self.loaded.close()

    @property
    def facts(self) -> ModelFacts:
        """What a reader of the scores has to know of the model."""
        return self.loaded.facts

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
            with one_kind_of_shortage():
                work(requests, missing, emit)
        except WeightsError as error:
            raise UserError(str(error)) from None
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"too little device memory for one request at a time: {sentence(error)} Lower "
                f"prefill_chunk (now {self.loaded.prefill_chunk}) or max_length (now "
                f"{self.loaded.max_length}), or use a narrower dtype. Responses finished before are stored"
            ) from error

    def scorer(self) -> Scorer:
        """What scores token ids."""
        return Scorer(
            self.loaded.reader(), self.loaded.limits(), share_prefixes=self._settings.share_prefixes
        )

    # --- log-likelihoods
    # ------------------------------------------------------------------------------------------------------

    def _score(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        prompts = self._pairs_of(requests)

        def finish(scored: list[_Scored]) -> None:
            emit(
                {
                    requests[one.index].key: _score_response(one, prompts[one.index])
                    for one in scored
                    if math.isfinite(one.score[0])
                }
            )
            for one in scored:
                self._check_finite(one.score[0], requests[one.index])

        self._score_pairs(
            [(prompt.context, prompt.continuation) for prompt in prompts],
            rows=len(missing),
            wanted=lambda index: requests[index].key in missing,
            finish=finish,
        )

    def _pairs_of(self, requests: Sequence[Request]) -> list[Prompt]:
        """Contexts and continuations as token ids."""
        prompts: list[Prompt] = []
        for some in _slices(requests):
            pairs = [split_spaces(*request.arguments[:2]) for request in some]
            self._prompts.foresee(text for head, tail in pairs for text in (head, head + tail) if head)
            for request in some:
                context, continuation = request.arguments[:2]
                prompts.append(
                    self._prompts.pair(context, continuation, request.origin, truncation=request.truncation)
                )
        return prompts

    def _score_windows(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        texts = self._windows_of(requests)
        # Windows of all texts are scored together; a text is answered when its last one is there.
        owners = [index for index, text in enumerate(texts) for _ in text.pairs]
        values: list[list[float]] = [[] for _ in requests]
        costs = [Cost() for _ in requests]

        def answer(indices: list[int]) -> None:
            emit({requests[i].key: _window_response(texts[i], values[i], costs[i]) for i in indices})

        def finish(scored: list[_Scored]) -> None:
            ready = []
            for one in scored:
                index, (value, _) = owners[one.index], one.score
                costs[index] += one.cost
                self._check_finite(value, requests[index])
                values[index].append(value)
                if len(values[index]) == len(texts[index].pairs):
                    ready.append(index)
            answer(ready)

        answer([i for i, text in enumerate(texts) if not text.pairs and requests[i].key in missing])
        self._score_pairs(
            [pair for text in texts for pair in text.pairs],
            rows=len(missing),
            wanted=lambda index: requests[owners[index]].key in missing,
            finish=finish,
        )

    def _windows_of(self, requests: Sequence[Request]) -> list[Windows]:
        """Whole texts as windows of token ids."""
        texts: list[Windows] = []
        for some in _slices(requests):
            self._prompts.foresee(request.arguments[0] for request in some)
            texts += [self._prompts.windows(request.arguments[0], request.origin) for request in some]
        return texts

    def _score_pairs(
        self,
        pairs: Sequence[Pair],
        *,
        rows: int,
        wanted: Callable[[int], bool],
        finish: Callable[[list[_Scored]], None],
    ) -> None:
        """Score the wanted pairs, by their number, and hand out each batch with what it took."""
        meter = self.loaded.meter

        def scored(scores: list[tuple[int, LogLikelihood]]) -> None:
            texts = [pairs[index] for index, _ in scores]
            costs = meter.scored([len(head) for head, _ in texts], [len(tail) for _, tail in texts])
            finish([_Scored(index, score, cost) for (index, score), cost in zip(scores, costs, strict=True)])

        self.loaded.warm_up([len(head) + len(tail) - 1 for head, tail in pairs], rows=rows)
        named = [(index, head, tail) for index, (head, tail) in enumerate(pairs)]
        for group, longest in self.loaded.by_budget(named, lambda one: len(one[1]) + len(one[2])):
            scorer = self.scorer()
            meter.start(longest)  # texts were encoded until here
            scorer.run(units_of(group), wanted=wanted, emit=scored)

    def _check_finite(self, value: float, request: Request) -> None:
        if not math.isfinite(value):
            name = self.loaded.reader().name
            raise NonFiniteLogitsError.at(name, request.origin, f"a log-likelihood of {value}")

    # --- replies and looks
    # ------------------------------------------------------------------------------------------------------

    def _generate(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        prompts, asked = self._reply_requests(requests)
        notes = [AuditEvent(kind=note.kind, detail=note.detail) for note in self.loaded.reader().family.notes]
        self.loaded.warm_up(
            [len(prompt.context) for prompt in prompts],
            rows=len(missing),
            new_tokens=max(one.settings.budget for one in asked) + 1,
        )

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

        for group, longest in self.loaded.by_budget(asked, lambda one: len(one.tokens)):
            replier = Replier(
                self.loaded.reader(),
                self.loaded.tokenizer,
                self.loaded.limits(),
                share_prefixes=self._settings.share_prefixes,
                cuda_graphs=self.loaded.replays(),
                meter=self.loaded.meter,
            )
            self.loaded.meter.start(longest)  # prompts were encoded until here
            replier.run(group, wanted=lambda name: requests[name].key in missing, emit=replied)

    def _reply_requests(self, requests: Sequence[Request]) -> tuple[list[Prompt], list[ReplyRequest]]:
        """Prompts as token ids, and what is asked of each, by its number."""
        prompts: list[Prompt] = []
        asked: list[ReplyRequest] = []
        for some in _slices(requests):
            self._prompts.foresee(request.arguments[0] for request in some)
            for request in some:
                text, given = request.arguments
                settings = GenerationSettings.parse(given, request.origin, parity=self._settings.parity)
                prompt = self._prompts.generation(
                    text, budget=settings.budget, origin=request.origin, truncation=request.truncation
                )
                prompt.events += [
                    AuditEvent(kind="setting", task=request.origin.task, detail=note)
                    for note in settings.notes
                ]
                asked.append(
                    ReplyRequest.of(
                        len(prompts), prompt.context, settings, request.seed, request.origin, request.key
                    )
                )
                prompts.append(prompt)
        return prompts, asked

    def _look(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        wanted = [request for request in requests if request.key in missing]
        chunk = self.loaded.reader().prefill_chunk
        look_all(self.loaded.model, self._prompts, wanted, emit, chunk=chunk)


def _slices(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Requests whose texts are encoded together: neighbours share contexts."""
    for start in range(0, len(requests), _FORESEEN):
        yield requests[start : start + _FORESEEN]


def _score_response(scored: _Scored, prompt: Prompt) -> Response:
    return Response(
        value=scored.score,
        prompt_tokens=len(prompt.context),
        new_tokens=len(prompt.continuation),
        events=prompt.events,
        cost=scored.cost,
    )


def _window_response(text: Windows, values: Sequence[float], cost: Cost) -> Response:
    return Response(
        value=math.fsum(values),
        prompt_tokens=1,
        new_tokens=sum(len(tail) for _, tail in text.pairs),
        events=text.events,
        cost=cost,
    )
