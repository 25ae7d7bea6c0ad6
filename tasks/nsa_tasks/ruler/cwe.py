"""Common words: NVIDIA/RULER, scripts/data/synthetic/common_words_extraction.py, draw for draw."""

import random
from collections.abc import Callable, Sequence

from nsa_tasks._errors import TaskParameterError
from nsa_tasks.ruler import wording
from nsa_tasks.ruler.fit import Drawn, Generator, Place
from nsa_tasks.ruler.settings import SHORT, Cwe

_STEP = 10
_ESTIMATE = 4096
"""Words of the draw that the search's upper end is worked out from."""


class CweGenerator(Generator):
    """Draws common words' samples of one length, each behind a solved example."""

    step = _STEP

    def __init__(
        self,
        setting: Cwe,
        length: int,
        seed: int,
        *,
        words: Sequence[str],
        longer: Callable[[], Sequence[str]],
    ) -> None:
        """Start the length's stream of draws.

        Args:
            setting: The task.
            length: Tokens of the request.
            seed: Of the stream, and of each list's fixed order.
            words: What words are drawn from.
            longer: Opens what they are drawn from where a list takes more than those.
        """
        self._setting, self._seed, self._words, self._longer = setting, seed, words, longer
        self._random = random.Random(seed)
        # Words of the example, and how often common and other words occur: in the example, in the list.
        self._example, self._repeats = ((20, 3, 1), (6, 1)) if length < SHORT else ((40, 10, 3), (30, 3))

    def draw(self, index: int, size: int) -> Drawn:
        """Draw the example, then the list."""
        words = wording.cwe()
        example, solved = self._list(*self._example)
        context, answers = self._list(size, *self._repeats)
        shot = f"{words.template.format(context=example, query='')} {words.prefix} {_numbered(solved)}"
        return Drawn(
            f"{shot}\n{words.template.format(context=context, query='')}", words.prefix, tuple(answers)
        )

    def place(self) -> Place:
        """State of the one stream."""
        return (self._random.getstate(),)

    def go_back(self, place: Place) -> None:
        """Set the one stream."""
        self._random.setstate(place[0])

    def most(self, room: int, tokens_of: Callable[[int], int]) -> int:
        """Twice what a long list makes of it; the lexicon may have fewer words than officially drawn."""
        size = min(_ESTIMATE, len(self._words))
        return max(int(room // (tokens_of(size) / size)) * 2, 2 * self.step)

    def _list(self, size: int, common_repeats: int, repeats: int) -> tuple[str, list[str]]:
        source = self._words if size <= len(self._words) else self._longer()
        if size > len(source):
            raise TaskParameterError(
                f"a list of {size:,} words is longer than all words that there are ({len(source):,}); use "
                "shorter lengths."
            )
        drawn = self._random.sample(source, size)
        common, others = drawn[: self._setting.common], drawn[self._setting.common :]
        listed = common * common_repeats + others * repeats
        random.Random(self._seed).shuffle(listed)
        return _numbered(listed), common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
