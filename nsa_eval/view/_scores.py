"""Scores of a report: rows, figures per length, and needle grids."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

import nsa_reports as view
from nsa_eval.compare import Comparison, Estimate, Interval, Row, Unit
from nsa_eval.compare.intervals import bootstrap, tango
from nsa_eval.compare.scores import document_scores, is_binary, score_estimate, unit_of
from nsa_eval.results import ModelRun, Sample
from nsa_eval.view._samples import side_by_side

Floats = NDArray[np.float64]

_TESTS = {"mcnemar": "exact McNemar", "permutation": "paired permutation"}
# A cell holds a handful of documents: more resamples than this would only look precise.
_CELL_RESAMPLES = 1000


class Figures:
    """The figures of all tasks: taken from the comparison where it has them, computed where it doesn't.

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

    def metrics(self, task: str) -> list[tuple[str, str]]:
        """(metric, filter) of a task, the main metric first."""
        found: dict[tuple[str, str], None] = {}
        for model in self._models.values():
            for name, samples in model.tasks[task].filters.items() if task in model.tasks else ():
                names = dict.fromkeys(metric for sample in samples for metric in sample.metrics)
                found |= {(metric, name): None for metric in names}
        order = list(dict.fromkeys(metric for metric, _ in found))
        return sorted(found, key=lambda key: order.index(key[0]))

    def protocol(self, task: str) -> str:
        """The task's `metadata.protocol`, or nothing."""
        return self._metadata(task, "protocol")

    def description(self, task: str) -> str:
        """The task's `metadata.summary`, or nothing."""
        return self._metadata(task, "summary")

    def row(self, task: str, metric: str, filter_name: str) -> view.ScoreRow:
        """The whole task under one metric."""
        _, unit = self.shape(task, metric, filter_name)
        scores = self._scores(task, metric, filter_name, None)
        higher = [
            m.tasks[task].higher_is_better.get(metric) for m in self._models.values() if task in m.tasks
        ]
        return view.ScoreRow(
            task=task,
            metric=metric if filter_name == "none" else f"{metric}, {filter_name}",
            scores=scores,
            comparisons=self._comparisons(task, metric, filter_name, None),
            n=max((score.n or 0 for score in scores if score), default=None),
            protocol=self.protocol(task),
            percent=unit == "points",
            higher_is_better=False not in higher,
        )

    def by_length(
        self, task: str, metric: str, filter_name: str, lengths: Iterable[int]
    ) -> list[view.LengthRow]:
        """All depths of each length together."""
        rows = []
        for length in lengths:
            scores = self._scores(task, metric, filter_name, length)
            rows.append(
                view.LengthRow(
                    length=length,
                    scores=scores,
                    comparisons=self._comparisons(task, metric, filter_name, length),
                    n=max((score.n or 0 for score in scores if score), default=None),
                )
            )
        return rows

    @functools.cache  # noqa: B019 - lives as long as one report is made
    def shape(self, task: str, metric: str, filter_name: str) -> tuple[bool, Unit]:
        """Whether the task's scores are all 0 or 1, and their unit: one answer for all models and cells."""
        values = [
            score
            for model in self._models.values()
            if task in model.tasks
            for score in document_scores(model.tasks[task].filters.get(filter_name, ()), metric).values()
        ]
        directions = {
            model.tasks[task].higher_is_better.get(metric)
            for model in self._models.values()
            if task in model.tasks
        }
        scores = np.array(values, dtype=np.float64)
        return is_binary(scores), unit_of(scores, False not in directions)

    def _metadata(self, task: str, key: str) -> str:
        for model in self._models.values():
            metadata = model.tasks[task].config.get("metadata") if task in model.tasks else None
            if isinstance(metadata, dict) and metadata.get(key):
                return str(metadata[key])
        return ""

    def _scores(
        self, task: str, metric: str, filter_name: str, length: int | None
    ) -> tuple[view.Estimate | None, ...]:
        rows = self._rows.get((task, metric, filter_name, length), [])
        known = {row.candidate: row.candidate_score for row in rows}
        known |= {row.baseline: row.baseline_score for row in rows}
        found: list[view.Estimate | None] = []
        for label, model in self._models.items():
            samples = model.tasks[task].filters.get(filter_name, ()) if task in model.tasks else ()
            at = [sample for sample in samples if length is None or sample.length == length]
            values = _finite(document_scores(at, metric).values())
            if not len(values):
                found.append(None)
                continue
            found.append(
                _estimate(known.get(label) or self.estimate(values, task, metric, filter_name), len(values))
            )
        return tuple(found)

    def estimate(
        self, values: Floats, task: str, metric: str, filter_name: str, resamples: int = 10_000
    ) -> Estimate:
        """Mean and interval of scores of a task."""
        binary, unit = self.shape(task, metric, filter_name)
        return score_estimate(
            values,
            binary=binary,
            unit=unit,
            confidence=self.confidence,
            resamples=resamples,
            seed=[0],
        )

    def _comparisons(
        self, task: str, metric: str, filter_name: str, length: int | None
    ) -> tuple[view.Comparison, ...]:
        return tuple(
            view.Comparison(
                candidate=row.candidate,
                baseline=row.baseline,
                difference=row.difference,
                low=row.interval.low if row.interval else None,
                high=row.interval.high if row.interval else None,
                p=row.p,
                p_adjusted=row.p_adjusted,
                minimum_detectable=row.minimum_detectable,
                significant=row.verdict != "not distinguishable",
                test=_TESTS[row.test],
                n=row.n,
            )
            for row in self._rows.get((task, metric, filter_name, length), [])
        )


def heatmap(task: str, models: Mapping[str, ModelRun], figures: Figures) -> view.HeatmapGroup | None:
    """The needle grid of a task under its main metric, or None if the task is no grid of lengths and
    depths."""
    metric, filter_name = figures.metrics(task)[0]
    grids: dict[str, dict[tuple[int, float], list[Sample]]] = {}
    for label, model in models.items():
        samples = model.tasks[task].filters.get(filter_name, ()) if task in model.tasks else ()
        grid: dict[tuple[int, float], list[Sample]] = {}
        for sample in samples:
            if sample.length is None or sample.depth is None:
                return None
            grid.setdefault((sample.length, sample.depth), []).append(sample)
        grids[label] = grid
    places = {place for grid in grids.values() for place in grid}
    binary, unit = figures.shape(task, metric, filter_name)
    if not places or unit != "points":
        return None
    lengths = tuple(sorted({length for length, _ in places}))
    maps = []
    for label, grid in grids.items():
        cells = []
        for (length, depth), inside in sorted(grid.items()):
            values = _finite(document_scores(inside, metric).values())
            if len(values):
                found = figures.estimate(values, task, metric, filter_name, _CELL_RESAMPLES)
                cells.append(_cell(length, depth, found.mean, found.interval, len(values)))
        maps.append(view.ModelMap(model=label, cells=tuple(cells)))
    differences = [
        view.DifferenceMap(
            candidate=candidate,
            baseline=baseline,
            cells=tuple(
                _difference_cells(grids[candidate], grids[baseline], metric, binary, figures.confidence)
            ),
        )
        for candidate, baseline in figures.pairs
        if any(row.candidate == candidate for row in figures.row(task, metric, filter_name).comparisons)
    ]
    return view.HeatmapGroup(
        task=task,
        lengths=lengths,
        depths=tuple(sorted({depth for _, depth in places})),
        maps=tuple(maps),
        differences=tuple(differences),
        by_length=tuple(figures.by_length(task, metric, filter_name, lengths)),
        samples=side_by_side(task, models, (metric, filter_name)),
        description=figures.description(task),
        protocol=figures.protocol(task),
    )


def _difference_cells(
    candidate: Mapping[tuple[int, float], list[Sample]],
    baseline: Mapping[tuple[int, float], list[Sample]],
    metric: str,
    binary: bool,
    confidence: float,
) -> Iterable[view.Cell]:
    for place in sorted(candidate.keys() & baseline.keys()):
        a, b = (document_scores(grid[place], metric) for grid in (candidate, baseline))
        shared = [doc for doc in b if doc in a]
        values = _finite(a[doc] - b[doc] for doc in shared)
        if not len(values):
            continue
        if binary:
            wins, losses = int((values > 0).sum()), int((values < 0).sum())
            interval: Interval | None = tango(wins, losses, len(values), confidence)
        else:
            rng = np.random.default_rng([0, *map(int, place)])
            interval = bootstrap(values, confidence, resamples=_CELL_RESAMPLES, rng=rng, bounds=(-1.0, 1.0))
        yield _cell(*place, float(values.mean()), interval, len(values))


def _cell(length: int, depth: float, value: float, interval: Interval | None, n: int) -> view.Cell:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return view.Cell(length=length, depth=depth, value=value, low=low, high=high, n=n)


def _estimate(found: Estimate, n: int) -> view.Estimate:
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return view.Estimate(value=found.mean, low=low, high=high, n=n)


def _finite(values: Iterable[float]) -> Floats:
    found = np.array(list(values), dtype=np.float64)
    return found[np.isfinite(found)]
