"""What the needle tasks take."""

from collections.abc import Mapping
from typing import Any

from nsa_tasks._parameters import (
    Parameter,
    TaskParameterError,
    one_of,
    read_depths,
    read_lengths,
    read_parameters,
    whole_number,
)
from nsa_tasks.haystack import text_files

# Reply budget in tokens for one answer. Digits may be one token each and short words two or three, and a chat
# model likes to put a few tokens around the answer: 7 digits, 36 characters of a uuid, two words, eleven
# words.
ANSWER_TOKENS = {"number": 16, "uuid": 48, "word": 24, "sentence": 64}

# The parameter that says how many needles a task hides.
COUNTS = {
    "needle_multikey": "num_keys",
    "needle_multivalue": "num_values",
    "needle_multiquery": "num_queries",
}


def _read_haystack(value: object) -> str:
    if isinstance(value, str) and (
        value in ("generated", "noise", "needles") or (value.startswith("text:") and value[5:].strip())
    ):
        return value
    raise ValueError(
        "expected generated, noise, needles, or text:PATH with a .txt file or a folder of them, "
        "such as text:essays/"
    )


def _read_new_tokens(value: object) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return whole_number(1, 100_000)(value)
    except ValueError:
        raise ValueError('expected "auto" or a whole number of tokens from 1') from None


_COMMON = (
    Parameter(
        name="lengths",
        unit="tokens",
        help="request lengths, reply budget included; a list, k = 1024",
        read=read_lengths,
    ),
    Parameter(
        name="depths",
        unit="percent",
        help="where the needle stands: a count of even steps from 0 to 100, or a list",
        read=read_depths,
    ),
    Parameter(
        name="samples",
        unit="samples per cell",
        help="samples of each length and depth",
        read=whole_number(1, 100_000),
    ),
    Parameter(
        name="seed",
        unit="number",
        help="every sample's own seed is derived from it",
        read=whole_number(-(2**63), 2**63 - 1),
    ),
    Parameter(
        name="haystack",
        unit="name",
        help="generated | noise | needles | text:PATH (.txt or folder)",
        read=_read_haystack,
    ),
    Parameter(
        name="needle",
        unit="name",
        help="what is hidden: number | uuid | word | sentence (single only)",
        read=one_of("number", "uuid", "word", "sentence"),
    ),
    Parameter(
        name="key", unit="name", help="what it is hidden under: words | uuid", read=one_of("words", "uuid")
    ),
    Parameter(
        name="new_tokens",
        unit="tokens",
        help="reply budget, inside the length; auto = 16 a number, 48 a uuid, 24 a word, 64 the sentence",
        read=_read_new_tokens,
    ),
)

_COUNT_HELP = {
    "num_keys": "needles under different keys, one of them asked for",
    "num_values": "values under one key, all of them asked for",
    "num_queries": "keys, all of them asked for",
}


def parameters(task: str) -> tuple[Parameter, ...]:
    """List what a task takes.

    Args:
        task: "needle_single", "needle_multikey", "needle_multivalue" or "needle_multiquery".
    """
    name = COUNTS.get(task)
    if name is None:
        return _COMMON
    return (
        *_COMMON,
        Parameter(name=name, unit="needles", help=_COUNT_HELP[name], read=whole_number(1, 10_000)),
    )


def resolve(task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Read a task's parameters, fill in defaults, and check what they say together.

    Returns:
        Plain values: lengths as ints, depths as percentages, new_tokens as a number.

    Raises:
        TaskParameterError: One message for the first thing wrong.
    """
    values = read_parameters(task, parameters(task), defaults, given)
    if values["needle"] == "sentence":
        if task != "needle_single":
            raise TaskParameterError(
                f"{task}: needle = 'sentence': only needle_single hides a sentence; "
                "take number, uuid or word."
            )
        if values["haystack"] == "needles":
            raise TaskParameterError(
                f"{task}: needle = 'sentence' has no distractors, so haystack = 'needles' "
                "does not go with it; take another haystack."
            )
    if values["haystack"].startswith("text:"):
        text_files(values["haystack"].removeprefix("text:"))  # a wrong path is told before a model loads
    if values["new_tokens"] == "auto":
        answers = values[COUNTS[task]] if task in ("needle_multivalue", "needle_multiquery") else 1
        values["new_tokens"] = ANSWER_TOKENS[values["needle"]] * answers
    return values


def estimate(values: Mapping[str, Any]) -> tuple[int, int]:
    """Count samples, and the tokens that they take at most (each request with its reply fills its length)."""
    cells = len(values["depths"]) * values["samples"]
    return len(values["lengths"]) * cells, sum(values["lengths"]) * cells
