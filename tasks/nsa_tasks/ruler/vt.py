"""Variable tracking: NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py, draw for draw.

The official chain is checked for variables of one name by drawing one more, which then has no place in a
chain and stops the script (once in a million chains); here such a chain is drawn again.
"""

import itertools
import random
import string
from collections.abc import Callable

import numpy as np

from nsa_tasks._errors import TaskParameterError
from nsa_tasks.haystack import NOISE
from nsa_tasks.ruler import wording
from nsa_tasks.ruler.fit import Drawn, Generator, Place, TooSmallError, fitted, search
from nsa_tasks.ruler.settings import SHORT, Vt

_EXAMPLE_LENGTH = 500
"""Tokens of the solved example, without a reply."""
_EXAMPLE_VALUE = "12345"
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_STEP, _STEP_SHORT = 10, 5


class _Stream:
    """Both random streams of the official script: Python's, and numpy's legacy one for the values."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._numpy = np.random.RandomState(seed % 2**32)

    def name(self, letters: int) -> str:
        return "".join(self.random.choices(string.ascii_uppercase, k=letters))

    def place(self) -> Place:
        return self.random.getstate(), self._numpy.get_state()

    def go_back(self, place: Place) -> None:
        self.random.setstate(place[0])
        self._numpy.set_state(place[1])

    def value(self) -> str:
        return str(self._numpy.randint(10000, 99999))


class _ChainGenerator(Generator):
    """Requests without an example, which the example itself is one of."""

    def __init__(self, setting: Vt, step: int, letters: int, stream: _Stream, value: str | None) -> None:
        self._setting, self._letters, self._stream, self._value = setting, letters, stream, value
        self.step = step

    def draw(self, index: int, size: int) -> Drawn:
        count = self._setting.hops + 1
        names: list[str] = []
        while len(set(names)) < count:
            names = [self._stream.name(self._letters) for _ in range(count)]
        value = self._value or self._stream.value()
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old} " for old, new in itertools.pairwise(names)]
        if size < count:
            raise TooSmallError
        lines = [NOISE] * size
        places = sorted(self._stream.random.sample(range(size), count))
        for before, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + before, assignment)
        words = wording.vt()
        asked = {"query": value, "num_v": count}
        return Drawn(
            words.template.format(context="\n".join(lines), **asked),
            words.prefix.format(**asked),
            tuple(names),
        )

    def place(self) -> Place:
        return self._stream.place()

    def go_back(self, place: Place) -> None:
        self._stream.go_back(place)


class VtGenerator(Generator):
    """Draws variable tracking's samples of one length, each behind a solved example."""

    def __init__(self, setting: Vt, length: int, seed: int, plain: Callable[[str], int]) -> None:
        """Start the length's stream of draws, and draw the example from it.

        Args:
            setting: The task.
            length: Tokens of the request.
            seed: Of the stream.
            plain: Counts a text's tokens alone.

        Raises:
            TaskParameterError: The example doesn't fit its 500 tokens.
        """
        self._count = setting.hops + 1
        self._stream = _Stream(seed)
        self.step = _STEP_SHORT if length < SHORT else _STEP
        self._chains = _ChainGenerator(setting, self.step, _LETTERS, self._stream, None)
        example = _ChainGenerator(setting, _STEP_SHORT, _EXAMPLE_LETTERS, self._stream, _EXAMPLE_VALUE)

        def alone(prompt: str, prefix: str) -> int:
            return plain(f"{prompt} {prefix}")

        size = search(example, _EXAMPLE_LENGTH, 0, alone)
        try:
            drawn, _, _ = fitted(example, 0, size, _EXAMPLE_LENGTH, 0, alone)
        except TaskParameterError as error:
            raise TaskParameterError(f"the solved example's {error}") from None
        self._example = f"{drawn.prompt} {drawn.prefix} {' '.join(drawn.answers)}\n"
        self._example_tokens = plain(self._example)

    def trial(self, size: int) -> tuple[Drawn, int]:
        """The search counts request and example apart."""
        return self._chains.draw(0, size), self._example_tokens

    def draw(self, index: int, size: int) -> Drawn:
        """Draw a request, then new names and a new value for the example."""
        drawn = self._chains.draw(index, size)
        return Drawn(f"{self._renamed()}\n{drawn.prompt}", drawn.prefix, drawn.answers)

    def place(self) -> Place:
        """State of both streams."""
        return self._stream.place()

    def go_back(self, place: Place) -> None:
        """Set both streams."""
        self._stream.go_back(place)

    def _renamed(self) -> str:
        text = self._example
        for name in text.strip().split()[-self._count :]:
            text = text.replace(name, self._stream.name(len(name)))
        return text.replace(_EXAMPLE_VALUE, self._stream.value())
