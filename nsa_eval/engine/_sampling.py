"""What a generation request asks for: budget, stops, and how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from nsa_eval._gen_kwargs import BUDGET_NAMES, contradiction
from nsa_eval.engine._prompts import Origin
from nsa_eval.errors import UserError
from nsa_kernels.nucleus import nucleus

_BLOCK = 1024
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
    least: int = 0
    """New tokens before which the reply can't end: no token that ends it is chosen, no stop is looked for."""
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
        least = int(left.pop("min_new_tokens", None) or 0)
        drawn = bool(left.pop("do_sample", False))
        filters = {name: left.pop(name, None) for name in ("temperature", "top_k", "top_p")}
        for name, value in left.items():
            if value is not None and value not in _NEUTRAL.get(name, ()):
                raise UserError(
                    f"{origin}: generation setting {name}={value!r} isn't supported; the engine knows until, "
                    "max_gen_toks, min_new_tokens, do_sample, temperature, top_k and top_p"
                )
        if budget < 1:
            raise UserError(f"{origin}: max_gen_toks must be at least 1, got {budget}")
        if not 0 <= least <= budget:
            raise UserError(
                f"{origin}: min_new_tokens must be between 0 and max_gen_toks ({budget}), got {least}"
            )
        if not all(isinstance(stop, str) for stop in until):
            raise UserError(f"{origin}: until must be a string or a list of strings, got {until!r}")
        # A task's own temperature beside do_sample: false: greedy, as lm-eval does, and said.
        return cls(
            budget=budget,
            until=tuple(until),
            sampling=_sampling(given, filters, origin) if drawn else None,
            least=least,
            notes=() if against is None else (against,),
        )


def _sampling(given: Mapping[str, Any], filters: Mapping[str, Any], origin: Origin) -> Sampling:
    """How to draw, of `filters` as lm-eval made them of the settings that were `given`.

    Raises:
        UserError: A value out of range.
    """
    # lm-eval fills in 0.0 for a temperature that nobody gave; transformers' own default is 1.
    temperature = 1.0 if given.get("temperature") is None else float(filters["temperature"] or 0.0)
    if temperature <= 0:
        raise UserError(
            f"{origin}: do_sample needs a temperature above 0, got {temperature}; for greedy replies set "
            "do_sample: false"
        )
    top_k, top_p = filters["top_k"], filters["top_p"]
    sampling = Sampling(
        temperature=temperature,
        top_k=0 if top_k is None else int(top_k),
        top_p=1.0 if top_p is None else float(top_p),
    )
    if sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise UserError(f"{origin}: top_k must be 0 or more and top_p within (0, 1], got {top_k} and {top_p}")
    return sampling


class Sampler:
    """Draws one request's tokens from its own random numbers, whatever shares its batch."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        """Args: `seed` comes from the request, so that a reply doesn't depend on order or batch."""
        self.sampling = sampling
        self._random = torch.Generator().manual_seed(seed)

    def number(self) -> float:
        """The next uniform number in [0, 1); made on the CPU, the same stream on every device."""
        return float(torch.rand(1, generator=self._random, dtype=torch.float64))

    def draw(self, logits: Tensor) -> int:
        """The next token from logits [V]: the first in the vocabulary at which the probabilities of the kept
        tokens, added up, exceed the drawn share of their sum.
        """
        asked = self.sampling
        scores = logits.float() / asked.temperature
        if 0 < asked.top_k < len(scores):
            scores = scores.masked_fill(scores < scores.topk(asked.top_k).values[-1], -torch.inf)
        probabilities = torch.softmax(scores, -1)
        if asked.top_p < 1:
            down = probabilities.sort(descending=True).values
            before = down.double().cumsum(-1) - down
            # A token stays while the likelier ones haven't reached top_p, and so do those as likely as it.
            least = down[max(1, int((before < asked.top_p).sum())) - 1]
            probabilities = torch.where(probabilities >= least, probabilities, 0.0)
        total = probabilities.double().cumsum(-1)
        share = self.number() * float(total[-1])
        return min(int(torch.searchsorted(total, share, right=True)), int(probabilities.nonzero()[-1]))


def draw_together(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """A token for each row of logits [B, V], as each row's `Sampler.draw` would choose it; nothing is sorted.

    Args:
        logits: [B, V] on a GPU, or with Triton's interpreter.
        samplers: Of each row.

    Returns:
        [B] int64 on the device of `logits`.
    """
    device, width = logits.device, logits.shape[-1]

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)[:, None]

    asked = [sampler.sampling for sampler in samplers]
    scores = logits.float() / column([one.temperature for one in asked], torch.float32)
    if any(one.top_k for one in asked):
        counts = [min(one.top_k or width, width) for one in asked]
        largest = torch.topk(scores, max(counts)).values
        index = torch.tensor(counts).to(device, non_blocking=True)[:, None] - 1
        scores = scores.masked_fill(scores < largest.gather(-1, index), -torch.inf)
    probabilities = torch.softmax(scores, -1)
    del scores
    if any(one.top_p < 1 for one in asked):
        least = nucleus(probabilities, column([one.top_p for one in asked], torch.float32)[:, 0])
        probabilities.masked_fill_(probabilities < least[:, None], 0.0)
    # In blocks: the block first, then the token in it.
    blocks = torch.nn.functional.pad(probabilities, (0, -width % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    share = column([sampler.number() for sampler in samplers], torch.float64) * ends[:, -1:]
    block = (ends <= share).sum(-1, keepdim=True).clamp_(max=ends.shape[-1] - 1)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].double()
    passed = (ends.gather(1, block) - inside.sum(-1, keepdim=True) + inside.cumsum(-1)) <= share
    found = block[:, 0] * _BLOCK + passed.sum(-1).clamp_(max=_BLOCK - 1)
    # Rounding may end behind the last token that is kept.
    last = width - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)
    return torch.minimum(found, last)
