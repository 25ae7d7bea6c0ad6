"""Where filler comes from: generated prose, RULER's repeated sentences, distractor needles, text files."""

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._random import Draw
from nsa_tasks.haystack.cuts import LONGEST_WORD, sentence_ends
from nsa_tasks.haystack.generator import generate_text

_MOST_BYTES = 1 << 30
"""Of a `text:PATH` haystack: far more than the longest request takes, and little enough for the memory."""

# RULER's noise, one unit of it (arXiv 2404.06654, section 3).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of filler, longer than what one sample needs."""

    text: str
    complete: bool
    """True when the source has nothing beyond this text."""


class Haystack(Protocol):
    """A source of filler."""

    joiner: str
    """What stands between the filler and a needle."""

    whole_sentences: bool
    """Cut the filler only after a sentence; otherwise wherever `cut_points` allows, with a full stop."""

    @property
    def name(self) -> str:
        """What documents call it: two sources of one name hold the same filler."""
        ...

    def stretch(self, draw: Draw, characters: int, avoid: Collection[str]) -> Stretch:
        """Return at least `characters` characters from a place of the sample's own.

        Args:
            draw: The sample's stream of draws.
            characters: How much text is wanted.
            avoid: Strings (the sample's keys and values) that a distractor must not hold.
        """
        ...


class GeneratedHaystack:
    """The project's own endless prose."""

    name = "generated"
    joiner = " "
    whole_sentences = False

    def stretch(self, draw: Draw, characters: int, avoid: Collection[str]) -> Stretch:
        """Generate a stream of the sample's own."""
        return Stretch(generate_text(draw, characters), complete=False)


class NoiseHaystack:
    """RULER's repeated sentences; every sample starts at a sentence of its own."""

    name = "noise"
    joiner = " "
    whole_sentences = True

    def stretch(self, draw: Draw, characters: int, avoid: Collection[str]) -> Stretch:
        """Repeat the unit, one unit a line."""
        text = "\n".join([NOISE] * (characters // len(NOISE) + 2))
        starts = [0, *(sentence_ends(NOISE)[:-1] + 1)]
        return Stretch(text[draw.choice(starts) :], complete=False)


@dataclass(frozen=True)
class DistractorHaystack:
    """RULER's needle haystack: nothing but needles of the same kind with other keys."""

    make: Callable[[Draw], str]
    """Draws one distractor sentence."""

    name = "needles"
    joiner = "\n"
    whole_sentences = True

    def stretch(self, draw: Draw, characters: int, avoid: Collection[str]) -> Stretch:
        """Draw distractors, one a line, none with a key or value of the sample."""
        lines: list[str] = []
        length = 0
        while length < characters:
            sentence = self.make(draw)
            if any(text in sentence for text in avoid):
                continue
            lines.append(sentence)
            length += len(sentence) + 1
        return Stretch("\n".join(lines), complete=False)


@dataclass(frozen=True)
class TextHaystack:
    """A text of the user's own. It is never repeated: a text that is too short is an error."""

    text: str
    name: str
    """`text:` and a hash of the text. A path would make the same text elsewhere another data set, and tell
    whoever reads the samples where the user keeps it."""

    joiner = " "
    whole_sentences = False

    def stretch(self, draw: Draw, characters: int, avoid: Collection[str]) -> Stretch:
        """Take a stretch that starts at a sentence, anywhere that leaves enough text behind it."""
        latest = len(self.text) - characters
        if latest <= 0:
            return Stretch(self.text, complete=True)
        starts = _sentence_starts(self.text)
        start = int(starts[draw.below(int(np.searchsorted(starts, latest, side="right")))])
        piece = self.text[start : start + characters + 1]
        *words, last = piece.rsplit(None, 1)
        # The last word may be cut in half; a text without spaces has no words to lose.
        return Stretch(words[0] if words and len(last) <= LONGEST_WORD else piece, complete=False)


@lru_cache(maxsize=4)
def _sentence_starts(text: str) -> npt.NDArray[np.int64]:
    ends = sentence_ends(text)
    starts = [0]
    for end in ends:
        while end < len(text) and text[end].isspace():
            end += 1
        if end < len(text):
            starts.append(int(end))
    return np.unique(np.array(starts, dtype=np.int64))


def text_files(path: str) -> list[Path]:
    """List the files of a `text:PATH` haystack.

    Raises:
        TaskParameterError: The path does not exist, is not a .txt file, or is a folder without any.
    """
    root = Path(os.path.expanduser(path))
    if os.path.isdir(root):
        files = sorted(file for file in root.rglob("*.txt") if file.is_file())
        if not files:
            raise TaskParameterError(
                f"haystack text:{path}: the folder holds no .txt file; give one that does."
            )
        return files
    if not os.path.exists(root):
        raise TaskParameterError(
            f"haystack text:{path}: no such file or folder (looked for {root.absolute()})."
        )
    if root.suffix.lower() != ".txt" or not root.is_file():  # a pipe would be waited on for ever
        raise TaskParameterError(f"haystack text:{path}: expected a .txt file or a folder of them.")
    return [root]


def _refuse_huge(path: str, files: list[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    if size > _MOST_BYTES:
        raise TaskParameterError(
            f"haystack text:{path}: {size:,} bytes of text, at most {_MOST_BYTES:,} are read; name fewer "
            "files."
        )


def load_text(path: str) -> TextHaystack:
    """Read a `text:PATH` haystack: a .txt file, or all of a folder's in the order of their paths.

    Lines of one paragraph are joined, since hard line breaks are no part of the prose; empty lines part
    paragraphs.

    Raises:
        TaskParameterError: Nothing to read there, not UTF-8, empty, or a text without sentence ends to put a
            needle at.
    """
    files = text_files(path)
    _refuse_huge(path, files)
    states = [(file, file.stat()) for file in files]
    # The later of the two times: a file's own can be put back, its status's can't.
    return _read(path, tuple((str(file), max(s.st_mtime_ns, s.st_ctime_ns), s.st_size) for file, s in states))


@lru_cache(maxsize=2)
def _read(path: str, files: tuple[tuple[str, int, int], ...]) -> TextHaystack:
    texts = []
    for name, _, _ in files:
        try:
            raw = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskParameterError(
                f"haystack text:{path}: cannot read {name} as UTF-8 text: {error}"
            ) from None
        texts += [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", raw)]
    text = "\n\n".join(paragraph for paragraph in texts if paragraph)
    if not text:
        raise TaskParameterError(f"haystack text:{path}: the text is empty.")
    ends = len(sentence_ends(text))
    # Needles stand at sentence ends: without any, every depth would be the beginning of the text.
    if len(text) > 2000 * max(ends, 1):
        raise TaskParameterError(
            f"haystack text:{path}: only {ends} sentence ends in {len(text):,} characters; "
            "depths need prose with full stops (or one sentence a line, parted by empty lines)."
        )
    return TextHaystack(text, name=f"text:{sha256(text.encode()).hexdigest()[:16]}")
