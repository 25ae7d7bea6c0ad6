"""The haystack of the essay tasks: its first n words, and the sentences that they make.

Every sample of the official generator has the same text in its haystack, from the beginning. A text that is
shorter than the request is repeated, as officially; the generated one goes on for ever.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from nsa_tasks._errors import TaskDataError, TaskParameterError
from nsa_tasks._random import Draw
from nsa_tasks.data import load_data, read_records
from nsa_tasks.haystack import generate_text, load_text, sentence_ends
from nsa_tasks.ruler.sources import ESSAYS, is_official_text

_MOST_WORDS = 1 << 28
"""Far more than the longest request has."""

Splitter = Callable[[str], list[str]]


class Words(Protocol):
    """A text as words."""

    name: str
    """What results call it: `data:`, `hub:` or `text:` with a hash, or `generated`."""

    def first(self, count: int) -> Sequence[str]:
        """The first `count` words."""
        ...


class TextWords:
    """A text of a fixed length, repeated where more is asked for."""

    def __init__(self, text: str, name: str) -> None:
        """Split a text at white space, as the official generator does."""
        self.name = name
        self._words = re.sub(r"\s+", " ", text).split(" ")

    def first(self, count: int) -> Sequence[str]:
        """The first words of the text, and of its copies after it."""
        if count > _MOST_WORDS:
            raise TaskParameterError(f"a haystack of {count:,} words is more than any request takes.")
        repeats = -(-count // len(self._words))
        return (self._words * repeats)[:count]


class GeneratedWords:
    """The project's own prose, the same for every task and seed: the official text is one, too."""

    name = "generated"

    def __init__(self) -> None:
        """Start with nothing made."""
        self._words: list[str] = []
        self._characters = 1 << 16

    def first(self, count: int) -> Sequence[str]:
        """The first words; prose is made anew, twice as long, where there are too few."""
        while len(self._words) < count:
            self._characters = max(2 * self._characters, 5 * min(count, _MOST_WORDS))
            self._words = generate_text(Draw("ruler", "essay"), self._characters).split()
        return self._words[:count]


_GENERATED = GeneratedWords()


def open_essay(essay: str, root: str) -> Words:
    """Open the text that the parameter `essay` names.

    Args:
        essay: "generated", "official" or "text:PATH" (a .txt file, a folder of them, or a .json file with the
            official `text`).
        root: The parameter `data_root`.

    Raises:
        TaskDataError: The text isn't there, or can't be read.
        TaskParameterError: `text:PATH` is none.
    """
    if essay == "generated":
        return _GENERATED
    if essay == "official":
        return _official(root)
    path = Path(essay.removeprefix("text:")).expanduser()
    if is_official_text(path):
        state = path.stat() if path.is_file() else None
        if state is None:
            raise TaskParameterError(f"essay {essay}: no such file (looked for {path.absolute()}).")
        return _json_text(path, max(state.st_mtime_ns, state.st_ctime_ns))
    text = load_text(str(path))
    return TextWords(text.text, text.name)


@lru_cache(maxsize=2)
def _official(root: str) -> Words:
    data = load_data(ESSAYS, root)
    return TextWords(" ".join(str(record["text"]) for record in data.records), data.name)


@lru_cache(maxsize=2)
def _json_text(path: Path, _state: int) -> Words:
    [record] = read_records(path, ("text",), at="")
    text = str(record["text"])
    return TextWords(text, f"text:{sha256(text.encode()).hexdigest()[:16]}")


def splitter(official: bool) -> Splitter:
    """How a text is cut into sentences: nltk's punkt officially, the project's own cuts otherwise.

    Raises:
        TaskDataError: `official`, and nltk or its data are not installed.
    """
    return _punkt() if official else cut_sentences


def cut_sentences(text: str) -> list[str]:
    """Cut a text where `haystack.sentence_ends` ends its sentences, white space between them dropped."""
    ends = sentence_ends(text).tolist()
    pieces = (text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True))
    return [piece for piece in pieces if piece]


def _punkt() -> Splitter:
    how = (
        'Install nltk and its data (pip install "nsa-eval[ruler]"; python -m nltk.downloader punkt_tab), or '
        "use protocol: offline, which cuts sentences by the project's own rule."
    )
    try:
        from nltk.tokenize import sent_tokenize  # slow to import, and needed by essays alone
    except ImportError:
        raise TaskDataError(
            f"protocol: official cuts essays into sentences with nltk, which is not installed. {how}"
        ) from None

    def split(text: str) -> list[str]:
        try:
            return list(sent_tokenize(text))
        except LookupError:
            raise TaskDataError(
                "protocol: official cuts essays into sentences with nltk's punkt, whose data are missing. "
                f"{how}"
            ) from None

    split("Are the data there?")
    return split
