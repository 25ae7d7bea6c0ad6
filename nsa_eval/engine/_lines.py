"""Replies while they are made: their tokens so far, and when and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from nsa_eval.engine._cells import Phase
from nsa_eval.engine._prefixes import Tokens
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._reader import Reader
from nsa_eval.engine._sampling import GenerationSettings, Sampler
from nsa_eval.store import Cells, Cost

# Tokens looked at beyond a stop string's own length: text can be cut into tokens in more ways than one.
_LOOK_BACK = 2
# What a token that ends inside a character decodes to.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class ReplyRequest:
    """One reply to make."""

    name: int
    """The caller's own number for it."""
    tokens: Tokens
    settings: GenerationSettings
    seed: int
    origin: Origin
    key: str
    """Breaks ties when requests are sorted, so that batches don't depend on the requests' order."""

    @classmethod
    def of(
        cls, name: int, tokens: list[int], settings: GenerationSettings, seed: int, origin: Origin, key: str
    ) -> ReplyRequest:
        """A request from a prompt's token ids."""
        return cls(name, np.array(tokens, dtype=np.int64), settings, seed, origin, key)


@dataclass(slots=True)
class Reply:
    """A finished request."""

    name: int
    text: str
    new_tokens: int
    finished: bool
    """Whether it ended by itself: by a token or string that ends replies, not at its budget."""
    cost: Cost


@dataclass(slots=True, eq=False)
class Line:
    """A request while its reply is generated."""

    request: ReplyRequest
    sampler: Sampler | None
    tokens: list[int] = field(default_factory=list)
    picked: int = 0
    """Tokens chosen on the device, of which the host may not know the last yet."""
    slot: int | None = None
    ended: bool = False
    finished: bool = False
    """Whether it ended by itself."""
    own: int = 0
    """Tokens of cache that are counted for it."""
    prefill: float = 0.0
    """Its share of the seconds in which prompts were read."""
    decode: float = 0.0
    """Its share of the seconds of decode steps."""
    counted: tuple[Cells | None, Cells | None] = (None, None)
    """Its share of the cells that a method counted, of prompts and of decode steps."""

    @classmethod
    def of(cls, request: ReplyRequest) -> Line:
        """A reply without tokens."""
        sampling = request.settings.sampling
        return cls(request, Sampler(sampling, request.seed) if sampling else None)

    @property
    def length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.request.tokens) + len(self.tokens)

    @property
    def left(self) -> int:
        """Tokens that may still be chosen."""
        return self.request.settings.budget - self.picked

    def count(self, phase: Phase, cells: Cells) -> None:
        """Add cells that a method counted."""
        prefill, decode = self.counted
        if phase == "prefill":
            self.counted = (cells if prefill is None else prefill + cells, decode)
        else:
            self.counted = (prefill, cells if decode is None else decode + cells)

    def rewind(self, *, keep: bool) -> None:
        """Forget what was chosen and never arrived: its last forward failed.

        Args:
            keep: Go on from the tokens that arrived; otherwise the reply begins anew.
        """
        if not keep:
            self.tokens.clear()
        self.picked = len(self.tokens)
        if self.sampler is not None:
            self.sampler = Sampler(self.sampler.sampling, self.request.seed)
            for _ in self.tokens:
                self.sampler.number()

    def read(self) -> Tokens:
        """Token ids of prompt and reply."""
        return np.concatenate([self.request.tokens, np.array(self.tokens, dtype=np.int64)])


class Endings:
    """Where replies end: tokens of the model, and strings of the task."""

    def __init__(self, reader: Reader, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the tokenizer's EOS and those of the model's generation config (chat models have several)."""
        config = getattr(reader.model, "generation_config", None)
        given: int | Sequence[int] | None = getattr(config, "eos_token_id", None)
        tokens = [given] if isinstance(given, int) else list(given or [])
        self.tokens = frozenset(token for token in [*tokens, tokenizer.eos_token_id] if token is not None)
        self._tokenizer = tokenizer
        eos = tokenizer.eos_token
        self._eos_text = str(eos) if eos else None
        self._sizes: dict[str, int] = {}
        self._pieces: dict[int, str] = {}

    def look(self, line: Line) -> None:
        """Note in a line whether its last token ends it, and how."""
        line.finished = self._finished(line)
        line.ended = line.finished or len(line.tokens) >= line.request.settings.budget

    def _finished(self, line: Line) -> bool:
        settings = line.request.settings
        if len(line.tokens) <= settings.least:
            return False
        if line.tokens[-1] in self.tokens:
            return True
        stops = self._stops(settings)
        piece = self._piece(line.tokens[-1])
        # A stop string that ends here ends in this token's text. How a lone token's spaces come out, its
        # tokenizer decides.
        if not any(_INCOMPLETE in piece or stop[-1] in piece or stop[-1].isspace() for stop in stops):
            return False
        tail = line.tokens[settings.least :][-max(self._size(stop) for stop in stops) :]
        text = self._tokenizer.decode(tail)
        return any(stop in text for stop in stops)

    def forbidden(self, line: Line) -> list[int]:
        """Tokens that the next of a line can't be: those that would end it before it may."""
        settings = line.request.settings
        if line.picked >= settings.least:
            return []
        alone = [self._tokenizer.encode(stop, add_special_tokens=False) for stop in settings.until]
        return sorted(self.tokens | {tokens[-1] for tokens in alone if tokens})

    def text(self, line: Line) -> str:
        """A reply's text, cut before the first of its stop strings."""
        text = str(self._tokenizer.decode(line.tokens, skip_special_tokens=True))
        head = str(
            self._tokenizer.decode(line.tokens[: line.request.settings.least], skip_special_tokens=True)
        )
        kept = len(head) if text.startswith(head) else 0
        for stop in self._stops(line.request.settings):
            text = text[:kept] + text[kept:].split(stop, 1)[0]
        return text

    def _stops(self, settings: GenerationSettings) -> list[str]:
        return [*settings.until, *([self._eos_text] if self._eos_text else [])]

    def _size(self, stop: str) -> int:
        if stop not in self._sizes:
            self._sizes[stop] = len(self._tokenizer.encode(stop, add_special_tokens=False)) + _LOOK_BACK
        return self._sizes[stop]

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = str(self._tokenizer.decode([token]))
        return self._pieces[token]
