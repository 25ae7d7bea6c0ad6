"""The words of a needle request: needle sentences, question, answer prefix.

The wording is RULER's (arXiv 2404.06654); the `sentence` needle is the classic one about San Francisco.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nsa_tasks._random import Draw
from nsa_tasks.needle.words import ADJECTIVES, NOUNS

# needle parameter -> RULER's plural name of the kind
KINDS = {"number": "numbers", "uuid": "uuids", "word": "words"}

SANDWICH_QUESTION = "What is the best thing to do in San Francisco?"
SANDWICH_PREFIX = "The best thing to do in San Francisco is"
SANDWICH_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"

_HEAD = (
    "Some special magic {kinds} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kinds} afterwards.\n"
)
_ASK_ONE = "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
_ASK_ALL = "\nWhat are all the special magic {kinds} for {query} mentioned in the provided text?"
_PREFIX_ONE = "The special magic {kind} for {query} mentioned in the provided text is"
_PREFIX_ALL = "The special magic {kinds} for {query} mentioned in the provided text are"
_NEEDLE = "One of the special magic {kinds} for {key} is: {value}."

# No value holds a space or a full stop.
_VALUE = re.compile(r"One of the special magic \w+ for [^.\n]{1,80}? is: ([^\s.]+)\.")

_SANDWICH_HEAD = (
    "Some information is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about it afterwards.\n"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one sample hides and asks."""

    needles: tuple[str, ...]
    """Needle sentences; the first one stands at the cell's depth."""

    answers: tuple[str, ...]
    """What a right reply contains."""

    head: str
    """Prompt before the haystack."""

    question: str
    """Prompt after the haystack."""

    prefix: str
    """Start of the answer, given to the model."""

    marks: tuple[str, ...]
    """Keys and values: none may stand in the filler."""

    def prompt(self, context: str) -> str:
        """Put the prompt around the haystack."""
        return f"{self.head}{context}{self.question}"


def draw_key(draw: Draw, key: str) -> str:
    """Draw a key: two words, or a uuid."""
    return draw.uuid4() if key == "uuid" else f"{draw.choice(ADJECTIVES)} {draw.choice(NOUNS)}"


def draw_value(draw: Draw, needle: str) -> str:
    """Draw a value: 7 digits, a uuid, or two words with a hyphen, which no prose holds by chance."""
    if needle == "number":
        return draw.digits(7)
    if needle == "uuid":
        return draw.uuid4()
    return f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}"


def draw_distractor(draw: Draw, needle: str, key: str) -> str:
    """Draw a needle sentence that nobody asks for."""
    return _NEEDLE.format(kinds=KINDS[needle], key=draw_key(draw, key), value=draw_value(draw, needle))


def values_in(text: str) -> list[str]:
    """List the values of all needle sentences in a text, asked for or not."""
    return _VALUE.findall(text)


def draw_facts(
    draw: Draw, *, needle: str, key: str, keys: int = 1, values: int = 1, queries: int = 1
) -> Facts:
    """Draw the needles of one sample.

    Args:
        draw: The sample's stream of draws.
        needle: "number", "uuid", "word", or "sentence" (which takes no keys and values).
        key: "words" or "uuid".
        keys: Keys hidden.
        values: Values hidden for each key.
        queries: Keys asked for, the first ones; their values are the answers.
    """
    if needle == "sentence":
        return Facts(
            needles=(f"{SANDWICH_PREFIX} {SANDWICH_ANSWER}.",),
            answers=(SANDWICH_ANSWER,),
            head=_SANDWICH_HEAD,
            question=f"\n{SANDWICH_QUESTION}",
            prefix=SANDWICH_PREFIX,
            marks=(SANDWICH_ANSWER,),
        )
    marks: list[str] = []

    def new(kind: str, how: str) -> str:
        """Draw until no key or value of the sample is part of another."""
        while True:
            text = draw_key(draw, how) if kind == "key" else draw_value(draw, how)
            if not any(text in mark or mark in text for mark in marks):
                marks.append(text)
                return text

    hidden = [(new("key", key), [new("value", needle) for _ in range(values)]) for _ in range(keys)]
    kinds = KINDS[needle]
    asked = hidden[:queries]
    names = {"kind": kinds[:-1], "kinds": kinds, "query": _listing([name for name, _ in asked])}
    one = queries * values == 1
    return Facts(
        needles=tuple(
            _NEEDLE.format(kinds=kinds, key=name, value=value) for name, held in hidden for value in held
        ),
        answers=tuple(value for _, held in asked for value in held),
        head=_HEAD.format(**names),
        question=(_ASK_ONE if one else _ASK_ALL).format(**names),
        prefix=(_PREFIX_ONE if one else _PREFIX_ALL).format(**names),
        marks=tuple(marks),
    )


def _listing(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
