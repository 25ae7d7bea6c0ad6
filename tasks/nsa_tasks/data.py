"""Records of a benchmark: from a local file, else from the hub, checked before anything is asked.

Local files lie under one folder, the data root: the parameter `data_root` of a task, else the environment's
`NSA_EVAL_DATA`. Nothing here waits: what is not a regular file is refused, and a machine without network gets
an error that names the file to put where.
"""

import gzip
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nsa_tasks._errors import TaskDataError

ENVIRONMENT = "NSA_EVAL_DATA"
"""Name of the environment's variable with the data root."""
_NAMED_DIGITS = 16
"""Hexadecimal digits of a hash in a name: enough that two data sets never share one by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where a data set's records come from."""

    file: str
    """Path under the data root: a .jsonl or .json file (a list of records), also as .gz."""
    how: str
    """One sentence: how to get the file."""
    fields: tuple[str, ...] = ()
    """Fields that every record has."""
    sha256: str | None = None
    """Of the file; None where several versions are as good."""
    hub: str | None = None
    """The data set's id on the hub, if its records there are the same ones."""
    config: str | None = None
    """Its configuration on the hub."""
    split: str = "test"
    """Its split on the hub."""
    revision: str | None = None
    """A commit on the hub; None takes the newest."""


@dataclass(frozen=True, slots=True)
class Data:
    """Records, and what they are known by."""

    records: list[dict[str, Any]]
    name: str
    """`data:` and the file's hash, or `hub:` with id and revision. For results' metadata (`data_hash`)."""


def data_root(given: str | os.PathLike[str] | None = None) -> Path | None:
    """The data root: the one that is given, else the environment's, else None.

    Raises:
        TaskDataError: It is no folder.
    """
    named = given or os.environ.get(ENVIRONMENT)
    if not named:
        return None
    root = Path(os.path.expanduser(named))
    if not os.path.isdir(root):
        origin = "data_root" if given else ENVIRONMENT
        raise TaskDataError(f"{origin} = {str(named)!r}: no such folder (looked for {root.absolute()}).")
    return root


def load_data(source: DataSource, root: str | os.PathLike[str] | None = None) -> Data:
    """Load a data set's records.

    A file under the data root comes first. Without one the hub is asked, if the source names it; but never
    where a root was given for the purpose and lacks the file.

    Args:
        source: What to load.
        root: The parameter `data_root`; None leaves it to the environment.

    Raises:
        TaskDataError: The file looked for, and how to get it; or what is wrong with it, by line.
    """
    folder = data_root(root)
    path = None if folder is None else folder / source.file
    if path is not None and os.path.exists(path):
        digest = check_sha256(path, source.sha256)
        return Data(read_records(path, source.fields), f"data:{digest[:_NAMED_DIGITS]}")
    looked = (
        f"no {path.absolute()}"
        if path is not None
        else f"no data root is named (data_root, or {ENVIRONMENT} in the environment), "
        f"where {source.file} is looked for"
    )
    if source.hub is None or root is not None:
        raise TaskDataError(f"{looked}. {source.how}")
    return _from_hub(source, looked)


def read_records(path: Path, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read a .jsonl or .json file, also compressed with gzip.

    Args:
        path: The file.
        fields: Fields that every record has to have.

    Raises:
        TaskDataError: Not a regular file, not UTF-8, damaged, empty; or a record that is no mapping or lacks
            a field, by its line (.jsonl) or number (.json).
    """
    text = _read_text(path)
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    records = []
    for place, record in _lines(path, text) if lines else _entries(path, text):
        if not isinstance(record, dict):
            raise TaskDataError(f"{place}: expected a mapping of fields, got {type(record).__name__}.")
        _check_fields(place, record, fields)
        records.append(record)
    if not records:
        raise TaskDataError(f"{path}: the file holds no records.")
    return records


def file_sha256(path: Path) -> str:
    """Hash a regular file.

    Raises:
        TaskDataError: It is none, or can't be read.
    """
    digest = sha256()
    try:
        # Before opening: a named pipe without a writer would be waited on for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise TaskDataError(f"{path}: expected a regular file.")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise TaskDataError(f"{path}: cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def check_sha256(path: Path, expected: str | None) -> str:
    """Hash a file and compare.

    Args:
        path: The file.
        expected: The hash that it should have; None accepts any.

    Returns:
        The hash.

    Raises:
        TaskDataError: Naming both hashes.
    """
    found = file_sha256(path)
    if expected is not None and found != expected:
        raise TaskDataError(
            f"{path}: another file than the one that was checked: its SHA-256 is {found}, "
            f"expected {expected}."
        )
    return found


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise TaskDataError(f"{path}: expected a regular file.")
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except (OSError, EOFError) as error:  # gzip's errors are OSErrors
        raise TaskDataError(f"{path}: cannot be read: {error}.") from None


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON text may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", _parse(f"{path}, line {number}", line)


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    content = _parse(str(path), text)
    if not isinstance(content, list):
        raise TaskDataError(f"{path}: expected a list of records, got {type(content).__name__}.")
    for number, record in enumerate(content, 1):
        yield f"{path}, record {number}", record


def _parse(place: str, text: str) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{place}: not valid JSON: {error}.") from None


def _check_fields(place: str, record: Mapping[str, Any], fields: Sequence[str]) -> None:
    missing = [field for field in fields if field not in record]
    if missing:
        raise TaskDataError(
            f"{place}: the record has no {', '.join(missing)}; it has {', '.join(map(str, record))}."
        )


def _from_hub(source: DataSource, looked: str) -> Data:
    import datasets  # seconds to import, and not needed for local files

    try:
        rows = datasets.load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
        records = [dict(row) for row in rows]
    except Exception as error:  # the hub's libraries raise dozens of kinds, and none is a bug of ours
        reason = " ".join(str(error).split())[:200]
        raise TaskDataError(
            f"{looked}, and the hub's {source.hub} can't be had ({type(error).__name__}: {reason}). "
            f"{source.how}"
        ) from None
    for number, record in enumerate(records, 1):
        _check_fields(f"{source.hub} ({source.split}), record {number}", record, source.fields)
    if not records:
        raise TaskDataError(f"{source.hub} ({source.split}): the data set holds no records.")
    return Data(records, f"hub:{source.hub}@{source.revision or 'main'}")
