"""Seconds over length: a curve through what was measured, and how far it may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPREAD = 1.3
"""Two runs of one job differ by as much on a machine that does other things too, or by their batches."""
_FARTHER = 0.25
"""Of each doubling beyond the longest length measured, so many more powers of 2 of doubt."""


@dataclass(frozen=True, slots=True)
class Range:
    """From the least to the most that is likely."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        """Both after one another."""
        return Range(self.low + other.low, self.high + other.high)

    def times(self, low: float, high: float | None = None) -> Range:
        """So many times: at least `low`, at most `high`."""
        return Range(self.low * low, self.high * (low if high is None else high))


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one thing at a length n: the sum of coefficients times powers of n.

    Dense prefill grows with n and n^2, NSA's nearly with n alone, a decode step has a constant and a part
    that grows with n: which, the measured lengths say. A coefficient below 0 is never fitted.
    """

    coefficients: tuple[float, ...]
    powers: tuple[int, ...]
    spread: float
    """Factor of doubt at measured lengths."""
    longest: float
    """Longest length measured."""
    known: bool
    """Whether several lengths say how it grows."""

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float, float]], *, highest: int) -> Pace | None:
        """The curve with the least relative errors.

        Args:
            points: (length in tokens, seconds, weight) each.
            highest: The power of n that it grows with at most: 2 for prompts, 1 for decode steps.

        Returns:
            None where nothing was measured.
        """
        import numpy as np
        from scipy.optimize import nnls

        measured = [(n, seconds, weight) for n, seconds, weight in points if n > 0 and seconds > 0 < weight]
        if not measured:
            return None
        length, seconds, weight = (
            np.array(column, dtype=np.float64) for column in zip(*measured, strict=True)
        )
        distinct = len(set(length))
        # With one length the lower power that is at work; with two a line through both.
        powers = tuple(range(highest + 1))[-min(distinct, highest + 1) :]
        if distinct == 1:
            powers = (highest - 1,)
        scaled = (length / length.max())[:, None] ** np.array(powers) / seconds[:, None]
        by = np.sqrt(weight)
        found, _ = nnls(scaled * by[:, None], by)
        fitted = (scaled * found).sum(axis=1)
        off = np.maximum(fitted, 1 / np.maximum(fitted, 1e-9))
        return cls(
            coefficients=tuple(
                float(c / length.max() ** power) for c, power in zip(found, powers, strict=True)
            ),
            powers=powers,
            spread=max(_SPREAD, float(np.average(off, weights=weight))),
            longest=float(length.max()),
            known=distinct > 1,
        )

    def at(self, length: float) -> Range:
        """Seconds at a length.

        Beyond the longest measured doubt grows. If one length alone was measured, it is not known how it
        grows: it may as the lower power does or the next one.
        """
        seconds = sum(c * length**power for c, power in zip(self.coefficients, self.powers, strict=True))
        ratio = length / self.longest
        doubt = self.spread * max(1.0, ratio) ** _FARTHER
        low = high = 1.0
        if not self.known:
            low, high = min(1.0, ratio), max(1.0, ratio)
        return Range(seconds * low / doubt, seconds * high * doubt)
