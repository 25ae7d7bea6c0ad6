"""What requests take: seconds of prefill and decode, device memory, cached tokens read."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nsa_eval.store import Cost
from nsa_models.kv import kv_cost


class Meter:
    """Shares the time of a batch among its requests, by their tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Args: `model` is where it computes."""
        self._model = model
        self._cuda = model.device.type == "cuda"
        self._last = time.perf_counter()
        # Replies of one length range over the same positions: each is worked out once.
        self._kv = functools.lru_cache(maxsize=2**18)(functools.partial(kv_cost, model))

    def start(self) -> None:
        """Forget the time and the peak so far: a new piece of work begins."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._model.device)
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap. The caller has just waited for the device, by reading from it."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def scored(self, prompt_tokens: Sequence[int], new_tokens: Sequence[int]) -> list[Cost]:
        """The costs of texts scored together since the last lap."""
        seconds, peak = self.lap(), self.peak()
        sizes = [a + b for a, b in zip(prompt_tokens, new_tokens, strict=True)]
        whole = sum(sizes) or 1
        return [
            Cost(
                prefill_seconds=seconds * size / whole, prompt_tokens=prompt, new_tokens=new, peak_bytes=peak
            )
            for size, prompt, new in zip(sizes, prompt_tokens, new_tokens, strict=True)
        ]

    def replied(self, prompt_tokens: int, new_tokens: int, prefill: float, decode: float) -> Cost:
        """The cost of one reply, whose seconds the caller has shared out.

        A reply's first token comes from its prompt's logits: new_tokens - 1 steps read the cache.
        """
        steps = range(prompt_tokens + 1, prompt_tokens + new_tokens)
        end = self._kv(max(1, prompt_tokens + new_tokens - 1))
        return Cost(
            prefill_seconds=prefill,
            decode_seconds=decode,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            peak_bytes=self.peak(),
            kv_read=round(sum(self._kv(tokens).read for tokens in steps)),
            kv_kept=round(end.kept),
            decode_steps=len(steps),
        )

    def peak(self) -> int | None:
        """Most bytes in use on the device since `start`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._model.device) if self._cuda else None
