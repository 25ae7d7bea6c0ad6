"""Curves over position laid out once, for the page's inline SVG: scales, ticks, lines and bands in pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from nsa_reports import _format as fmt
from nsa_reports.view import CurveGroup, CurvePoint

WIDTH, HEIGHT = 460.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 12.0, 44.0
_Y_TICKS = 5
_LABEL = 34.0
COLOURS = 6
"""Lines and dots that can be told apart by colour; more are numbered where dots have to be found."""
STYLES = COLOURS * COLOURS
"""Lines that differ in colour or dashes; more models begin again."""


def colour_and_dashes(style: int) -> tuple[int, int]:
    """Which of `COLOURS` colours and as many kinds of dashes one of the `STYLES` has; no two have both."""
    return style % COLOURS, (style + style // COLOURS) % COLOURS


def style_class(style: int) -> str:
    """The same as classes of the page: each colour comes with dashes of its own, unless others are named."""
    colour, dashes = colour_and_dashes(style)
    return f"s{colour}" if dashes == colour else f"s{colour} d{dashes}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a legend says of one line or dot."""

    name: str
    full_name: str
    style: int
    number: str = ""
    """Beside its dots, where colours don't tell them apart."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point, with what a hover says."""

    x: float
    y: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve in pixels."""

    name: str
    """Short enough for a legend."""
    full_name: str
    style: int
    """Which of the `STYLES`."""
    points: str
    """Of a `<polyline>`."""
    bands: tuple[str, ...]
    """Of a `<polygon>` each: the intervals, broken where one is unknown."""
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line of the grid and its label."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One pair of axes."""

    title: str
    """For those who hear it."""
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float | None
    """Height of the line of no difference."""
    threshold: float | None
    """Height of the line to reach."""
    x_label: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def charts_of(group: CurveGroup) -> tuple[Chart, ...]:
    """The charts of a group: the models' curves, then the differences where there are some.

    Positions and lengths run on a logarithmic axis; a point stands where its bucket ends.
    """
    pairs = [name for curve in group.differences for name in (curve.candidate, curve.baseline)]
    short = fmt.short_names([*(curve.model for curve in group.curves), *pairs])
    styles = {curve.model: index % STYLES for index, curve in enumerate(group.curves)}
    values = [
        (short[curve.model], curve.model, styles[curve.model], curve.points)
        for curve in group.curves
        if curve.points
    ]
    differences = [
        (
            f"{short[curve.candidate]} {fmt.MINUS} {short[curve.baseline]}",
            f"{curve.candidate} {fmt.MINUS} {curve.baseline}",
            styles.get(curve.candidate, 0),
            curve.points,
        )
        for curve in group.differences
        if curve.points
    ]
    what = f"{group.metric} by {group.over}"
    found = []
    if values:
        y_label = f"{group.metric} ({group.unit})"
        found.append(_chart(group, f"{group.task}: {what}", y_label, values, signed=False))
    if differences:
        title = f"{group.task}: difference of {what}"
        found.append(_chart(group, title, f"difference ({group.unit})", differences, signed=True))
    return tuple(found)


def keys_of(models: Sequence[str]) -> tuple[Key, ...]:
    """One legend for all charts of a section.

    Args:
        models: Names of all models or sweeps that any of them shows. A name has its colour, dashes and number
            by its place, and so keeps them in every chart.
    """
    short = fmt.short_names(models)
    return tuple(
        Key(
            name=short[model],
            full_name=model,
            style=place % STYLES,
            number=str(place + 1) if len(models) > COLOURS else "",
        )
        for place, model in enumerate(models)
    )


def nice_ticks(low: float, high: float, count: int = _Y_TICKS) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        low, high = low - span / 2, high + span / 2
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _chart(
    group: CurveGroup,
    title: str,
    y_label: str,
    curves: Sequence[tuple[str, str, int, tuple[CurvePoint, ...]]],
    *,
    signed: bool,
) -> Chart:
    points = [point for *_, listed in curves for point in listed]
    heights = (fmt.finite(value) for point in points for value in (point.value, point.low, point.high))
    threshold = None if signed else group.threshold
    lines_across = [0.0] if signed else [] if threshold is None else [threshold]
    bounds = [value for value in heights if value is not None] + lines_across
    ticks = nice_ticks(min(bounds), max(bounds))
    ends = sorted({point.end for point in points})
    left, right = math.log2(ends[0]), math.log2(ends[-1])

    def x(end: int) -> float:
        share = (math.log2(end) - left) / (right - left) if right > left else 0.5
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for name, full_name, style, listed in curves:
        marks = tuple(
            Mark(x=x(point.end), y=y(point.value), label=_label(group.place, point, signed))
            for point in listed
        )
        lines.append(
            Line(
                name=name,
                full_name=full_name,
                style=style,
                points=" ".join(f"{mark.x},{mark.y}" for mark in marks),
                bands=_bands(listed, x, y),
                marks=marks,
            )
        )
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    decimals += round((ticks[1] - ticks[0]) * 10**decimals * 10) % 10 != 0  # a step of 2.5 shows its half
    return Chart(
        title=title,
        y_label=y_label,
        lines=tuple(lines),
        x_ticks=tuple(Tick(at=x(end), label=fmt.tokens(end)) for end in _apart(ends, x)),
        y_ticks=tuple(Tick(at=y(tick), label=_number(tick, decimals, signed)) for tick in ticks),
        zero=y(0.0) if signed else None,
        threshold=None if threshold is None else y(threshold),
        x_label=group.x_label,
    )


def _bands(
    points: Sequence[CurvePoint], x: Callable[[int], float], y: Callable[[float], float]
) -> tuple[str, ...]:
    """The intervals as areas: up along the upper ends, back along the lower ones."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for point in points:
        low, high = fmt.finite(point.low), fmt.finite(point.high)
        if low is None or high is None:
            runs.append([])
        else:
            runs[-1].append((x(point.end), y(low), y(high)))
    return tuple(
        " ".join([f"{at},{high}" for at, _, high in run] + [f"{at},{low}" for at, low, _ in reversed(run)])
        for run in runs
        if run
    )


def _apart(ends: Sequence[int], x: Callable[[int], float]) -> list[int]:
    """Those ends whose labels have room beside each other, the last one first."""
    shown: list[int] = []
    for end in reversed(ends):
        if not shown or x(shown[-1]) - x(end) >= _LABEL:
            shown.append(end)
    return shown[::-1]


def _label(place: str, point: CurvePoint, signed: bool) -> str:
    one = fmt.difference if signed else fmt.score
    ends = fmt.interval(point.low, point.high, percent=False, signed=signed)
    return f"{place} {fmt.tokens(point.end)}: {one(point.value, percent=False)} {ends}".strip()


def _number(value: float, decimals: int, signed: bool) -> str:
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", fmt.MINUS)
