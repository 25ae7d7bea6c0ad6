"""The lock of a run's folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from nsa_eval.store._shard import StoreError, explained


def lock_store(path: Path) -> FileLock:
    """Take the lock that lies beside a store's file, or say that another run has it.

    Args:
        path: The store's file; its folder is made if needed.

    Returns:
        The lock, held. It goes with the process, however that ends.

    Raises:
        StoreError: Another run holds it, or the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(".lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"another run is using {path.parent}; wait for it to end or give this run its own output folder"
        ) from None
    except OSError as error:
        raise explained(error, path) from error
    return lock
