"""Counting a request's tokens exactly as the model will see them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nsa_tasks._clock import clock_at
from nsa_tasks._errors import TaskParameterError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BatchEncoding, PreTrainedTokenizerBase

ChatTemplate = Callable[..., str]
"""`apply_chat_template(messages, add_generation_prompt=...) -> str`, as lm-eval's models have it."""

# The name under which each backend's model arguments hold the tokenizer: lm-eval merges them into the
# metadata.
_TOKENIZER_KEYS = ("tokenizer", "pretrained", "model")


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenised text."""

    ids: list[int]
    starts: npt.NDArray[np.int64] | None
    """First character of each token; None when the tokenizer cannot tell."""
    ends: npt.NDArray[np.int64] | None
    """Character after each token."""


@cache
def _auto_tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # seconds to import, and not needed to list tasks

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TaskParameterError(
            f"tokenizer {path!r} cannot be loaded: {reason} "
            "Give a folder that holds tokenizer files, or a hub id."
        ) from None
    if not tokenizer("Lengths are counted in tokens.", add_special_tokens=False)["input_ids"]:
        raise TaskParameterError(
            f"tokenizer {path!r} turns text into no tokens at all: its vocabulary is missing."
        )
    return tokenizer


@dataclass(frozen=True)
class RequestTokens:
    """A tokenizer together with how a request is made from a prompt and an answer prefix.

    Follows lm-eval's `ConfigurableTask.fewshot_context` (what text is sent) and `HFLM.tok_batch_encode` (BOS:
    none is added to a text that starts with it; else `add_bos_token` decides; else the tokenizer).
    """

    tokenizer: "PreTrainedTokenizerBase"
    add_bos_token: bool | None = None
    chat_template: ChatTemplate | None = None
    system_instruction: str | None = None
    template_source: str | None = None
    """Of a chat template that is the tokenizer's own: day and program; None: nobody knows what it does."""

    @classmethod
    def load(
        cls,
        path: str,
        *,
        apply_chat_template: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        add_bos_token: bool | None = None,
        template_date: str | None = None,
    ) -> "RequestTokens":
        """Load a tokenizer by folder or hub id (once per process).

        Raises:
            TaskParameterError: It cannot be loaded, encodes nothing, or has no chat template although one is
                to be applied.
        """
        tokenizer = _auto_tokenizer(path, revision, trust_remote_code)
        template = source = None
        if apply_chat_template:
            if not getattr(tokenizer, "chat_template", None):
                raise TaskParameterError(
                    f"tokenizer {path!r} has no chat template, but apply_chat_template is on: "
                    "turn it off for this model."
                )
            template = tokenizer_template(tokenizer, template_date)
            source = None if template_date is None else f"{template_date}\n{tokenizer.chat_template}"
        return cls(tokenizer, add_bos_token=add_bos_token, chat_template=template, template_source=source)

    def identity(self) -> tuple[str, ...] | None:
        """What decides every text and count: equal for two that render and count all requests alike.

        None where it can't be told: a tokenizer in Python, a chat template from elsewhere or of today's date.
        """
        backend = _plain_backend(self.tokenizer)
        if backend is None or (self.chat_template is not None and self.template_source is None):
            return None
        content = hashlib.sha256(backend.to_str().encode()).hexdigest()
        rest = (
            type(self.tokenizer),
            sorted(self.tokenizer.special_tokens_map.items()),  # BOS, and what templates print
            getattr(self.tokenizer, "split_special_tokens", None),
            self.add_bos_token,
            self.system_instruction,
            self.template_source,
        )
        return (content, *map(repr, rest))

    @property
    def for_threads(self) -> bool:
        """Whether threads may count at once, and gain by it: not where a tokenizer works in Python."""
        return _plain_backend(self.tokenizer) is not None

    def render(self, prompt: str, prefix: str) -> str:
        """Make the request's text: by the chat template, or else prompt, space, answer prefix."""
        if self.chat_template is None:
            # lm-eval puts nothing between a system instruction and the prompt when there is no chat template.
            return f"{self.system_instruction or ''}{prompt} {prefix}"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": prefix}]
        if self.system_instruction:
            messages.insert(0, {"role": "system", "content": self.system_instruction})
        return self.chat_template(messages, add_generation_prompt=False)

    def count(self, text: str) -> int:
        """Count the tokens of a request's text, special tokens included."""
        arguments = self._special(text)
        backend = _plain_backend(self.tokenizer)
        if backend is not None:  # half the time: no offsets, no lists of Python's
            [encoding] = backend.encode_batch_fast([text], **{"add_special_tokens": True, **arguments})
            return len(encoding)
        return len(self._call(text, arguments)["input_ids"])

    def ids(self, text: str) -> list[int]:
        """Token ids of a request's text, special tokens included."""
        return list(self._call(text, self._special(text))["input_ids"])

    def encode(self, text: str, *, special: bool = True) -> Encoding:
        """Tokenise with character offsets where the tokenizer gives them."""
        arguments = self._special(text) if special else {"add_special_tokens": False}
        if not self.tokenizer.is_fast:
            return Encoding(list(self._call(text, arguments)["input_ids"]), None, None)
        encoded = self._call(text, {**arguments, "return_offsets_mapping": True})
        offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Encoding(list(encoded["input_ids"]), offsets[:, 0], offsets[:, 1])

    def spans(self, text: str, characters: Sequence[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
        """Find which tokens of a request hold given stretches of its text.

        A token that holds only a part of a stretch counts as inside.

        Args:
            text: The request's text.
            characters: Stretches as (first character, character after the last).

        Returns:
            The request's token count, and for each stretch (first token, token after the last), special
            tokens counted.
        """
        encoding = self.encode(text)
        spans = []
        for start, end in characters:
            if encoding.starts is None or encoding.ends is None:
                spans.append(self._span_by_counting(text, start, end, encoding.ids))
                continue
            inside = np.flatnonzero((encoding.starts < end) & (encoding.ends > start))
            spans.append((int(inside[0]), int(inside[-1]) + 1))
        return len(encoding.ids), spans

    def _span_by_counting(self, text: str, start: int, end: int, ids: list[int]) -> tuple[int, int]:
        """Without offsets: tokens of the text before, and of the text up to the end."""
        plain = self._call(text, {"add_special_tokens": False})["input_ids"]
        leading = 0  # special tokens in front, not those behind (some tokenizers close with EOS)
        while leading < len(ids) - len(plain) and ids[leading : leading + len(plain)] != plain:
            leading += 1
        before = self._call(text[:start].rstrip(), {"add_special_tokens": False})["input_ids"]
        until = self._call(text[:end], {"add_special_tokens": False})["input_ids"]
        return leading + len(before), leading + len(until)

    def _special(self, text: str) -> dict[str, bool]:
        bos = getattr(self.tokenizer, "bos_token", None)
        if bos and text.startswith(bos):
            return {"add_special_tokens": False}
        return {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}

    def _call(self, text: str, arguments: Mapping[str, bool]) -> "BatchEncoding":
        # verbose=False: a 64k haystack is longer than some tokenizers' model_max_length, which is the
        # engine's business.
        return self.tokenizer(text, verbose=False, **arguments)


def _plain_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """The Rust tokenizer behind one of transformers, where a call does no more than ask it."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus")
    ):
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    # Each call sets these two, and leaves them so; the first one was when the tokenizer was loaded.
    return backend if backend.truncation is None and backend.padding is None else None


def added_tokens(tokens: RequestTokens) -> tuple[list[int], list[int]]:
    """The tokens that come before and behind every text of the tokenizer's own accord."""
    plain = tokens.encode("a", special=False).ids
    whole = tokens.encode("a").ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    bos = tokens.tokenizer.bos_token_id  # the text comes out otherwise between them: only BOS can be told
    return whole[:1] if bos is not None and whole[:1] == [bos] else [], []


def without_ends(ids: list[int], ends: list[int]) -> list[int]:
    """Token ids without those that the tokenizer puts behind every text: they are no part of a prompt."""
    return ids[: -len(ends)] if ends and ids[-len(ends) :] == ends else ids


def tokenizer_template(tokenizer: "PreTrainedTokenizerBase", day: str | None = None) -> ChatTemplate:
    """Make the chat template that lm-eval's `HFLM.apply_chat_template` applies from a tokenizer alone.

    Args:
        tokenizer: The tokenizer.
        day: The date that the template prints; None: today's.
    """

    def apply(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            with clock_at(day):
                text = tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
        except Exception as error:  # a template is a program: jinja2's errors and whatever it raises itself
            raise TaskParameterError(
                f"the chat template of {tokenizer.name_or_path!r} failed ({type(error).__name__}: {error}): "
                "evaluate without it, or give the tokenizer another template."
            ) from error
        return str(text)

    return apply


def request_tokens(task: str, metadata: Mapping[str, Any]) -> RequestTokens:
    """Load what counts a request's tokens, as a task's metadata says.

    Args:
        task: Task name, for the message.
        metadata: The task's own, with whatever lm-eval merged in.

    Raises:
        TaskParameterError: No tokenizer is named, or it cannot be used.
    """
    names = [metadata[key] for key in _TOKENIZER_KEYS if isinstance(metadata.get(key), str) and metadata[key]]
    if not names:
        raise TaskParameterError(
            f"{task} counts its lengths in the model's own tokens and was told no tokenizer: give "
            "--metadata tokenizer=PATH (or --model_args pretrained=PATH) to lm-eval, or tokenizer=PATH to "
            "task_spec()."
        )
    return RequestTokens.load(
        names[0],
        apply_chat_template=bool(metadata.get("apply_chat_template", False)),
        revision=metadata.get("revision"),
        trust_remote_code=bool(metadata.get("trust_remote_code", False)),
        add_bos_token=metadata.get("add_bos_token"),
        template_date=metadata.get("template_date"),
    )
