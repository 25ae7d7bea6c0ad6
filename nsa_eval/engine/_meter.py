"""What requests take: seconds of prefill and decode, device memory, cached tokens and bytes read.

Seconds are those of a model that has run before: what is done once (the probe, compilers, captured graphs:
`nsa_models.once`) is kept apart, whenever it happens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nsa_eval._devices import device_name
from nsa_eval.engine._cells import CellMeter
from nsa_eval.store import Cells, Cost
from nsa_models.once import seconds_once, watch_compiler


class Meter:
    """Shares the time of a batch among its requests, by their tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Args: `model` is where it computes."""
        self._model = model
        self._device = device_name(model.device)
        self._cuda = model.device.type == "cuda"
        self._last = time.perf_counter()
        if self._cuda:
            watch_compiler()
        self._once = self._told = seconds_once()
        self.cells = CellMeter(model)

    def start(self, longest: int = 0) -> None:
        """Forget the time and the peak so far, but not what was done once: a new piece of work begins.

        Args:
            longest: Tokens of its longest text.
        """
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._model.device)
        self.cells.start(longest)
        self._last, self._once = time.perf_counter(), seconds_once()

    def lap(self) -> float:
        """Seconds since the last lap, without what was done once.

        The caller has just waited for the device, by reading from it.
        """
        now, once = time.perf_counter(), seconds_once()
        seconds = now - self._last - (once - self._once)
        self._last, self._once = now, once
        return max(0.0, seconds)

    def warm_up(self) -> float:
        """Seconds of what was done once, each told one time: the next cost has them."""
        once = seconds_once()
        seconds, self._told = once - self._told, once
        return seconds

    def scored(self, prompt_tokens: Sequence[int], new_tokens: Sequence[int]) -> list[Cost]:
        """The costs of texts scored together since the last lap."""
        seconds, warm_up, peak = self.lap(), self.warm_up(), self.peak()
        sizes = [a + b for a, b in zip(prompt_tokens, new_tokens, strict=True)]
        whole = sum(sizes) or 1
        # A text's last token is predicted and not read.
        stated = [self.cells.prompt(max(0, size - 1)) for size in sizes]
        counted = self.cells.counted("prefill", stated)
        return [
            Cost(
                prefill_seconds=seconds * size / whole,
                warm_up_seconds=warm_up * size / whole,
                prompt_tokens=prompt,
                new_tokens=new,
                peak_bytes=peak,
                device=self._device,
                prefill_stated=stated[i],
                prefill_counted=counted[i] if counted else None,
            )
            for i, (size, prompt, new) in enumerate(zip(sizes, prompt_tokens, new_tokens, strict=True))
        ]

    def replied(
        self,
        prompt_tokens: int,
        new_tokens: int,
        prefill: float,
        decode: float,
        *,
        counted: tuple[Cells | None, Cells | None] = (None, None),
    ) -> Cost:
        """The cost of one reply, whose seconds and counted cells the caller has shared out.

        A reply's first token comes from its prompt's logits: new_tokens - 1 steps read the cache.
        """
        steps = range(prompt_tokens + 1, prompt_tokens + new_tokens)
        end = self.cells.step(max(1, prompt_tokens + new_tokens - 1), prompt_tokens)
        reads = [self.cells.step(tokens, prompt_tokens) for tokens in steps]
        return Cost(
            prefill_seconds=prefill,
            decode_seconds=decode,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            peak_bytes=self.peak(),
            kv_read=round(sum(one.read for one in reads)),
            kv_kept=round(end.kept),
            decode_steps=len(steps),
            kv_read_bytes=None
            if end.read_bytes is None
            else round(sum(one.read_bytes or 0 for one in reads)),
            kv_kept_bytes=None if end.kept_bytes is None else round(end.kept_bytes),
            warm_up_seconds=self.warm_up(),
            device=self._device,
            prefill_stated=self.cells.prompt(prompt_tokens),
            decode_stated=self.cells.steps(steps.start, steps.stop - 1, prompt_tokens) if steps else None,
            prefill_counted=counted[0],
            decode_counted=counted[1],
        )

    def peak(self) -> int | None:
        """Most bytes in use on the device since `start`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._model.device) if self._cuda else None
