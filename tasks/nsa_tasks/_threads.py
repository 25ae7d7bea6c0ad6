"""Documents made side by side: most of their time goes into tokenizing, outside of Python's lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_MOST_THREADS = 16
"""Beyond it Python's own share of the work, a tenth of it and more, is what takes the time."""


def threads() -> int:
    """How many work side by side."""
    return min(_MOST_THREADS, os.cpu_count() or 1)


def each(make: Callable[[J], R], jobs: Sequence[J], *, first_alone: bool = True) -> list[R]:
    """Make a document of every job, on all cores, in the order of the jobs: `[make(job) for job in jobs]`.

    Args:
        make: Depends on its job alone, and changes nothing that others read.
        jobs: One for each document.
        first_alone: Make the first one before the others, so that what all of them share is made once, and a
            mistake shows at once.

    Raises:
        Exception: That of the first job, in order, that failed; later ones that had not begun are dropped.
    """
    alone = 1 if first_alone else 0
    made = [make(job) for job in jobs[:alone]]
    if len(jobs) == alone or not jobs:
        return made
    pool = ThreadPoolExecutor(threads())
    try:
        return [*made, *pool.map(make, jobs[alone:])]
    finally:
        pool.shutdown(cancel_futures=True)
