"""Scores of a report: rows, figures per length, and grids of lengths and depths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from nsa_eval.comparison import Comparison, Estimate, Row, Unit
from nsa_eval.comparison.scores import (
    Scores,
    document_scores,
    group_scores,
    is_binary,
    score_estimate,
    unit_of,
)
from nsa_eval.results import ModelRun, Origin, Sample, TaskResult, at_position, origin_of
from nsa_reports import LengthRow, ScoreRow, ShownDifference, ShownScore

Floats = NDArray[np.float64]

_TESTS = {"mcnemar": "exact McNemar", "permutation": "paired permutation"}

Grid = Mapping[tuple[int, float], list[Sample]]
"""Samples by (context length in tokens, depth in percent)."""


P = ParamSpec("P")
T = TypeVar("T")


def _once(method: Callable[Concatenate[Figures, P], T]) -> Callable[Concatenate[Figures, P], T]:
    """Keep a method's answers, with the object: functools.cache would keep every report's samples alive."""

    @functools.wraps(method)
    def answer(self: Figures, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answers: dict[object, T] = vars(self).setdefault("_answers", {})
        key = (method.__name__, args, tuple(sorted(kwargs.items())))
        if key not in answers:
            answers[key] = method(self, *args, **kwargs)
        return answers[key]

    return answer


class Figures:
    """The figures of all tasks and groups: the comparison's where it has them, computed where it doesn't.

    Args:
        models: By label, in the report's order.
        comparison: Their comparison, if there is one.
    """

    def __init__(self, models: Mapping[str, ModelRun], comparison: Comparison | None) -> None:
        """Indexes the comparison's rows and sub-rows."""
        self._models = models
        self._comparison = comparison
        self._rows: dict[tuple[str, str, str, int | None], list[Row]] = {}
        for main in comparison.rows if comparison else ():
            for row in (main, *main.lengths):
                self._rows.setdefault((row.task, row.metric, row.filter, row.length), []).append(row)

    @property
    def confidence(self) -> float:
        """Level of every interval."""
        return self._comparison.confidence if self._comparison else 0.95

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(candidate, baseline) of every comparison."""
        comparison = self._comparison
        return [(label, comparison.baseline) for label in comparison.candidates] if comparison else []

    @property
    def method(self) -> tuple[str, ...]:
        """How the numbers were made, where no comparison says it."""
        level = f"{self.confidence * 100:g} %"
        return (f"Intervals ({level}): Wilson for 0/1 scores, the BCa bootstrap over documents for others.",)

    @_once
    def metrics(self, task: str) -> list[tuple[str, str]]:
        """(metric, filter) of a task or group, the main metric first."""
        found: dict[tuple[str, str], None] = {}
        for model in self._models.values():
            if task in model.groups:
                pairs = (key.partition(",") for key in model.groups[task].by_size)
                found |= {(metric, name): None for metric, _, name in pairs}
            for name in model.tasks[task].filters if task in model.tasks else ():
                found |= {(metric, name): None for metric in model.tasks[task].metrics(name)}
        order = list(dict.fromkeys(metric for metric, _ in found))
        parts = {at_position(metric, end) for metric in order for end in self.positions(task)}
        return sorted((key for key in found if key[0] not in parts), key=lambda key: order.index(key[0]))

    @_once
    def positions(self, task: str) -> tuple[int, ...]:
        """Where the buckets end that its documents are split into, in tokens; empty for other tasks."""
        ends = {end for result in self._results(task) for end in result.positions}
        return tuple(sorted(ends))

    @_once
    def origin(self, task: str) -> Origin:
        """Protocol, data and truncation of a task or group."""
        return origin_of(self._models, task)

    def protocol(self, task: str) -> str:
        """Whose definition a task follows, or nothing."""
        return self.origin(task).protocol

    def description(self, task: str) -> str:
        """The task's `metadata.summary`, or nothing."""
        return self._metadata(task, "summary")

    def is_split(self, task: str, metric: str) -> bool:
        """Whether a metric of such a task has a value in each bucket."""
        names = {
            name
            for result in self._results(task)
            for samples in result.filters.values()
            for sample in samples
            for name in sample.metrics
        }
        return any(at_position(metric, end) in names for end in self.positions(task))

    @_once
    def row(self, task: str, metric: str, filter_name: str) -> ScoreRow:
        """The whole task, or group, under one metric."""
        _, unit = self.shape(task, metric, filter_name)
        scores, origin = self._scores(task, metric, filter_name, None), self.origin(task)
        return ScoreRow(
            task=task,
            metric=metric_label(metric, filter_name),
            scores=scores,
            comparisons=self._comparisons(task, metric, filter_name, None),
            n=max((score.n or 0 for score in scores if score), default=None),
            protocol=origin.protocol,
            data=origin.data,
            truncation=origin.truncation,
            percent=unit == "points",
            higher_is_better=False not in self._directions(task, metric),
        )

    def by_length(self, task: str, metric: str, filter_name: str, lengths: Iterable[int]) -> list[LengthRow]:
        """All depths of each length together; of a task that is split by position each bucket."""
        rows = []
        _, unit = self.shape(task, metric, filter_name)
        lower = False in self._directions(task, metric)
        for length in lengths:
            scores = self._scores(task, metric, filter_name, length)
            rows.append(
                LengthRow(
                    length=length,
                    scores=scores,
                    comparisons=self._comparisons(task, metric, filter_name, length),
                    n=max((score.n or 0 for score in scores if score), default=None),
                    percent=unit == "points",
                    higher_is_better=not lower,
                )
            )
        return rows

    @_once
    def shape(self, task: str, metric: str, filter_name: str) -> tuple[bool, Unit]:
        """Whether the task's scores are all 0 or 1, and their unit: one answer for all models and cells."""
        found = [self._documents(model, task, metric, filter_name) for model in self._models.values()]
        scores = np.concatenate([one.values for one in found]) if found else np.array([], dtype=np.float64)
        pooled = all(one.strata is None for one in found)
        return is_binary(scores) and pooled, unit_of(scores, False not in self._directions(task, metric))

    @_once
    def grids(self, task: str) -> dict[str, Grid] | None:
        """Each model's samples of a task by their cell, under its main metric's filter.

        None if the task is no grid: a sample has no length or depth.
        """
        _, filter_name = self.metrics(task)[0]
        grids: dict[str, Grid] = {}
        for label, model in self._models.items():
            samples = model.tasks[task].filters.get(filter_name, ()) if task in model.tasks else ()
            grid: dict[tuple[int, float], list[Sample]] = {}
            for sample in samples:
                if sample.length is None or sample.depth is None:
                    return None
                grid.setdefault((sample.length, sample.depth), []).append(sample)
            grids[label] = grid
        return grids if any(grids.values()) else None

    def _metadata(self, task: str, key: str) -> str:
        for model in self._models.values():
            metadata = model.tasks[task].config.get("metadata") if task in model.tasks else None
            if isinstance(metadata, dict) and metadata.get(key):
                return str(metadata[key])
        return ""

    @_once
    def _scores(
        self, task: str, metric: str, filter_name: str, length: int | None
    ) -> tuple[ShownScore | None, ...]:
        rows = self._rows.get((task, metric, filter_name, length), [])
        known = {row.candidate: row.candidate_score for row in rows}
        known |= {row.baseline: row.baseline_score for row in rows}
        found: list[ShownScore | None] = []
        for label, model in self._models.items():
            scores = self._documents(model, task, metric, filter_name, length)
            if not len(scores.values):
                found.append(None)
                continue
            estimate = known.get(label) or self._estimate(scores, task, metric, filter_name)
            found.append(_shown(estimate, len(scores.values)))
        return tuple(found)

    def estimate(
        self, values: Floats, task: str, metric: str, filter_name: str, resamples: int = 10_000
    ) -> Estimate:
        """Mean and interval of scores of a task."""
        return self._estimate(Scores(values), task, metric, filter_name, resamples)

    def _estimate(
        self, scores: Scores, task: str, metric: str, filter_name: str, resamples: int = 10_000
    ) -> Estimate:
        binary, unit = self.shape(task, metric, filter_name)
        return score_estimate(
            scores,
            binary=binary,
            unit=unit,
            confidence=self.confidence,
            resamples=resamples,
            seed=[0],
        )

    def _documents(
        self, model: ModelRun, name: str, metric: str, filter_name: str, length: int | None = None
    ) -> Scores:
        """A model's scores of a task's documents (of one length), or of those of a group; finite ones."""
        if name in model.groups:
            group = model.groups[name]
            by_document = group_scores(group, model, metric, filter_name)
            if length is not None:
                there = _at_length(group.tasks, model, filter_name, length)
                by_document = {key: score for key, score in by_document.items() if key in there}
            kept = {key: score for key, score in by_document.items() if np.isfinite(score)}
            tasks = [task for task, _ in kept]
            pooled = not kept or group.by_size.get(f"{metric},{filter_name}", True)
            strata = None if pooled else np.unique(tasks, return_inverse=True)[1]
            return Scores(finite(kept.values()), strata)
        samples = model.tasks[name].filters.get(filter_name, ()) if name in model.tasks else ()
        if length is not None and length in self.positions(name):
            return Scores(finite(document_scores(samples, at_position(metric, length)).values()))
        at = [sample for sample in samples if length is None or sample.length == length]
        return Scores(finite(document_scores(at, metric).values()))

    def _results(self, task: str) -> list[TaskResult]:
        return [model.tasks[task] for model in self._models.values() if task in model.tasks]

    def _directions(self, name: str, metric: str) -> set[bool | None]:
        """Whether higher is better, as the models' results say it."""
        homes = [model.groups.get(name) or model.tasks.get(name) for model in self._models.values()]
        return {home.higher_is_better.get(metric) for home in homes if home is not None}

    def _comparisons(
        self, task: str, metric: str, filter_name: str, length: int | None
    ) -> tuple[ShownDifference, ...]:
        return tuple(
            ShownDifference(
                candidate=row.candidate,
                baseline=row.baseline,
                difference=row.difference,
                low=row.interval.low if row.interval else None,
                high=row.interval.high if row.interval else None,
                p=row.p,
                p_adjusted=row.p_adjusted,
                minimum_detectable=row.minimum_detectable,
                significant=row.verdict != "not distinguishable",
                too_few=row.too_few_documents,
                test=_TESTS[row.test],
                n=row.n,
            )
            for row in self._rows.get((task, metric, filter_name, length), [])
        )


def _at_length(tasks: Iterable[str], model: ModelRun, filter_name: str, length: int) -> set[tuple[str, str]]:
    """The documents of a context length, by task and hash."""
    return {
        (task, sample.doc_hash)
        for task in tasks
        if task in model.tasks
        for sample in model.tasks[task].filters.get(filter_name, ())
        if sample.length == length
    }


def _shown(found: Estimate, n: int) -> ShownScore:
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return ShownScore(value=found.mean, low=low, high=high, n=n)


def metric_label(metric: str, filter_name: str) -> str:
    """A metric as tables name it."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def finite(values: Iterable[float]) -> Floats:
    """Those that are numbers."""
    found = np.array(list(values), dtype=np.float64)
    return found[np.isfinite(found)]
