"""Where a text may be cut: after sentences, after words, and in scripts that put no spaces between words."""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LONGEST_WORD = 64
"""Characters. A longer run without white space (an address, a table's rule) may be cut anywhere: no prose of
a script with spaces has such words, so its cuts stay at words."""

# Closing quotes and brackets, and full-width stops (escaped, since they look like ASCII ones).
_CLOSING = "\"'\u201d\u2019)\\]"
_WIDE_STOP, _WIDE_CLOSING = "\u3002\uff01\uff1f", "\u201d\u2019\u300d\u300f\uff09"
_SENTENCE_END = re.compile(rf"[.!?]+[{_CLOSING}]*(?=\s|$)|[{_WIDE_STOP}]+[{_WIDE_CLOSING}]*|(?<=\S)(?=\n)")
_WORD_END = re.compile(r"\S(?=\s|$)")
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")

# Thai, Lao, Tibetan, Myanmar, Khmer; CJK punctuation and kana; bopomofo, small kana; ideographs; full-width
# forms; the ideographs beyond the basic plane. Hangul isn't among them: Korean has spaces.
_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u3000-\u3029\u3030-\u30ff\u3100-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(rf"[{_UNSPACED_SCRIPTS}](?=\S)")
_IDEOGRAPHIC_END = re.compile(r"[\u3000-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff]$")

# What a cut sentence must not end with before its full stop: commas and the like, dashes, opening quotes.
_OPEN_END = " \n,;:-\u2013\u2014(\"'\u201c\u2018\u3001\uff0c\uff1b\uff1a\uff08\u300c\u300e\u300a\u3008"
_STOPS = (".", "!", "?", ".\u201d", '."', "\u3002", "\uff01", "\uff1f")


def sentence_ends(text: str) -> npt.NDArray[np.int64]:
    """Find the positions right after each sentence.

    A sentence ends at . ! ? before white space (closing quotes and brackets included), at their full-width
    forms, and at a line break, so that verse and lists have ends too.
    """
    return np.unique(np.fromiter((m.end() for m in _SENTENCE_END.finditer(text)), dtype=np.int64))


def word_ends(text: str) -> npt.NDArray[np.int64]:
    """Find the positions right after each word (run of non-space characters)."""
    return np.fromiter((m.end() for m in _WORD_END.finditer(text)), dtype=np.int64)


def cut_points(text: str) -> npt.NDArray[np.int64]:
    """Find the positions where filler may end: after words, and after characters where there are no words.

    Chinese, Japanese, Thai and others have no spaces to cut at; there any character may be the last, but none
    that carries a mark which follows it. The same holds inside a run of more than `LONGEST_WORD` characters.
    """
    words = word_ends(text)
    more = np.fromiter(_inside_runs(text), dtype=np.int64)
    return np.union1d(words, more) if len(more) else words


def _inside_runs(text: str) -> Iterator[int]:
    if not text.isascii():
        for match in _UNSPACED.finditer(text):
            if not unicodedata.category(text[match.end()]).startswith("M"):
                yield match.end()
    for run in _LONG_RUN.finditer(text):
        yield from range(run.start() + 1, run.end())


def close_sentence(filler: str) -> str:
    """End a cut sentence with a full stop, an ideographic one after ideographs."""
    closed = filler.rstrip(_OPEN_END)
    if not closed or closed.endswith(_STOPS):
        return closed
    return f"{closed}\u3002" if _IDEOGRAPHIC_END.search(closed) else f"{closed}."
