"""Compiling ahead: what a run will launch is compiled in parallel, and before it is asked for.

Triton compiles a kernel at its first launch, one after another, on one core. In a *rehearsal* the calls of
this package go through the same Python as ever, but on tensors without memory (device "meta"), and what they
launch is noted instead. So what is compiled is what those calls will look for, and no list of kernels has to
be kept in step with them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

_MOST_WORKERS = 16
"""Threads that compile. The compiler's Python part runs in one at a time: more have nothing to do."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Compilations:
    """What Triton compiled within `compilations`, or for `compile_ahead`."""

    kernels: int = 0
    """Compiled."""
    cached: int = 0
    """Found compiled in Triton's cache on disk."""
    compile_seconds: float = 0.0
    """Summed over the kernels; of those compiled at once, each counts its waiting for a core too."""
    wall_seconds: float = 0.0
    """From the beginning to the end, other work in between included."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def _listen(self, *, times: Any, cache_hit: bool) -> None:  # noqa: ANN401 - triton's CompileTimes
        with self._lock:
            self.cached += cache_hit
            self.kernels += not cache_hit
            self.compile_seconds += times.total / 1e6


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch that a rehearsal noted: a @triton.jit function and its arguments, but for the grid."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    device: torch.device
    launches: list[Launch]

    def note(self, kernel: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - any kernel's
        self.launches.append(Launch(kernel, arguments, options))


_current: ContextVar[_Rehearsal | None] = ContextVar("nsa_kernels_rehearsal", default=None)


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:  # noqa: ANN401 - a @triton.jit function
    """`kernel[grid]`; in a rehearsal what notes the call instead."""
    rehearsal = _current.get()
    return kernel[grid] if rehearsal is None else functools.partial(rehearsal.note, kernel)


def real_device(device: torch.device) -> torch.device:
    """The device whose kernels are meant: the rehearsed one for "meta" in a rehearsal, else the given one."""
    if device.type != "meta":
        return device
    rehearsal = _current.get()
    return device if rehearsal is None else rehearsal.device


@contextmanager
def rehearsal(device: torch.device) -> Iterator[list[Launch]]:
    """Calls within, on tensors of device "meta", run nothing: the list given fills with their launches.

    Args:
        device: Where they are to run later: its kind and its multiprocessors decide what they launch.
    """
    launches: list[Launch] = []
    token = _current.set(_Rehearsal(device, launches))
    try:
        yield launches
    finally:
        _current.reset(token)


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts what Triton compiles within, whoever asks for it; all zero but `wall_seconds` without Triton.

    One at a time, for the whole process. Not counted is what Triton 3.6 builds with the C compiler for each
    kernel's first launch.

    Example:
        >>> with compilations() as compiled:
        ...     run()
        >>> print(compiled.kernels, compiled.compile_seconds)
    """
    seen = Compilations()
    begin = time.perf_counter()
    if importlib.util.find_spec("triton") is None:
        yield seen
        seen.wall_seconds = time.perf_counter() - begin
        return
    import triton

    before = triton.knobs.compilation.listener

    def listener(**event: Any) -> None:  # noqa: ANN401 - what triton tells
        seen._listen(times=event["times"], cache_hit=event["cache_hit"])
        if before is not None:
            before(**event)

    triton.knobs.compilation.listener = listener
    try:
        yield seen
    finally:
        triton.knobs.compilation.listener = before
        seen.wall_seconds = time.perf_counter() - begin


@contextmanager
def compile_ahead(device: torch.device, *, workers: int | None = None) -> Iterator[Compilations]:
    """Calls within, on tensors of device "meta", run nothing; at the end their kernels are compiled.

    Kernels that don't compile are logged, and fail where they are launched. Tensors laid out in another way
    than those that come later, or `lengths` of another integer type, ask for kernels of their own then.

    Args:
        device: The GPU that they are to run on.
        workers: Threads; None = one a core, 16 at most.

    Yields:
        What was compiled, complete behind the block.

    Example:
        >>> with compile_ahead(torch.device("cuda")) as compiled:
        ...     nsa_decode(*meta_tensors, geometry=geometry, lengths=lengths, backend="triton")
        >>> print(f"{compiled.kernels} kernels in {compiled.wall_seconds:.1f} s")
    """
    result = Compilations()
    begin = time.perf_counter()
    with rehearsal(device) as launches:
        yield result
    with compilations() as seen:
        compile_launches(launches, device, workers=workers)
    result.kernels, result.cached = seen.kernels, seen.cached
    result.compile_seconds = seen.compile_seconds
    result.wall_seconds = time.perf_counter() - begin


def compile_launches(launches: Sequence[Launch], device: torch.device, *, workers: int | None = None) -> None:
    """Compiles what a rehearsal noted, in parallel, and loads it where the device is there.

    Args:
        launches: What was noted; what was compiled before costs nothing.
        device: The device.
        workers: Threads; None = one a core, 16 at most.
    """
    if not launches:
        return
    import triton

    on_device = device.type == "cuda" and torch.cuda.is_available()
    if on_device and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # a thread has a current device of its own
    with (
        ThreadPoolExecutor(workers or min(_MOST_WORKERS, _cores())) as pool,
        torch.cuda.device(device if on_device else -1),
    ):
        # The mode hands compiling to the pool, and puts the results where launches look for them. Its errors
        # would leave it on for good: those are looked for below.
        with triton.AsyncCompileMode(pool, ignore_errors=True):
            pending = [(x, x.kernel.warmup(*x.arguments, grid=None, **x.options)) for x in launches]
        once = {id(made): (x.kernel.fn.__name__, made) for x, made in pending}
        compiled = [kernel for name, made in once.values() if (kernel := _result(name, made)) is not None]
        if on_device:
            for loaded in [pool.submit(_load, kernel, device) for kernel in compiled]:
                loaded.result()


def _result(name: str, pending: Any) -> Any:  # noqa: ANN401 - triton's FutureKernel, or CompiledKernel
    """The compiled kernel, or None where it does not compile."""
    import triton

    if not isinstance(pending, triton.FutureKernel):
        return pending
    try:
        return pending.result()
    except Exception as error:  # the compiler's own, of any kind
        said = str(error).strip().splitlines() or [type(error).__name__]
        _log.warning("%s does not compile: %s", name, said[-1])
        return None


def _load(kernel: Any, device: torch.device) -> None:  # noqa: ANN401 - triton's CompiledKernel
    """Builds the kernel's launcher (Triton 3.6: with the C compiler), and puts its code on the GPU."""
    with torch.cuda.device(device):
        try:
            _ = kernel.run
        except Exception as error:  # too much shared memory, say: it fails again where it is launched
            _log.warning("%s cannot be loaded: %s", kernel.name, error)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
