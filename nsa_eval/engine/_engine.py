"""The lm-eval model that the harness evaluates with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import simple_parse_args_string
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval.config import EngineSpec
from nsa_eval.engine._answerer import Answerer
from nsa_eval.engine._building import build
from nsa_eval.engine._ledger import Call, Ledger
from nsa_eval.engine._loaded import ModelFacts
from nsa_eval.engine._prompts import PromptEncoder
from nsa_eval.engine._requests import Emit, Naming, Request, name_requests
from nsa_eval.engine._sampling import DEFAULT_NEW_TOKENS
from nsa_eval.engine._scoring import LogLikelihood, units_of
from nsa_eval.engine._settings import engine_settings
from nsa_eval.errors import UserError
from nsa_eval.store import (
    AuditEvent,
    Conditions,
    Cost,
    CostSheet,
    RequestKind,
    Response,
    ResponseStore,
    Tally,
)
from nsa_tasks import calls_clock, clock_at

Answer = Callable[[Sequence[Request], Collection[str], Emit], None]
"""Answers requests of one kind: (each key once, the keys that are missing, where finished responses go)."""

OnRequests = Callable[[Sequence[Request]], None]
"""Told of all requests of a kind before the first is looked up."""


class Engine(TemplateLM):
    """Any transformers causal language model as an lm-eval `LM`.

    Same token ids and scores as lm-eval's own `hf` model, with logits only at the scored positions, shared
    prefixes computed once, long prompts read in pieces, right-padded batches, and every response stored as
    soon as it exists.

    Example:
        >>> engine = Engine(model, tokenizer, truncation="middle")
        >>> lm_eval.simple_evaluate(model=engine, tasks=["arc_easy"])
    """

    backend = "causal"
    template_date: str | None = None
    """The day that a chat template prints which asks for the date; None: today."""
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptEncoder
    """Makes token ids."""
    _answerer: Answerer | None = None
    """The model, where it is loaded in this process."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        store: ResponseStore | None = None,
        store_context: str = "",
        on_response: Callable[[int], None] | None = None,
        **settings: Any,  # noqa: ANN401  (the fields of EngineSpec, checked)
    ) -> None:
        """Wrap a model that is on its device already.

        Args:
            model: Causal language model; set to eval mode here.
            tokenizer: Its tokenizer; not changed.
            max_length: Most tokens of prompt and reply together; default: what config or tokenizer say.
            store: Where responses are looked up and kept.
            store_context: All that responses depend on besides the request, as one string: the model's
                fingerprint, dtype, backend, engine settings.
            on_response: Called with the number of requests just answered, for a progress bar.
            settings: Keys of a config's `engine` section (`nsa_eval.config.EngineSpec`): batch_size,
                truncation, prefill_chunk, share_prefixes, cuda_graphs, add_bos_token, parity.

        Raises:
            UserError: A setting out of range.
        """
        checked = engine_settings(settings)
        answerer = Answerer(model, tokenizer, max_length=max_length, settings=checked)
        self.model = answerer.loaded.model
        self._answerer = answerer
        self._connect(
            answerer.facts,
            lambda requests, missing, emit: answerer.answer(requests, missing=missing, emit=emit),
            settings=checked,
            naming=Naming(context=store_context),
            ledger=Ledger(store, on_response, keeps=True),
        )
        self.tokenizer, self.prompts = tokenizer, answerer.loaded.prompts

    @classmethod
    def over(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        facts: ModelFacts,
        answer: Answer,
        *,
        settings: EngineSpec,
        naming: Naming | None = None,
        store: ResponseStore | None = None,
        on_requests: OnRequests | None = None,
    ) -> Engine:
        """The same LM over a model that is loaded elsewhere: in an executor's workers.

        Args:
            tokenizer: The model's tokenizer.
            facts: What the workers found when they loaded the model.
            answer: Has requests answered, and stores the responses before it emits them.
            settings: The config's `engine` section.
            naming: What the run knows of its requests.
            store: Where responses are looked up.
            on_requests: Called with all requests of a kind before the first is looked up.
        """
        engine = cls.__new__(cls)
        engine._connect(
            facts,
            answer,
            settings=settings,
            naming=naming or Naming(),
            ledger=Ledger(store),
            on_requests=on_requests,
        )
        engine.tokenizer = tokenizer
        engine.prompts = PromptEncoder(tokenizer, max_length=facts.max_length, settings=settings)
        return engine

    def _connect(
        self,
        facts: ModelFacts,
        answer: Answer,
        *,
        settings: EngineSpec,
        naming: Naming,
        ledger: Ledger,
        on_requests: OnRequests | None = None,
    ) -> None:
        """Connect whoever answers with the store: all that asking needs, whoever makes the tokens."""
        super().__init__()
        self.facts = facts
        self.settings = settings
        self.max_length = facts.max_length
        self.batch_size = settings.batch_size
        self._device = facts.device
        self._answer = answer
        self._naming = naming
        self._on_requests = on_requests
        self._tally = Tally()
        self._ledger = ledger
        self._ledger.note(facts.events)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Engine:
        """Make the engine of lm-eval's `--model nsa-eval --model_args pretrained=PATH,...` (see `build`)."""
        model, tokenizer, settings = build(arg_dict, additional_config)
        return cls(model, tokenizer, **settings)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Engine:
        """The same from `KEY=VALUE,...`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def audit(self) -> list[AuditEvent]:
        """What was done to prompts, or assumed about the model, in the order of the requests."""
        return self._ledger.audit

    @property
    def answered(self) -> int:
        """Requests answered so far, stored ones included."""
        return self._ledger.answered

    @property
    def from_store(self) -> int:
        """How many of the answered requests were in the store before."""
        return self._ledger.from_store

    @property
    def costs(self) -> dict[str, Cost]:
        """What the answers of each task took, stored ones included."""
        return self._tally.tasks

    def cost_sheet(
        self, conditions: Conditions, lengths: Mapping[str, Mapping[int, int]] | None = None
    ) -> CostSheet:
        """The same, also by length, with what it was measured on; `lengths` are those of documents."""
        return self._tally.sheet(conditions, lengths)

    # --- what lm-eval asks of a model
    # ------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each continuation after its context.

        Raises:
            UserError: A request that can't be asked (too long by policy, nothing to score).
            NonFiniteLogitsError: NaN or infinite logits; what was computed before is stored.
        """
        return [_as_log_likelihood(response) for response in self._ask(requests, "loglikelihood")]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in lm-eval's windows of max_length.

        Raises:
            NonFiniteLogitsError: NaN or infinite logits; what was computed before is stored.
        """
        responses = self._ask(requests, "loglikelihood_rolling")
        return [float(response.value) for response in responses]  # type: ignore[arg-type]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies, each cut before the first of its stop strings.

        Greedy unless the request says do_sample; a sampled reply depends on its request and repeat only.

        Raises:
            UserError: A request that can't be asked (too long by policy, an unknown setting).
            NonFiniteLogitsError: NaN or infinite logits; replies finished before are stored.
        """
        return [str(response.value) for response in self._ask(requests, "generate_until")]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,  # noqa: ANN401 - lm-eval's signature
    ) -> list[LogLikelihood]:
        """Score token ids directly, past the store."""
        scores: dict[int, LogLikelihood] = {}
        units = units_of([(name, context, tail) for name, (_, context, tail) in enumerate(requests)])
        if self._answerer is None:
            raise NotImplementedError("token ids are scored where the model is loaded: make an Engine of it")
        self._answerer.scorer().run(units, wanted=lambda name: True, emit=scores.update)
        return [scores[name] for name in range(len(requests))]

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **kwargs: Any,  # noqa: ANN401 - lm-eval's signature
    ) -> list[int]:
        """Token ids of a text; a BOS that it starts with isn't doubled."""
        return self.prompts.encode(string, add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's end-of-text token, if it has one."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int | None:
        """BOS, else EOS: what an empty context stands for."""
        return self.prompts.prefix_token_id

    @property
    def max_gen_toks(self) -> int:
        """Budget of a generation task that names none."""
        return DEFAULT_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm-eval's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as one prompt text.

        Raises:
            UserError: The tokenizer has no chat template, or the template refuses the messages.
        """
        try:
            with clock_at(self.template_date):
                text = self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
        except Exception as error:  # a template is a program: jinja2 errors and whatever it raises itself
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path!r} failed: {error}; evaluate without "
                "chat_template, or give the tokenizer a template"
            ) from error
        return str(text)

    def note_clock(self, chat_template: bool | str) -> None:
        """Record that the chat template prints the day's date, if it does: prompts are others tomorrow."""
        if calls_clock(self.chat_template(chat_template)):
            detail = "its chat template prints the day's date; template_date: 2026-01-31 holds it to one"
            self._ledger.note([AuditEvent(kind="clock", detail=detail)])

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        return {
            "model_num_parameters": self.facts.parameters,
            "model_dtype": self.facts.dtype,
            "model_max_length": self.max_length,
        }

    def _ask(self, instances: list[Instance], kind: RequestKind) -> list[Response]:
        """Name requests by content, look them up, and have those that are missing answered."""
        requests = name_requests(instances, kind, self._naming)
        if self._on_requests is not None:
            self._on_requests(requests)
        call = Call(self._ledger, requests)
        if call.missing:
            distinct = call.distinct()
            arguments = {request.key: request.arguments for request in distinct}

            def finish(responses: Mapping[str, Response]) -> None:
                call.take(responses)
                for key, response in responses.items():
                    self.cache_hook.add_partial(kind, arguments[key], response.value)

            self._answer(distinct, call.missing, finish)
        answers = call.responses()
        # Equal requests cost once.
        by_key = {r.key: (r.origin, answer) for r, answer in zip(requests, answers, strict=True)}
        for origin, answer in by_key.values():
            self._tally.add(origin.task, kind, answer, document=origin.doc_id)
        return answers


def _as_log_likelihood(response: Response) -> LogLikelihood:
    value = response.value
    assert isinstance(value, tuple), "stored under a log-likelihood's key"
    return value
