"""The lm-eval model that the harness evaluates with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, resolve_max_length
from lm_eval.utils import simple_parse_args_string
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_eval.engine._batching import Limits
from nsa_eval.engine._building import build
from nsa_eval.engine._generating import Replier, Reply, ReplyRequest
from nsa_eval.engine._ledger import Call, Ledger, Ticket
from nsa_eval.engine._prompts import TRUNCATIONS, Prompt, PromptEncoder, Truncation
from nsa_eval.engine._reader import NonFiniteLogitsError, Reader
from nsa_eval.engine._sampling import DEFAULT_NEW_TOKENS, GenerationSettings
from nsa_eval.engine._scoring import LogLikelihood, Scorer, units_of
from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent, Response, ResponseStore
from nsa_models.families import check_fits


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

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        truncation: Truncation = "error",
        prefill_chunk: int = 8192,
        share_prefixes: bool = True,
        cuda_graphs: Literal["auto", "off"] = "auto",
        add_bos_token: bool | None = None,
        store: ResponseStore | None = None,
        store_context: str = "",
        on_response: Callable[[int], None] | None = None,
    ) -> None:
        """Wrap a model that is on its device already.

        Args:
            model: Causal language model; set to eval mode here.
            tokenizer: Its tokenizer; not changed.
            batch_size: Rows of a batch, or "auto" to fill a budget of tokens and memory. A batch that
                doesn't fit a GPU's memory is halved until it does.
            max_length: Most tokens of prompt and reply together; default: what config or tokenizer say.
            truncation: What to do with a longer prompt: "error" stops with a message, "left" drops its start
                as lm-eval does, "middle" keeps the first and the last half (LongBench). Cuts are in `audit`.
            prefill_chunk: Tokens of a prompt per forward; bounds the memory for activations.
            share_prefixes: Compute prefixes that several requests share once.
            cuda_graphs: "auto" replays the decode step of the project's own decoder from a CUDA graph on a
                GPU, for replies of some length; "off" never does. No result depends on it.
            add_bos_token: Put BOS before each text or don't; None leaves it to the tokenizer.
            store: Where responses are looked up and kept.
            store_context: All that responses depend on besides the request, as one string: the model's
                fingerprint, dtype, backend, engine settings.
            on_response: Called with the number of requests just answered, for a progress bar.

        Raises:
            UserError: A setting out of range.
        """
        super().__init__()
        _check(batch_size, max_length, truncation, prefill_chunk, cuda_graphs)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._device = model.device
        self._ledger = Ledger(store, store_context, on_response)
        self.max_length = max_length or self._default_max_length()
        self.prompts = PromptEncoder(
            tokenizer, max_length=self.max_length, truncation=truncation, add_bos_token=add_bos_token
        )
        self.prefill_chunk = prefill_chunk
        self.share_prefixes = share_prefixes
        self.cuda_graphs = cuda_graphs
        self._reader: Reader | None = None

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

    # --- what lm-eval asks of a model
    # ------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each continuation after its context.

        Raises:
            UserError: A request that can't be asked (too long by policy, nothing to score).
            NonFiniteLogitsError: NaN or infinite logits; what was computed before is stored.
        """
        call = self._call(requests, "loglikelihood")
        if not call.complete:
            tickets = call.first_tickets()
            prompts = [
                self.prompts.pair(ticket.arguments[0], ticket.arguments[1], ticket.origin)
                for ticket in tickets
            ]
            self._score(call, tickets, prompts)
        return [_as_log_likelihood(response) for response in call.responses()]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in lm-eval's windows of max_length.

        Raises:
            NonFiniteLogitsError: NaN or infinite logits; what was computed before is stored.
        """
        call = self._call(requests, "loglikelihood_rolling")
        if not call.complete:
            self._score_windows(call, call.first_tickets())
        return [float(response.value) for response in call.responses()]  # type: ignore[arg-type]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies, each cut before the first of its stop strings.

        Greedy unless the request says do_sample; a sampled reply depends on its request and repeat only.

        Raises:
            UserError: A request that can't be asked (too long by policy, an unknown setting).
            NonFiniteLogitsError: NaN or infinite logits; replies finished before are stored.
        """
        call = self._call(requests, "generate_until")
        if not call.complete:
            self._generate(call, call.first_tickets())
        return [str(response.value) for response in call.responses()]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,  # noqa: ANN401 - lm-eval's signature
    ) -> list[LogLikelihood]:
        """Score token ids directly, past the store."""
        scores: dict[int, LogLikelihood] = {}
        units = units_of([(name, context, tail) for name, (_, context, tail) in enumerate(requests)])
        self._scorer().run(units, wanted=lambda name: True, emit=scores.update)
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

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_max_length": self.max_length,
        }

    # --- the work
    # --------------------------------------------------------------------------------------------

    def _call(self, requests: Sequence[Instance], kind: str) -> Call:
        return Call(self._ledger, self._ledger.open(requests, kind))

    def _default_max_length(self) -> int:
        found = int(resolve_max_length(self.model.config, self.tokenizer, default=0))
        if found:
            return found
        self._ledger.note(
            [
                AuditEvent(
                    kind="default_max_length",
                    detail="neither config nor tokenizer names a maximum length; lm-eval's default is used",
                    after=DEFAULT_MAX_LENGTH,
                )
            ]
        )
        return int(DEFAULT_MAX_LENGTH)

    def _prepared(self) -> tuple[Reader, Limits]:
        """The reader, made when there is something to compute: a fully stored run never runs the model."""
        if self._reader is None:
            check_fits(self.model, self.tokenizer, self.max_length)
            self._reader = Reader(self.model, prefill_chunk=self.prefill_chunk)
        return self._reader, Limits.of(self._reader.family, self.batch_size)

    def _scorer(self) -> Scorer:
        reader, limits = self._prepared()
        return Scorer(reader, limits, share_prefixes=self.share_prefixes)

    def _score(self, call: Call, tickets: list[Ticket], prompts: list[Prompt]) -> None:
        def emit(scores: list[tuple[int, LogLikelihood]]) -> None:
            finite = {
                tickets[name].key: Response(
                    value=score,
                    prompt_tokens=len(prompts[name].context),
                    new_tokens=len(prompts[name].continuation),
                    events=prompts[name].events,
                )
                for name, score in scores
                if math.isfinite(score[0])
            }
            call.finish(finite)
            for name, (value, _) in scores:
                self._check_finite(value, tickets[name])
            for name, score in scores:
                self.cache_hook.add_partial("loglikelihood", tickets[name].arguments, score)

        pairs = [(name, prompt.context, prompt.continuation) for name, prompt in enumerate(prompts)]
        self._guarded(
            lambda: self._scorer().run(
                units_of(pairs), wanted=lambda name: call.missing(tickets[name].key), emit=emit
            )
        )

    def _score_windows(self, call: Call, tickets: list[Ticket]) -> None:
        windows = [self.prompts.windows(ticket.arguments[0], ticket.origin) for ticket in tickets]
        owners = [(index, window) for index, found in enumerate(windows) for window in found]
        values: list[list[float]] = [[] for _ in tickets]

        def answer(indices: list[int]) -> None:
            call.finish(
                {
                    tickets[i].key: Response(
                        value=math.fsum(values[i]),
                        prompt_tokens=1,
                        new_tokens=sum(len(tail) for _, tail in windows[i]),
                    )
                    for i in indices
                }
            )

        def emit(scores: list[tuple[int, LogLikelihood]]) -> None:
            ready = []
            for name, (value, _) in scores:
                index = owners[name][0]
                self._check_finite(value, tickets[index])
                values[index].append(value)
                if len(values[index]) == len(windows[index]):
                    ready.append(index)
            answer(ready)

        answer([i for i, found in enumerate(windows) if not found and call.missing(tickets[i].key)])
        pairs = [(name, context, tail) for name, (_, (context, tail)) in enumerate(owners)]
        self._guarded(
            lambda: self._scorer().run(
                units_of(pairs), wanted=lambda name: call.missing(tickets[owners[name][0]].key), emit=emit
            )
        )

    def _generate(self, call: Call, tickets: list[Ticket]) -> None:
        asked: list[ReplyRequest] = []
        prompts: list[Prompt] = []
        for name, ticket in enumerate(tickets):
            text, given = ticket.arguments
            settings = GenerationSettings.parse(given, ticket.origin)
            prompt = self.prompts.generation(text, budget=settings.budget, origin=ticket.origin)
            prompts.append(prompt)
            asked.append(
                ReplyRequest.of(name, prompt.context, settings, ticket.seed, ticket.origin, ticket.key)
            )

        reader, limits = self._prepared()
        notes = [
            AuditEvent.model_validate({"kind": note.kind, "detail": note.detail})
            for note in reader.family.notes
        ]

        def emit(replies: list[Reply]) -> None:
            call.finish(
                {
                    tickets[reply.name].key: Response(
                        value=reply.text,
                        prompt_tokens=len(prompts[reply.name].context),
                        new_tokens=reply.new_tokens,
                        # Stored, so that a resumed run, which may never run the model, reports it too.
                        events=[*prompts[reply.name].events, *notes],
                    )
                    for reply in replies
                }
            )
            for reply in replies:
                self.cache_hook.add_partial("generate_until", tickets[reply.name].arguments, reply.text)

        replier = Replier(
            reader,
            self.tokenizer,
            limits,
            share_prefixes=self.share_prefixes,
            cuda_graphs=self.cuda_graphs == "auto",
        )
        self._guarded(
            lambda: replier.run(asked, wanted=lambda name: call.missing(tickets[name].key), emit=emit)
        )

    def _check_finite(self, value: float, ticket: Ticket) -> None:
        if not math.isfinite(value):
            reader, _ = self._prepared()
            raise NonFiniteLogitsError.at(reader.name, ticket.origin, f"a log-likelihood of {value}")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"too little device memory for one request at a time: {str(error).splitlines()[0]} Lower "
                f"prefill_chunk (now {self.prefill_chunk}) or max_length (now {self.max_length}), or use a "
                "narrower dtype. Responses finished before are stored"
            ) from error


def _as_log_likelihood(response: Response) -> LogLikelihood:
    value = response.value
    assert isinstance(value, tuple), "stored under a log-likelihood's key"
    return value


def _check(
    batch_size: int | str, max_length: int | None, truncation: str, prefill_chunk: int, cuda_graphs: str
) -> None:
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise UserError(f'batch_size must be a whole number from 1 up or "auto", got {batch_size!r}')
    if max_length is not None and max_length < 2:
        raise UserError(f"max_length must be at least 2 tokens, got {max_length}")
    if truncation not in TRUNCATIONS:
        raise UserError(f"truncation must be one of {', '.join(TRUNCATIONS)}, got {truncation!r}")
    if prefill_chunk < 1:
        raise UserError(f"prefill_chunk must be at least 1 token, got {prefill_chunk}")
    if cuda_graphs not in ("auto", "off"):
        raise UserError(f"cuda_graphs must be auto or off, got {cuda_graphs!r}")
