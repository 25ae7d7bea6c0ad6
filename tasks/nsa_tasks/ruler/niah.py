"""Needles in a haystack: NVIDIA/RULER, scripts/data/synthetic/niah.py, draw for draw."""

import random
import uuid
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from nsa_tasks.haystack import NOISE
from nsa_tasks.ruler import wording
from nsa_tasks.ruler.essays import Splitter, Words
from nsa_tasks.ruler.fit import Drawn, Generator, Place, TooSmallError
from nsa_tasks.ruler.settings import SHORT, Niah

DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]
"""Percent: where needles stand among an essay's sentences."""
_WORDS_A_STEP = 500
_SENTENCES_A_STEP, _SENTENCES_A_STEP_SHORT = 25, 5


class NiahGenerator(Generator):
    """Draws a needle task's samples of one length."""

    def __init__(
        self,
        setting: Niah,
        length: int,
        seed: int,
        *,
        words: Sequence[str],
        essay: Words | None,
        split: Splitter | None,
    ) -> None:
        """Start the length's stream of draws.

        Args:
            setting: Which task.
            length: Tokens of the request.
            seed: Of the stream, and of the needles' fixed order.
            words: What word keys are drawn from.
            essay: The text of an essay haystack.
            split: Cuts it into sentences.
        """
        self._setting, self._seed = setting, seed
        self._words, self._essay, self._split = words, essay, split
        self._random = random.Random(seed)
        self._wording = wording.niah()
        self._kind = setting.value
        if setting.queries * setting.values == 1:
            self._wording = self._wording.singular()
            self._kind_asked = setting.value.removesuffix("s")
        else:
            self._kind_asked = setting.value
        if setting.haystack == "essay":
            self.step = _WORDS_A_STEP
        else:
            self.step = _SENTENCES_A_STEP_SHORT if length < SHORT else _SENTENCES_A_STEP
        # A length has a handful of sizes: one, and a step less now and then.
        self._sentences = lru_cache(maxsize=8)(self._cut)

    def draw(self, index: int, size: int) -> Drawn:
        """Draw keys, values, places and questions, in this order."""
        setting, pick = self._setting, self._random
        keys: list[str] = []
        values: list[list[str]] = []
        needles: list[str] = []
        for _ in range(setting.keys):
            keys.append(self._one(setting.key))
            values.append([])
            for _ in range(setting.values):
                values[-1].append(self._one(setting.value))
                needles.append(self._needle(keys[-1], values[-1][-1]))
        random.Random(self._seed).shuffle(needles)
        context = (
            self._in_essay(needles, size) if setting.haystack == "essay" else self._in_lines(needles, size)
        )
        asked = pick.sample(range(setting.keys), setting.queries)
        names = {
            "type_needle_v": self._kind_asked,
            "query": _listing([keys[i] for i in asked]),
        }
        return Drawn(
            self._wording.template.format(context=context, **names),
            self._wording.prefix.format(**names),
            tuple(value for i in asked for value in values[i]),
        )

    def place(self) -> Place:
        """State of the one stream."""
        return (self._random.getstate(),)

    def go_back(self, place: Place) -> None:
        """Set the one stream."""
        self._random.setstate(place[0])

    def _one(self, kind: str) -> str:
        if kind == "numbers":
            return str(self._random.randint(10**6, 10**7 - 1))
        if kind == "words":
            return self._random.choice(self._words)
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _needle(self, key: str, value: str) -> str:
        return wording.needle().format(type_needle_v=self._kind, key=key, value=value)

    def _cut(self, size: int) -> list[str]:
        if self._essay is None or self._split is None:
            raise ValueError("an essay haystack needs its text and its sentences")
        return self._split(" ".join(self._essay.first(size)).strip())

    def _in_essay(self, needles: Sequence[str], size: int) -> str:
        sentences = self._sentences(size)
        depths = self._random.sample(DEPTHS, len(needles))
        places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        pieces = []
        for start, end, needle in zip([0, *places], places, needles, strict=False):
            pieces += [" ".join(sentences[start:end]), needle]
        return " ".join([*pieces, " ".join(sentences[places[-1] :])])

    def _in_lines(self, needles: Sequence[str], size: int) -> str:
        setting = self._setting
        if setting.haystack == "noise":
            lines = [NOISE] * size
        else:
            lines = [self._needle(self._one(setting.key), self._one(setting.value)) for _ in range(size)]
        if size < len(needles):
            raise TooSmallError
        places = sorted(self._random.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def _listing(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
