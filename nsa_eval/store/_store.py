"""The append-only file of responses: what `put` returned from survives a kill or a power cut."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from nsa_eval.errors import UserError
from nsa_eval.store._records import Response

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock: two runs in one folder aren't noticed there
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class StoreError(UserError):
    """The store's file can't be opened, read or written."""


class ResponseStore:
    """Responses by key, in a JSON-lines file that only grows.

    One line is one `put` or `put_many`: a list of `{"key", "response"}` records. A line counts when its
    newline is on disk, so a batch is there as a whole or not at all, and a line cut short by a kill is
    dropped at the next opening.
    """

    def __init__(self, path: Path, file: FileIO, responses: dict[str, Response]) -> None:
        """Use `open`; this only takes over what it prepared."""
        self.path = path
        self._file: FileIO | None = file
        self._responses = responses

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open or create the store and take its lock.

        Args:
            path: The file (`.../responses.jsonl`); its folder is made if needed.

        Raises:
            StoreError: Another run holds the store, the folder can't be written, the disk is full, or a line
                other than a torn last one can't be read.
        """
        path = Path(path)
        file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Read and append through one unbuffered handle: no response waits in this process's memory.
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - it lives as long as the store
            _lock(file, path)
            responses, end = _read(path)
            if end < path.stat().st_size:
                os.ftruncate(file.fileno(), end)  # the torn last line, or the next one would join it
                os.fsync(file.fileno())
            _sync_folder(path.parent)
        except OSError as error:
            if file is not None:
                file.close()
            raise _explained(error, path) from error
        except StoreError:
            if file is not None:
                file.close()
            raise
        return cls(path, file, responses)

    def get(self, key: str) -> Response | None:
        """The response stored under `key`, or None."""
        return self._responses.get(key)

    def put(self, key: str, response: Response) -> None:
        """Store one response; it is on disk when this returns.

        Raises:
            StoreError: The file can't be written (full disk, say); what was stored before stays.
        """
        self.put_many({key: response})

    def put_many(self, responses: Mapping[str, Response] | Iterable[tuple[str, Response]]) -> None:
        """Store several responses with one write and one sync: all of them, or after a kill none.

        Raises:
            StoreError: The file can't be written; what was stored before stays.
        """
        new = dict(responses)
        if not new:
            return
        file = self._file
        if file is None:
            raise StoreError(f"the response store {self.path} is closed; open it again before writing")
        records = [
            {"key": key, "response": response.model_dump(mode="json")} for key, response in new.items()
        ]
        line = json.dumps(records, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        start = os.fstat(file.fileno()).st_size
        try:
            _write_all(file.fileno(), line)
            os.fsync(file.fileno())
        except OSError as error:
            self._cut_back(file, start)
            raise _explained(error, self.path) from error
        self._responses.update(new)

    def close(self) -> None:
        """Close the file and let the lock go; closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        """Number of stored responses."""
        return len(self._responses)

    def __contains__(self, key: str) -> bool:
        """Whether a response is stored under `key`."""
        return key in self._responses

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def _cut_back(self, file: FileIO, size: int) -> None:
        """Drop half a line after a failed write, as the next line must start on its own."""
        try:
            os.ftruncate(file.fileno(), size)
        except OSError:
            # A full disk can refuse this too; the next opening drops the torn line. Nothing may follow it.
            self.close()


def _lock(file: FileIO, path: Path) -> None:
    if fcntl is None:  # pragma: no cover
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(
            f"another run is using {path.parent}; wait for it to end or give this run its own output folder"
        ) from None
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
            return  # some network file systems have no locks; the user's care has to do
        raise


def _read(path: Path) -> tuple[dict[str, Response], int]:
    """All responses of the file, and the offset where its last whole line ends."""
    responses: dict[str, Response] = {}
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a kill while it was written; the response is asked for again
            try:
                for record in json.loads(line):
                    responses[record["key"]] = Response.model_validate(record["response"])
            except (ValueError, TypeError, KeyError, ValidationError) as error:
                if not file.read(1):
                    break  # a power cut can leave the last line's length without its content
                raise StoreError(
                    f"{path}, line {number}: not a stored response ({type(error).__name__}); the file was "
                    "changed by something else. Remove that line to have its requests asked again, or use a "
                    "new output folder"
                ) from error
            end += len(line)
    return responses, end


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


def _explained(error: OSError, path: Path) -> StoreError:
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
