"""What can be done to a prompt or assumed of a model that moves a score, and how it is said, in one place.

A kind of event is one entry of `KINDS`: the engine may then record it (`nsa_eval.store.AuditEvent`), and the
terminal, the comparison's notes and the report say it in its words. A kind that isn't here, from the run
directory of another version, is shown by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# As many models get a line of their own where the same is said of each; audit.json names all.
_NAMED_MODELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditKind:
    """One kind of event."""

    title: str
    """What the report counts: a plural noun."""
    sentence: str
    """What the terminal says of a model; `{n}` is the number of events."""
    single: str = ""
    """The same of one event, for sentences that count."""
    of_model: bool = False
    """Happens once to a model, not to each prompt."""
    in_comparisons: bool = True
    """A comparison of the model with another notes it: what may have moved one of the two scores alone."""
    always_shown: bool = True
    """The report says "none" where there was none: for what a reader would ask about."""

    def say(self, n: int) -> str:
        """The sentence about `n` events."""
        return self.single if n == 1 and self.single else self.sentence.format(n=f"{n:,}")


KINDS: dict[str, AuditKind] = {
    "truncated": AuditKind(
        title="Prompts cut to fit the model's length",
        sentence="{n} prompts were cut to fit",
        single="1 prompt was cut to fit",
    ),
    "cut_by_task": AuditKind(
        title="Prompts that their task cut, by its own protocol",
        sentence="{n} prompts were cut by their task, as its protocol says",
        single="1 prompt was cut by its task, as its protocol says",
        always_shown=False,
        in_comparisons=False,  # prompts are compared as they were asked
    ),
    "double_bos": AuditKind(
        title="Prompts that brought their own beginning-of-sequence token",
        sentence="{n} prompts brought their own beginning-of-sequence token",
        single="1 prompt brought its own beginning-of-sequence token",
    ),
    "default_max_length": AuditKind(
        title="Models whose longest length was assumed",
        sentence="its config names no longest length; a default was taken",
        of_model=True,
    ),
    "clock": AuditKind(
        title="Models whose chat template prints the day's date",
        sentence="its chat template prints the day's date, so prompts of another day are others",
        of_model=True,
        always_shown=False,
    ),
    "unaudited": AuditKind(
        title="Models of which nothing could be recorded",
        sentence="asked through a class of lm-eval's, which records neither cut prompts nor added tokens",
        of_model=True,
        always_shown=False,
    ),
    "bos_unscored": AuditKind(
        title="Texts whose beginning-of-sequence token was given, not scored as lm-eval's hf does",
        sentence="{n} texts weren't scored on their beginning-of-sequence token, as lm-eval's hf does",
        single="1 text wasn't scored on its beginning-of-sequence token, as lm-eval's hf does",
        always_shown=False,
    ),
    "eos_left_out": AuditKind(
        title="Models whose tokenizer appends an end-of-sequence token, which was left out",
        sentence="its tokenizer ends every text in an end-of-sequence token, which was left out of prompts "
        "(lm-eval's hf keeps it)",
        of_model=True,
        always_shown=False,
    ),
    "sampled": AuditKind(
        title="Tasks asked in part, evenly over the cells of their grid",
        sentence="{n} tasks were asked in part (limit), evenly over the cells of their grid",
        single="1 task was asked in part (limit), evenly over the cells of its grid",
        of_model=True,
        always_shown=False,
        in_comparisons=False,  # documents are compared as they were asked
    ),
    "setting": AuditKind(
        title="Settings that did nothing, or took the place of a task's own",
        sentence="{n} settings did nothing, or took the place of a task's own",
        single="1 setting did nothing, or took the place of a task's own",
        of_model=True,
        always_shown=False,
    ),
    "imported": AuditKind(
        title="What was decided of another trainer's checkpoint that its files don't tell",
        sentence="another trainer's checkpoint, read with {n} remarks on what its files don't tell",
        single="another trainer's checkpoint, read with 1 remark on what its files don't tell",
        of_model=True,
        always_shown=False,
    ),
    "trained_sparse": AuditKind(
        title="Where transformers' code of a model that was trained sparse isn't its authors'",
        sentence="trained sparse, and run by transformers' code with {n} remarks on its authors'",
        single="trained sparse, and run by transformers' code with 1 remark on its authors'",
        of_model=True,
        always_shown=False,
    ),
    "uncached": AuditKind(
        title="Models whose replies were made without a cache",
        sentence="its replies were made without a cache, by reading each row again for every token",
        of_model=True,
        always_shown=False,
    ),
    "method": AuditKind(
        title="What a sparse method does beside its definition",
        sentence="its sparse method comes with {n} remarks",
        single="its sparse method comes with 1 remark",
        of_model=True,
        always_shown=False,
        in_comparisons=False,  # it is what is compared
    ),
}


def kind_of(name: str) -> AuditKind:
    """The kind of that name, or one made of the name where there is none."""
    words = name.replace("_", " ")
    return KINDS.get(name) or AuditKind(title=words, sentence="{n} x " + words, always_shown=False)


def describe(event: Mapping[str, Any]) -> str:
    """An event in words: its own sentence, or what it did."""
    if event.get("detail"):
        return str(event["detail"])
    words = _name(event).replace("_", " ")
    before, after = event.get("before"), event.get("after")
    return words if before is None or after is None else f"{words}: {before:,} to {after:,} tokens"


def page_notes(events: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    """A line per model and event, or one for all models to which the same was done, where they are many.

    Args:
        events: Each with the label of its model.
    """
    done: dict[str, list[str]] = {}
    for model, event in events:
        where = f"{event['task']}, document {event.get('doc_id')}" if event.get("task") else ""
        done.setdefault(": ".join(part for part in (where, describe(event)) if part), []).append(model)
    return tuple(
        ": ".join(part for part in (named, words) if part)
        for words, models in done.items()
        for named in _named(models, "")
    )


def _named(models: list[str], each: str) -> list[str]:
    """Models one by one, or many of them as the first and how many more, with `each` behind."""
    distinct = list(dict.fromkeys(models))
    if len(distinct) <= _NAMED_MODELS:
        return models
    return [f"{distinct[0]} and {len(distinct) - 1} more{each}"]


def terminal_notes(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line per model and kind, or one for all models of which the same is said, where they are many.

    Args:
        events: Each with its `model`.
    """
    counts = Counter((str(event["model"]), _name(event)) for event in events)
    saying: dict[str, list[str]] = {}
    for (model, kind), n in counts.items():
        saying.setdefault(f"{kind_of(kind).say(n)} (audit.json)", []).append(model)
    notes = []
    for words, models in saying.items():
        notes += [f"{model}: {words}" for model in _named(models, ", each")]
    return notes


def comparison_notes(model: str, events: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line per kind for the notes of a comparison, sorted by kind."""
    counts = Counter(_name(event) for event in events)
    return [
        f"{model}: {kind_of(kind).say(n)}"
        for kind, n in sorted(counts.items())
        if kind_of(kind).in_comparisons
    ]


def _name(event: Mapping[str, Any]) -> str:
    return str(event.get("kind", "event"))
