"""Needle grids: score by context length and depth, a map per model and per difference, with their samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsa_eval._words import counted
from nsa_eval.comparison import Interval
from nsa_eval.comparison.intervals import bootstrap, tango
from nsa_eval.comparison.scores import document_scores
from nsa_eval.material import Grid, Material, finite, named_unit, side_by_side
from nsa_eval.sections import Section
from nsa_eval.sections._folds import Fold, folds
from nsa_reports import (
    Anchor,
    Cell,
    DifferenceMap,
    HeatmapGroup,
    ModelMap,
    Panel,
    SectionData,
    ShownSample,
    difference_limit,
    panels_of,
)

# With more models than this a difference stands beside its candidate's map, not in rows far below.
_IN_ROWS = 4
# Maps (a candidate's with its difference as one) that are there at once; the others are folded away.
_SHOWN = 12

# A cell holds a handful of documents: more resamples than this would only look precise.
_CELL_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """One model's replies that aren't fully right, by what they hold instead."""

    model: str
    counts: Counter[str]

    @property
    def text(self) -> str:
        """`9 replies not fully right: another needle's value (6), something else (3)`."""
        parts = ", ".join(f"{reason} ({count:,})" for reason, count in self.counts.most_common())
        return f"{counted(self.counts.total(), 'reply', 'replies')} not fully right: {parts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task's grid as the template places it."""

    id: str
    group: HeatmapGroup
    panels: tuple[Panel, ...]
    """The models' maps in the page's order, then the differences."""
    fold: Fold

    @property
    def blocks(self) -> tuple[tuple[Panel, ...], ...]:
        """What stands together: the maps of a few models by themselves, of many each with its difference."""
        maps = dict(zip((grid.model for grid in self.group.maps), self.panels, strict=False))
        gaps = self.panels[len(maps) :]
        if len(maps) <= _IN_ROWS:
            return tuple((panel,) for panel in self.panels)
        found = {model: [panel] for model, panel in maps.items()}
        for grid, panel in zip(self.group.differences, gaps, strict=True):
            found[grid.candidate].append(panel)
        return tuple(map(tuple, found.values()))

    @property
    def paired(self) -> bool:
        """Whether any of them is a map with its difference."""
        return any(len(block) > 1 for block in self.blocks)

    @property
    def shown(self) -> tuple[tuple[Panel, ...], ...]:
        """Those that are there at once."""
        return self.blocks if len(self.group.maps) <= _SHOWN else self.blocks[:_SHOWN]

    @property
    def folded(self) -> tuple[tuple[Panel, ...], ...]:
        """The others."""
        return self.blocks[len(self.shown) :]

    @property
    def many(self) -> bool:
        """Whether what is said of each model is too much for the page's first view."""
        return len(self.group.maps) > _IN_ROWS

    @property
    def scales(self) -> tuple[tuple[str, Panel], ...]:
        """What each colour scale shows, with a map that is drawn in it: scores, then differences."""
        kinds = {panel.is_difference: panel for panel in reversed(self.panels)}
        words = {False: self.group.unit or "score", True: "difference"}
        return tuple((words[kind], kinds[kind]) for kind in (False, True) if kind in kinds)

    @property
    def per_cell(self) -> str:
        """`4 samples`, `3 to 4 samples`, or nothing when unknown."""
        known = sorted({cell.n for grid in self.group.maps for cell in grid.cells if cell.n})
        if not known:
            return ""
        if len(known) == 1:
            return counted(known[0], "sample")
        return f"{known[0]} to {known[-1]} samples"

    @property
    def has_blanks(self) -> bool:
        """Whether a cell of a map is unknown."""
        return any(panel.has_blanks for panel in self.panels)

    @property
    def reasons(self) -> tuple[Failures, ...]:
        """What each model's failed replies hold, for models whose task says it."""
        found: dict[str, Counter[str]] = {grid.model: Counter() for grid in self.group.maps}
        for sample in self.group.samples:
            for reply in sample.replies:
                found.setdefault(reply.model, Counter()).update(filter(None, reply.reasons))
        return tuple(Failures(model=model, counts=counts) for model, counts in found.items() if counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmaps(SectionData):
    """What the section shows."""

    groups: tuple[HeatmapGroup, ...]
    """One per task."""
    tops: tuple[str, ...] = ()
    """For each, the outermost group that the task is a member of, or nothing."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The groups laid out."""
        limit = difference_limit(self.groups)
        placed = zip(self.groups, folds(self.tops or [""] * len(self.groups)), strict=True)
        return tuple(
            Part(
                id=f"g{index}",
                group=group,
                panels=panels_of(group, limit),
                fold=fold,
            )
            for index, (group, fold) in enumerate(placed)
        )

    def anchors(self) -> tuple[Anchor, ...]:
        """One per task, or for the first of those that are folded together."""
        return tuple(
            Anchor(id=part.id, title=part.fold.opens or part.group.title or part.group.task)
            for part in self.parts
            if part.fold.opens or not part.fold.inside
        )

    def samples(self) -> dict[str, dict[str, list[ShownSample]]]:
        """By the row and column of their cell."""
        return {part.id: _by_cell(part.group) for part in self.parts}

    def grids(self) -> tuple[HeatmapGroup, ...]:
        """All of them."""
        return self.groups

    def script(self) -> list[dict[str, Any]]:
        """What the lists of lengths and depths offer."""
        return [
            {
                "id": part.id,
                "rows": part.panels[0].row_labels if part.panels else [],
                "columns": part.panels[0].column_labels if part.panels else [],
            }
            for part in self.parts
        ]


def build(material: Material) -> Heatmaps | None:
    """The tasks whose samples all have a length and a depth."""
    listed = [task for task, _ in material.outline if task in material.tasks]
    groups = tuple(
        _group(task, material, grids)
        for task in listed
        if (grids := material.figures.grids(task)) is not None
    )
    tops = tuple(material.tops.get(group.task, "") for group in groups)
    return Heatmaps(groups=groups, tops=tops) if groups else None


def _by_cell(group: HeatmapGroup) -> dict[str, list[ShownSample]]:
    cells: dict[str, list[ShownSample]] = {}
    for sample in group.samples:
        if sample.length is not None and sample.depth is not None:  # the group has checked it
            key = f"{group.depths.index(sample.depth)},{group.lengths.index(sample.length)}"
            cells.setdefault(key, []).append(sample)
    return cells


def _group(task: str, material: Material, grids: Mapping[str, Grid]) -> HeatmapGroup:
    figures = material.figures
    metric, filter_name = figures.metrics(task)[0]
    places = {place for grid in grids.values() for place in grid}
    lengths = tuple(sorted({length for length, _ in places}))
    binary, unit = figures.shape(task, metric, filter_name)
    percent = unit == "points"
    row = figures.row(task, metric, filter_name)
    maps = []
    for label, grid in grids.items():
        cells = []
        for (length, depth), inside in sorted(grid.items()):
            values = finite(document_scores(inside, metric).values())
            if len(values):
                found = figures.estimate(values, task, metric, filter_name, _CELL_RESAMPLES)
                cells.append(_cell(length, depth, found.mean, found.interval, len(values)))
        maps.append(ModelMap(model=label, cells=tuple(cells)))
    compared = {pair.candidate for pair in row.comparisons}
    differences = [
        DifferenceMap(
            candidate=candidate,
            baseline=baseline,
            cells=tuple(
                _difference_cells(
                    grids[candidate],
                    grids[baseline],
                    metric,
                    binary=binary,
                    bounds=(-1.0, 1.0) if percent else None,
                    confidence=figures.confidence,
                )
            ),
        )
        for candidate, baseline in figures.pairs
        if candidate in compared
    ]
    return HeatmapGroup(
        task=task,
        lengths=lengths,
        depths=tuple(sorted({depth for _, depth in places})),
        maps=tuple(maps),
        differences=tuple(differences),
        by_length=tuple(figures.by_length(task, metric, filter_name, lengths)),
        samples=side_by_side(task, material.models, (metric, filter_name)),
        description=figures.description(task),
        protocol=figures.protocol(task),
        percent=percent,
        unit="" if percent else named_unit(metric),
        higher_is_better=row.higher_is_better,
    )


def _difference_cells(
    candidate: Grid,
    baseline: Grid,
    metric: str,
    *,
    binary: bool,
    bounds: tuple[float, float] | None,
    confidence: float,
) -> Iterable[Cell]:
    for place in sorted(candidate.keys() & baseline.keys()):
        a, b = (document_scores(grid[place], metric) for grid in (candidate, baseline))
        shared = [doc for doc in b if doc in a]
        values = finite(a[doc] - b[doc] for doc in shared)
        if not len(values):
            continue
        if binary:
            wins, losses = int((values > 0).sum()), int((values < 0).sum())
            interval: Interval | None = tango(wins, losses, len(values), confidence)
        else:
            rng = np.random.default_rng([0, *map(int, place)])
            interval = bootstrap(values, confidence, resamples=_CELL_RESAMPLES, rng=rng, bounds=bounds)
        yield _cell(*place, float(values.mean()), interval, len(values))


def _cell(length: int, depth: float, value: float, interval: Interval | None, n: int) -> Cell:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Cell(length=length, depth=depth, value=value, low=low, high=high, n=n)


SECTION = Section(title="Heatmaps", order=30, build=build)
