"""Windows of whole tokens: a text from its start, cut into buckets where a cut changes no token.

A bucket is scored as a continuation of everything before it, given as text, so the model reads the context's
own tokens. They are the whole window's tokens only where the text up to the cut encodes to the first tokens
of the window. Places for which that holds are looked for, and every one is checked by encoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._tokens import Encoding, RequestTokens, added_tokens, without_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_BACK = 64
"""Tokens that a cut may lie before the end that its bucket asks for, and never more than half the bucket."""
_PROBE = 4000
"""Characters of a first look at how many a token has."""


class ShortTextError(Exception):
    """The text ends before the window does. `args[0]` is its token count."""


@dataclass(frozen=True, slots=True)
class Window:
    """The start of a text, cut into buckets."""

    cuts: tuple[int, ...]
    """Characters: before the first scored one, then the end of each bucket."""
    positions: tuple[int, ...]
    """The same in tokens of the request, with those that the tokenizer puts before a text."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Scored tokens of each bucket."""
        return tuple(end - start for start, end in zip(self.positions, self.positions[1:], strict=False))


class WindowCutter:
    """Cuts texts with one tokenizer, as requests will encode them."""

    def __init__(self, tokens: RequestTokens) -> None:
        """Find out what the tokenizer puts around every text of its own accord.

        Args:
            tokens: Encodes text as the model's requests do, special tokens by its policy.
        """
        self._tokens = tokens
        self.starts, self._ends = added_tokens(tokens)
        self.bos = self.starts == [tokens.tokenizer.bos_token_id]
        """Whether a request starts with BOS alone: an empty context then stands for it, and the text's first
        token is scored. Else there is nothing to predict it from, and it is given."""

    def cut(self, text: str, ends: Sequence[int]) -> Window:
        """Cut a text into buckets that end at given positions, or up to `MOST_BACK` tokens before.

        Args:
            text: Begins with no white space.
            ends: Where buckets end, in tokens of the request, ascending.

        Raises:
            ShortTextError: The text has fewer tokens than the last end.
            TaskParameterError: No place near an end where this tokenizer can be cut.
        """
        whole = self._beginning(text, ends[-1])
        cuts, positions = [0], [len(self.starts)]
        if not self.bos:
            first = self._first(text, whole, ends[0])
            cuts, positions = [first[0]], [first[1]]
        for end in ends:
            found = self._before(text, whole, end, positions[-1])
            cuts.append(found[0])
            positions.append(found[1])
        return Window(tuple(cuts), tuple(positions))

    def ids(self, text: str) -> list[int]:
        """Tokens of a request's text, without what the tokenizer appends to every text."""
        return without_ends(self._tokens.ids(text), self._ends)

    def _beginning(self, text: str, tokens: int) -> Encoding:
        """Encode as much of a text as holds the window, and a few tokens more."""
        # A token holds a byte at least, or stands for a character.
        if len(text.encode()) + len(self.starts) < tokens:
            raise ShortTextError(len(text.encode()) + len(self.starts))
        probe = text[:_PROBE]
        ratio = len(probe) / max(len(self._tokens.encode(probe, special=False).ids), 1)
        characters = int(tokens * ratio * 1.1) + _PROBE
        while True:
            encoding = self._tokens.encode(text[:characters])
            if len(without_ends(encoding.ids, self._ends)) >= tokens + (2 if characters < len(text) else 0):
                return encoding
            if characters >= len(text):
                raise ShortTextError(len(without_ends(encoding.ids, self._ends)))
            characters = int(characters * 1.3)

    def _before(self, text: str, whole: Encoding, end: int, start: int) -> tuple[int, int]:
        """The last exact cut at or before a token position."""
        nearest = max(start + 1, end - min(MOST_BACK, (end - start) // 2))
        for character in self._candidates(text, whole, range(end, nearest - 1, -1)):
            position = self._exact(text, character, whole)
            if position is not None and nearest <= position <= end:
                return character, position
        raise TaskParameterError(
            f"no place from token {nearest:,} to {end:,} where this tokenizer can be cut without changing "
            "the tokens before it"
        )

    def _first(self, text: str, whole: Encoding, end: int) -> tuple[int, int]:
        """The first exact cut: what is before it is given, since nothing stands before it."""
        least = len(self.starts) + 1
        latest = least + min(MOST_BACK, end // 2)
        for character in self._candidates(text, whole, range(least, latest + 1)):
            position = self._exact(text, character, whole)
            if position is not None and least <= position <= latest:
                return character, position
        raise TaskParameterError(f"no place before token {latest:,} where this tokenizer can be cut")

    def _candidates(self, text: str, whole: Encoding, positions: range) -> Iterator[int]:
        """Characters after which to try to cut, for token positions in their order."""
        seen = {0}
        ids = without_ends(whole.ids, self._ends)
        for position in positions:
            if whole.ends is not None:
                characters = [int(whole.ends[position - 1])]
            else:
                characters = _characters_of(self._tokens.tokenizer, ids[len(self.starts) : position])
            for character in characters:
                # White space at a context's end is moved into the continuation by lm-eval.
                trimmed = len(text[:character].rstrip())
                if trimmed not in seen:
                    seen.add(trimmed)
                    yield trimmed

    def _exact(self, text: str, character: int, whole: Encoding) -> int | None:
        """How many of the window's first tokens the text up to a character has; None if it has others."""
        ids = self.ids(text[:character])
        return len(ids) if without_ends(whole.ids, self._ends)[: len(ids)] == ids else None


def _characters_of(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """About how many characters tokens stand for, for tokenizers that don't say it: decoded, and next to it.

    White space may be lost in decoding, so a few places behind are tried too; each is checked anyway.
    """
    length = len(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    return [length, length + 1, max(length - 1, 0)]
