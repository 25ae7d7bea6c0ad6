"""Where documents come from: the books of PG-19's test split, or the user's own texts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nsa_tasks._errors import TaskDataError, TaskParameterError
from nsa_tasks.data import Data, DataSource, load_data
from nsa_tasks.ppl.parameters import PositionParams

PG19 = DataSource(
    file="corpus/pg19_test.jsonl",
    how="Put PG-19's test split there, a book a line with its `text` "
    "(https://github.com/google-deepmind/pg19), or take source = text:PATH.",
    fields=("text",),
    aliases={"title": ("short_book_title",), "year": ("publication_date",)},
    hub="emozilla/pg19-test",
    licence="Apache-2.0; the books are in the public domain",
)


@dataclass(frozen=True, slots=True)
class Book:
    """One text."""

    id: str
    """Its own, or its place in the source; no other has it."""
    text: str
    """From the first character that is no white space."""
    place: str
    """File and line, for messages."""


def load(params: PositionParams) -> Data:
    """Read the source that the parameters name.

    Raises:
        TaskDataError: Not there, damaged, or without texts.
    """
    if params.source == "pg19":
        return load_data(PG19, params.data_root or None)
    path = _path(params)
    own = DataSource(file=path.name, fields=("text",), how="Give a file or folder of texts.")
    data = load_data(own, path.parent)
    return replace(data, name=data.name.replace("data:", "text:", 1))


def books(data: Data) -> Iterator[Book]:
    """The texts of a source, in its order.

    Raises:
        TaskDataError: A `text` that is none.
    """
    names = [str(record["id"]) if record.get("id") is not None else "" for record in data.records]
    distinct = "" not in names and len(set(names)) == len(names)
    for number, (record, place) in enumerate(zip(data.records, data.places, strict=True)):
        text = record["text"]
        if not isinstance(text, str):
            raise TaskDataError(f"{place}: expected a text, got {type(text).__name__}.")
        yield Book(names[number] if distinct else str(number), text.lstrip(), place)


def check_there(params: PositionParams) -> None:
    """Make sure that the user's text is there, without reading it.

    Raises:
        TaskParameterError: It isn't.
    """
    path = _path(params)
    if not os.path.exists(path):
        raise TaskParameterError(
            f"{params.task}: source = {params.source!r}: no such file or folder (looked for "
            f"{path.absolute()})."
        )


def _path(params: PositionParams) -> Path:
    return Path(os.path.expanduser(params.source.removeprefix("text:"))).absolute()
