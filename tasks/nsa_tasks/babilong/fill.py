"""Filling a context: facts among background sentences, as many as its tokens allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nsa_tasks._random import Draw
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.sizing import Fit, TooShortError, largest_that_fits

SHORTEST = 10
"""Tokens: background sentences under it are skipped, as officially (`min_sentence_len`)."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A context that was built."""

    text: str
    tokens: int
    """Of the text by itself, without special tokens."""
    slots: tuple[int, ...]
    """For each fact, how many background sentences stand before it."""
    sentences: int
    """Background sentences, the last one perhaps cut."""
    depths: tuple[float, ...]
    """Where each fact begins, in percent of the text's characters."""


@dataclass(slots=True)
class Filler:
    """Builds contexts of one size."""

    tokens: RequestTokens
    """Whose tokens are counted."""
    budget: int
    """Tokens of a context; 0 or fewer: facts alone."""

    def fits(self, facts: Sequence[str]) -> bool:
        """Whether facts alone are no longer than the context."""
        return self.budget <= 0 or self._count(" ".join(facts)) <= self.budget

    def fill(self, facts: Sequence[str], background: Iterator[str], draw: Draw) -> Filled:
        """Build a context: facts in order, in slots between sentences that are drawn with repeats.

        Sentences are taken until their tokens and the facts' reach the size, the last one is cut to fit. The
        official builder does the same on lists of token ids and decodes them; here the finished text is
        counted, so that no tokenizer's way across the seams makes a context too long.

        Args:
            facts: Which fit by themselves.
            background: Sentences without end.
            draw: The sample's stream of draws.
        """
        if self.budget <= 0:
            return self._built(facts, [], [0] * len(facts))
        # One number a fact, whatever the number of sentences: more or fewer of them move slots, not draws.
        units = sorted(draw.unit() for _ in facts)
        taken: list[str] = []
        size = sum(self._count(f" {fact}") for fact in facts)
        most: int | None = None  # sentences: with one more, even its beginning was too long
        while True:
            while size < self.budget:
                sentence = next(background)
                count = self._count(f" {sentence}")
                if count >= SHORTEST:
                    taken.append(sentence)
                    size += count
            fit = self._cut(facts, taken, units)
            if fit is None:
                taken.pop()
                most = len(taken)
            elif fit.exhausted and len(taken) != most:
                size = fit.document.tokens  # pieces counted apart are longer than the whole: there is room
            else:
                return fit.document

    def _cut(self, facts: Sequence[str], taken: Sequence[str], units: Sequence[float]) -> Fit[Filled] | None:
        """Cut the last sentence so that the context fits; None where not even none of it does."""
        slots = [int(unit * (len(taken) + 1)) for unit in units]
        if not taken:
            alone = self._built(facts, [], slots)
            return Fit(alone, 0, exhausted=alone.tokens < self.budget)
        *before, last = taken
        cuts = self._cut_points(last)

        def build(size: int) -> Filled:
            return self._built(facts, [*before, last[: cuts[size]].rstrip()], slots)

        try:
            return largest_that_fits(build, np.arange(len(cuts), dtype=np.float64), self.budget, slack=0)
        except TooShortError:
            return None

    def _cut_points(self, sentence: str) -> list[int]:
        """Where a sentence may end, from nothing to all of it: after its tokens, else its characters."""
        ends = self.tokens.encode(f" {sentence}", special=False).ends
        points = range(1, len(sentence)) if ends is None else (int(end) - 1 for end in ends)
        return sorted({0, *(p for p in points if 0 < p < len(sentence)), len(sentence)})

    def _built(self, facts: Sequence[str], sentences: Sequence[str], slots: Sequence[int]) -> Filled:
        pieces: list[str] = []
        starts: list[int] = []
        length = 0
        waiting = 0
        for number in range(len(sentences) + 1):
            while waiting < len(facts) and slots[waiting] == number:
                starts.append(length)
                pieces.append(facts[waiting])
                length += len(facts[waiting]) + 1
                waiting += 1
            if number < len(sentences) and sentences[number]:
                pieces.append(sentences[number])
                length += len(sentences[number]) + 1
        text = " ".join(pieces)
        depths = tuple(round(100 * start / max(len(text), 1), 2) for start in starts)
        return Filled(text, self._count(text), tuple(slots), len(sentences), depths)

    def _count(self, text: str) -> int:
        # Without offsets, which cost more than the tokens.
        return len(self.tokens.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
