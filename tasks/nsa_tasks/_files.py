"""Files of a data set: found with or without compression, unpacked, hashed and read record by record.

Nothing here waits: what is not a regular file is refused before it is opened. A file is known by the SHA-256
of its content, so that a compressed copy of a data set is the same data set.
"""

import gzip
import json
import lzma
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from nsa_tasks._errors import TaskDataError

COMPRESSED = (".gz", ".xz")
"""Endings that a file may have beside its own: gzip and LZMA, both of the standard library."""
_TEXTS = (".txt", ".py")
"""Endings of files that are one text."""


def find_file(path: Path) -> Path | None:
    """Find a file or folder, or its compressed copy: `x.jsonl` also as `x.jsonl.gz` and `x.jsonl.xz`.

    Returns:
        None where there is nothing of these names.

    Raises:
        TaskDataError: Several are there: which one counts can't be told.
    """
    plain = path.with_name(plain_name(path))
    there = [
        name for name in (plain, *(Path(f"{plain}{end}") for end in COMPRESSED)) if os.path.lexists(name)
    ]
    if len(there) > 1:
        raise TaskDataError(
            f"{there[0]}: there also is {', '.join(p.name for p in there[1:])}; keep one of them."
        )
    return there[0] if there else None


def plain_name(path: Path) -> str:
    """A file's name without the ending of its compression."""
    return path.stem if path.suffix in COMPRESSED else path.name


def folder_texts(folder: Path) -> list[Path]:
    """The .txt files of a folder and those in it, also compressed ones, in the order of their paths.

    Raises:
        TaskDataError: There are none.
    """
    found = sorted(p for p in folder.rglob("*") if plain_name(p).endswith(".txt") and not p.is_dir())
    if not found:
        raise TaskDataError(f"{folder}: the folder holds no .txt file.")
    return found


def read_content(path: Path) -> bytes:
    """Read a regular file, unpacked where its name ends in .gz or .xz.

    Raises:
        TaskDataError: Not a regular file, not readable, or damaged.
    """
    try:
        # Before opening: a named pipe without a writer would be waited on for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise TaskDataError(f"{path}: expected a regular file.")
        raw = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(raw)
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except OSError as error:  # gzip's own errors too
        raise TaskDataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise TaskDataError(f"{path}: cannot be read: {error}.") from None


def content_sha256(content: bytes) -> str:
    """Hash a file's content, in hexadecimal digits."""
    return sha256(content).hexdigest()


def joint_sha256(hashes: Sequence[str]) -> str:
    """The hash of files that are one data set, from theirs in order: a single file's is its own."""
    return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()


def check_hash(path: Path, found: str, expected: str | None) -> None:
    """Compare a file's hash with the one that it should have; None accepts any.

    Raises:
        TaskDataError: Naming both hashes.
    """
    if expected is not None and found != expected:
        raise TaskDataError(
            f"{path}: another file than the one that was checked: its SHA-256 is {found}, "
            f"expected {expected}."
        )


def decode(path: Path, content: bytes) -> str:
    """Read a file's content as UTF-8.

    Raises:
        TaskDataError: It is something else, by its line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskDataError(f"{path}, line {line}: not UTF-8 text (byte {error.start}).") from None


def parse_records(path: Path, content: bytes, at: str | None = None) -> Iterator[tuple[str, Any]]:
    """List a file's records, each with its place for messages.

    Args:
        path: Its name says how it is read: .jsonl holds a record a line; .txt (and .py, which some prompts
            of others are written in, and nothing runs) is one record of `id` (the file's name) and `text`;
            any other is JSON.
        content: What is in it, unpacked.
        at: Of a JSON file, the key that the list of records stands under; "" for a file that is one record.

    Raises:
        TaskDataError: Not what its name says, by line.
    """
    text, name = decode(path, content), plain_name(path)
    if name.endswith(_TEXTS):
        yield str(path), {"id": name, "text": text}
    elif name.endswith(".jsonl"):
        # Not splitlines(): JSON text may hold U+2028 and the like as they are.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", _parse(f"{path}, line {number}", line)
    else:
        whole = _parse(str(path), text)
        if at == "":
            yield str(path), whole
            return
        for number, record in enumerate(_listed(path, whole, at), 1):
            yield f"{path}, record {number}", record


def _listed(path: Path, whole: Any, at: str | None) -> list[Any]:  # noqa: ANN401  (any JSON value)
    if at is not None:
        if not isinstance(whole, Mapping) or at not in whole:
            raise TaskDataError(f"{path}: expected a mapping with the records under {at!r}.")
        whole = whole[at]
    if not isinstance(whole, list):
        raise TaskDataError(f"{path}: expected a list of records, got {type(whole).__name__}.")
    return whole


def _parse(place: str, text: str) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{place}: not valid JSON: {error}.") from None
