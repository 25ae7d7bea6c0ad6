"""The project's own filler: an endless, seeded stream of English-like prose.

Benchmarks that need a text file or a download cannot run offline; a repeated sentence makes retrieval too
easy. This stream never repeats itself for practical purposes, holds no digits and no words of a needle, and
costs about a second per ten million characters.
"""

import re
from collections.abc import Callable, Iterator

from nsa_tasks._random import Draw
from nsa_tasks.haystack import lexicon

_SLOT = re.compile(r"\{(a:)?(\w+)\}")


def _split(block: str) -> tuple[str, ...]:
    return tuple(item for line in block.splitlines() for item in line.split("|"))


_SLOTS = (
    *("person", "plural_person", "thing", "plural_thing", "place", "adjective", "verb", "move", "state"),
    *("weather", "time", "manner", "opinion", "topic", "keep"),
)
_LISTS = {name: _split(getattr(lexicon, name.upper())) for name in _SLOTS}

# A pattern becomes literal and slot parts once, since a 128k-token haystack has thousands of sentences.
_Part = str | tuple[tuple[str, ...], bool, bool]  # literal, or (words, article before it, capital)


def _compile(pattern: str) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    end = 0
    for match in _SLOT.finditer(pattern):
        if match.start() > end:
            parts.append(pattern[end : match.start()])
        slot = match[2]
        parts.append((_LISTS[slot.lower()], bool(match[1]), slot[0].isupper()))
        end = match.end()
    parts.append(pattern[end:])
    return tuple(parts)


_PATTERNS = tuple(_compile(pattern) for pattern in _split(lexicon.PATTERNS))


def _sentence(choice: Callable[..., str], pattern: tuple[_Part, ...]) -> str:
    words = []
    for part in pattern:
        if isinstance(part, str):
            words.append(part)
            continue
        items, article, capital = part
        word = choice(items)
        if article:
            word = ("an " if word[0] in "aeiou" else "a ") + word
        words.append(word[0].upper() + word[1:] if capital else word)
    return "".join(words)


def sentences(draw: Draw) -> Iterator[str]:
    """Yield sentences without end."""
    while True:
        yield _sentence(draw.choice, draw.choice(_PATTERNS))


def generate_text(draw: Draw, characters: int) -> str:
    """Generate prose in paragraphs of three to eight sentences.

    Args:
        draw: Where the randomness comes from; the same stream gives the same text.
        characters: The text is at least this long, and ends with a whole sentence.
    """
    stream = sentences(draw)
    pieces = []
    length = 0
    while length < characters:
        paragraph = " ".join(next(stream) for _ in range(3 + draw.below(6)))
        pieces.append(paragraph)
        length += len(paragraph) + 2
    return "\n\n".join(pieces)
