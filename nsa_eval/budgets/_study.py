"""Everything that a report says of a run's budgets: points, lines, fronts, equal costs, and the least
budgets."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsa_eval.budgets._lines import BUDGET, Sweep, Variant, sweeps_of, variant_of
from nsa_eval.budgets._points import Levels, Point, levels_of, point_of
from nsa_eval.budgets.cost_model import LEVELS
from nsa_eval.budgets.front import Between, between
from nsa_eval.budgets.least import Least, least_not_worse, margin_of
from nsa_eval.comparison import Row, compare
from nsa_eval.errors import UserError
from nsa_eval.material import Material, metric_label
from nsa_eval.results import Run
from nsa_eval.store import Cost
from nsa_reports import ShownScore

MARGIN = 2.0
"""Points by which a budget may be worse, where a run's config names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A sweep on one place, its points from the largest budget to the least."""

    sweep: Sweep
    points: tuple[Point, ...]
    least: Least | None
    """None where there is no full attention to hold it to, or the models weren't compared."""
    as_full: bool = False
    """It acts in decode steps alone, and nothing was decoded: every budget is full attention here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualCost:
    """Scores at one cost."""

    level: Levels
    scores: tuple[Between | None, ...]
    """Of each line of the place; None where it wasn't measured on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One task or group of tasks, or a task's documents of one length."""

    task: str
    length: int | None
    metric: str
    percent: bool
    higher_is_better: bool
    n: int
    full: tuple[Point, ...]
    """Checkpoints of full attention."""
    lines: tuple[Line, ...]
    iso_flops: tuple[EqualCost, ...]
    iso_cost: tuple[EqualCost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All places of a run."""

    places: tuple[Place, ...]
    margin: float
    """In points of 100; of metrics that aren't shares of 1 in percent of full attention's mean."""
    confidence: float
    timed: bool
    """Whether seconds may be set beside each other: all were measured on one device."""
    refusal: tuple[str, ...] = ()
    """Why nothing was compared."""


_studies: weakref.WeakKeyDictionary[Material, Study | None] = weakref.WeakKeyDictionary()
"""The page and the files are made of the same."""


def study_of(material: Material) -> Study | None:
    """Work it out, once; None for a run without a line of two points or more.

    A line is drawn through models of one checkpoint and method at several values of one parameter, whatever
    that is: a budget, a coverage, a number of blocks.
    """
    if material not in _studies:
        _studies[material] = _study_of(material)
    return _studies[material]


def _study_of(material: Material) -> Study | None:
    sweeps = sweeps_of(material)
    if not any(len(sweep.variants) > 1 for sweep in sweeps):
        return None
    full = [one for label, model in material.models.items() if (one := variant_of(label, model)).full]
    devices = {model.conditions.device_name if model.conditions else "" for model in material.models.values()}
    margin = _margin(material.run_config)
    rows = _rows(material, sweeps)
    places = [
        place
        for task, _ in material.outline
        for length in _lengths(material, task)
        if (place := _place(material, task, length, full, sweeps, rows, margin)) is not None
    ]
    if not places:
        return None
    return Study(
        places=tuple(places),
        margin=margin,
        confidence=material.figures.confidence,
        timed=len(devices) == 1 and "" not in devices,
        refusal=material.refusal,
    )


def _margin(config: Mapping[str, Any]) -> float:
    section = config.get("report")
    named = section.get("margin") if isinstance(section, Mapping) else None
    return float(named) if isinstance(named, int | float) and named > 0 else MARGIN


def _lengths(material: Material, task: str) -> list[int | None]:
    """Its lengths where the scores are by length, else the whole."""
    results = [model.tasks[task] for model in material.models.values() if task in model.tasks]
    if not results or not all(result.has_lengths for result in results):  # a group has no results of its own
        return [None]
    _, filter_name = material.figures.metrics(task)[0]
    found = {
        sample.length
        for result in results
        for sample in result.filters.get(filter_name, ())
        if sample.length is not None
    }
    return [*sorted(found)] if len(found) > 1 else [None]


def _place(
    material: Material,
    task: str,
    length: int | None,
    full: Sequence[Variant],
    sweeps: Sequence[Sweep],
    rows: Mapping[tuple[str, str, str, int | None], Row],
    margin: float,
) -> Place | None:
    metric, filter_name = material.figures.metrics(task)[0]
    whole = material.figures.row(task, metric, filter_name)
    scores: Sequence[ShownScore | None] = whole.scores
    if length is not None:
        [at] = material.figures.by_length(task, metric, filter_name, [length])
        scores = at.scores
    by_label = dict(zip(material.models, scores, strict=True))

    def points(variants: Sequence[Variant], sweep: Sweep | None) -> Iterator[Point]:
        for variant in variants:
            score = by_label.get(variant.label)
            if score is not None:
                value = sweep.value(variant) if sweep is not None else ""
                yield point_of(variant, value, score, _cost(material, variant.label, task, length), material)

    lines = []
    for sweep in sweeps:
        found = _ordered(list(points(sweep.variants, sweep)), sweep)
        if found:
            as_full = sweep.variants[0].decodes_only and all(point.no_decode for point in found)
            listed = [
                rows[key]
                for point in found
                if sweep.reference and (key := (task, sweep.reference, point.label, length)) in rows
            ]
            lines.append(
                Line(
                    sweep=sweep, points=tuple(found), least=_least(listed, margin, material), as_full=as_full
                )
            )
    if not any(len(line.points) > 1 for line in lines):
        return None
    at_full = tuple(points(full, None))
    return Place(
        task=task,
        length=length,
        metric=metric_label(metric, filter_name),
        percent=whole.percent,
        higher_is_better=whole.higher_is_better,
        n=max((point.score.n or 0 for line in lines for point in line.points), default=0),
        full=at_full,
        lines=tuple(lines),
        iso_flops=_equal(material, task, length, full, at_full, lines, "flops"),
        iso_cost=_equal(material, task, length, full, at_full, lines, "elements"),
    )


def _ordered(points: Sequence[Point], sweep: Sweep) -> list[Point]:
    """Largest first: by budgets of one kind; else by what was read, which no score decides, then by value."""
    shares = {point.value.endswith("%") for point in points}
    by_value = sweep.parameter == BUDGET and len(shares) == 1

    def order(point: Point) -> tuple[float, ...]:
        try:
            value = float(point.value.rstrip("%"))
        except ValueError:
            value = 0.0
        read = sum(one.value for one in (point.decode, point.prefill) if one is not None)
        return (-value,) if by_value else (-round(read, 6), point.value.endswith("%"), -value)

    return sorted(points, key=order)


def _least(rows: Sequence[Row], margin: float, material: Material) -> Least | None:
    if not rows:
        return None
    in_scale = margin_of(rows[0], margin)
    if in_scale <= 0:
        return None
    return least_not_worse(rows, margin=in_scale, confidence=material.figures.confidence)


def _cost(material: Material, label: str, task: str, length: int | None) -> Cost | None:
    model = material.models[label]
    if length is not None:
        return model.costs_by_length.get(task, {}).get(length)
    if task in model.groups:
        found = [model.costs[member] for member in model.groups[task].tasks if member in model.costs]
        return sum(found, Cost()) if found else None
    return model.costs.get(task)


def _equal(
    material: Material,
    task: str,
    length: int | None,
    full: Sequence[Variant],
    at_full: Sequence[Point],
    lines: Sequence[Line],
    axis: str,
) -> tuple[EqualCost, ...]:
    """Scores at the cost of full attention at Sparse Frontier's densities, where two lines or more have some.

    Full attention is the end of a line of its own checkpoint: it is what the method comes to at density 1.
    """
    if not full or not lines:
        return ()
    levels = levels_of(full[0], _cost(material, full[0].label, task, length), material, LEVELS, axis)
    curves = []
    for line in lines:
        ends = [one for one in at_full if one.label == line.sweep.reference and _same(line, full, one)]
        curve = [(_on(point, axis), point.score.value) for point in (*ends, *line.points)]
        curves.append([(at, score) for at, score in curve if at is not None])
    found = [
        EqualCost(level=level, scores=tuple(between(curve, level.cost) for curve in curves))
        for level in levels
        if level.density < 1
    ]
    # Lines that cost the same whatever their budget are no lines here.
    moving = any(len({at for at, _ in curve}) > 1 for curve in curves)
    return tuple(one for one in found if any(one.scores)) if moving else ()


def _same(line: Line, full: Sequence[Variant], point: Point) -> bool:
    """Whether a point of full attention is of a line's own checkpoint, under a method."""
    first = line.sweep.variants[0]
    return bool(first.method) and any(
        one.label == point.label and one.checkpoint == first.checkpoint for one in full
    )


def _on(point: Point, axis: str) -> float | None:
    return point.flops if axis == "flops" else point.elements


def _rows(material: Material, sweeps: Sequence[Sweep]) -> dict[tuple[str, str, str, int | None], Row]:
    """Every model against its full attention, also where the run's comparison has another baseline."""
    comparison = material.comparison
    if comparison is None:
        return {}
    found = [*comparison.rows]
    others: dict[str, list[str]] = {}
    for sweep in sweeps:
        if sweep.reference is not None and sweep.reference != comparison.baseline:
            others.setdefault(sweep.reference, []).extend(one.label for one in sweep.variants)
    for reference, labels in others.items():
        chosen = [material.models[label] for label in (reference, *labels)]
        run = Run(directory=chosen[0].directory, models={model.name: model for model in chosen})
        try:
            made = compare(
                run,
                baseline=chosen[0].name,
                confidence=comparison.confidence,
                resamples=comparison.resamples,
                seed=comparison.seed,
            )
        except UserError:  # asked differently, or no score that both have
            continue
        names = {model.name: label for label, model in material.models.items() if model in chosen}
        found += [_renamed(row, names) for row in made.rows]
    main = {(name, *material.figures.metrics(name)[0]) for name, _ in material.outline}
    return {
        (one.task, one.baseline, one.candidate, one.length): one
        for row in found
        if (row.task, row.metric, row.filter) in main
        for one in (row, *row.lengths)
    }


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    """With the labels of the page in place of the models' names."""
    update = {
        "baseline": names.get(row.baseline, row.baseline),
        "candidate": names.get(row.candidate, row.candidate),
        "lengths": [_renamed(one, names) for one in row.lengths],
    }
    return row.model_copy(update=update)
