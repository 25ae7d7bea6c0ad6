"""Scores by position in the text: a curve per model, the paired differences, and both as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nsa_eval._words import counted
from nsa_eval.material import UNITS, Material
from nsa_eval.sections import Section
from nsa_reports import (
    Anchor,
    Chart,
    CurveGroup,
    CurvePoint,
    DifferenceCurve,
    LengthRow,
    ModelCurve,
    SectionData,
    ShownScore,
    charts_of,
)

_NATS = "nll"
"""The metric whose exponential is a perplexity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One metric as the template places it."""

    number: int
    """Among all figures of the section."""
    group: CurveGroup
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """One bucket's perplexities in words."""

    end: int
    values: tuple[str, ...]
    """One per model, empty where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task as the template places it."""

    id: str
    task: str
    protocol: str
    description: str
    documents: str
    views: tuple[View, ...]
    perplexities: tuple[Perplexity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCurves:
    """One task's metrics over position."""

    task: str
    groups: tuple[CurveGroup, ...]
    protocol: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions(SectionData):
    """What the section shows."""

    tasks: tuple[TaskCurves, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tasks laid out."""
        found: list[Part] = []
        number = 0
        for index, task in enumerate(self.tasks):
            views = []
            for group in task.groups:
                views.append(View(number=number, group=group, charts=charts_of(group)))
                number += 1
            documents = max((row.n or 0 for group in task.groups for row in group.rows), default=0)
            found.append(
                Part(
                    id=f"p{index}",
                    task=task.task,
                    protocol=task.protocol,
                    description=task.description,
                    documents=counted(documents, "document") if documents else "",
                    views=tuple(views),
                    perplexities=_perplexities(task),
                )
            )
        return tuple(found)

    def anchors(self) -> tuple[Anchor, ...]:
        """One per task."""
        return tuple(Anchor(id=part.id, title=part.task) for part in self.parts)

    def curves(self) -> tuple[CurveGroup, ...]:
        """All of them, for papers."""
        return tuple(group for task in self.tasks for group in task.groups)


def build(material: Material) -> Positions | None:
    """The tasks whose documents are split into buckets by position."""
    figures = material.figures
    found = []
    for task in material.tasks:
        ends = figures.positions(task)
        if not ends:
            continue
        groups = tuple(
            _group(material, task, metric, name, ends)
            for metric, name in figures.metrics(task)
            if figures.is_split(task, metric)
        )
        found.append(
            TaskCurves(
                task=task,
                groups=groups,
                protocol=figures.protocol(task),
                description=figures.description(task),
            )
        )
    return Positions(tasks=tuple(found)) if found else None


def _group(material: Material, task: str, metric: str, filter_name: str, ends: tuple[int, ...]) -> CurveGroup:
    rows = material.figures.by_length(task, metric, filter_name, ends)
    curves = tuple(
        ModelCurve(model=label, points=tuple(_points(rows, index)))
        for index, label in enumerate(material.models)
    )
    pairs = list(dict.fromkeys((pair.candidate, pair.baseline) for row in rows for pair in row.comparisons))
    differences = tuple(
        DifferenceCurve(
            candidate=candidate,
            baseline=baseline,
            points=tuple(
                CurvePoint(end=row.length, value=pair.difference, low=pair.low, high=pair.high)
                for row in rows
                for pair in row.comparisons
                if (pair.candidate, pair.baseline) == (candidate, baseline)
            ),
        )
        for candidate, baseline in pairs
    )
    return CurveGroup(
        task=task,
        metric=metric,
        unit=UNITS.get(metric, metric),
        curves=tuple(curve for curve in curves if curve.points),
        differences=differences,
        rows=tuple(rows),
    )


def _points(rows: list[LengthRow], model: int) -> list[CurvePoint]:
    scores = ((row.length, row.scores[model]) for row in rows)
    return [
        CurvePoint(end=end, value=score.value, low=score.low, high=score.high)
        for end, score in scores
        if score is not None
    ]


def _perplexities(task: TaskCurves) -> tuple[Perplexity, ...]:
    rows = next((group.rows for group in task.groups if group.metric == _NATS), ())
    return tuple(
        Perplexity(end=row.length, values=tuple(_perplexity(score) for score in row.scores)) for row in rows
    )


def _perplexity(score: ShownScore | None) -> str:
    if score is None:
        return ""
    texts = [
        f"{math.exp(value):,.4g}" if value is not None and value < 700 else ""
        for value in (score.value, score.low, score.high)
    ]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if texts[1] and texts[2] else texts[0]


SECTION = Section(title="By position", order=35, build=build)
