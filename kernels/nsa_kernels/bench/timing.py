"""Clocks: CUDA events around runs that take turns, with the L2 cache flushed before each.

`take_turns` is for work of a millisecond or more: contenders take turns of several runs each, the first of
which is not timed, so that each is measured at the clock that its own work leaves to the card, and a card
that slows down meets all of them. Nothing waits between the runs: the launches stay ahead of the device.
`per_call` is for decode: many calls between two events, over input sets that together are larger than the
L2 cache, so that each call finds its own gone, as between the layers of a model. As one CUDA graph it times
the kernels, without one also what the host needs to launch them.

On a CPU (tests) the same functions read the wall clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from nsa_kernels.bench.counts import Ceilings

Run = Callable[[], object]
FLUSH_BYTES = 256 * 2**20
"""Written between two runs: several times any L2 cache."""
MIN_RUNS = 3
TURNS = 3
"""Turns that a contender's runs are dealt to."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one contender, in milliseconds."""

    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        """Summary of single times."""
        ordered = sorted(times)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
        )


class Clock:
    """Times work on one device."""

    def __init__(self, device: torch.device) -> None:
        """Takes the buffer that flushes the cache."""
        self.device = device
        self.cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES if self.cuda else 1, dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, phases: Sequence[Run]) -> float:
        """Milliseconds of one run."""
        return sum(self._laps(phases)())

    def take_turns(
        self, contenders: Mapping[str, Sequence[Run]], *, repeats: int, seconds: float
    ) -> dict[str, list[Timing]]:
        """Times contenders in turns.

        Args:
            contenders: Name -> phases that follow each other (forward, backward), timed one by one.
            repeats: Timed runs of each, as far as `seconds` for each contender allow.
            seconds: See there; three runs at least.

        Returns:
            Name -> a Timing for each phase, and behind them one for all phases together.
        """
        times: dict[str, list[Any]] = {name: [] for name in contenders}
        slowest = 0.0
        for phases in contenders.values():
            self._laps(phases)()  # compiles
            slowest = max(slowest, sum(self._laps(phases)()))
        runs = max(MIN_RUNS, min(repeats, int(1000 * seconds / max(slowest, 1e-6))))
        for share in _shares(runs, TURNS):
            for name, phases in contenders.items():
                self._laps(phases)()  # in its own state: what ran before it has heated the card
                times[name] += [self._laps(phases) for _ in range(share)]
        return {name: self._summary([read() for read in laps]) for name, laps in times.items()}

    def _summary(self, laps: Sequence[Sequence[float]]) -> list[Timing]:
        phases = [Timing.of(times) for times in zip(*laps, strict=True)]
        return [*phases, Timing.of([sum(times) for times in laps])]

    def _laps(self, phases: Sequence[Run]) -> Callable[[], list[float]]:
        """Runs the phases; the result waits for them and gives their milliseconds."""
        if not self.cuda:
            marks = [time.perf_counter()]
            for phase in phases:
                phase()
                marks.append(time.perf_counter())
            return lambda: [1000 * (b - a) for a, b in pairwise(marks)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(phases) + 1)]
        self._flush.zero_()
        events[0].record()
        for phase, event in zip(phases, events[1:], strict=True):
            phase()
            event.record()

        def read() -> list[float]:
            events[-1].synchronize()
            return [a.elapsed_time(b) for a, b in pairwise(events)]

        return read

    def per_call(self, calls: Sequence[Run], *, graph: bool, repeats: int) -> Timing:
        """Time of one call out of `calls`, which are made one after the other.

        Args:
            calls: The same work on different inputs.
            graph: Record all of them into one CUDA graph and replay it.
            repeats: Rounds over all calls.
        """
        for call in calls:  # compiles; before a graph also takes what memory the kernels keep
            call()
        self.synchronize()
        play = self._record(calls) if graph and self.cuda else lambda: [call() for call in calls]
        play()
        times = []
        for _ in range(max(MIN_RUNS, repeats)):
            self.synchronize()
            if not self.cuda:
                begin = time.perf_counter()
                play()
                times.append(1000 * (time.perf_counter() - begin) / len(calls))
                continue
            begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin_event.record()
            play()
            end_event.record()
            end_event.synchronize()
            times.append(begin_event.elapsed_time(end_event) / len(calls))
        return Timing.of(times)

    def _record(self, calls: Sequence[Run]) -> Run:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def peak_bytes(self, run: Run) -> int | None:
        """Memory that a run takes at its peak beyond what stood before; None on a CPU."""
        if not self.cuda:
            run()
            return None
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        kept = run()
        self.synchronize()
        del kept
        return torch.cuda.max_memory_allocated(self.device) - before

    def ceilings(self, dtype: torch.dtype) -> Ceilings:
        """Measures a large matrix product and a large copy, on random data."""
        side, elements = (8192, 2**30) if self.cuda else (256, 2**20)
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        source = torch.empty(elements, dtype=torch.int16, device=self.device).random_(0, 1000)
        target = torch.empty_like(source)
        times = self.take_turns(
            {"product": [lambda: a @ b], "copy": [lambda: target.copy_(source)]}, repeats=20, seconds=1.0
        )
        product, copy = times["product"][0].median, times["copy"][0].median
        return Ceilings(2 * side**3 / product * 1e-9, 2 * source.nbytes / copy * 1e-9, measured=True)


def _shares(runs: int, turns: int) -> list[int]:
    """Runs of each turn."""
    return [len(range(turn, runs, turns)) for turn in range(min(turns, runs))]
