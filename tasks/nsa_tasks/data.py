"""Records of a benchmark: from local files, else from the hub, checked before anything is asked.

Local files lie under one folder, the data root: the parameter `data_root` of a task, else the environment's
`NSA_EVAL_DATA`. Nothing here waits: what is not a regular file is refused, and a machine without network gets
an error that names the file to put where.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from nsa_tasks._errors import TaskDataError
from nsa_tasks._files import (
    check_hash,
    content_sha256,
    find_file,
    folder_texts,
    joint_sha256,
    parse_records,
    read_content,
)
from nsa_tasks._parameters import Parameter

ENVIRONMENT = "NSA_EVAL_DATA"
"""Name of the environment's variable with the data root."""


def _read_root(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("expected the path of a folder with data sets")
    return value.strip()


DATA_ROOT = Parameter(
    name="data_root",
    unit="folder",
    help=f"where local data sets lie; empty: {ENVIRONMENT}, and without it the hub",
    read=_read_root,
    scheme="data",
    bare=True,
)
"""The parameter of every task that reads data; its default in the YAML is `data_root: ""`."""
_NAMED_DIGITS = 16
"""Hexadecimal digits of a hash in a name: enough that two data sets never share one by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where a data set's records come from."""

    file: str | tuple[str, ...]
    """Path under the data root, also as .gz or .xz: a .jsonl file, a .json file (a list of records), a .txt
    file or a folder of them (a record of `id` and `text` each). Several are one data set, read in order, and
    all of them have to be there."""
    how: str
    """One sentence: how to get the file."""
    fields: tuple[str, ...] = ()
    """Fields that every record has."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other names that a field has in some copies: `{"problem": ("question", "prompt")}`."""
    at: str | None = None
    """Of a .json file that is no list: the key that the list stands under; "" if the file is one record."""
    sha256: str | None = None
    """Of the file's content, unpacked; None where several versions are as good."""
    hub: str | None = None
    """The data set's id on the hub, if its records there are the same ones."""
    config: str | None = None
    """Its configuration on the hub."""
    split: str = "test"
    """Its split on the hub."""
    hub_file: str | None = None
    """A file of the hub's repository that is read as a local one, in place of configuration and split: for
    what `datasets` can't load, such as a script with an archive ("data.zip/data/hotpotqa.jsonl")."""
    revision: str | None = None
    """A commit on the hub; None takes the newest."""
    licence: str | None = None
    """Whose terms the records come under, as their publisher states them."""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths under the data root."""
        return (self.file,) if isinstance(self.file, str) else self.file


@dataclass(frozen=True, slots=True)
class Data:
    """Records, and what they are known by."""

    records: list[dict[str, Any]]
    name: str
    """`data:` and the hash of the content, wherever it was read from; or `hub:` with id, revision and the
    records' hash. For results' metadata (`data_hash`)."""
    files: tuple[Path, ...] = ()
    """Local files that the records were read from."""
    sha256: str = ""
    """Of the content: a file's own; of several, of theirs in order; of the hub's records, of their JSON."""
    places: tuple[str, ...] = ()
    """Where each record stands ("r.jsonl, line 3"), for a message about what is in it."""


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

    Files under the data root come first. Without them the hub is asked, if the source names it; but never
    where a root was given for the purpose and lacks them.

    Args:
        source: What to load.
        root: The parameter `data_root`; None or "" leaves it to the environment.

    Raises:
        TaskDataError: The file looked for, and how to get it; or what is wrong with it, by line.
    """
    local = local_files(source, root)
    if local is not None:
        return _from_files(source, local)
    looked = looked_for(source, root)
    if source.hub is None or root:
        raise TaskDataError(f"{looked}. {source.how}")
    return _from_hub(source, looked)


def local_paths(source: DataSource, root: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Files and folders of a source that are there: all, some or none of them; what is in them isn't read.

    Raises:
        TaskDataError: A file is there twice (as it is and compressed); no such data root.
    """
    folder = data_root(root)
    found = () if folder is None else (find_file(folder / file) for file in source.files)
    return tuple(path for path in found if path is not None)


def local_files(source: DataSource, root: str | os.PathLike[str] | None = None) -> tuple[Path, ...] | None:
    """Find a source's files under the data root; a folder stands for its .txt files.

    Returns:
        None where there is no data root, or nothing of the source in it.

    Raises:
        TaskDataError: A part of several is missing; a file is there twice (as it is and compressed); a folder
            without texts; no such data root.
    """
    folder = data_root(root)
    if folder is None:
        return None
    found = {file: find_file(folder / file) for file in source.files}
    missing = [str((folder / file).absolute()) for file, path in found.items() if path is None]
    if len(missing) == len(found):
        return None
    if missing:
        there = ", ".join(path.name for path in found.values() if path is not None)
        raise TaskDataError(f"no {', no '.join(missing)}, beside {there}: all are needed. {source.how}")
    return tuple(
        file for path in found.values() if path for file in (folder_texts(path) if path.is_dir() else [path])
    )


def looked_for(source: DataSource, root: str | os.PathLike[str] | None = None) -> str:
    """What to say of files that aren't there: where they were looked for."""
    folder = data_root(root)
    if folder is None:
        return (
            f"no data root is named (data_root, or {ENVIRONMENT} in the environment), "
            f"where {', '.join(source.files)} is looked for"
        )
    return f"no {', no '.join(str((folder / file).absolute()) for file in source.files)}"


def read_records(path: Path, fields: Sequence[str] = (), *, at: str | None = None) -> list[dict[str, Any]]:
    """Read the records of one file; its name says its form, as in `DataSource.file`.

    Args:
        path: The file.
        fields: Fields that every record has to have.
        at: Where a .json file's list stands.

    Raises:
        TaskDataError: Not a regular file, not UTF-8, damaged, empty; or a record that is no mapping or lacks
            a field, by its line (.jsonl) or number (.json).
    """
    return [record for _, record in _records(path, read_content(path), fields, {}, at)]


def file_sha256(path: Path) -> str:
    """Hash a regular file as it lies on the disk.

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
    """Hash a file as it lies on the disk, and compare.

    Args:
        path: The file.
        expected: The hash that it should have; None accepts any.

    Returns:
        The hash.

    Raises:
        TaskDataError: Naming both hashes.
    """
    found = file_sha256(path)
    check_hash(path, found, expected)
    return found


def _from_files(source: DataSource, files: Sequence[Path]) -> Data:
    found, hashes = [], []
    for path in files:
        content = read_content(path)
        hashes.append(content_sha256(content))
        if len(files) == 1:  # before it is read: another file's records may be anything
            check_hash(path, hashes[0], source.sha256)
        found += _records(path, content, source.fields, source.aliases, source.at)
    digest = joint_sha256(hashes)
    check_hash(files[0].parent, digest, source.sha256)
    return _data(f"data:{digest[:_NAMED_DIGITS]}", found, digest, tuple(files))


def _data(
    name: str, found: list[tuple[str, dict[str, Any]]], digest: str, files: tuple[Path, ...] = ()
) -> Data:
    places, records = zip(*found, strict=True)
    return Data(list(records), name, files, digest, places)


def _records(
    path: Path,
    content: bytes,
    fields: Sequence[str],
    aliases: Mapping[str, Sequence[str]],
    at: str | None,
) -> list[tuple[str, dict[str, Any]]]:
    found = list(_checked(parse_records(path, content, at), fields, aliases))
    if not found:
        raise TaskDataError(f"{path}: the file holds no records.")
    return found


def _checked(
    found: Iterator[tuple[str, Any]], fields: Sequence[str], aliases: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, given in found:
        if not isinstance(given, Mapping):
            raise TaskDataError(f"{place}: expected a mapping of fields, got {type(given).__name__}.")
        record = dict(given)
        for name, others in aliases.items():
            _rename(place, record, name, others)
        missing = [name for name in fields if name not in record]
        if missing:
            wanted = ", ".join(" or ".join((name, *aliases.get(name, ()))) for name in missing)
            raise TaskDataError(f"{place}: the record has no {wanted}; it has {', '.join(map(str, given))}.")
        yield place, record


def _rename(place: str, record: dict[str, Any], name: str, others: Sequence[str]) -> None:
    """Give a field its name. A record may have it under several names, as long as they say the same."""
    there = [key for key in (name, *others) if key in record]
    if not there:
        return
    values = [record.pop(key) for key in there]
    if any(value != values[0] for value in values):
        raise TaskDataError(
            f"{place}: ambiguous: {' and '.join(there)} differ, and each could be its {name}."
        )
    record[name] = values[0]


def _from_hub(source: DataSource, looked: str) -> Data:
    try:
        if source.hub_file is not None:
            return _from_hub_file(source, source.hub_file)
        import datasets  # seconds to import, and not needed for local files

        asked = datasets.load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
        rows = [dict(row) for row in asked]
    except TaskDataError:
        raise
    except Exception as error:  # the hub's libraries raise dozens of kinds, and none is a bug of ours
        reason = " ".join(str(error).split())[:200]
        raise TaskDataError(
            f"{looked}, and the hub's {source.hub} can't be had ({type(error).__name__}: {reason}). "
            f"{source.how}"
        ) from None
    what = f"{source.hub} ({source.split})"
    numbered = ((f"{what}, record {number}", row) for number, row in enumerate(rows, 1))
    found = list(_checked(numbered, source.fields, source.aliases))
    if not found:
        raise TaskDataError(f"{what}: the data set holds no records.")
    records = [record for _, record in found]
    digest = content_sha256(json.dumps(records, sort_keys=True, ensure_ascii=False, default=str).encode())
    return _data(f"hub:{source.hub}@{source.revision or 'main'}:{digest[:_NAMED_DIGITS]}", found, digest)


def _from_hub_file(source: DataSource, name: str) -> Data:
    """Read a file of the hub's repository, or one inside of an archive there."""
    from huggingface_hub import hf_hub_download  # heavy, and not needed for local files

    archive, _, member = name.partition(".zip/")
    asked = f"{archive}.zip" if member else name
    path = Path(hf_hub_download(str(source.hub), asked, repo_type="dataset", revision=source.revision))
    if not member:
        return _from_files(source, [path])
    inside = Path(f"{path}/{member}")
    try:
        content = ZipFile(path).read(member)
    except (BadZipFile, KeyError, OSError) as error:
        raise TaskDataError(f"{inside}: cannot be read: {error}.") from None
    digest = content_sha256(content)
    check_hash(inside, digest, source.sha256)
    found = _records(inside, content, source.fields, source.aliases, source.at)
    return _data(f"data:{digest[:_NAMED_DIGITS]}", found, digest)
