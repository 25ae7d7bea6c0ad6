"""Background text of BABILong: sentences from a random place of a random book, or the project's own prose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nsa_tasks._errors import TaskDataError
from nsa_tasks._random import Draw
from nsa_tasks.babilong.sources import PG19
from nsa_tasks.data import DataSource, load_data, local_files
from nsa_tasks.haystack import sentences

if TYPE_CHECKING:
    from nltk import PunktSentenceTokenizer

_CHARACTERS = 10
"""For each token that is wanted, at most so many characters of a book are parted into sentences: as
officially, and more than any has."""
_FRUITLESS = 1000
"""Places that are tried in a row before texts count as having no sentences."""


@dataclass(frozen=True)
class Books:
    """Texts of which a sample takes a stretch; longer than a text lasts, it goes on in another one."""

    texts: Sequence[str]
    name: str
    """`data:` or `hub:` and a hash: what documents and results call it."""

    def sentences(self, draw: Draw, tokens: int) -> Iterator[str]:
        """Yield sentences without end: of a random book from a random place, but not the first and last one.

        The two are cut by the place. The parting is that of Punkt without training, as officially.

        Args:
            draw: The sample's stream of draws.
            tokens: How many are wanted; a stretch has ten characters for each.

        Raises:
            TaskDataError: Texts without sentences.
        """
        fruitless = 0
        while fruitless < _FRUITLESS:
            text = draw.choice(self.texts)
            start = draw.below(len(text))
            stretch = text[start : start + max(tokens, 100) * _CHARACTERS]
            fruitless += 1
            held: str | None = None  # one is held back: it may be the last
            for place, (begin, end) in enumerate(self._punkt.span_tokenize(stretch)):
                if held is not None:
                    fruitless = 0
                    yield held
                held = stretch[begin:end] if place else None
        raise TaskDataError(
            f"{self.name}: no sentences at {_FRUITLESS:,} places: the background has to be prose."
        )

    @cached_property
    def _punkt(self) -> "PunktSentenceTokenizer":
        from nltk import PunktSentenceTokenizer  # heavy, and not needed to list tasks

        return PunktSentenceTokenizer()


class Generated:
    """The project's own prose: no file needed, and no sentence that a model has read."""

    name = "generated"

    def sentences(self, draw: Draw, tokens: int) -> Iterator[str]:
        """Yield sentences without end."""
        return sentences(draw)


Background = Books | Generated


def open_background(name: str, root: str) -> Background:
    """Open what the parameter `background` names.

    Raises:
        TaskDataError: Not there, damaged, or empty.
    """
    if name == "generated":
        return Generated()
    source, folder = (PG19, root) if name == "pg19" else _own(name)
    states = [(file, file.stat()) for file in local_files(source, folder) or ()]
    # The later of the two times: a file's own can be put back, its status's can't.
    return _read(name, root, tuple((f, max(s.st_mtime_ns, s.st_ctime_ns), s.st_size) for f, s in states))


@lru_cache(maxsize=1)
def _read(name: str, root: str, files: tuple[tuple[Path, int, int], ...]) -> Books:
    """Read texts once for all tasks of a run; `files` tells when they have changed."""
    data = load_data(*((PG19, root) if name == "pg19" else _own(name)))
    texts = [record["text"] for record in data.records]
    for place, text in zip(data.places, texts, strict=True):
        if not isinstance(text, str):
            raise TaskDataError(f"{place}: text: expected a text, got {type(text).__name__}.")
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise TaskDataError(f"{data.places[0]}: no text in it.")
    return Books(kept, data.name)


def _own(name: str) -> tuple[DataSource, str]:
    """The user's texts, and the folder that they are in."""
    path = Path(name.removeprefix("text:")).expanduser().absolute()
    how = "Give a .txt file, a folder of them, or .jsonl records with a text each."
    return DataSource(file=path.name, fields=("text",), how=how), str(path.parent)
