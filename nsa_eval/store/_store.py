"""All responses of a run: this process's shard, those of its workers, and the lock that keeps others out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import BaseFileLock

from nsa_eval.store._lock import lock_store
from nsa_eval.store._records import RequestKind, Response
from nsa_eval.store._shard import Shard, StoreError, explained, read_shard


class ResponseStore:
    """Responses by key, in JSON-lines files that only grow: one for each process that writes.

    `responses.jsonl` is written by the process that holds the lock; `responses-*.jsonl` beside it are its
    workers', of this start or an earlier one. All are read as one. Where two hold the same key, as after a
    worker that was thought dead, the first file by name counts.
    """

    def __init__(self, path: Path, shard: Shard, lock: BaseFileLock | None) -> None:
        """Use `open`; this only takes over what it prepared."""
        self.path = path
        self._shard = shard
        self._lock = lock
        self._responses: dict[str, Response] = {}
        self._read: dict[Path, int] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, lock: BaseFileLock | None = None) -> Self:
        """Open or create the store.

        Args:
            path: This process's file (`.../responses.jsonl`); its folder is made if needed.
            lock: The store's lock, if it is held already; else it is taken, and let go by `close`.

        Raises:
            StoreError: Another run holds the store, the folder can't be written, the disk is full, or a line
                other than a torn last one can't be read.
        """
        path = Path(path)
        taken = lock_store(path) if lock is None else None
        try:
            store = cls(path, Shard.open(path), taken)
            store._take(path)
            store.refresh()
        except BaseException:
            if taken is not None:
                taken.release()
            raise
        return store

    def refresh(self) -> dict[str, Response]:
        """Read what has come into the workers' files since they were last read.

        Returns:
            The responses that weren't known before.

        Raises:
            StoreError: As `open`.
        """
        new: dict[str, Response] = {}
        for path in sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            new |= self._take(path)
        return new

    def _take(self, path: Path) -> dict[str, Response]:
        try:
            found, self._read[path] = read_shard(path, self._read.get(path, 0))
        except OSError as error:
            raise explained(error, path) from error
        new = {key: response for key, response in found.items() if key not in self._responses}
        self._responses |= new
        return new

    def get(self, key: str) -> Response | None:
        """The response stored under `key`, or None."""
        return self._responses.get(key)

    def unfit(self, key: str, kind: RequestKind) -> StoreError:
        """The error for a response that is of another type than its request is answered with."""
        value = self._responses[key].value
        for path in self._read:
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                if key.encode() in line:
                    return StoreError(
                        f"{path}, line {number}: {value!r:.80} is stored as the answer to a {kind} request; "
                        "the file was changed by something else. Remove that line to have its requests asked "
                        "again, or use a new output folder"
                    )
        return StoreError(f"{self.path}: {value!r:.80} is stored as the answer to a {kind} request")

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
        self._shard.append(new)
        self._responses.update(new)

    def close(self) -> None:
        """Close the file and let the lock go; closing twice is fine."""
        self._shard.close()
        if self._lock is not None:
            self._lock.release()

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
