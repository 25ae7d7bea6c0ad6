"""How far a family's score holds: task by context length for each model, their mean, and effective lengths.

For families that declare an `effective_score`, such as RULER: the effective length is the longest length at
which the mean over the tasks reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nsa_eval.comparison import Estimate
from nsa_eval.comparison.scores import Scores, document_scores, score_estimate
from nsa_eval.material import Material, finite
from nsa_eval.results import ModelRun, TaskResult
from nsa_eval.sections import Section
from nsa_reports import Anchor, Chart, CurveGroup, CurvePoint, ModelCurve, SectionData, charts_of
from nsa_tasks import TaskFamily, families

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A score at a length."""

    text: str
    interval: str
    reaches: bool = False
    """Whether it is at least the family's threshold."""
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task of one model: a cell for each length, None where it has no document."""

    task: str
    protocol: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLengths:
    """One model: its tasks, their mean, and how far that reaches."""

    model: str
    rows: tuple[TaskRow, ...]
    average: tuple[Cell | None, ...]
    """None at a length at which a task of the model has no document."""
    estimates: tuple[Estimate | None, ...]
    effective: int | None
    """The longest length whose mean reaches the threshold."""
    certain: int | None
    """The longest length whose interval lies above it."""
    possible: int | None
    """The longest length whose interval reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyLengths:
    """One family, or one group of its tasks."""

    id: str
    title: str
    threshold: float
    """Fraction."""
    lengths: tuple[int, ...]
    models: tuple[ModelLengths, ...]
    tasks: int
    """Tasks in the mean."""
    of: int
    """Tasks that the family has; of a group's mean, that the group has."""

    @property
    def chart(self) -> Chart | None:
        """The curves laid out for the page."""
        return None if self.curves is None else next(iter(charts_of(self.curves)), None)

    @property
    def curves(self) -> CurveGroup | None:
        """The means over length, a curve for each model; None for a single length.

        The axis is logarithmic: facts without a context (length 0) are in the tables alone.
        """
        if sum(length > 0 for length in self.lengths) < 2:
            return None
        curves = tuple(
            ModelCurve(model=model.model, points=tuple(_points(self.lengths, model.estimates)))
            for model in self.models
        )
        return CurveGroup(
            task=self.title,
            metric="mean score",
            unit="%",
            curves=tuple(curve for curve in curves if curve.points),
            over="context length",
            x_label="context length (tokens)",
            place="at",
            threshold=100 * self.threshold,
        )

    @property
    def incomplete(self) -> bool:
        """Whether a task of the family isn't in the mean."""
        return self.tasks < self.of

    @property
    def percent(self) -> str:
        """The threshold as the tables write scores."""
        return f"{100 * self.threshold:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths(SectionData):
    """What the section shows."""

    parts: tuple[FamilyLengths, ...]

    def anchors(self) -> tuple[Anchor, ...]:
        """One per family or group."""
        return tuple(Anchor(id=part.id, title=f"{part.title} by length") for part in self.parts)

    def curves(self) -> tuple[CurveGroup, ...]:
        """All of them, for papers."""
        return tuple(part.curves for part in self.parts if part.curves is not None)

    @property
    def views(self) -> tuple[tuple[FamilyLengths, int | None], ...]:
        """The parts, each with the number of its curves among `curves()`."""
        drawn = [part.id for part in self.parts if part.curves is not None]
        return tuple((part, drawn.index(part.id) if part.id in drawn else None) for part in self.parts)


def build(material: Material) -> Lengths | None:
    """Every family with a threshold whose tasks have documents of known lengths."""
    parts: list[FamilyLengths] = []
    known = families()
    for name, tasks in _by_family(material).items():
        family = known.get(name)
        if family is None or family.effective_score is None:
            continue
        for title, members in _groups(material, family, tasks).items():
            whole = len(family.tasks) if title == family.title else len(members)
            part = _part(f"l{len(parts)}", title, family, members, material, whole=whole)
            if part is not None:
                parts.append(part)
    return Lengths(parts=tuple(parts)) if parts else None


def _by_family(material: Material) -> dict[str, list[str]]:
    """Tasks whose documents all have a length, by the family that their results name."""
    found: dict[str, list[str]] = {}
    for task in material.tasks:
        results = [model.tasks[task] for model in material.models.values() if task in model.tasks]
        metadata = results[0].config.get("metadata") if results else None
        family = metadata.get("family") if isinstance(metadata, Mapping) else None
        if family and all(_has_lengths(result) for result in results):
            found.setdefault(str(family), []).append(task)
    return found


def _has_lengths(result: TaskResult) -> bool:
    samples = [sample for of_filter in result.filters.values() for sample in of_filter]
    return bool(samples) and all(sample.length is not None for sample in samples)


def _groups(material: Material, family: TaskFamily, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Tasks by what their mean is taken over: a group of theirs, else the family."""
    found: dict[str, list[str]] = {}
    of_group: dict[str, str] = {}
    for model in material.models.values():
        for name, group in model.groups.items():
            if set(group.tasks) <= set(tasks):
                of_group |= {task: name for task in group.tasks if task not in of_group}
    for task in tasks:
        found.setdefault(of_group.get(task, family.title), []).append(task)
    return found


def _part(
    identity: str, title: str, family: TaskFamily, tasks: Sequence[str], material: Material, *, whole: int
) -> FamilyLengths | None:
    threshold = family.effective_score
    scores = {
        label: {task: _by_length(material, model, task) for task in tasks if task in model.tasks}
        for label, model in material.models.items()
    }
    lengths = sorted({length for of in scores.values() for by in of.values() for length in by})
    if threshold is None or not lengths:
        return None
    models = tuple(_model(label, of, lengths, threshold, material) for label, of in scores.items() if of)
    return FamilyLengths(
        id=identity,
        title=title,
        threshold=threshold,
        lengths=tuple(lengths),
        models=models,
        tasks=len(tasks),
        of=whole,
    )


def _by_length(material: Material, model: ModelRun, task: str) -> dict[int, np.ndarray]:
    metric, filter_name = material.figures.metrics(task)[0]
    result: TaskResult = model.tasks[task]
    samples = result.filters.get(filter_name, ())
    lengths = dict.fromkeys(sample.length for sample in samples if sample.length is not None)
    found = {
        length: finite(
            document_scores([sample for sample in samples if sample.length == length], metric).values()
        )
        for length in lengths
    }
    return {length: values for length, values in found.items() if len(values)}


def _model(
    label: str,
    scores: Mapping[str, Mapping[int, np.ndarray]],
    lengths: Sequence[int],
    threshold: float,
    material: Material,
) -> ModelLengths:
    figures = material.figures
    rows = []
    for task, by_length in scores.items():
        metric, filter_name = figures.metrics(task)[0]
        cells = []
        for length in lengths:
            values = by_length.get(length)
            found = None if values is None else figures.estimate(values, task, metric, filter_name)
            cells.append(_cell(found, 0 if values is None else len(values), threshold))
        rows.append(TaskRow(task=task, protocol=figures.protocol(task), cells=tuple(cells)))
    means = tuple(_mean([by.get(length) for by in scores.values()], figures.confidence) for length in lengths)
    intervals = [mean.interval if mean else None for mean in means]
    counts = [sum(len(by.get(length, ())) for by in scores.values()) for length in lengths]
    return ModelLengths(
        model=label,
        rows=tuple(rows),
        average=tuple(_cell(mean, n, threshold) for mean, n in zip(means, counts, strict=True)),
        estimates=means,
        effective=_longest(lengths, [mean.mean if mean else None for mean in means], threshold),
        certain=_longest(lengths, [ends.low if ends else None for ends in intervals], threshold),
        possible=_longest(lengths, [ends.high if ends else None for ends in intervals], threshold),
    )


def _mean(values: Sequence[np.ndarray | None], confidence: float) -> Estimate | None:
    """The mean over tasks, which count alike; its interval is over the documents within each."""
    known = [one for one in values if one is not None]
    if len(known) < len(values):
        return None
    strata = np.repeat(np.arange(len(known)), [len(one) for one in known])
    return score_estimate(
        Scores(np.concatenate(known), strata),
        binary=False,
        unit="points",
        confidence=confidence,
        resamples=_RESAMPLES,
        seed=[0],
    )


def _longest(lengths: Sequence[int], values: Sequence[float | None], threshold: float) -> int | None:
    # A mean of 0.856 may be a hair less in floating point.
    reached = [
        length
        for length, value in zip(lengths, values, strict=True)
        if value is not None and value >= threshold - 1e-9
    ]
    return max(reached, default=None)


def _cell(found: Estimate | None, n: int, threshold: float) -> Cell | None:
    if found is None:
        return None
    ends = found.interval
    return Cell(
        text=f"{100 * found.mean:.1f}",
        interval=f"[{100 * ends.low:.1f}, {100 * ends.high:.1f}]" if ends else "",
        reaches=found.mean >= threshold - 1e-9,
        n=n,
    )


def _points(lengths: Sequence[int], means: Sequence[Estimate | None]) -> Iterator[CurvePoint]:
    for length, mean in zip(lengths, means, strict=True):
        if mean is not None and length > 0:
            low, high = (mean.interval.low, mean.interval.high) if mean.interval else (None, None)
            yield CurvePoint(
                end=length,
                value=100 * mean.mean,
                low=None if low is None else 100 * low,
                high=None if high is None else 100 * high,
            )


SECTION = Section(title="By length", order=27, build=build)
