"""Words of keys and lists: wonderwords' under `protocol: official`, the project's own lexicon otherwise."""

import importlib
import random
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import overload

import numpy as np

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import load_data
from nsa_tasks.ruler.sources import ENGLISH


class AdjectiveNouns(Sequence[str]):
    """Every `adjective-noun`, sorted, each once: the official generator's list of six million, unmade.

    The list of all of them would take a second to sort and half a gigabyte; here an item is found by its
    number. Adjectives sort as they do with their hyphen behind them, and a pair's place then is the
    adjective's and the noun's, except where an adjective with a hyphen is the beginning of another one: such
    adjectives are listed out together.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        """Sort the words and count the pairs."""
        self._nouns = sorted(set(nouns))
        heads = sorted({f"{adjective}-" for adjective in adjectives})
        groups: list[list[str]] = []
        for head in heads:
            if groups and head.startswith(groups[-1][0]):
                groups[-1].append(head)
            else:
                groups.append([head])
        self._groups: list[str | list[str]] = [
            group[0]
            if len(group) == 1
            else sorted({f"{head}{noun}" for head in group for noun in self._nouns})
            for group in groups
        ]
        sizes = [len(self._nouns) if isinstance(group, str) else len(group) for group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """The pair of a number."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, offset = self._groups[at], index - int(self._starts[at])
        return f"{group}{self._nouns[offset]}" if isinstance(group, str) else group[offset]


@cache
def key_words(official: bool) -> AdjectiveNouns:
    """The words that needle keys are drawn from.

    Raises:
        TaskDataError: `official`, and wonderwords is not installed.
    """
    if official:
        return AdjectiveNouns(_wonderwords("adjectivelist.txt"), _wonderwords("nounlist.txt"))
    from nsa_tasks.needle.words import ADJECTIVES, NOUNS

    return AdjectiveNouns(ADJECTIVES, NOUNS)


@cache
def list_words(official: bool, seed: int) -> list[str]:
    """The words that word lists are drawn from, in the order that the seed shuffles them into.

    Raises:
        TaskDataError: `official`, and wonderwords is not installed.
    """
    if official:
        files = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
        words = sorted({word for file in files for word in _wonderwords(file)})
    else:
        words = sorted(_lexicon())
    random.Random(seed).shuffle(words)
    return words


def longer_list(official: bool, root: str) -> Sequence[str]:
    """The words of a list that takes more than `list_words` has.

    Raises:
        TaskDataError: `official`, and the official list isn't under the data root.
    """
    if not official:
        return key_words(False)
    return _english(root)


@cache
def _english(root: str) -> list[str]:
    [record] = load_data(ENGLISH, root).records
    return [str(word) for word in record.values()]


def _wonderwords(file: str) -> list[str]:
    try:
        found = importlib.import_module("wonderwords.random_word")
    except ImportError:
        raise TaskDataError(
            "protocol: official draws its words from the package wonderwords, which is not installed. "
            'Install it (pip install "nsa-eval[ruler]"), or use protocol: offline, which draws from the '
            "project's own lexicon."
        ) from None
    # The official generator reads the lists by the same function.
    return list(found._get_words_from_text_file(file))


def _lexicon() -> set[str]:
    """Single words of the project's own lexicon: of the generated prose, and of the needles' keys."""
    from nsa_tasks.haystack import lexicon
    from nsa_tasks.needle.words import ADJECTIVES, NOUNS

    blocks = [value for name, value in vars(lexicon).items() if name.isupper() and name != "PATTERNS"]
    return {*ADJECTIVES, *NOUNS, *(word for block in blocks for word in re.findall(r"[a-z]{3,}", block))}
