"""Seconds of this process that a model pays once and no later batch does: probes, compilers, graph captures.

Whoever measures a pace takes the reading before and after, and leaves the difference out of it.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_seconds = 0.0
_depth = 0


def seconds_once() -> float:
    """Seconds so far: of every block of `once`, and of Triton's compiling outside of them."""
    return _seconds


@contextmanager
def once(device: torch.device | None = None) -> Iterator[None]:
    """What happens within is done once. Of blocks within each other the outermost counts.

    Args:
        device: Where it computes: a GPU's work of before isn't counted, and its own is waited for. None: the
            host's time alone.
    """
    global _depth
    _wait(device)
    begin = time.perf_counter()
    with _lock:
        _depth += 1
    try:
        yield
        _wait(device)
    finally:
        with _lock:
            _depth -= 1
            outermost = _depth == 0
        if outermost:
            _add(time.perf_counter() - begin)


@functools.cache
def watch_compiler() -> None:
    """Count what Triton compiles at a kernel's first launch from now on; nothing without Triton."""
    if importlib.util.find_spec("triton") is None:
        return
    import triton

    before = triton.knobs.compilation.listener

    def listener(**event: Any) -> None:  # noqa: ANN401 - what triton tells
        # Within `once` the clock has it; threads of a pool compile side by side there.
        if not _depth:
            _add(event["times"].total / 1e6)
        if before is not None:
            before(**event)

    triton.knobs.compilation.listener = listener


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _add(seconds: float) -> None:
    global _seconds
    with _lock:
        _seconds += seconds
