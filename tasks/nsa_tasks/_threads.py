"""Documents made side by side: most of their time goes into tokenizing, outside of Python's lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_MOST_THREADS = 16
"""Beyond it Python's own share of the work, a tenth of it and more, is what takes the time."""


def each(make: Callable[[J], R], jobs: Sequence[J]) -> list[R]:
    """Make a document of every job, on all cores, in the order of the jobs: `[make(job) for job in jobs]`.

    The first one is made alone, so that what all of them share is made once, and a mistake shows at once.

    Args:
        make: Depends on its job alone, and changes nothing that others read.
        jobs: One for each document.

    Raises:
        Exception: That of the first job, in order, that failed; later ones that had not begun are dropped.
    """
    if not jobs:
        return []
    first = make(jobs[0])
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        return [first, *pool.map(make, jobs[1:])]
    finally:
        pool.shutdown(cancel_futures=True)
