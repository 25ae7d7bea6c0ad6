"""Replies: right-padded prefill, then one token a step for every row that isn't finished yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nsa_eval.engine._adapters import Rows
from nsa_eval.engine._batching import Limits, batches
from nsa_eval.engine._prefixes import Tokens, common_prefix
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._reader import NonFiniteLogitsError, Place, Reader
from nsa_eval.engine._sampling import GenerationSettings, Sampler
from nsa_eval.engine._steps import Stepper
from nsa_eval.errors import UserError

# A prefix is read once when it is at least this share of the prompts that start with it, and this long:
# below, one forward for all prompts is as fast.
_SHARED_PART = 0.5
_SHARED_TOKENS = 64
# Tokens looked at beyond a stop string's own length: text can be cut into tokens in more ways than one.
_LOOK_BACK = 2


@dataclass(slots=True)
class Job:
    """One reply to make."""

    name: int
    """The caller's own number for it."""
    tokens: Tokens
    settings: GenerationSettings
    seed: int
    origin: Origin
    key: str
    """Breaks ties when jobs are sorted, so that batches don't depend on the requests' order."""

    @classmethod
    def of(
        cls, name: int, tokens: list[int], settings: GenerationSettings, seed: int, origin: Origin, key: str
    ) -> Job:
        """A job from a prompt's token ids."""
        return cls(name, np.array(tokens, dtype=np.int64), settings, seed, origin, key)


@dataclass(slots=True)
class Reply:
    """A finished job."""

    name: int
    text: str
    new_tokens: int


Emit = Callable[[list[Reply]], None]


@dataclass(slots=True)
class _Line:
    """A job while it is generated."""

    job: Job
    sampler: Sampler | None
    tokens: list[int] = field(default_factory=list)


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
    ) -> None:
        """Args are parts of the Engine."""
        self.reader = reader
        self.tokenizer = tokenizer
        self.limits = limits
        self.cuda_graphs = cuda_graphs
        self.share = share_prefixes and reader.family.continuable
        self.end_tokens = _end_tokens(reader, tokenizer)
        eos = tokenizer.eos_token
        self._eos_text = str(eos) if eos else None
        self._stop_sizes: dict[str, int] = {}

    @torch.inference_mode()
    def run(self, jobs: list[Job], *, wanted: Callable[[int], bool], emit: Emit) -> None:
        """Generate the wanted replies.

        Batches are planned from all jobs, wanted or not, and don't depend on their order.

        Raises:
            NonFiniteLogitsError: The model's logits can't be compared; replies emitted before are complete.
        """
        if jobs and not self.reader.family.caches:
            raise UserError(
                f"models of type {self.reader.model.config.model_type!r} don't take transformers' "
                "past_key_values, so no replies can be generated with them here; log-likelihood tasks work"
            )
        for shared, group in self._groups(jobs):
            if not any(wanted(job.name) for job in group):
                continue
            head = None
            if shared:
                head = self.reader.family.empty(1)
                piece = group[0].tokens[:shared]
                self.reader.read([piece], head, first=[shared], on_logits=lambda *_: None)
            group.sort(key=lambda job: (-len(job.tokens), job.tokens.astype(">u4").tobytes(), job.key))
            for batch in batches(
                group,
                width=lambda job, shared=shared: len(job.tokens) - shared,  # type: ignore[misc]
                limits=self.limits.for_replies(),
                extra=shared + max(job.settings.budget for job in group),
                equal=not self.reader.family.ragged,
                prefill_chunk=self.reader.prefill_chunk,
            ):
                self._batch([job for job in batch if wanted(job.name)], shared, head, emit)

    def _groups(self, jobs: list[Job]) -> list[tuple[int, list[Job]]]:
        """Jobs by the prefix that they share: (its length or 0, the jobs)."""
        if not self.share:
            return [(0, list(jobs))] if jobs else []
        order = sorted(jobs, key=lambda job: job.tokens.astype(">u4").tobytes())
        groups: list[tuple[int, list[Job]]] = []
        alone: list[Job] = []
        current: list[Job] = []
        shared = 0
        for job in [*order, None]:
            if job is not None and current:
                # The last token is left to the job itself: its logits start the reply.
                common = min(
                    shared,
                    common_prefix(current[-1].tokens, job.tokens),
                    len(job.tokens) - 1,
                    len(current[0].tokens) - 1,
                )
                longest = max(len(job.tokens), *(len(other.tokens) for other in current))
                if common >= max(
                    _SHARED_TOKENS, 2 * self.reader.family.resume_tokens, _SHARED_PART * longest
                ):
                    current.append(job)
                    shared = common
                    continue
            if len(current) > 1:
                groups.append((shared, current))
            else:
                alone.extend(current)
            if job is not None:
                current, shared = [job], len(job.tokens)
        groups.sort(key=lambda group: -max(len(job.tokens) for job in group[1]))
        return [*groups, (0, alone)] if alone else groups

    def _batch(self, jobs: list[Job], shared: int, head: Rows | None, emit: Emit) -> None:
        if not jobs:
            return
        done: set[int] = set()

        def finished(replies: list[Reply]) -> None:
            done.update(reply.name for reply in replies)
            emit(replies)

        try:
            self._generate(jobs, shared, head, finished)
        except torch.OutOfMemoryError:
            left = [job for job in jobs if job.name not in done]
            if len(jobs) == 1:
                raise
            torch.cuda.empty_cache()
            self._batch(left[: (len(left) + 1) // 2], shared, head, emit)
            self._batch(left[(len(left) + 1) // 2 :], shared, head, emit)

    def _generate(self, jobs: list[Job], shared: int, head: Rows | None, emit: Emit) -> None:
        lines = [
            _Line(job, Sampler(job.settings.sampling, job.seed) if job.settings.sampling else None)
            for job in jobs
        ]
        rows, logits = self._prompts(jobs, shared, head)
        stepper = Stepper(self.reader, rows, graphs=self.cuda_graphs)
        del rows  # the stepper may let go of them
        while True:
            self._append(lines, logits)
            ended = [self._ended(line) for line in lines]
            replies = [self._reply(line) for line, end in zip(lines, ended, strict=True) if end]
            if replies:
                emit(replies)
                left = [index for index, end in enumerate(ended) if not end]
                if not left:
                    return
                lines = [lines[index] for index in left]
                stepper.keep(left)
            steps = max(line.job.settings.budget - len(line.tokens) for line in lines)
            logits = stepper.step([line.tokens[-1] for line in lines], steps)

    def _prompts(self, jobs: list[Job], shared: int, head: Rows | None) -> tuple[Rows, Tensor]:
        """Read all prompts, in batches of little padding; the rows joined, and their logits [B, V]."""
        family = self.reader.family
        parts: list[Rows] = []
        logits: list[Tensor] = []
        for batch in batches(
            jobs,
            width=lambda job: len(job.tokens) - shared,
            limits=self.limits if family.ragged else self.limits.for_replies(),
            prefill_chunk=self.reader.prefill_chunk,
        ):
            rows = family.empty(len(batch)) if head is None else family.select(head, [0] * len(batch))
            pieces = [job.tokens[shared:] for job in batch]
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
                    self.reader.name, line.job.origin, f"the largest logit is {top}"
                )
            line.tokens.append(token if line.sampler is None else line.sampler.draw(scores))

    def _ended(self, line: _Line) -> bool:
        if line.tokens[-1] in self.end_tokens or len(line.tokens) >= line.job.settings.budget:
            return True
        stops = self._stops(line.job.settings)
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
        for stop in self._stops(line.job.settings):
            text = text.split(stop, 1)[0]
        return Reply(line.job.name, text, len(line.tokens))


def _end_tokens(reader: Reader, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's EOS and those of the model's generation config (chat models have several)."""
    config = getattr(reader.model, "generation_config", None)
    given: int | Sequence[int] | None = getattr(config, "eos_token_id", None)
    tokens = [given] if isinstance(given, int) else list(given or [])
    return frozenset(token for token in [*tokens, tokenizer.eos_token_id] if token is not None)
