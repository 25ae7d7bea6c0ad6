"""Scores against what they cost, laid out once for the page's inline SVG: a dot and an interval per model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from nsa_reports import _format as fmt
from nsa_reports.charts import HEIGHT, WIDTH, Key, Tick, keys_of, nice_ticks

LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 12.0, 44.0
"""Margins of a chart over costs, in pixels."""
_LOGARITHMIC = 20
"""Costs that are so many times apart stand on a logarithmic axis."""
_LABEL = 26.0
HEARD = 12
"""Points that a chart's label reads out; nobody listens to more, and tables say them too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostPoint:
    """One model: what it scored, and what that took."""

    model: str
    cost: float
    score: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One model in pixels."""

    key: Key
    x: float
    y: float
    low: float | None
    """Height of the interval's lower end; None without one."""
    high: float | None
    label: str
    """What a hover says."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """One pair of axes."""

    title: str
    """For those who hear it: with every point's figures, while these are few."""
    x_label: str
    y_label: str
    dots: tuple[Dot, ...]
    whiskers: tuple[tuple[int, str], ...]
    """The intervals by style, of a `<path>` each."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def scatter_of(
    title: str,
    points: Sequence[CostPoint],
    *,
    models: Sequence[str],
    x_label: str,
    y_label: str,
    percent: bool,
) -> Scatter:
    """Lay out one chart.

    Costs begin at 0, or stand on a logarithmic axis where they are more than 20 times apart.

    Args:
        title: What it shows.
        points: At least one.
        models: All of the page, whose places decide colours: a model keeps its own in every chart.
        x_label: What the cost is, with its unit.
        y_label: What the score is.
        percent: Whether scores are fractions, shown as percent.

    Raises:
        ValueError: No points, or a cost that is no number from 0 on.
    """
    if not points or not all(math.isfinite(point.cost) and point.cost >= 0 for point in points):
        raise ValueError(f"{title}: costs must be finite and from 0 on, got {[p.cost for p in points]}")
    place, x_ticks = cost_axis([point.cost for point in points])
    heights = (fmt.finite(value) for point in points for value in (point.score, point.low, point.high))
    known = [value for value in heights if value is not None]
    ticks = nice_ticks(min(known), max(known)) if known else [0.0, 1.0]

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    keys = {key.full_name: key for key in keys_of(models)}
    dots = []
    for point in points:
        low, high = fmt.finite(point.low), fmt.finite(point.high)
        score = fmt.score(point.score, percent=percent)
        ends = fmt.interval(low, high, percent=percent)
        dots.append(
            Dot(
                key=keys.get(point.model) or Key(name=point.model, full_name=point.model, style=0),
                x=place(point.cost),
                y=y(point.score),
                low=None if low is None or high is None else y(low),
                high=None if low is None or high is None else y(high),
                label=f"{figure(point.cost)}, {score} {ends}".strip(),
            )
        )
    said = "; ".join(f"{dot.key.full_name} {dot.label}" for dot in dots)
    return Scatter(
        title=f"{title}: {said}" if len(dots) <= HEARD else f"{title}: {len(dots)} models",
        x_label=x_label,
        y_label=y_label,
        dots=tuple(dots),
        whiskers=whiskers((dot.key.style, dot.x, dot.low, dot.high) for dot in dots),
        x_ticks=tuple(Tick(at=place(tick), label=figure(tick)) for tick in x_ticks),
        y_ticks=tuple(
            Tick(at=y(tick), label=fmt.score(tick, percent=percent, unit=False).removesuffix(".0"))
            for tick in ticks
        ),
    )


def whiskers(
    ends: Iterable[tuple[int, float, float | None, float | None]],
) -> tuple[tuple[int, str], ...]:
    """Intervals as vertical strokes, those of a style in one path.

    Args:
        ends: Style, place, and both ends; None where there is no interval.
    """
    paths: dict[int, str] = {}
    for style, x, low, high in ends:
        if low is not None and high is not None:
            paths[style] = f"{paths.get(style, '')}M{x:g} {low:g}V{high:g}"
    return tuple(paths.items())


def figure(value: float) -> str:
    """A cost with three digits: 0.0123, 1.23, 123, 1,230."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if digits <= 0 else f"{rounded:,.{digits}f}".rstrip("0").rstrip(".")


def cost_axis(costs: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """Where a cost stands, and the ticks."""
    width = WIDTH - LEFT - RIGHT
    least, most = min(costs), max(costs)
    if least > 0 and most / least > _LOGARITHMIC:
        ticks = _steps(least, most)
        low, high = math.log10(ticks[0]), math.log10(ticks[-1])
        shown = [tick for tick in ticks if _power(tick)] if len(ticks) * _LABEL > width else ticks
        return lambda cost: round(LEFT + (math.log10(cost) - low) / (high - low) * width, 1), shown
    ticks = nice_ticks(0.0, most or 1.0)
    return lambda cost: round(LEFT + cost / ticks[-1] * width, 1), ticks


def _steps(least: float, most: float) -> list[float]:
    """1, 2, 5, 10, ... from at or below the least to at or above the most."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= least * (1 + 1e-9))
    high = min(step for step in steps if step >= most * (1 - 1e-9))
    return [step for step in steps if low <= step <= high]


def _power(value: float) -> bool:
    return math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)
