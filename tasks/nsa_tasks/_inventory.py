"""Which data sets the families read, and which of them are here."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nsa_tasks._api import families
from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import DataSource, load_data, local_files, local_paths, looked_for


@dataclass(frozen=True, slots=True)
class DataState:
    """One data set of one family, as it lies under the data root."""

    family: str
    source: DataSource
    state: Literal["there", "missing", "incomplete", "damaged"]
    """`incomplete`: some of its files are there. `damaged`: what is there can't be used."""
    records: int | None
    sha256: str | None
    """Of the content."""
    files: tuple[Path, ...]
    """What is there."""
    detail: str
    """What is wrong with it, or where it was looked for."""


def data_states(root: str | os.PathLike[str] | None = None) -> list[DataState]:
    """Read every data set that a family declares and that is here. The hub isn't asked.

    Args:
        root: The data root; None leaves it to the environment.

    Raises:
        TaskDataError: The data root is no folder.
    """
    found: list[DataState] = []
    for family in families().values():
        listed: list[DataSource] = []
        for source in family.data_sources():
            if source not in listed:
                listed.append(source)
        found += [_state(family.name, source, root) for source in listed]
    return found


def _state(family: str, source: DataSource, root: str | os.PathLike[str] | None) -> DataState:
    where = looked_for(source, root)
    there: tuple[Path, ...] = ()
    try:
        there = local_paths(source, root)
        if not there:
            return DataState(family, source, "missing", None, None, there, where)
        if len(there) == len(source.files):
            data = load_data(source, root)
            return DataState(family, source, "there", len(data.records), data.sha256, there, "")
        local_files(source, root)
    except TaskDataError as error:
        state: Literal["incomplete", "damaged"] = (
            "incomplete" if 0 < len(there) < len(source.files) else "damaged"
        )
        return DataState(family, source, state, None, None, there, str(error))
    raise AssertionError(f"{source.file}: some files are there, and none is missing")
