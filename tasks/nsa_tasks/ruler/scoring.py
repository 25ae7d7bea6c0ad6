"""Scoring replies to RULER tasks (lm-eval's `process_results`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from nsa_tasks.string_match import clean, string_match_all, string_match_part


def process_all(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The share of the answers that the reply holds: all tasks but question answering."""
    return {"score": string_match_all(results[0], doc["outputs"])}


def process_part(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the reply holds one of the answers: question answering."""
    return {"score": string_match_part(results[0], doc["outputs"])}


def describe_failure(reply: str, answers: Sequence[str], *, any_counts: bool = False) -> str:
    """Say what a reply that isn't fully right holds instead; nothing where it is right.

    Args:
        reply: The reply.
        answers: The answers.
        any_counts: One of them is enough.
    """
    text = clean(reply).lower()
    found = sum(answer.lower() in text for answer in answers)
    if found == len(answers) or (any_counts and found):
        return ""
    if found:
        return f"{found} of {len(answers)} answers"
    return "something else" if text else "nothing"
