"""Quality against cost: a task's main score with its interval over what an answer took, a point per model.

Only models whose costs were measured on one and the same device share a chart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nsa_eval.material import (
    CostFigures,
    Material,
    conditions_in_words,
    cost_figures,
    measured_together,
    metric_label,
)
from nsa_eval.sections import Section
from nsa_reports import CostPoint, Key, Scatter, SectionData, keys_of, scatter_of

_SHOWN = 6
"""Tasks whose charts are there at once; the others are folded away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One cost that a score can stand over."""

    name: str
    """In the page's ids and styles."""
    choice: str
    """What it is chosen by."""
    label: str
    """Under the axis, with its unit."""
    of: Callable[[CostFigures], float | None]


AXES = (
    Axis(name="decode", choice="Decode", label="decode, ms a token", of=lambda one: one.decode),
    Axis(
        name="prefill",
        choice="Prefill",
        label="prefill, s a response (amortised)",
        of=lambda one: one.prefill,
    ),
    Axis(
        name="read",
        choice="KV read",
        label="KV read a token, MiB",
        of=lambda one: None if one.read_bytes is None else one.read_bytes / 2**20,
    ),
    Axis(
        name="kept",
        choice="KV kept",
        label="KV kept of a row, MiB",
        of=lambda one: None if one.kept_bytes is None else one.kept_bytes / 2**20,
    ),
    Axis(
        name="memory",
        choice="Peak memory",
        label="peak memory above the weights, GiB",
        of=lambda one: None if one.above_weights is None else one.above_weights / 2**30,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One task on one device."""

    task: str
    charts: tuple[Scatter | None, ...]
    """One for each of the section's axes; None where fewer than two models have such a cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The models that were measured on one device, and their charts."""

    device: str
    conditions: tuple[tuple[str, str], ...]
    """How models were run, and which."""
    plots: tuple[Plot, ...]
    keys: tuple[Key, ...]
    """The legend of its charts, a model each."""

    @property
    def shown(self) -> tuple[Plot, ...]:
        """The charts that are there at once."""
        return self.plots[:_SHOWN]

    @property
    def folded(self) -> tuple[Plot, ...]:
        """The others."""
        return self.plots[_SHOWN:]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCost(SectionData):
    """What the section shows."""

    axes: tuple[Axis, ...]
    """Those that any chart has."""
    benches: tuple[Bench, ...]
    alone: tuple[str, ...]
    """Models that have costs and share a device with no other."""

    def __post_init__(self) -> None:
        """Check that charts fit axes.

        Raises:
            ValueError: A plot has another number of charts.
        """
        for bench in self.benches:
            for plot in bench.plots:
                if len(plot.charts) != len(self.axes):
                    raise ValueError(f"{plot.task}: {len(plot.charts)} charts for {len(self.axes)} axes")


def build(material: Material) -> QualityCost | None:
    """Charts for each task and device that two models or more have in common; None where there is none."""
    homes = measured_together(material.models)
    benches = {device: _plots(material, labels) for device, labels in homes.items() if len(labels) > 1}
    benches = {device: plots for device, plots in benches.items() if plots}
    if not benches:
        return None
    drawn = [
        index
        for index in range(len(AXES))
        if any(charts[index] is not None for plots in benches.values() for charts in plots.values())
    ]
    return QualityCost(
        axes=tuple(AXES[index] for index in drawn),
        benches=tuple(
            Bench(
                device=device,
                conditions=_conditions(material, homes[device]),
                keys=tuple(key for key in keys_of(list(material.models)) if key.full_name in homes[device]),
                plots=tuple(
                    Plot(task=task, charts=tuple(charts[index] for index in drawn))
                    for task, charts in plots.items()
                ),
            )
            for device, plots in benches.items()
        ),
        alone=tuple(label for labels in homes.values() if len(labels) == 1 for label in labels),
    )


def _plots(material: Material, labels: Sequence[str]) -> dict[str, list[Scatter | None]]:
    found = {task: [_chart(material, task, axis, labels) for axis in AXES] for task in material.tasks}
    return {task: charts for task, charts in found.items() if any(charts)}


def _chart(material: Material, task: str, axis: Axis, labels: Sequence[str]) -> Scatter | None:
    metric, filter_name = material.figures.metrics(task)[0]
    row = material.figures.row(task, metric, filter_name)
    points = []
    for label, score in zip(material.models, row.scores, strict=True):
        model = material.models[label]
        if label not in labels or score is None or task not in model.costs:
            continue
        cost = axis.of(cost_figures(model.costs[task], model.conditions))
        if cost is not None:
            points.append(
                CostPoint(model=label, cost=cost, score=score.value, low=score.low, high=score.high)
            )
    if len(points) < 2:
        return None
    name = metric_label(metric, filter_name)
    better = "" if row.higher_is_better else ", lower is better"
    return scatter_of(
        f"{task}: {name} over {axis.label}",
        points,
        models=list(material.models),
        x_label=axis.label,
        y_label=f"{name}{' (%)' if row.percent else ''}{better}",
        percent=row.percent,
    )


def _conditions(material: Material, labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found: dict[str, list[str]] = {}
    for label in labels:
        conditions = material.models[label].conditions
        assert conditions is not None, "models are grouped by their devices"
        found.setdefault(conditions_in_words(conditions), []).append(label)
    return tuple((how, ", ".join(named)) for how, named in found.items())


SECTION = Section(title="Quality against cost", order=65, build=build)
