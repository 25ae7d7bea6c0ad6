"""Frequent words: NVIDIA/RULER, scripts/data/synthetic/freq_words_extraction.py, draw for draw."""

import random
import string

import numpy as np

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._threads import each, threads
from nsa_tasks.ruler import wording
from nsa_tasks.ruler.fit import Count, Drawn
from nsa_tasks.ruler.settings import Fwe

_TOKENS_A_WORD = 50
"""Of the length for each word of the vocabulary."""
_STEPS = 32
"""Steps of the size in a length."""
_NOISE = "..."
"""Stands in the most frequent word's place, which nobody asks for."""
_ASKED = 3


class FweGenerator:
    """Draws frequent words' samples of one length.

    Its size isn't searched by bisection: it grows from a sixth of the length until the window is reached, and
    falls again for samples that are too long.
    """

    def __init__(self, setting: Fwe, length: int, seed: int, count: Count, template: int) -> None:
        """Start the length's stream of draws, and find the size with the first draw.

        Args:
            setting: The task.
            length: Tokens of the request.
            seed: Of the stream, of the vocabulary's fixed order and of the text's.
            count: Counts a request.
            template: Tokens that a chat template adds.

        Raises:
            TaskParameterError: The length is too short for a vocabulary.
        """
        self._setting, self._seed, self._count = setting, seed, count
        self._random = random.Random(seed)
        self._room = length - setting.new_tokens
        inside = self._room - template
        self._words, self._step = inside // _TOKENS_A_WORD, inside // _STEPS
        if self._words < _ASKED + 1 or self._step < 1:
            raise TaskParameterError(
                f"length {length:,} is too short for a vocabulary of coded words; use at least "
                f"{length - inside + (_ASKED + 1) * _TOKENS_A_WORD}."
            )
        vocabulary = self._vocabulary()
        size = inside // setting.letters
        while self._tokens(vocabulary, size) < self._room:
            size += self._step
        self._size = size - self._step

    def next(self) -> tuple[Drawn, int, int]:
        """Draw the next sample.

        Returns:
            The sample, its size, and the exact tokens of its request without the reply.

        Raises:
            TaskParameterError: The length is too short for the words that are asked for.
        """
        return self._fitted(self._vocabulary())

    def samples_ahead(self, samples: int) -> list[tuple[Drawn, int, int]]:
        """Draw samples as `next` does; only their words are drawn, and the rest is done side by side.

        Returns:
            `[self.next() for _ in range(samples)]`

        Raises:
            TaskParameterError: As `next`.
        """
        found: list[tuple[Drawn, int, int]] = []
        while len(found) < samples:  # not all at once: a vocabulary has thousands of words
            number = min(4 * threads(), samples - len(found))
            found += each(self._fitted, [self._vocabulary() for _ in range(number)], first_alone=not found)
        return found

    def _fitted(self, vocabulary: list[str]) -> tuple[Drawn, int, int]:
        size = self._size
        while (tokens := self._tokens(vocabulary, size)) > self._room:
            size -= self._step
        if size < 1 or self._counts(size)[_ASKED] < 1:
            raise TaskParameterError(
                f"length {self._room + self._setting.new_tokens:,} is too short: not every word that is "
                "asked for occurs in the text. Use longer lengths."
            )
        return self._request(vocabulary, size), size, tokens

    def _vocabulary(self) -> list[str]:
        def word() -> str:
            return "".join(self._random.choices(string.ascii_lowercase, k=self._setting.letters))

        words = [word() for _ in range(self._words)]
        while len(set(words)) < self._words:
            words.append(word())
        vocabulary = sorted(set(words))
        random.Random(self._seed).shuffle(vocabulary)
        vocabulary[0] = _NOISE
        return vocabulary

    def _counts(self, size: int) -> list[int]:
        """How often each rank occurs: the zeta distribution's share of the size, rounded down."""
        from scipy.special import zeta  # not needed to list tasks

        ranks = np.arange(1, self._words + 1)
        shares = size * ranks**-self._setting.alpha / zeta(self._setting.alpha)
        return [int(count) for count in shares]

    def _tokens(self, vocabulary: list[str], size: int) -> int:
        if size < 1:
            return 0  # nothing left to take away: `next` says so
        drawn = self._request(vocabulary, size)
        return self._count(drawn.prompt, drawn.prefix)

    def _request(self, vocabulary: list[str], size: int) -> Drawn:
        counts = self._counts(size)
        text = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        random.Random(self._seed).shuffle(text)
        words = wording.fwe()
        return Drawn(
            words.template.format(context=" ".join(text), query=""),
            words.prefix,
            tuple(vocabulary[1 : _ASKED + 1]),
        )
