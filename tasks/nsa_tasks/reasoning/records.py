"""The problems: where they come from, and what of a record is the problem and what the answer."""

import hashlib
from collections.abc import Mapping
from typing import Any

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import Data, DataSource

_ALIASES = {"problem": ("Problem", "question", "prompt"), "answer": ("Answer",)}
_FIELDS = ("problem", "answer")

SOURCES: dict[str, DataSource] = {
    "reasoning_aime24": DataSource(
        file="reasoning/aime_2024.jsonl",
        hub="Maxwell-Jia/AIME_2024",
        split="train",
        how="Put the 30 problems there, a line of problem and answer each, or let the hub be asked.",
        fields=_FIELDS,
        aliases=_ALIASES,
        licence="problems: copyright MAA",
    ),
    "reasoning_aime25": DataSource(
        file="reasoning/aime_2025.jsonl",
        hub="math-ai/aime25",
        how="Put the 30 problems there, a line of problem and answer each, or let the hub be asked.",
        fields=_FIELDS,
        aliases=_ALIASES,
        licence="problems: copyright MAA",
    ),
    "reasoning_math500": DataSource(
        file="reasoning/math500.jsonl",
        hub="HuggingFaceH4/MATH-500",
        how="Put MATH-500's test.jsonl of the hub's HuggingFaceH4/MATH-500 there, or let the hub be asked.",
        fields=_FIELDS,
        aliases=_ALIASES,
        licence="MIT (MATH)",
    ),
    "reasoning_gsm8k": DataSource(
        file="reasoning/gsm8k_test.jsonl",
        hub="openai/gsm8k",
        config="main",
        how="Put test.jsonl of github.com/openai/grade-school-math there, or let the hub be asked.",
        fields=_FIELDS,
        aliases=_ALIASES,
        licence="MIT",
    ),
}
"""By task. Two hubs name AIME's fields differently, and local copies have names of their own."""


def documents(task: str, data: Data) -> list[dict[str, Any]]:
    """Turn records into documents: `id`, `problem`, `answer`.

    A problem is known by its text, so that copies of a data set from the hub and from a file pair.

    Raises:
        TaskDataError: A record whose problem or answer can't be used, or that is there twice; by its place.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, record in zip(data.places, data.records, strict=True):
        problem, answer = _problem(place, record), _answer(task, place, record)
        name = f"{task}:{hashlib.sha256(problem.encode()).hexdigest()[:12]}"
        if name in found:
            raise TaskDataError(f"{place}: the same problem stands there twice: {problem[:60]!r}.")
        found[name] = {"id": name, "problem": problem, "answer": answer}
    return list(found.values())


def _problem(place: str, record: Mapping[str, Any]) -> str:
    text = record["problem"]
    if not isinstance(text, str) or not text.strip():
        raise TaskDataError(f"{place}: its problem is no text: {text!r}.")
    # Some copies hold another harness's whole prompt; an instruction's empty box is in no problem.
    lines = text.strip().split("\n")
    while len(lines) > 1 and r"\boxed{}" in lines[-1]:
        lines.pop()
    return "\n".join(lines).strip()


def _answer(task: str, place: str, record: Mapping[str, Any]) -> str:
    given = record["answer"]
    if isinstance(given, bool) or not isinstance(given, int | str) or not str(given).strip():
        raise TaskDataError(f"{place}: its answer is neither text nor a whole number: {given!r}.")
    answer = str(given).strip()
    if task != "reasoning_gsm8k":
        return answer
    # A worked solution with calculator marks <<1+1=2>>, and after four hashes the number, at times 1,234.
    _, hashes, number = answer.rpartition("####")
    number = number.strip().replace(",", "")
    if not hashes or not number:
        raise TaskDataError(f"{place}: its answer has no '#### number' at its end: ...{answer[-60:]!r}.")
    return number
