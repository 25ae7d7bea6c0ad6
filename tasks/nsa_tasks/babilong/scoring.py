"""BABILong's rule: a reply is right if its one label is the target."""

from collections.abc import Mapping, Sequence
from typing import Any

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")
LABELS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _PLACES),
    "qa5": ("bill", "fred", "jeff", "mary", "apple", "football", "milk"),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _YES_NO),
    "qa7": ("none", "one", "two", "three"),
    "qa8": ("nothing", "apple", "football", "milk"),
    "qa10": (*_YES_NO, "maybe"),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "garden", "kitchen", "bored", "hungry", "thirsty", "tired"),
}
"""What each task can be answered with, in lower case (`TASK_LABELS` of the official metrics)."""

_ENDS = (".", "<context>", "<example>")
"""A reply ends at the first of each. The official code cuts at "Question" too, but once the reply is in lower
case, so that this cut never acts; it doesn't here either."""
_SINGLE = 3
"""Characters: a target with a comma that is longer names several labels (qa8), a shorter one is itself a
label (qa19's "s,e")."""


def clean(reply: str) -> str:
    """Reduce a reply to its first sentence, in lower case, before any example that it goes on with."""
    text = reply.lower()
    for end in _ENDS:
        text = text.partition(end)[0]
    return text


def found_labels(task: str, reply: str, question: str) -> list[str]:
    """List the labels that a reply names, but those that its question names too: these are never answers.

    Labels are looked for as parts of the text: "not" holds "no", "someone" holds "one".

    Args:
        task: "qa1" to "qa20".
        reply: The reply as it came.
        question: The question.
    """
    text, asked = clean(reply), question.lower()
    return [label for label in LABELS[task] if label in text and label not in asked]


def is_right(task: str, target: str, reply: str, question: str) -> bool:
    """Whether the labels that a reply names are exactly those of the target.

    Args:
        task: "qa1" to "qa20".
        target: The answer; of qa8 it may be several, with commas between.
        reply: The reply as it came.
        question: The question.
    """
    wanted = target.lower()
    parts = wanted.split(",") if "," in wanted and len(wanted) > _SINGLE else [wanted]
    labels = found_labels(task, reply, question)
    # Counted with repeats, as officially: a target that named a part twice could not be met.
    return all(part in labels for part in parts) and len(labels) == len(parts)


def describe(task: str, target: str, reply: str, question: str) -> str:
    """Say what a reply names instead of the target, in a few words; nothing where it is right."""
    if is_right(task, target, reply, question):
        return ""
    if not reply.strip():
        return "nothing"
    labels = found_labels(task, reply, question)
    return f"names {', '.join(labels)}" if labels else "names no answer"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a sample (lm-eval's `process_results`)."""
    return {"score": float(is_right(doc["qa"], doc["target"], results[0], doc["question"]))}
