"""LongBench v2's scores: the letter that a reply names, and the columns that a question counts in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)
GUESS = 0.25
"""What a reply without a letter is worth where it is `compensated`: one choice of four."""
LENGTHS = ("short", "medium", "long")
"""Columns by the text's length class; what is neither of the first two counts as long, as officially."""


def extract(reply: str) -> str | None:
    """Find the letter that a reply names: asterisks dropped, in parentheses first, then without.

    Case and wording have to be exact, and of several the first counts, but one in parentheses before any
    other: "The correct answer is A. No: The correct answer is (C)" names C.
    """
    text = reply.replace("*", "")
    for form in _NAMED:
        if match := form.search(text):
            return match[1]
    return None


def score(reply: str, answer: str, *, compensated: bool = False) -> float:
    """Score a reply: 1 for the right letter, 0 for another, 0 or `GUESS` for none.

    Args:
        reply: The reply, not empty.
        answer: The right letter.
        compensated: Whether no letter counts as a guess.
    """
    found = extract(reply)
    return GUESS if found is None and compensated else float(found == answer)


def columns(doc: Mapping[str, Any]) -> tuple[str, str, str]:
    """The columns that a question counts in: all, its difficulty, its length class."""
    length = doc["length_class"] if doc["length_class"] in LENGTHS[:2] else LENGTHS[2]
    return "overall", "easy" if doc["difficulty"] == "easy" else "hard", length


def score_document(
    doc: Mapping[str, Any], dialogues: Sequence[tuple[str, ...]], *, compensated: bool, requests: int
) -> dict[str, float]:
    """Score a question's replies.

    Officially a question with an empty reply is written to no file, and so counts in no column; here that is
    a column itself, `answered`. Several replies to a question are averaged over those that count.

    Args:
        doc: The question.
        dialogues: Its replies, each with the reply to its follow-up.
        compensated: Whether no letter counts as a guess.
        requests: Replies that make a full dialogue.

    Returns:
        Of each column that the question counts in its score; `answered`, whether it counts at all; and
        `extracted`, whether a letter was found.
    """
    finals = [found[-1] for found in dialogues if len(found) == requests and "" not in found]
    scores = {"answered": len(finals) / len(dialogues)}
    if finals:
        mean = sum(score(reply, doc["answer"], compensated=compensated) for reply in finals) / len(finals)
        scores = dict.fromkeys(columns(doc), mean) | scores
        scores["extracted"] = sum(extract(reply) is not None for reply in finals) / len(finals)
    return scores


def describe(dialogue: tuple[str, ...], answer: str) -> str:
    """Say what a dialogue holds instead of the right letter, in a few words; nothing where it is right."""
    if "" in dialogue:
        return "empty reply: not counted"
    found = extract(dialogue[-1])
    if found is None:
        return "no answer in the form asked for"
    return "" if found == answer else f"answers {found}"
