"""Budgets: scores of sweeps over density, reads, memory and time, at equal cost, and the least that will do.

Models are taken by what they declare and by what was counted as they ran: a sweep is a method or a checkpoint
at several values of one parameter, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nsa_eval.budgets import Density, Line, Place, Point, Study, study_of
from nsa_eval.budgets.front import pareto
from nsa_eval.material import Material
from nsa_eval.sections import Section
from nsa_eval.sections._budget_words import (
    IsoTable,
    LeastCell,
    PointRow,
    TrialRow,
    iso_tables,
    least_cell,
    place_name,
    point_rows,
    trial_rows,
)
from nsa_reports import CostCurve, Frontier, Key, SectionData, Spot, frontier_of, keys_of

_SHOWN = 6
"""Charts that are there at once; the others are folded away."""
_FIGURES = (
    ("prefill", "Prompt cells"),
    ("decode", "Decode cells"),
    ("read", "KV read"),
    ("kept", "KV kept"),
    ("flops", "Prompt FLOPs"),
    ("elements", "Elements a step"),
    ("decode_ms", "Decode"),
    ("prefill_s", "Prefill"),
)
"""Fields of a point's row, with what stands over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One cost that scores can stand over."""

    name: str
    """In the page's ids and styles."""
    choice: str
    """What it is chosen by."""
    label: str
    """Under the axis, with its unit."""
    of: Callable[[Point], float | None]
    timed: bool = False
    """Seconds: only of models that ran on one device."""


def _percent(density: Density | None) -> float | None:
    return None if density is None else 100 * density.value


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


AXES = (
    Axis(
        name="decode",
        choice="Decode density",
        label="cells that a decode step computes, % of dense",
        of=lambda point: _percent(point.decode),
    ),
    Axis(
        name="prefill",
        choice="Prefill density",
        label="cells of the prompt that are computed, % of dense",
        of=lambda point: _percent(point.prefill),
    ),
    Axis(
        name="read",
        choice="KV read",
        label="KV tokens read by a decoded token, a layer and head",
        of=lambda point: point.read,
    ),
    Axis(
        name="kept",
        choice="KV kept",
        label="KV tokens kept of the longest row, a layer and head",
        of=lambda point: point.kept,
    ),
    Axis(
        name="flops",
        choice="Prompt FLOPs",
        label="GFLOPs of reading a prompt, index included",
        of=lambda point: _scaled(point.flops, 1e9),
    ),
    Axis(
        name="elements",
        choice="Elements read",
        label="million elements that a decode step reads, weights and index included",
        of=lambda point: _scaled(point.elements, 1e6),
    ),
    Axis(
        name="decode_ms",
        choice="Decode time",
        label="decode, ms a token",
        of=lambda point: point.decode_ms,
        timed=True,
    ),
    Axis(
        name="prefill_s",
        choice="Prefill time",
        label="prefill, s a response (amortised)",
        of=lambda point: point.prefill_seconds,
        timed=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One place."""

    title: str
    percent: bool
    charts: tuple[Frontier | None, ...]
    """One for each of the section's axes; None where no sweep has such a cost."""
    points: tuple[PointRow, ...]
    iso: tuple[IsoTable, ...]
    trials: tuple[TrialRow, ...]

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Those of a point's figures that any has, each with its heading."""
        return tuple(
            (name, head) for name, head in _FIGURES if any(getattr(point, name) for point in self.points)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRow:
    """The least budgets of one place."""

    place: str
    n: int
    cells: tuple[LeastCell | None, ...]
    """Of each sweep; None where it has no point there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets(SectionData):
    """What the section shows."""

    axes: tuple[Axis, ...]
    """Those that any chart has."""
    keys: tuple[Key, ...]
    """The legend of all charts, a sweep each."""
    panels: tuple[Panel, ...]
    sweeps: tuple[tuple[str, str], ...]
    """Name, and what is swept, of those with more than one point or a full attention to be held to."""
    least: tuple[LeastRow, ...]
    study: Study
    references: tuple[str, ...]
    """Models of full attention that are drawn across."""
    simulated: tuple[str, ...]
    """Sweeps whose seconds say nothing about the method."""
    shared: bool
    """Whether any density is stated because prompts shared what they begin with."""
    beyond: bool
    """Whether any model reads more than dense attention does."""

    @property
    def shown(self) -> tuple[Panel, ...]:
        """The charts that are there at once."""
        return self.panels[:_SHOWN]

    @property
    def folded(self) -> tuple[Panel, ...]:
        """The others."""
        return self.panels[_SHOWN:]

    @property
    def ringed(self) -> bool:
        """Whether a chart has points on a Pareto front."""
        return any(chart.ringed for panel in self.panels for chart in panel.charts if chart)

    @property
    def by_sweep(self) -> bool:
        """Whether the least budgets have a line for each sweep, and not a column."""
        return len(self.sweeps) > max(_SHOWN, len(self.least))

    @property
    def looks(self) -> int:
        """Questions that are answered at the stated level each."""
        answers = (cell for row in self.least for cell in row.cells if cell is not None)
        return sum(cell.kind in ("found", "none") for cell in answers)

    @property
    def one_in(self) -> int:
        """How many such questions have one wrong answer, where all budgets are truly worse."""
        return round(2 / (1 - self.study.confidence))

    def __post_init__(self) -> None:
        """Check that charts fit axes.

        Raises:
            ValueError: A panel has another number of charts.
        """
        for panel in self.panels:
            if len(panel.charts) != len(self.axes):
                raise ValueError(f"{panel.title}: {len(panel.charts)} charts for {len(self.axes)} axes")


def build(material: Material) -> Budgets | None:
    """Charts and tables of each place; None for a run that sweeps nothing."""
    study = study_of(material)
    if study is None:
        return None
    names = list(dict.fromkeys(line.sweep.name for place in study.places for line in place.lines))
    drawn = [axis for axis in AXES if study.timed or not axis.timed]
    keys = {key.full_name: key for key in keys_of(names)}
    charts = {axis.name: [_chart(place, axis, keys) for place in study.places] for axis in drawn}
    kept = [axis for axis in drawn if any(charts[axis.name])]
    places = list(enumerate(study.places))
    lines = [line for place in study.places for line in place.lines]
    return Budgets(
        axes=tuple(kept),
        keys=tuple(keys.values()),
        panels=tuple(
            Panel(
                title=place_name(place),
                percent=place.percent,
                charts=tuple(charts[axis.name][index] for axis in kept),
                points=point_rows(place),
                iso=iso_tables(place),
                trials=trial_rows(place),
            )
            for index, place in places
        ),
        sweeps=tuple(
            dict.fromkeys(
                (line.sweep.name, line.sweep.parameter)
                for name in names
                for line in lines
                if line.sweep.name == name
            )
        ),
        least=tuple(_least_row(place, names) for place in study.places),
        study=study,
        references=tuple(dict.fromkeys(point.label for place in study.places for point in place.full)),
        simulated=tuple(dict.fromkeys(one.sweep.name for one in lines if one.sweep.variants[0].simulated)),
        beyond=any(
            density is not None and density.value > 1
            for line in lines
            for point in line.points
            for density in (point.prefill, point.decode)
        ),
        shared=any(
            density is not None and density.source != "counted"
            for line in lines
            for point in line.points
            for density in (point.prefill, point.decode)
            if line.sweep.variants[0].method
        ),
    )


def _least_row(place: Place, names: Sequence[str]) -> LeastRow:
    by_name = {line.sweep.name: line for line in place.lines}
    cells = [least_cell(by_name[name], place) if name in by_name else None for name in names]
    return LeastRow(place=place_name(place), n=place.n, cells=tuple(cells))


def _chart(place: Place, axis: Axis, keys: Mapping[str, Key]) -> Frontier | None:
    """Scores over one cost; None where no line moves along it."""
    curves = [_curve(line, axis, keys[line.sweep.name]) for line in place.lines]
    if not any(len({spot.cost for spot in curve.spots}) > 1 for curve in curves):
        return None
    levels = [
        (_spot(point, axis.of(point) or 0.0, point.label), axis.of(point) is not None) for point in place.full
    ]
    placed = [(spot.cost, spot.score) for curve in curves for spot in curve.spots]
    placed += [(spot.cost, spot.score) for spot, known in levels if known]
    front = [placed[i] for i in pareto(placed, higher_is_better=place.higher_is_better)]
    better = "" if place.higher_is_better else ", lower is better"
    return frontier_of(
        f"{place_name(place)}: {place.metric} over {axis.label}",
        curves,
        levels,
        front=list(dict.fromkeys(front)),
        x_label=axis.label,
        y_label=f"{place.metric}{' (%)' if place.percent else ''}{better}",
        percent=place.percent,
    )


def _curve(line: Line, axis: Axis, key: Key) -> CostCurve:
    said = f"{line.sweep.parameter} " if line.sweep.parameter else ""
    spots = [
        _spot(point, cost, f"{line.sweep.name}, {said}{point.value}" if said else line.sweep.name)
        for point in line.points
        if (cost := axis.of(point)) is not None
    ]
    return CostCurve(key=key, spots=tuple(spots))


def _spot(point: Point, cost: float, name: str) -> Spot:
    score = point.score
    return Spot(name=name, cost=cost, score=score.value, low=score.low, high=score.high)


SECTION = Section(title="Budgets", order=62, build=build)
