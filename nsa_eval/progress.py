"""Progress of a run: a bar with the time left in a terminal, a line now and then elsewhere.

Work is counted in tokens, so that a long request counts for more than a short one: of a request that isn't
built yet what its task says or a guess, of one that is built its size, which stays when it is answered. So
the share reaches 1 with the last answer, not before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nsa_eval._words import counted


class Progress:
    """Counts the work of a run; this one shows nothing, its subclasses draw."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at nothing.

        Args:
            clock: Seconds now; tests bring their own.
        """
        self.total = self.done = self.skipped = 0
        self.requests_total = self.requests = 0
        """Requests in all as far as is known, and answered ones."""
        self.noun = "request"
        self.stage = ""
        self._clock = clock
        self._began: float | None = None

    def start(self, total: int, requests: int = 0) -> None:
        """Begin with `total` tokens in so many requests ahead, as far as is known."""
        self.total, self.requests_total = total, requests
        self.draw()

    def say(self, stage: str) -> None:
        """Name a new stage, such as `nsa: loading`."""
        self.stage = stage
        self.draw(now=True)

    def add(self, tokens: int, requests: int = 0) -> None:
        """Count tokens that the model has worked on, and the requests that this answered."""
        self.done += tokens
        self.requests += requests
        self.draw()

    def skip(self, tokens: int, requests: int = 0) -> None:
        """Count what was done in an earlier run; it says nothing about the pace."""
        self.skipped += tokens
        self.add(tokens, requests)

    def change_total(self, more: int, requests: int = 0) -> None:
        """Correct the totals: a job turned out to be `more` tokens than was planned, or fewer."""
        self.total += more
        self.requests_total += requests
        self.draw()

    @contextmanager
    def apart(self, stage: str, noun: str, tokens: int, count: int) -> Iterator[None]:
        """Count so many of something else by itself, from nothing, then go on with the run where it was.

        The run's own totals stay as they were begun, and its pace isn't slowed by this.

        Args:
            stage: What is done meanwhile, as for `say`.
            noun: What one of them is called, such as `look`.
            tokens: Their tokens.
            count: How many there are.
        """
        names = ("total", "done", "skipped", "requests_total", "requests", "noun", "stage", "_began")
        own = {name: getattr(self, name) for name in names}
        since = self._clock()
        self.total, self.requests_total, self.noun, self._began = tokens, count, noun, since
        self.done = self.skipped = self.requests = 0
        try:
            self.say(stage)
            yield
        finally:
            if own["_began"] is not None:
                own["_began"] += self._clock() - since
            for name, value in own.items():
                setattr(self, name, value)

    def begin_work(self) -> None:
        """Say that a model is about to compute: the pace is measured from the first time on."""
        if self._began is None:
            self._began = self._clock()

    @property
    def share(self) -> float:
        """Part of the whole that is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total > 0 else 0.0

    @property
    def counted(self) -> str:
        """`12/60 requests`, or nothing while their number isn't known."""
        total = self.requests_total
        return f"{self.requests:,}/{counted(total, self.noun)}" if total > 0 else ""

    @property
    def left(self) -> float | None:
        """Seconds left at the pace so far; None while there is no pace, or nothing left to answer."""
        worked, ahead = self.done - self.skipped, self.total - self.done
        if self._began is None or worked <= 0 or ahead <= 0:
            return None
        return (self._clock() - self._began) / worked * ahead

    def draw(self, *, now: bool = False) -> None:
        """Show the new state; `now` when it should not wait."""

    def note(self, text: str) -> None:
        """Tell something that isn't progress."""

    def stop(self) -> None:
        """Take the display down: the run ended, or failed."""


class Lines(Progress):
    """A line every few seconds, for logs and pipes."""

    def __init__(
        self,
        *,
        every: float = 15.0,
        write: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet.

        Args:
            every: Seconds between lines.
            write: Where lines go. Default: standard error.
            clock: Seconds now.
        """
        super().__init__(clock=clock)
        self._every = every
        self._write = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self._last = clock()

    def draw(self, *, now: bool = False) -> None:
        """Write a line when the stage is new or the last line old."""
        if not now and self._clock() - self._last < self._every:
            return
        self._last = self._clock()
        if self.stage and self.total > 0:
            left = f"{duration(self.left)} left" if self.left is not None else ""
            parts = (f"{self.share:.0%}", self.counted, left)
            self._write(f"{self.stage}: {', '.join(filter(None, parts))}")
        elif self.stage:  # nothing to count: finished responses are only read again
            self._write(self.stage)

    def note(self, text: str) -> None:
        """Write it at once."""
        self._write(text)


class Bar(Progress):
    """A bar over all jobs, with the time left."""

    def __init__(self) -> None:
        """Prepare the bar; it shows from `start` on."""
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[share]}"),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, share="", counted="", left="")

    def start(self, total: int, requests: int = 0) -> None:
        """Show the bar."""
        super().start(total, requests)
        self._bar.start()

    def draw(self, *, now: bool = False) -> None:
        """Hand the state to rich, which redraws ten times a second.

        Until something is done the bar swings to and fro: 0 % would look as if nothing happened, while models
        load and the first batch, which may be many long prompts, is read.
        """
        left = self.left
        self._bar.update(
            self._task,
            description=self.stage,
            total=self.total if self.done > 0 and self.total > 0 else None,
            completed=self.done,
            share=f"{self.share:.0%}" if self.done > 0 else "",
            counted=self.counted,
            left="" if left is None else f"{duration(left)} left",
        )

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bar down."""
        self._bar.stop()


def choose(show: bool | None = None) -> Progress:
    """The display that fits: a bar in a terminal, lines elsewhere, nothing when `show` is False."""
    if show is False:
        return Progress()
    return Bar() if sys.stderr.isatty() else Lines()


def duration(seconds: float | None) -> str:
    """Write a time as people do: `45s`, `3m 20s`, `2h 05m`, `6d 03h`."""
    whole = round(seconds or 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 96 * 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
