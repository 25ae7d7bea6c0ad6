"""Scores of sweeps over a cost, laid out for inline SVG: lines, intervals, bands, the Pareto front."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from nsa_reports import _format as fmt
from nsa_reports.charts import HEIGHT, WIDTH, Key, Tick, nice_ticks
from nsa_reports.scatter import BOTTOM, HEARD, LEFT, RIGHT, TOP, cost_axis, figure, whiskers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One measured point of a line."""

    name: str
    """What a hover calls it."""
    cost: float
    score: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostCurve:
    """The points of one sweep."""

    key: Key
    """Of `keys_of` for all of the page's sweeps."""
    spots: tuple[Spot, ...]
    """In the order of the sweep."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostMark:
    """One point in pixels."""

    x: float
    y: float
    low: float | None
    """Height of its interval's lower end; None without one."""
    high: float | None
    label: str
    front: bool
    """Whether it is on the Pareto front."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """One sweep in pixels."""

    key: Key
    points: str
    """Of a `<polyline>`."""
    marks: tuple[CostMark, ...]

    @property
    def whiskers(self) -> str:
        """The intervals of its points, of a `<path>`; empty without any."""
        return "".join(path for _, path in whiskers((0, one.x, one.low, one.high) for one in self.marks))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A level across the chart: what is measured against."""

    name: str
    label: str
    at: float
    top: float | None
    """Of its interval; None without one."""
    bottom: float | None
    mark: CostMark | None
    """Where it stands itself; None where its cost isn't known."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """One pair of axes."""

    title: str
    """For those who hear it: with every point's figures, while these are few."""
    x_label: str
    y_label: str
    lines: tuple[CostLine, ...]
    bands: tuple[Band, ...]
    front: str
    """Of a `<polyline>`: the steps of the front; empty with fewer than two points on it."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM

    @property
    def ringed(self) -> bool:
        """Whether any point is on the front."""
        marks = [mark for line in self.lines for mark in line.marks]
        return any(mark.front for mark in (*marks, *(band.mark for band in self.bands if band.mark)))


def frontier_of(
    title: str,
    curves: Sequence[CostCurve],
    levels: Sequence[tuple[Spot, bool]],
    *,
    front: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    percent: bool,
) -> Frontier:
    """Lay out one chart.

    Costs begin at 0, or stand on a logarithmic axis where they are more than 20 times apart.

    Args:
        title: What it shows.
        curves: Of at least one point together.
        levels: Drawn across, each with whether its cost is known.
        front: (cost, score) of the points on the Pareto front, by rising cost.
        x_label: What the cost is, with its unit.
        y_label: What the score is.
        percent: Whether scores are fractions, shown as percent.

    Raises:
        ValueError: No points, or a cost that is no number from 0 on.
    """
    spots = [spot for curve in curves for spot in curve.spots]
    placed = [*spots, *(spot for spot, known in levels if known)]
    if not spots or not all(math.isfinite(spot.cost) and spot.cost >= 0 for spot in placed):
        raise ValueError(f"{title}: costs must be finite and from 0 on, got {[s.cost for s in placed]}")
    place, x_ticks = cost_axis([spot.cost for spot in placed])
    drawn = [*spots, *(spot for spot, _ in levels)]
    heights = (fmt.finite(value) for spot in drawn for value in (spot.score, spot.low, spot.high))
    known = [value for value in heights if value is not None]
    ticks = nice_ticks(min(known), max(known)) if known else [0.0, 1.0]

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    on_front = set(front)

    def mark(spot: Spot) -> CostMark:
        return _mark(spot, place, y, percent=percent, front=(spot.cost, spot.score) in on_front)

    lines = [
        CostLine(
            key=curve.key,
            # In the order of the sweep: along a noisy cost the line may turn back, and that should show.
            points=" ".join(f"{place(spot.cost)},{y(spot.score)}" for spot in curve.spots),
            marks=tuple(map(mark, curve.spots)),
        )
        for curve in curves
        if curve.spots
    ]
    bands = [
        Band(
            name=spot.name,
            label=f"{fmt.score(spot.score, percent=percent)} {_ends(spot, percent)}".strip(),
            at=y(spot.score),
            top=None if fmt.finite(spot.low) is None or spot.high is None else y(spot.high),
            bottom=None if spot.low is None or fmt.finite(spot.high) is None else y(spot.low),
            mark=mark(spot) if costed else None,
        )
        for spot, costed in levels
    ]
    said = [f"{line.key.name}: {', '.join(one.label for one in line.marks)}" for line in lines]
    said += [f"{band.name} {band.label}" for band in bands]
    if len(spots) > HEARD:
        said = [f"{len(spots)} points of {len(lines)} sweeps, which the table of every point has"]
    return Frontier(
        title=f"{title}. {'; '.join(said)}",
        x_label=x_label,
        y_label=y_label,
        lines=tuple(lines),
        bands=tuple(bands),
        front=_steps([(place(cost), y(score)) for cost, score in front]),
        x_ticks=tuple(Tick(at=place(tick), label=figure(tick)) for tick in x_ticks),
        y_ticks=tuple(
            Tick(at=y(tick), label=fmt.score(tick, percent=percent, unit=False).removesuffix(".0"))
            for tick in ticks
        ),
    )


def _mark(
    spot: Spot,
    place: Callable[[float], float],
    y: Callable[[float], float],
    *,
    percent: bool,
    front: bool,
) -> CostMark:
    low, high = fmt.finite(spot.low), fmt.finite(spot.high)
    score = fmt.score(spot.score, percent=percent)
    return CostMark(
        x=place(spot.cost),
        y=y(spot.score),
        low=None if low is None or high is None else y(low),
        high=None if low is None or high is None else y(high),
        label=f"{spot.name} at {figure(spot.cost)}: {score} {_ends(spot, percent)}".strip(),
        front=front,
    )


def _ends(spot: Spot, percent: bool) -> str:
    return fmt.interval(spot.low, spot.high, percent=percent)


def _steps(front: Sequence[tuple[float, float]]) -> str:
    """The best score at or below each cost: level up to the next point, then straight to it."""
    path: list[tuple[float, float]] = []
    for at, height in front:
        if path:
            path.append((at, path[-1][1]))
        path.append((at, height))
    return " ".join(f"{at},{height}" for at, height in path) if len(front) > 1 else ""
