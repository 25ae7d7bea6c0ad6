"""bAbI's stories, and the questions that BABILong makes of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsa_tasks._errors import TaskDataError

NAMES = {
    "qa1": "single-supporting-fact",
    "qa2": "two-supporting-facts",
    "qa3": "three-supporting-facts",
    "qa4": "two-arg-relations",
    "qa5": "three-arg-relations",
    "qa6": "yes-no-questions",
    "qa7": "counting",
    "qa8": "lists-sets",
    "qa9": "simple-negation",
    "qa10": "indefinite-knowledge",
    "qa11": "basic-coreference",
    "qa12": "conjunction",
    "qa13": "compound-coreference",
    "qa14": "time-reasoning",
    "qa15": "basic-deduction",
    "qa16": "basic-induction",
    "qa17": "positional-reasoning",
    "qa18": "size-reasoning",
    "qa19": "path-finding",
    "qa20": "agents-motivations",
}
"""bAbI's own names of the tasks."""

_LINE = re.compile(r"(\d+) ([^\t]*)(?:\t([^\t]*)\t(.*))?")


@dataclass(frozen=True, slots=True)
class Question:
    """One question with all that is known when it is asked."""

    facts: tuple[str, ...]
    """Every statement of its story that stands before it, in order; questions in between are left out."""
    text: str
    target: str
    supports: tuple[int, ...]
    """Which facts the answer follows from, as places in `facts`."""
    story: int
    """Number of its story in the file, from 0."""
    line: int
    """Its line in the file, from 1."""


def read_questions(text: str, place: str | Path) -> list[Question]:
    """Read a bAbI file: numbered lines, a story anew at each 1, question and answer parted by a tab.

    Args:
        text: Its content.
        place: Its name, for messages.

    Raises:
        TaskDataError: A line of another form, by its number; a file without a question.
    """
    found = list(_questions(text, place))
    if not found:
        raise TaskDataError(f"{place}: no question (a line with a tab and the answer): not a bAbI file.")
    return found


def _questions(text: str, place: str | Path) -> Iterator[Question]:
    facts: list[str] = []
    numbers: dict[int, int] = {}  # bAbI counts questions too: line number of the story to place in `facts`
    story = -1
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        match = _LINE.fullmatch(content.rstrip("\r"))
        if match is None:
            raise TaskDataError(
                f"{place}, line {line}: expected a number and a statement, or a question with a tab, its "
                "answer, a tab and the numbers of the facts that it follows from."
            )
        number = int(match[1])
        if number == 1:
            facts, numbers, story = [], {}, story + 1
        if story < 0:
            raise TaskDataError(f"{place}, line {line}: expected a story to begin with 1, got {number}.")
        if match[3] is None:
            numbers[number] = len(facts)
            facts.append(match[2].strip())
            continue
        supports = _supports(match[4], numbers, f"{place}, line {line}")
        yield Question(tuple(facts), match[2].strip(), match[3].strip(), supports, story, line)


def _supports(text: str, numbers: dict[int, int], place: str) -> tuple[int, ...]:
    try:
        return tuple(numbers[int(word)] for word in text.split())
    except (KeyError, ValueError):
        raise TaskDataError(f"{place}: expected the numbers of statements before it, got {text!r}.") from None


def most_lines(length: int) -> int | None:
    """Lines of a story, the question included, that a context of a length may have; None: any.

    The official builder allows one line for every 8 tokens, so that facts don't fill the context.

    Args:
        length: Tokens of the context; 0 or fewer is facts alone.
    """
    return length // 8 if length > 0 else None
