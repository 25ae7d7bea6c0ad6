"""Building the documents of a needle task: the grid, one seed a sample, exact lengths."""

import itertools
from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._random import Draw
from nsa_tasks._threads import each
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.haystack import (
    DistractorHaystack,
    GeneratedHaystack,
    Haystack,
    NoiseHaystack,
    load_text,
)
from nsa_tasks.needle.layout import Filled, fill
from nsa_tasks.needle.parameters import NeedleParams
from nsa_tasks.needle.prompts import Facts, draw_distractor, draw_facts
from nsa_tasks.sampling import document_seed
from nsa_tasks.sizing import TooShortError, check_filled

# By chance a text holds one draw's keys or values, not those of so many.
_MOST_DRAWS = 20


def documents(params: NeedleParams, tokens: RequestTokens) -> list[dict[str, Any]]:
    """Build every document of the grid, in the order length, depth, sample.

    Args:
        params: Resolved parameters.
        tokens: Counts a request's tokens.
    """
    haystack = open_haystack(params)
    places = list(itertools.product(params.lengths, range(len(params.depths)), range(params.samples)))

    def make(place: tuple[int, int, int]) -> dict[str, Any]:
        return document(params, *place, haystack, tokens)

    return each(make, places) if tokens.for_threads else [make(place) for place in places]


def open_haystack(params: NeedleParams) -> Haystack:
    """Open the haystack that the parameters name."""
    name = params.haystack
    if name == "generated":
        return GeneratedHaystack()
    if name == "noise":
        return NoiseHaystack()
    if name == "needles":
        return DistractorHaystack(lambda draw: draw_distractor(draw, params.needle, params.key))
    return load_text(name.removeprefix("text:"))


def document(
    params: NeedleParams,
    length: int,
    depth_index: int,
    sample: int,
    haystack: Haystack,
    tokens: RequestTokens,
) -> dict[str, Any]:
    """Build one sample.

    Its draws depend on (seed, task, length, depth index, sample) alone: a sample is the same in every grid
    that holds it.

    Args:
        params: Resolved parameters.
        length: Tokens of the request, reply budget included.
        depth_index: Which of the depths.
        sample: Which sample of the cell.
        haystack: Source of filler.
        tokens: Counts a request's tokens.

    Raises:
        TaskParameterError: The length cannot hold the request, or the haystack cannot fill it.
    """
    seed = document_seed(params.seed, params.task, length, depth_index, sample)
    depth = float(params.depths[depth_index])
    facts, filled = _hide(params, length, seed, depth, haystack, tokens)
    request = filled.request
    start = request.text.find(request.layout.context)
    if start < 0:
        raise TaskParameterError(
            f"{params.task}: the chat template changes the text of messages, so the needle's place cannot be "
            "told; run this model without its chat template."
        )
    count, spans = tokens.spans(request.text, [(start + a, start + b) for a, b in request.layout.spans])
    name = f"{params.task}:L{length}:D{depth:g}:S{sample}"
    check_filled(name, tokens=count, budget=length - params.new_tokens, piece=filled.piece)
    return {
        "id": name,
        "input": facts.prompt(request.layout.context),
        "gen_prefix": facts.prefix,
        "outputs": list(facts.answers),
        "answer": ", ".join(facts.answers),
        "length": length,
        "depth": depth,
        "depth_index": depth_index,
        "sample": sample,
        "seed": seed,
        "haystack": haystack.name,
        "needle": facts.needles[0],
        "needle_span": list(spans[0]),
        "needles": list(facts.needles),
        "needle_spans": [list(span) for span in spans],
        "prompt_tokens": count,
        "new_tokens": params.new_tokens,
    }


def _hide(
    params: NeedleParams, length: int, seed: int, depth: float, haystack: Haystack, tokens: RequestTokens
) -> tuple[Facts, Filled]:
    """Draw facts that the haystack doesn't hold by itself, and lay them out in it."""
    for attempt in range(_MOST_DRAWS):
        facts = draw_facts(
            Draw(seed, "facts", attempt),
            needle=params.needle,
            key=params.key,
            keys=params.keys,
            values=params.values,
            queries=params.queries,
        )
        depths = _needle_depths(depth, len(facts.needles), Draw(seed, "depths"))
        filled = _fill(params, length, seed, facts, depths, haystack, tokens)
        filler = facts_removed(filled.request.layout.context, facts)
        if not any(mark in filler for mark in facts.marks):
            return facts, filled
    raise TaskParameterError(
        f"{params.task}: haystack = {params.haystack!r} already holds the needle's keys or values; "
        "take another text."
    )


def facts_removed(context: str, facts: Facts) -> str:
    """Take the needles out of a context: what is left is filler."""
    for needle in facts.needles:
        context = context.replace(needle, "", 1)
    return context


def _needle_depths(depth: float, needles: int, draw: Draw) -> list[float]:
    """The first needle stands at the cell's depth, the others anywhere."""
    return [depth, *(100 * draw.unit() for _ in range(needles - 1))]


def _fill(
    params: NeedleParams,
    length: int,
    seed: int,
    facts: Facts,
    depths: list[float],
    haystack: Haystack,
    tokens: RequestTokens,
) -> Filled:
    budget = length - params.new_tokens

    def render(context: str) -> str:
        return tokens.render(facts.prompt(context), facts.prefix)

    def stretch_of(characters: int) -> tuple[str, bool]:
        stretch = haystack.stretch(Draw(seed, "filler"), characters, facts.marks)
        return stretch.text, stretch.complete

    # A first look at the filler tells how many characters a token has; a tenth more than needed leaves room
    # to cut.
    probe = stretch_of(4000)[0][:4000]
    ratio = len(probe) / max(len(tokens.encode(probe, special=False).ids), 1)
    characters = int(max(budget, 1) * ratio * 1.1) + 500
    before = 0
    while True:
        text, complete = stretch_of(characters)
        try:
            filled = fill(text, haystack, facts.needles, depths, budget, tokens, render)
        except TooShortError as error:
            shortest = error.args[0] + params.new_tokens
            raise TaskParameterError(
                f"{params.task}: length {length} is too short: without any filler the request takes "
                f"{error.args[0]} of this tokenizer's tokens, and the reply {params.new_tokens}. "
                f"Use lengths of at least {shortest}, better a few hundred more, or a smaller new_tokens."
            ) from None
        if not filled.exhausted or filled.request.tokens == before:
            return filled  # where more filler makes no longer request, more of it never will
        if complete:
            missing = budget - filled.request.tokens
            raise TaskParameterError(
                f"{params.task}: haystack = {params.haystack!r} is shorter than the length: it holds "
                f"{filled.filler_tokens:,} tokens, and a request of {length:,} needs about "
                f"{filled.filler_tokens + missing:,}. Add text, use shorter lengths, or take "
                "haystack = generated; the text is never repeated."
            )
        before = filled.request.tokens
        characters = int(characters * 1.5)
