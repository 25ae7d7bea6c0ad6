"""A short measurement: a few prompts of some lengths are read and decoded by the engine, as in a run."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nsa_eval.config import EngineSpec, RunConfig, Variant, all_variants
from nsa_eval.estimate._profile import Profile, profile_of
from nsa_eval.plan import Plan, requests_of
from nsa_eval.store import Conditions, CostSheet, Tally

if TYPE_CHECKING:
    from nsa_eval.engine import Request
    from nsa_eval.store import RequestKind, Response

Answer = Callable[["Sequence[Request]"], "Sequence[Response]"]
"""Answers requests of one kind."""

_SECONDS = 20.0
"""What the longest prompts may take, about."""
_STEPS = 16
_LEAST = 64
_ROUNDS = 4
_USUAL = 2048
"""Tokens of the longest prompt where no job's size is known."""
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured of one variant, and how long that took."""

    profile: Profile
    seconds: float
    """Without loading the weights."""


def measure(
    config: RunConfig,
    plan: Plan,
    *,
    say: Callable[[str], object] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Measurement]:
    """Load each model of a plan, and measure every variant of it for some seconds.

    Args:
        config: The run's config.
        plan: Its jobs, whose longest request decides how long prompts get.
        say: Told of every model before it is loaded.
        clock: Seconds now.

    Returns:
        By variant; none of models that lm-eval's own classes ask.

    Raises:
        ModelLoadError: A checkpoint that can't be loaded.
        UserError: A setting or a method that a model can't take.
    """
    from nsa_eval._conditions import conditions_of
    from nsa_eval._quiet import quiet
    from nsa_eval.executors import Worker

    found: dict[str, Measurement] = {}
    worker = Worker(EngineSpec.model_validate(config.engine.model_dump() | {"truncation": "left"}))
    try:
        by_checkpoint = itertools.groupby(all_variants(config), key=lambda variant: variant.checkpoint.name)
        for name, grouped in by_checkpoint:
            together = list(grouped)
            model = together[0].checkpoint
            if model.lm is not None:
                continue
            say(f"{name}: loading")
            worker.load(model)
            for variant in together:
                with quiet():
                    facts = worker.use(variant)
                    say(f"{variant.name}: measuring")
                    begin = clock()
                    tally = measure_one(
                        _asking(worker),
                        tokenizer=worker.tokenizer,
                        max_length=facts.model.max_length,
                        rows=8 if facts.model.device == "cuda" else 2,
                        **_wanted(plan, variant),
                    )
                    seconds = clock() - begin
                profile = _profile(tally, variant, conditions_of(facts, config.engine))
                if profile is not None:
                    found[variant.name] = Measurement(profile=profile, seconds=seconds)
    finally:
        worker.close()
    return found


def measure_one(
    answer: Answer,
    *,
    tokenizer: Any,  # noqa: ANN401  (PreTrainedTokenizerBase)
    max_length: int,
    longest: int,
    new_tokens: int,
    rows: int,
    budget: float = _SECONDS,
) -> Tally:
    """Read prompts of an eighth of the longest length, then of longer ones as far as time allows.

    One of a tenth of the first length goes before, uncounted: whatever starts at the first request is over
    then. What takes no time to speak of is asked some times more.

    Args:
        answer: Answers requests.
        tokenizer: Makes prompts of so many tokens.
        max_length: Of a request.
        longest: The plan's longest request.
        new_tokens: Of its replies; 0 where it only scores.
        rows: Prompts of each length.
        budget: Seconds that the prompts of one length may take, about.
    """
    replies = min(new_tokens, _STEPS)
    top = max(min(longest, max_length) - max(replies, 1), 1)
    first = min(top, max(_LEAST, top // 8))
    seeds = iter(range(1_000_000))
    tally = Tally()

    def ask(tokens: int) -> float:
        requests = [_request(tokenizer, tokens, replies, next(seeds)) for _ in range(rows)]
        answers = answer(requests)
        for one in answers:
            tally.add("measurement", requests[0].kind, one)
        return sum(one.cost.prefill_seconds for one in answers if one.cost is not None)

    answer([_request(tokenizer, max(1, first // 10), replies, next(seeds))])
    lengths, seconds = [first], ask(first)
    spent = seconds
    while lengths[-1] < top:
        at = lengths[-1]
        # The most that a longer one can take is dense attention's square.
        fits = [n for n in (top, top // 2, top // 4) if n > at and seconds * (n / at) ** 2 <= budget]
        if not fits and len(lengths) > 1:
            break
        lengths.append(max(fits, default=min(top, 2 * first)))
        seconds = ask(lengths[-1])
        spent += seconds
    # A second alone says little of a machine that does other things too.
    for _ in range(_ROUNDS - 1):
        if not 0 < spent < budget / 4:
            break
        spent += sum(ask(length) for length in lengths)
    return tally


def _request(tokenizer: Any, tokens: int, replies: int, seed: int) -> Request:  # noqa: ANN401
    """A prompt of about so many tokens of words, unlike any other, to be replied to or scored."""
    from nsa_eval.engine import Origin, Request

    draw = random.Random(seed)
    ids: list[int] = []
    words: list[str] = []
    while len(ids) < tokens:
        words += draw.choices(_WORDS, k=tokens - len(ids))
        ids = tokenizer.encode(" ".join(words), add_special_tokens=False)
    text = str(tokenizer.decode(ids[:tokens]))
    kind: RequestKind = "generate_until" if replies else "loglikelihood"
    settings = {"until": [], "max_gen_toks": max(2, replies), "do_sample": False}
    return Request(
        key=f"measurement {seed}",
        kind=kind,
        arguments=(text, settings) if replies else (text, " " + draw.choice(_WORDS)),
        origin=Origin("measurement", seed),
        seed=seed,
    )


def _asking(worker: Any) -> Answer:  # noqa: ANN401  (Worker)
    def answer(requests: Sequence[Request]) -> Sequence[Response]:
        found: dict[str, Response] = {}

        def take(responses: Mapping[str, Response]) -> None:
            found.update(responses)

        worker.answer(requests, {request.key for request in requests}, take)
        return [found[request.key] for request in requests]

    return answer


def _wanted(plan: Plan, variant: Variant) -> dict[str, int]:
    sizes = [one for job in plan.of(variant.name) for one in requests_of(job) or ()]
    unknown = any(requests_of(job) is None for job in plan.of(variant.name))
    replies = max((one.new_tokens for one in sizes), default=0)
    return {
        "longest": max((one.tokens for one in sizes), default=_USUAL),
        "new_tokens": max(replies, _STEPS if unknown else 0),
    }


def _profile(tally: Tally, variant: Variant, conditions: Conditions) -> Profile | None:
    sheet: CostSheet = tally.sheet(conditions)
    return profile_of(sheet, variant, run="")
