"""The least budget that is not worse than full attention: a paired non-inferiority test with a stated margin.

Not to be told apart from full attention is not to be as good as it: with few documents nothing is told apart.
A budget counts as not worse where the interval of the paired difference, candidate minus full, lies above
-margin altogether. With a two-sided interval of 95 % that is the one-sided test at 2.5 %, as usual for
non-inferiority.

Several budgets are tested, and the least is picked. They are tested from the largest downwards, and the first
that fails ends it: a fixed sequence needs no correction, since a later hypothesis is looked at only where all
before it were shown (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001). So along one sweep the
chance of naming any budget that is truly worse by more than the margin is at most that level. Sweeps, tasks
and lengths are questions of their own, each at that level: nothing corrects for their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from nsa_eval.comparison import Interval, Row
from nsa_eval.comparison.intervals import tango, unanimous

Outcome: TypeAlias = Literal["found", "none", "too few", "unknown"]
_MOST_DOCUMENTS = 10**7


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One budget against full attention."""

    label: str
    """The model's."""
    n: int
    difference: float
    """Candidate minus full, in the metric's scale."""
    interval: Interval | None
    not_worse: bool | None
    """None where there is no interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """What testing one sweep came to."""

    outcome: Outcome
    """"found"; "none" of those tried; "too few" documents to show it even if all scored alike; "unknown":
    nothing to compare."""
    margin: float
    """In the metric's scale."""
    trials: tuple[Trial, ...]
    """From the largest budget to the least, those after the first failure too."""
    found: Trial | None = None
    """The least budget that passed, all larger ones having passed."""
    needed: int | None = None
    """Documents that would be enough if all scored alike; None where no number is known."""


def least_not_worse(rows: Sequence[Row], *, margin: float, confidence: float) -> Least:
    """Test a sweep.

    Args:
        rows: Candidates against full attention on the same documents, from the largest budget to the least.
        margin: By how much a budget may be worse, above 0, in the metric's scale.
        confidence: Level of the rows' two-sided intervals.

    Raises:
        ValueError: A margin that isn't above 0.
    """
    if not margin > 0:
        raise ValueError(
            f"a margin must be above 0, got {margin}: nothing shows that a difference is exactly 0"
        )
    trials = tuple(_trial(row, margin) for row in rows)
    if not any(trial.not_worse is not None for trial in trials):
        return Least(outcome="unknown", margin=margin, trials=trials)
    found: Trial | None = None
    for trial in trials:
        if not trial.not_worse:
            break
        found = trial
    needed = documents_needed(margin, confidence, binary=rows[0].binary) if rows[0].unit == "points" else None
    if found is not None:
        return Least(outcome="found", margin=margin, trials=trials, found=found, needed=needed)
    few = needed is not None and max(trial.n for trial in trials) < needed
    return Least(outcome="too few" if few else "none", margin=margin, trials=trials, needed=needed)


def documents_needed(margin: float, confidence: float, *, binary: bool) -> int | None:
    """The fewest documents with which a model that scores alike on all of them is shown to be not worse.

    Fewer can show nothing, whatever the model: with 95 % and a margin of 2 points 189 of 0/1 scores (Tango's
    interval without a discordant pair ends at -z^2 / (n + z^2)), 183 of others.

    Args:
        margin: Share of 1.
        confidence: Two-sided level.
        binary: Whether scores are 0 or 1.

    Returns:
        None where not even millions would do.
    """

    def enough(n: int) -> bool:
        if binary:
            return tango(0, 0, n, confidence).low > -margin
        return unanimous(0.0, n, confidence, (-1.0, 1.0)).low > -margin

    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST_DOCUMENTS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def margin_of(row: Row, points: float) -> float:
    """A margin in a row's scale.

    Args:
        row: Whose metric.
        points: Of 100 for scores within 0..1; of other metrics so many percent of full attention's mean.
    """
    share = points / 100
    return share if row.unit == "points" else share * abs(row.baseline_score.mean)


def _trial(row: Row, margin: float) -> Trial:
    ends = row.interval
    passes: bool | None = None
    if ends is not None and np.isfinite([ends.low, ends.high]).all():
        passes = ends.high < margin if row.higher_is_better is False else ends.low > -margin
    return Trial(label=row.candidate, n=row.n, difference=row.difference, interval=ends, not_worse=passes)
