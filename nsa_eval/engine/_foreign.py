"""lm-eval's own model classes (vllm, sglang, servers, hf) behind the store: asked for what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook

from nsa_eval._words import said
from nsa_eval.config import EngineSpec
from nsa_eval.engine._engine import Answer, Engine, OnRequests
from nsa_eval.engine._ledger import Ledger
from nsa_eval.engine._loaded import ModelFacts
from nsa_eval.engine._requests import Emit, Naming, Request
from nsa_eval.errors import UserError
from nsa_eval.store import Response, ResponseStore

_PIECE = 256
"""Requests of one call. A class that batches by itself (vllm) has enough to work on; one that doesn't tell
its answers as they come loses no more than these to a kill."""


class ForeignEngine(Engine):
    """An lm-eval `LM` of any class, whose answers come from the store or go into it.

    The class tokenizes, cuts and decodes in its own way: none of it is seen here, and so it isn't audited.
    """

    @classmethod
    def around(
        cls,
        lm: LM,
        facts: ModelFacts,
        answer: Answer,
        *,
        settings: EngineSpec,
        naming: Naming | None = None,
        store: ResponseStore | None = None,
        on_requests: OnRequests | None = None,
    ) -> ForeignEngine:
        """Put the store before a model.

        Args:
            lm: The model.
            facts: What is known of it.
            answer: Has requests answered by it, and stores the responses before it emits them.
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
        engine._lm, engine.tokenizer = lm, getattr(lm, "tokenizer", None)
        return engine

    _lm: LM

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **kwargs: Any,  # noqa: ANN401 - lm-eval's signature
    ) -> list[int]:
        """Token ids as the class makes them; whatever it has instead where it has no tokenizer."""
        encoded: list[int] = self._lm.tok_encode(string, **kwargs)
        return encoded

    @property
    def eot_token_id(self) -> int | None:
        """The class's end-of-text token, if it has one."""
        return getattr(self._lm, "eot_token_id", None)

    @property
    def prefix_token_id(self) -> int | None:
        """What the class puts before an empty context."""
        return getattr(self._lm, "prefix_token_id", None)

    @property
    def tokenizer_name(self) -> str:
        """As the class says."""
        return str(self._lm.tokenizer_name)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that the class applies; nothing where a server does it."""
        template: str | None = self._lm.chat_template(chat_template)
        return template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:  # noqa: ANN401 - text, or lm-eval's JSON of a chat
        """A chat as the class sends it.

        Raises:
            UserError: It has no template, or the template fails.
        """
        try:
            return self._lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # each class its own way
            raise UserError(
                f"{type(self._lm).__name__} can't apply a chat template ({said(error)}): leave chat_template "
                "out"
            ) from error

    def get_model_info(self) -> dict[str, Any]:
        """What the class says of itself, as lm-eval writes it beside the results."""
        info: dict[str, Any] = getattr(self._lm, "get_model_info", dict)()
        return info


class ForeignAnswerer:
    """Answers requests by the methods of an lm-eval model."""

    def __init__(self, lm: LM, name: str) -> None:
        """Args: `name` is how the config calls its class."""
        self._lm, self._name = lm, name

    def answer(self, requests: Sequence[Request], missing: Collection[str], emit: Emit) -> None:
        """Answer the missing ones, piece by piece, each response as soon as the class tells it.

        Raises:
            UserError: The class fails, or answers with something else than lm-eval's interface has.
        """
        wanted = [request for request in requests if request.key in missing]
        for start in range(0, len(wanted), _PIECE):
            self._piece(wanted[start : start + _PIECE], emit)

    def _piece(self, requests: Sequence[Request], emit: Emit) -> None:
        kind = requests[0].kind
        hook = _Hook(requests, emit)
        self._lm.set_cache_hook(hook)
        instances = [
            # A copy of the settings: some classes take them apart.
            Instance(
                kind, {}, _copied(request.arguments), index, (request.origin.task, request.origin.doc_id, 1)
            )
            for index, request in enumerate(requests)
        ]
        try:
            answers = getattr(self._lm, kind)(instances)
        except UserError:
            raise
        except Exception as error:  # the class's own, the server's, the network's
            raise UserError(
                f"lm-eval's {self._name} failed on {requests[0].origin.task} ({kind}): {said(error)}. "
                "Finished responses are kept: run the same command again"
            ) from error
        finally:
            self._lm.set_cache_hook(CacheHook(None))
        if len(answers) != len(requests):
            raise UserError(
                f"lm-eval's {self._name} gave {len(answers)} answers to {len(requests)} requests of "
                f"{requests[0].origin.task}"
            )
        left = {
            request.key: _response(request, value, self._name)
            for request, value in zip(requests, answers, strict=True)
            if request.key not in hook.told
        }
        if left:
            emit(left)


class _Hook:
    """Takes answers as lm-eval's classes tell them to a cache, which is when they have them."""

    def __init__(self, requests: Sequence[Request], emit: Emit) -> None:
        # Several replies to one prompt can't be told apart here: they come with the piece.
        counts = Counter(repr(request.arguments) for request in requests)
        self._by_arguments = {
            repr(request.arguments): request for request in requests if counts[repr(request.arguments)] == 1
        }
        self._emit = emit
        self.told: set[str] = set()

    def add_partial(self, attribute: str, arguments: Any, value: Any) -> None:  # noqa: ANN401 - lm-eval's signature
        request = (
            self._by_arguments.get(repr(tuple(arguments))) if isinstance(arguments, list | tuple) else None
        )
        if request is None or request.kind != attribute or request.key in self.told:
            return
        self._emit({request.key: _response(request, value, "model")})
        self.told.add(request.key)


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict(part) if isinstance(part, Mapping) else part for part in arguments)


def _response(request: Request, value: Any, name: str) -> Response:  # noqa: ANN401 - whatever the class gave
    fits: bool
    match request.kind:
        case "generate_until":
            fits = isinstance(value, str)
        case "loglikelihood":
            fits = isinstance(value, tuple | list) and len(value) == 2
            value = (float(value[0]), bool(value[1])) if fits else value
        case _:
            fits = isinstance(value, int | float) or (isinstance(value, tuple) and bool(value))
            value = float(value[0] if isinstance(value, tuple) else value) if fits else value
    if not fits:
        raise UserError(
            f"lm-eval's {name} answered {request.kind} of {request.origin.task} with {str(value)[:80]!r}"
        )
    return Response(value=value, prompt_tokens=0, new_tokens=0)
