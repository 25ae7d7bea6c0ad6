"""What a generation request asks for: budget, stops, and how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from nsa_eval._gen_kwargs import BUDGET_NAMES, contradiction
from nsa_eval.engine._prompts import Origin
from nsa_eval.errors import UserError

DEFAULT_NEW_TOKENS = 256  # lm-eval's default for a task that names no budget
# Settings of transformers' generate() that tasks set to what they mean anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "early_stopping": (False, None),
    "use_cache": (True,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw the next token; the filters apply in this order, as in transformers."""

    temperature: float = 1.0
    top_k: int = 0
    """Only the k likeliest tokens; 0 = all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """One request's settings, checked."""

    budget: int
    """Most new tokens."""
    until: tuple[str, ...]
    """Strings that end the reply, and aren't part of it."""
    sampling: Sampling | None
    """None = greedy."""
    notes: tuple[str, ...] = ()
    """Settings of the request that do nothing, one sentence each."""

    @classmethod
    def parse(
        cls, given: Mapping[str, Any], origin: Origin, *, parity: Literal["lm-eval"] | None = None
    ) -> GenerationSettings:
        """Read lm-eval's generation settings.

        Only what the request names applies: a model's own generation defaults (a penalty, a temperature)
        would make scores depend on something that no task states.

        Two values for one setting are refused, where lm-eval takes the first of its names; `parity` leaves
        it at that.

        Raises:
            UserError: A setting that this engine doesn't have, a value out of range, or two for one setting.
        """
        against = None if parity else contradiction(given)
        if against is not None and len([name for name in BUDGET_NAMES if given.get(name) is not None]) > 1:
            raise UserError(f"{origin}: generation settings {against}")
        left = dict(normalize_gen_kwargs(dict(given), DEFAULT_NEW_TOKENS))
        until = [stop for stop in left.pop("until") or [] if stop]
        budget = int(left.pop("max_gen_toks"))
        drawn = bool(left.pop("do_sample", False))
        temperature = left.pop("temperature", None)
        top_k, top_p = left.pop("top_k", None), left.pop("top_p", None)
        for name, value in left.items():
            if value is not None and value not in _NEUTRAL.get(name, ()):
                raise UserError(
                    f"{origin}: generation setting {name}={value!r} isn't supported; the engine knows until, "
                    "max_gen_toks, do_sample, temperature, top_k and top_p"
                )
        if budget < 1:
            raise UserError(f"{origin}: max_gen_toks must be at least 1, got {budget}")
        if not all(isinstance(stop, str) for stop in until):
            raise UserError(f"{origin}: until must be a string or a list of strings, got {until!r}")
        sampling = None
        if drawn:
            # lm-eval fills in 0.0 for a temperature that nobody gave; transformers' own default is 1.
            temperature = 1.0 if given.get("temperature") is None else float(temperature or 0.0)
            sampling = Sampling(
                temperature=temperature,
                top_k=0 if top_k is None else int(top_k),
                top_p=1.0 if top_p is None else float(top_p),
            )
            if temperature <= 0:
                raise UserError(
                    f"{origin}: do_sample needs a temperature above 0, got {temperature}; for greedy replies "
                    "set do_sample: false"
                )
            if sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
                raise UserError(
                    f"{origin}: top_k must be 0 or more and top_p within (0, 1], got {top_k} and {top_p}"
                )
        # A task's own temperature beside do_sample: false: greedy, as lm-eval does, and said.
        return cls(
            budget=budget,
            until=tuple(until),
            sampling=sampling,
            notes=() if against is None else (against,),
        )


class Sampler:
    """Draws one request's tokens from its own random numbers, whatever shares its batch."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        """Args: `seed` comes from the request, so that a reply doesn't depend on order or batch."""
        self.sampling = sampling
        self._random = torch.Generator().manual_seed(seed)

    def draw(self, logits: Tensor) -> int:
        """The next token from logits [V], by inverse transform over the tokens from the likeliest down.

        One uniform number a token, drawn on the CPU: the same seed gives the same stream on every device.
        """
        scores = logits.float() / self.sampling.temperature
        count = scores.shape[-1] if self.sampling.top_k == 0 else min(self.sampling.top_k, scores.shape[-1])
        best, tokens = torch.topk(scores, count)
        probabilities = torch.softmax(best, -1).double()
        total = probabilities.cumsum(-1)
        # A token stays while the likelier ones haven't reached top_p; the first always does.
        kept = max(1, int((total - probabilities < self.sampling.top_p).sum()))
        share = torch.rand(1, generator=self._random, dtype=torch.float64).to(total.device) * total[kept - 1]
        place = min(int(torch.searchsorted(total[:kept], share, right=True)), kept - 1)
        return int(tokens[place])
