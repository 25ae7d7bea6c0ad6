"""Scoring replies to needle tasks: is the answer in the reply?"""

from collections.abc import Mapping, Sequence
from typing import Any

from nsa_tasks.string_match import clean, string_match_all

__all__ = ["clean", "contains", "describe_failure", "process_many", "process_single", "string_match_all"]


def contains(reply: str, answer: str) -> float:
    """Score by exact containment: 1.0 when the answer stands in the reply, letter case included."""
    return float(answer in reply)


def describe_failure(
    reply: str, answers: Sequence[str], others: Sequence[str], *, exact: bool = False
) -> str:
    """Say what a reply holds instead of the answers, or besides some of them; nothing where all are there.

    Args:
        reply: The reply.
        answers: What a right reply contains.
        others: Values in the prompt that nobody asked for.
        exact: As `contains` looks for them, not as `string_match_all` does.
    """

    def held(values: Sequence[str]) -> int:
        text = reply if exact else clean(reply).lower()
        return sum((value if exact else value.lower()) in text for value in values)

    found = held(answers)
    if found == len(answers):
        return ""
    parts = [f"{found} of {len(answers)} values"] if found else []
    if held(others):
        parts.append("another needle's value")
    return " and ".join(parts) or ("something else" if clean(reply) else "nothing")


def process_single(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a sample with one needle (lm-eval's `process_results`)."""
    return {"score": contains(results[0], doc["outputs"][0])}


def process_many(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score a sample of the multi-key, multi-value and multi-query forms (lm-eval's `process_results`)."""
    return {"score": string_match_all(results[0], doc["outputs"])}
