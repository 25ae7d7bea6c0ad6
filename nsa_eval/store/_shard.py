"""One append-only file of responses: what `append` returned from survives a kill or a power cut."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from nsa_eval.errors import UserError
from nsa_eval.store._records import Cost, Response

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class StoreError(UserError):
    """The store's file can't be opened, read or written."""


class Shard:
    """The file that one process writes.

    One line is one `append`: a list of `{"key", "response", "cost"}` records. A line counts when its newline
    is on disk, so a batch is there as a whole or not at all, and a line cut short by a kill is dropped at the
    next opening.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        """Use `open`; this only takes over what it prepared."""
        self.path = path
        self._file: FileIO | None = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the file for appending, without a torn last line.

        Raises:
            StoreError: The folder can't be written, the disk is full, or a line other than a torn last one
                can't be read.
        """
        file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Read and append through one unbuffered handle: no response waits in this process's memory.
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - it lives as long as the shard
            _, end = read_shard(path)
            if end < path.stat().st_size:
                os.ftruncate(file.fileno(), end)  # the torn last line, or the next one would join it
                os.fsync(file.fileno())
            _sync_folder(path.parent)
        except OSError as error:
            if file is not None:
                file.close()
            raise explained(error, path) from error
        except StoreError:
            if file is not None:
                file.close()
            raise
        return cls(path, file)

    def append(self, responses: Mapping[str, Response]) -> None:
        """Write several responses with one write and one sync: all of them, or after a kill none.

        Raises:
            StoreError: The file can't be written; what was stored before stays.
        """
        if not responses:
            return
        file = self._file
        if file is None:
            raise StoreError(f"the response store {self.path} is closed; open it again before writing")
        records = [_record(key, response) for key, response in responses.items()]
        line = json.dumps(records, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        start = os.fstat(file.fileno()).st_size
        try:
            _write_all(file.fileno(), line)
            os.fsync(file.fileno())
        except OSError as error:
            self._cut_back(file, start)
            raise explained(error, self.path) from error

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut_back(self, file: FileIO, size: int) -> None:
        """Drop half a line after a failed write, as the next line must start on its own."""
        try:
            os.ftruncate(file.fileno(), size)
        except OSError:
            # A full disk can refuse this too; the next opening drops the torn line. Nothing may follow it.
            self.close()


def read_shard(path: Path, start: int = 0) -> tuple[dict[str, Response], int]:
    """The responses of a file from a line's start on, and the offset where its last whole line ends.

    Raises:
        StoreError: A line other than a torn last one can't be read.
        OSError: The file can't be read.
    """
    responses: dict[str, Response] = {}
    end = start
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a kill while it was written; the response is asked for again
            try:
                for record in json.loads(line):
                    responses[record["key"]] = _response(record)
            except (ValueError, TypeError, KeyError, ValidationError, RecursionError) as error:
                if not file.read(1):
                    break  # a power cut can leave the last line's length without its content
                where = f"line {number}" if start == 0 else f"line {number} after byte {start}"
                raise StoreError(
                    f"{path}, {where}: not a stored response ({type(error).__name__}); the file was "
                    "changed by something else. Remove that line to have its requests asked again, or use a "
                    "new output folder"
                ) from error
            end += len(line)
    return responses, end


def _record(key: str, response: Response) -> dict[str, object]:
    record: dict[str, object] = {"key": key, "response": response.model_dump(mode="json")}
    if response.cost is not None:
        record["cost"] = response.cost.model_dump(mode="json", exclude_none=True)
    return record


def _response(record: dict[str, object]) -> Response:
    response = Response.model_validate(record["response"])
    if "cost" not in record:
        return response
    return response.model_copy(update={"cost": Cost.model_validate(record["cost"])})


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """Make the file's name durable too; not every system can sync a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def explained(error: OSError, path: Path) -> StoreError:
    """One message for a store that can't be opened, read or written."""
    if error.errno in _FULL:
        return StoreError(
            f"no space left for {path}; everything finished before is stored. Free some space and start the "
            "same command again to go on"
        )
    if error.errno in _REFUSED:
        return StoreError(
            f"{path.parent} can't be written ({os.strerror(error.errno or 0).lower()}); choose another "
            "output folder or change its permissions"
        )
    return StoreError(f"the response store {path} failed: {error.strerror or error}")
