"""From text to token ids: lm-eval's own rules, and a named policy for what is too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from nsa_eval.config import EngineSpec
from nsa_eval.errors import UserError
from nsa_eval.store import AuditEvent

Truncation = Literal["error", "left", "middle"]

# Fewer are encoded one by one as fast.
_FORESEEN_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that a prompt belongs to, for messages and events."""

    task: str
    doc_id: int | None

    def __str__(self) -> str:
        """Task and document, as a message names them."""
        return f"task {self.task or '(none)'}, document {'?' if self.doc_id is None else self.doc_id}"


@dataclass(slots=True)
class Prompt:
    """What the model is to read, and what was done to it."""

    context: list[int]
    continuation: list[int] = field(default_factory=list)
    """Tokens to score; empty for generation."""
    events: list[AuditEvent] = field(default_factory=list)


@dataclass(slots=True)
class Windows:
    """A text to be scored whole."""

    pairs: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """(context, continuation) of each window."""
    events: list[AuditEvent] = field(default_factory=list)


class PromptEncoder:
    """Token ids as lm-eval's `hf` model makes them, but where its way is wrong; cuts only by policy.

    Three things differ, each recorded, and `parity="lm-eval"` restores its way: a rolling log-likelihood
    doesn't score a BOS that is given already (lm-eval's issue 3333); a left cut keeps the BOS that a model
    was trained to start from; and an EOS that the tokenizer appends to every text isn't part of a prompt,
    where it would end the context and shift the scored tokens by one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, settings: EngineSpec) -> None:
        """Args are those of the Engine."""
        self.tokenizer = tokenizer
        self._right = settings.parity is None
        self.max_length = max_length
        self.truncation: Truncation = settings.truncation
        self.add_bos_token = settings.add_bos_token
        bos = tokenizer.bos_token_id
        self._starts, self._ends = added_tokens(tokenizer)
        self._adds_bos = bos is not None and self._starts[:1] == [bos]
        prefix = self.prefix_token_id
        self._prefix_text = None if prefix is None else str(tokenizer.decode([prefix]))
        self._contexts: tuple[str, list[int]] = ("", [])
        self._foreseen: dict[tuple[str, bool | None], list[int]] = {}

    @property
    def events(self) -> list[AuditEvent]:
        """What of this tokenizer's way is passed over in every prompt."""
        found = []
        if self._right and self._ends and self.add_bos_token is not False:
            text = f"the tokenizer appends {self.tokenizer.decode(self._ends)} to every text; it was left out"
            found.append(AuditEvent(kind="eos_left_out", detail=f"{text} of prompts and scores"))
        if self.add_bos_token and not self._adds_bos:
            text = "add_bos_token: true does nothing: the tokenizer puts no such token before a text"
            found.append(AuditEvent(kind="setting", detail=text))
        return found

    @property
    def prefix_token_id(self) -> int | None:
        """BOS, else EOS: what an empty context stands for."""
        bos: int | None = self.tokenizer.bos_token_id
        eos: int | None = self.tokenizer.eos_token_id
        return eos if bos is None else bos

    def foresee(self, texts: Iterable[str]) -> None:
        """Encode texts that will be asked for soon together, which a fast tokenizer does on all cores.

        Those of the last call are forgotten.

        Args:
            texts: Prompts, or contexts and whole texts to score.
        """
        wanted: dict[bool | None, list[str]] = {}
        for text in dict.fromkeys(texts):
            special = False if self._starts_with(text, self._prefix_text) else None
            wanted.setdefault(special, []).append(text)
        self._foreseen = {}
        if not getattr(self.tokenizer, "is_fast", False):
            return
        for special, some in wanted.items():
            if sum(map(len, some)) < _FORESEEN_CHARACTERS:
                continue
            given = self.add_bos_token if special is None else special
            made = self.tokenizer(some, **({} if given is None else {"add_special_tokens": given}))
            for text, ids in zip(some, made["input_ids"], strict=True):
                self._foreseen[text, special] = list(ids)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text to be scored; its own leading BOS isn't doubled."""
        if add_special_tokens is None and self._starts_with(text, self._prefix_text):
            add_special_tokens = False
        return self._ids(text, add_special_tokens)

    def pair(
        self, context: str, continuation: str, origin: Origin, *, truncation: Truncation | None = None
    ) -> Prompt:
        """A context and the continuation to score; `truncation` counts before the engine's own.

        Raises:
            UserError: An empty context without any prefix token, nothing to score, or too long by policy.
        """
        if context:
            context, continuation = split_spaces(context, continuation)
            whole = self.encode(context + continuation)
            if self._contexts[0] != context:  # the choices of a question come one after another
                self._contexts = (context, self.encode(context))
            head = self._contexts[1]
            prompt = Prompt(list(head), whole[len(head) :])
        else:
            prefix = self.require_prefix(origin)
            tail = self._ids(continuation, False)
            prompt = Prompt([prefix], tail[1:] if tail[:1] == [prefix] else tail)
        if not prompt.continuation or not prompt.context:
            raise UserError(
                f"{origin}: the continuation {continuation[:80]!r} gives no tokens to score after its "
                "context; check the task's doc_to_choice / doc_to_target and target_delimiter"
            )
        self._note_bos(prompt, context, self._prefix_text, origin)
        if len(prompt.continuation) > self.max_length:
            raise UserError(
                f"{origin}: the continuation alone has {len(prompt.continuation)} tokens, the model's "
                f"limit is {self.max_length}; raise max_length or drop the document"
            )
        # The last token is only predicted, never read: one more than max_length fits.
        self._cut(prompt, self.max_length + 1 - len(prompt.continuation), origin, truncation)
        return prompt

    def generation(
        self, text: str, *, budget: int, origin: Origin, truncation: Truncation | None = None
    ) -> Prompt:
        """A prompt to go on from, with room for `budget` new tokens; `truncation` as in `pair`.

        Raises:
            UserError: No token at all, no room for a prompt, or too long by policy.
        """
        bos = self.tokenizer.bos_token
        special = False if self._starts_with(text, bos) else None
        prompt = Prompt(self._ids(text, special))
        if not prompt.context:
            prompt.context = [self.require_prefix(origin)]
        self._note_bos(prompt, text, bos, origin)
        room = self.max_length - budget
        if room < 1:
            raise UserError(
                f"{origin}: {budget} new tokens leave no room for a prompt within the model's "
                f"{self.max_length}; lower max_gen_toks or raise max_length"
            )
        self._cut(prompt, room, origin, truncation, budget=budget)
        return prompt

    def windows(self, text: str, origin: Origin) -> Windows:
        """Windows that score every token of a text once, as lm-eval cuts them."""
        tokens = self.encode(text)
        prefix = self.require_prefix(origin)
        found = Windows()
        # The first window starts from the prefix token: a BOS of the text's own would be scored given BOS.
        if self._right and prefix == self.tokenizer.bos_token_id and tokens[:1] == [prefix]:
            tokens = tokens[1:]
            found.events.append(
                AuditEvent(
                    kind="bos_unscored",
                    task=origin.task,
                    doc_id=origin.doc_id,
                    detail="the text's beginning-of-sequence token was given, not scored",
                )
            )
        found.pairs = [
            make_disjoint_window(window)
            for window in get_rolling_token_windows(
                token_list=tokens, prefix_token=prefix, max_seq_len=self.max_length, context_len=1
            )
        ]
        return found

    def require_prefix(self, origin: Origin) -> int:
        """The prefix token.

        Raises:
            UserError: The tokenizer has neither BOS nor EOS.
        """
        prefix = self.prefix_token_id
        if prefix is None:
            raise UserError(
                f"{origin}: this request needs a token to start from (an empty context), and the tokenizer "
                "has neither a BOS nor an EOS token; set one of them on the tokenizer"
            )
        return prefix

    def _ids(self, text: str, add_special_tokens: bool | None) -> list[int]:
        given = self.add_bos_token if add_special_tokens is None else add_special_tokens
        known = self._foreseen.get((text, add_special_tokens))
        if known is not None:
            ids = list(known)
        elif given is None:
            ids = list(self.tokenizer.encode(text))
        else:
            ids = list(self.tokenizer.encode(text, add_special_tokens=given))
        ends = self._ends if self._right and given is not False else []
        return ids[: -len(ends)] if ends and ids[-len(ends) :] == ends else ids

    @staticmethod
    def _starts_with(text: str, token: str | None) -> bool:
        return token is not None and text.startswith(token)

    def _note_bos(self, prompt: Prompt, text: str, bos: str | None, origin: Origin) -> None:
        adds = self._adds_bos if self.add_bos_token is None else self.add_bos_token and self._adds_bos
        token = self.tokenizer.bos_token_id
        if prompt.context[:2] == [token, token]:
            size = len(prompt.context)
            detail = "the prompt starts with two BOS tokens"
        elif text and adds and bos == self.tokenizer.bos_token and self._starts_with(text, bos):
            size = len(prompt.context) + 1
            detail = f"the prompt's text starts with {bos} already; the tokenizer's own was left out"
        else:
            return
        prompt.events.append(
            AuditEvent(
                kind="double_bos",
                task=origin.task,
                doc_id=origin.doc_id,
                detail=detail,
                before=size,
                after=len(prompt.context),
            )
        )

    def _cut(
        self,
        prompt: Prompt,
        room: int,
        origin: Origin,
        truncation: Truncation | None,
        *,
        budget: int = 0,
    ) -> None:
        size = len(prompt.context)
        if size <= room:
            return
        truncation = truncation or self.truncation
        if truncation == "error":
            beside = f"{budget} new tokens" if budget else f"{len(prompt.continuation)} tokens to score"
            raise UserError(
                f"{origin}: the prompt has {size} tokens, and with {beside} only {room} fit the limit of "
                f"{self.max_length}; ask for shorter prompts, raise max_length, or choose truncation: left "
                "or middle (every cut is then reported)"
            )
        kept = self._kept_starts(prompt.context) if self._right and truncation == "left" else 0
        kept = kept if kept < room else 0
        prompt.context = prompt.context[:kept] + cut_tokens(prompt.context, room - kept, truncation)
        beside = ", its beginning-of-sequence token kept" if kept else ""
        prompt.events.append(
            AuditEvent(
                kind="truncated",
                task=origin.task,
                doc_id=origin.doc_id,
                detail=f"{truncation}: {size - len(prompt.context)} of {size} prompt tokens cut{beside}",
                before=size,
                after=len(prompt.context),
            )
        )

    def _kept_starts(self, context: list[int]) -> int:
        """How many tokens at a prompt's start are the model's, not the text's: a left cut keeps them."""
        starts = self._starts
        if starts and context[: len(starts)] == starts:
            return len(starts)
        bos = self.tokenizer.bos_token_id
        return 1 if bos is not None and context[0] == bos else 0


def split_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at a context's end to its continuation, as lm-eval does."""
    spaces = len(context) - len(context.rstrip())
    return (context[:-spaces], context[-spaces:] + continuation) if spaces else (context, continuation)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind every text of its own accord."""
    whole = list(tokenizer.encode("a"))
    plain = list(tokenizer.encode("a", add_special_tokens=False))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    # The text itself comes out otherwise between them: only the named tokens can be told.
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    starts = whole[:1] if bos is not None and whole[:1] == [bos] else []
    return starts, whole[-1:] if eos is not None and whole[-1:] == [eos] and plain[-1:] != [eos] else []


def cut_tokens(tokens: list[int], room: int, truncation: Truncation) -> list[int]:
    """At most `room` tokens: the last ("left"), or the first and the last half ("middle", as LongBench)."""
    half = room // 2
    if truncation == "middle" and half:
        return tokens[:half] + tokens[-half:]
    return tokens[-room:]
