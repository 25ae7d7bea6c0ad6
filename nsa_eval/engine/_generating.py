"""Replies: right-padded prefill, then one token a step for every row that isn't finished yet.

A reply that grows across a border of the model's frequencies (nsa_models/families/_frequencies.py) leaves its
batch there: its prompt and what it has so far are read again, as the prompt of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._meter import Meter
from nsa_eval.engine._prefixes import Tokens, common_prefix
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._reader import NonFiniteLogitsError, Place, Reader
from nsa_eval.engine._sampling import GenerationSettings, Sampler
from nsa_eval.engine._steps import Stepper
from nsa_eval.store import Cost
from nsa_models.families import Rows

# A prefix is read once when it is at least this share of the prompts that start with it, and this long:
# below, one forward for all prompts is as fast.
_SHARED_PART = 0.5
_SHARED_TOKENS = 64
# Tokens looked at beyond a stop string's own length: text can be cut into tokens in more ways than one.
_LOOK_BACK = 2


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
    cost: Cost


Emit = Callable[[list[Reply]], None]


@dataclass(slots=True, eq=False)
class _Line:
    """A request while its reply is generated."""

    request: ReplyRequest
    sampler: Sampler | None
    tokens: list[int] = field(default_factory=list)
    prefill: float = 0.0
    """Its share of the seconds in which prompts were read."""
    decode: float = 0.0
    """Its share of the seconds of decode steps."""

    @property
    def length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.request.tokens) + len(self.tokens)

    def read(self) -> Tokens:
        """Token ids of prompt and reply."""
        return np.concatenate([self.request.tokens, np.array(self.tokens, dtype=np.int64)])


class Replier:
    """Generates replies with one reader."""

    def __init__(
        self,
        reader: Reader,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        share_prefixes: bool,
        cuda_graphs: bool,
        meter: Meter,
    ) -> None:
        """Args are parts of the Engine."""
        self.reader = reader
        self.tokenizer = tokenizer
        self.limits = limits
        self.cuda_graphs = cuda_graphs
        self.meter = meter
        self.share = share_prefixes and reader.shared
        self.end_tokens = _end_tokens(reader, tokenizer)
        eos = tokenizer.eos_token
        self._eos_text = str(eos) if eos else None
        self._stop_sizes: dict[str, int] = {}

    @torch.inference_mode()
    def run(self, requests: list[ReplyRequest], *, wanted: Callable[[int], bool], emit: Emit) -> None:
        """Generate the wanted replies.

        Batches are planned from all requests, wanted or not, and don't depend on their order.

        Raises:
            NonFiniteLogitsError: The model's logits can't be compared; replies emitted before are complete.
        """
        regimes: dict[tuple[int, int], list[ReplyRequest]] = {}
        for request in requests:
            regimes.setdefault(self.reader.regime(len(request.tokens)), []).append(request)
        for _, some in sorted(regimes.items()):
            for shared, group in self._groups(some):
                if any(wanted(request.name) for request in group):
                    self._group(shared, group, wanted, emit)

    def _group(
        self, shared: int, group: list[ReplyRequest], wanted: Callable[[int], bool], emit: Emit
    ) -> None:
        """Requests of one regime, the first `shared` tokens of which are the same."""
        head = None
        if shared:
            head = self.reader.family.empty(1)
            piece = group[0].tokens[:shared]
            self.reader.read([piece], head, first=[shared], on_logits=lambda *_: None)
        group.sort(key=lambda one: (-len(one.tokens), one.tokens.astype(">u4").tobytes(), one.key))
        for batch in batches(
            group,
            width=lambda request: len(request.tokens) - shared,
            limits=self.limits.for_replies(),
            extra=shared + max(request.settings.budget for request in group),
            equal=not self.reader.family.ragged,
            widest=self.reader.widest,
        ):
            lines = [
                _Line(one, Sampler(one.settings.sampling, one.seed) if one.settings.sampling else None)
                for one in batch
                if wanted(one.name)
            ]
            self._batch(lines, shared, head, emit)

    def _groups(self, requests: list[ReplyRequest]) -> list[tuple[int, list[ReplyRequest]]]:
        """Requests by the prefix that they share: (its length or 0, the requests)."""
        if not self.share:
            return [(0, list(requests))] if requests else []
        least = max(
            _SHARED_TOKENS,
            2 * self.reader.family.resume_tokens,
            self.reader.first_forward([len(request.tokens) for request in requests]),
        )
        order = sorted(requests, key=lambda one: one.tokens.astype(">u4").tobytes())
        groups: list[tuple[int, list[ReplyRequest]]] = []
        alone: list[ReplyRequest] = []
        current: list[ReplyRequest] = []
        shared = 0
        for request in [*order, None]:
            if request is not None and current:
                # The last token is left to the request itself: its logits start the reply.
                common = min(
                    shared,
                    common_prefix(current[-1].tokens, request.tokens),
                    len(request.tokens) - 1,
                    len(current[0].tokens) - 1,
                )
                longest = max(len(request.tokens), *(len(other.tokens) for other in current))
                if common >= max(least, _SHARED_PART * longest):
                    current.append(request)
                    shared = common
                    continue
            if len(current) > 1:
                groups.append((shared, current))
            else:
                alone.extend(current)
            if request is not None:
                current, shared = [request], len(request.tokens)
        groups.sort(key=lambda group: -max(len(request.tokens) for request in group[1]))
        return [*groups, (0, alone)] if alone else groups

    def _batch(self, lines: list[_Line], shared: int, head: Rows | None, emit: Emit) -> None:
        """Replies of one batch, and of what comes of it when replies grow into another regime."""
        waiting = [(lines, shared, head)]
        while waiting:
            some, shared, head = waiting.pop()
            if not some:
                continue
            done: set[int] = set()
            parked: list[_Line] = []

            def finished(replies: list[Reply], done: set[int] = done) -> None:
                done.update(reply.name for reply in replies)
                emit(replies)

            try:
                self._generate(some, shared, head, finished, parked)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                torch.cuda.empty_cache()
                left = [line for line in some if line.request.name not in done and line not in parked]
                middle = (len(left) + 1) // 2
                waiting += [(left[middle:], shared, head), (left[:middle], shared, head)]
            waiting += [(part, 0, None) for part in self._again(parked)]

    def _again(self, parked: list[_Line]) -> list[list[_Line]]:
        """Lines that are read again from their first token, in batches of one length."""
        return list(
            batches(
                sorted(parked, key=lambda line: -line.length),
                width=lambda line: line.length,
                limits=self.limits,
                extra=max((line.request.settings.budget - len(line.tokens) for line in parked), default=0),
                equal=True,
                widest=self.reader.widest,
            )
        )

    def _generate(
        self, lines: list[_Line], shared: int, head: Rows | None, emit: Emit, parked: list[_Line]
    ) -> None:
        """Replies of lines in one regime, with an emit as some end; `parked` gets those that leave it."""
        rows, logits = self._prompts(lines, shared, head)
        stepper = Stepper(self.reader, rows, graphs=self.cuda_graphs)
        del rows  # the stepper may let go of them
        read = sum(line.length for line in lines)
        first = True
        while True:
            self._append(lines, logits)
            seconds = self.meter.lap()
            for line in lines:
                if first:
                    line.prefill += seconds * (line.length - 1) / read
                else:
                    line.decode += seconds / len(lines)
            first = False
            ended = [self._ended(line) for line in lines]
            replies = [self._reply(line) for line, end in zip(lines, ended, strict=True) if end]
            if replies:
                emit(replies)
            left: list[int] = []
            for index, (line, end) in enumerate(zip(lines, ended, strict=True)):
                if end:
                    continue
                # The next forward, which feeds the token just drawn, has as many tokens as the line.
                if self.reader.regime(line.length) == self.reader.regime(line.length - 1):
                    left.append(index)
                else:
                    parked.append(line)
            if not left:
                return
            if len(left) < len(lines):
                lines = [lines[index] for index in left]
                stepper.keep(left)
            steps = max(line.request.settings.budget - len(line.tokens) for line in lines)
            logits = stepper.step([line.tokens[-1] for line in lines], steps)

    def _prompts(self, lines: list[_Line], shared: int, head: Rows | None) -> tuple[Rows, Tensor]:
        """Read all prompts, in batches of little padding; the rows joined, and their logits [B, V]."""
        family = self.reader.family
        parts: list[Rows] = []
        logits: list[Tensor] = []
        for batch in batches(
            lines,
            width=lambda line: line.length - shared,
            limits=self.limits if family.ragged else self.limits.for_replies(),
            widest=self.reader.widest,
        ):
            rows = family.empty(len(batch)) if head is None else family.select(head, [0] * len(batch))
            pieces = [line.read()[shared:] for line in batch]
            last: dict[int, Tensor] = {}

            def collect(made: Tensor, places: list[Place], last: dict[int, Tensor] = last) -> None:
                last.update((row, line) for line, (row, _) in zip(made, places, strict=True))

            ends = [len(piece) - 1 for piece in pieces]
            self.reader.read(pieces, rows, first=ends, on_logits=collect)
            parts.append(rows)
            logits.extend(last[row] for row in range(len(batch)))
        return (family.join(parts) if len(parts) > 1 else parts[0]), torch.stack(logits)

    def _append(self, lines: list[_Line], logits: Tensor) -> None:
        best, tokens = logits.max(-1)
        for line, top, token, scores in zip(lines, best.tolist(), tokens.tolist(), logits, strict=True):
            if not np.isfinite(top):
                raise NonFiniteLogitsError.at(
                    self.reader.name, line.request.origin, f"the largest logit is {top}"
                )
            line.tokens.append(token if line.sampler is None else line.sampler.draw(scores))

    def _ended(self, line: _Line) -> bool:
        if line.tokens[-1] in self.end_tokens or len(line.tokens) >= line.request.settings.budget:
            return True
        stops = self._stops(line.request.settings)
        if not stops:
            return False
        tail = line.tokens[-max(self._stop_size(stop) for stop in stops) :]
        text = self.tokenizer.decode(tail)
        return any(stop in text for stop in stops)

    def _stops(self, settings: GenerationSettings) -> list[str]:
        return [*settings.until, *([self._eos_text] if self._eos_text else [])]

    def _stop_size(self, stop: str) -> int:
        if stop not in self._stop_sizes:
            self._stop_sizes[stop] = len(self.tokenizer.encode(stop, add_special_tokens=False)) + _LOOK_BACK
        return self._stop_sizes[stop]

    def _reply(self, line: _Line) -> Reply:
        text = str(self.tokenizer.decode(line.tokens, skip_special_tokens=True))
        for stop in self._stops(line.request.settings):
            text = text.split(stop, 1)[0]
        prompt, new = len(line.request.tokens), len(line.tokens)
        cost = self.meter.replied(prompt, new, line.prefill, line.decode)
        return Reply(line.request.name, text, new, cost)


def _end_tokens(reader: Reader, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's EOS and those of the model's generation config (chat models have several)."""
    config = getattr(reader.model, "generation_config", None)
    given: int | Sequence[int] | None = getattr(config, "eos_token_id", None)
    tokens = [given] if isinstance(given, int) else list(given or [])
    return frozenset(token for token in [*tokens, tokenizer.eos_token_id] if token is not None)
