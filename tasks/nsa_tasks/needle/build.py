"""Building the documents of a needle task: the grid, one seed a sample, exact lengths."""

from collections.abc import Mapping
from typing import Any

import datasets

from nsa_tasks._parameters import TaskParameterError, pick_parameters
from nsa_tasks._random import Draw, derive_seed
from nsa_tasks._tokens import RequestTokens
from nsa_tasks._yaml import load_task_yaml, task_files
from nsa_tasks.haystack import (
    DistractorHaystack,
    GeneratedHaystack,
    Haystack,
    NoiseHaystack,
    load_text,
)
from nsa_tasks.needle.layout import Filled, TooShortError, fill
from nsa_tasks.needle.parameters import COUNTS, parameters, resolve
from nsa_tasks.needle.prompts import Facts, draw_distractor, draw_facts

# The name under which each backend's model arguments hold the tokenizer: lm-eval merges them into the
# metadata.
_TOKENIZER_KEYS = ("tokenizer", "pretrained", "model")


def dataset(form: str, **metadata: object) -> dict[str, datasets.Dataset]:
    """Build a task's documents: the `custom_dataset` of the YAMLs.

    Args:
        form: Task name, from the YAML's `dataset_kwargs`.
        **metadata: The task's metadata: its parameters, the tokenizer, and whatever else lm-eval merges in.

    Returns:
        One split, "test".

    Raises:
        TaskParameterError: A parameter, length, haystack or tokenizer that cannot be used.
    """
    return {"test": documents(form, settings(form, metadata), request_tokens(form, metadata))}


def settings(form: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read a task's parameters out of lm-eval's metadata (see `parameters.resolve`)."""
    known = parameters(form)
    given = pick_parameters(form, known, tuple(COUNTS.values()), metadata)
    return resolve(form, load_task_yaml(task_files()[form], resolve=False)["metadata"], given)


def request_tokens(form: str, metadata: Mapping[str, Any]) -> RequestTokens:
    """Load what counts a request's tokens, as the metadata says.

    Raises:
        TaskParameterError: No tokenizer is named, or it cannot be used.
    """
    names = [metadata[key] for key in _TOKENIZER_KEYS if isinstance(metadata.get(key), str) and metadata[key]]
    if not names:
        raise TaskParameterError(
            f"{form} counts its lengths in the model's own tokens and was told no tokenizer: give "
            "--metadata tokenizer=PATH (or --model_args pretrained=PATH) to lm-eval, or tokenizer=PATH to "
            "task_spec()."
        )
    return RequestTokens.load(
        names[0],
        apply_chat_template=bool(metadata.get("apply_chat_template", False)),
        revision=metadata.get("revision"),
        trust_remote_code=bool(metadata.get("trust_remote_code", False)),
        add_bos_token=metadata.get("add_bos_token"),
    )


def documents(form: str, values: Mapping[str, Any], tokens: RequestTokens) -> datasets.Dataset:
    """Build every document of the grid, in the order length, depth, sample.

    Args:
        form: Task name.
        values: Resolved parameters.
        tokens: Counts a request's tokens.
    """
    haystack = open_haystack(values)
    rows = [
        document(form, values, length, index, sample, haystack, tokens)
        for length in values["lengths"]
        for index in range(len(values["depths"]))
        for sample in range(values["samples"])
    ]
    return datasets.Dataset.from_list(rows, split=datasets.Split.TEST)


def open_haystack(values: Mapping[str, Any]) -> Haystack:
    """Open the haystack that the parameters name."""
    name = str(values["haystack"])
    if name == "generated":
        return GeneratedHaystack()
    if name == "noise":
        return NoiseHaystack()
    if name == "needles":
        return DistractorHaystack(lambda draw: draw_distractor(draw, values["needle"], values["key"]))
    return load_text(name.removeprefix("text:"))


def document(
    form: str,
    values: Mapping[str, Any],
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
        form: Task name.
        values: Resolved parameters.
        length: Tokens of the request, reply budget included.
        depth_index: Which of the depths.
        sample: Which sample of the cell.
        haystack: Source of filler.
        tokens: Counts a request's tokens.

    Raises:
        TaskParameterError: The length cannot hold the request, or the haystack cannot fill it.
    """
    seed = derive_seed(values["seed"], form, length, depth_index, sample)
    depth = float(values["depths"][depth_index])
    for attempt in range(20):
        facts = _draw(form, values, Draw(seed, "facts", attempt))
        depths = _needle_depths(depth, len(facts.needles), Draw(seed, "depths"))
        filled = _fill(form, values, length, seed, facts, depths, haystack, tokens)
        filler = facts_removed(filled.layout.context, facts)
        if not any(mark in filler for mark in facts.marks):
            break
    else:
        raise TaskParameterError(
            f"{form}: haystack = {values['haystack']!r} already holds the needle's keys or values; "
            "take another text."
        )

    start = filled.text.find(filled.layout.context)
    if start < 0:
        raise TaskParameterError(
            f"{form}: the chat template changes the text of messages, so the needle's place cannot be told; "
            "run this model without its chat template."
        )
    count, spans = tokens.spans(filled.text, [(start + a, start + b) for a, b in filled.layout.spans])
    return {
        "id": f"{form}:L{length}:D{depth:g}:S{sample}",
        "input": facts.prompt(filled.layout.context),
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
        "new_tokens": values["new_tokens"],
    }


def facts_removed(context: str, facts: Facts) -> str:
    """Take the needles out of a context: what is left is filler."""
    for needle in facts.needles:
        context = context.replace(needle, "", 1)
    return context


def _draw(form: str, values: Mapping[str, Any], draw: Draw) -> Facts:
    count = values.get(COUNTS.get(form, ""), 1)
    keys = count if form in ("needle_multikey", "needle_multiquery") else 1
    return draw_facts(
        draw,
        needle=values["needle"],
        key=values["key"],
        keys=keys,
        values=count if form == "needle_multivalue" else 1,
        queries=count if form == "needle_multiquery" else 1,
    )


def _needle_depths(depth: float, needles: int, draw: Draw) -> list[float]:
    """The first needle stands at the cell's depth, the others anywhere."""
    return [depth, *(100 * draw.unit() for _ in range(needles - 1))]


def _fill(
    form: str,
    values: Mapping[str, Any],
    length: int,
    seed: int,
    facts: Facts,
    depths: list[float],
    haystack: Haystack,
    tokens: RequestTokens,
) -> Filled:
    budget = length - values["new_tokens"]

    def request(context: str) -> str:
        return tokens.render(facts.prompt(context), facts.prefix)

    def stretch_of(characters: int) -> tuple[str, bool]:
        stretch = haystack.stretch(Draw(seed, "filler"), characters, facts.marks)
        return stretch.text, stretch.complete

    # A first look at the filler tells how many characters a token has; a tenth more than needed leaves room
    # to cut.
    probe = stretch_of(4000)[0][:4000]
    ratio = len(probe) / max(len(tokens.encode(probe, special=False).ids), 1)
    characters = int(max(budget, 1) * ratio * 1.1) + 500
    while True:
        text, complete = stretch_of(characters)
        try:
            filled = fill(text, haystack, facts.needles, depths, budget, tokens, request)
        except TooShortError as error:
            shortest = error.args[0] + values["new_tokens"]
            raise TaskParameterError(
                f"{form}: length {length} is too short: without any filler the request takes "
                f"{error.args[0]} of this tokenizer's tokens, and the reply {values['new_tokens']}. "
                f"Use lengths of at least {shortest}, better a few hundred more, or a smaller new_tokens."
            ) from None
        if not filled.exhausted:
            return filled
        if complete:
            missing = budget - filled.tokens
            raise TaskParameterError(
                f"{form}: haystack = {values['haystack']!r} is shorter than the length: it holds "
                f"{filled.filler_tokens:,} tokens, and a request of {length:,} needs about "
                f"{filled.filler_tokens + missing:,}. Add text, use shorter lengths, or take "
                "haystack = generated; the text is never repeated."
            )
        characters = int(characters * 1.5)
