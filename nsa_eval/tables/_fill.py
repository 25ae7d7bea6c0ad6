"""A layout's cells: the run's own scores with intervals, means over columns, published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pydantic import ValidationError

from nsa_eval.config import ColumnSpec, TableSpec
from nsa_eval.material import Material
from nsa_eval.results import Origin
from nsa_reports import ShownScore


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledCell:
    """One figure."""

    value: float
    """In the table's scale: 93.1 or 0.931."""
    low: float | None = None
    """Ends of its interval; None where none is known, as of means and of published figures."""
    high: float | None = None
    n: int | None = None
    """Documents behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledColumn:
    """One column."""

    title: str
    group: str
    """Over it and its neighbours; empty for none."""
    metric: str
    """The metric shown, or what a mean is of."""
    n: str
    """Documents: one number, or a range where the models' differ."""
    origin: Origin
    """Protocol, data and truncation; empty for a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledRow:
    """One row."""

    name: str
    source: str
    """Who published it; empty for the run's own."""
    cells: tuple[FilledCell | None, ...]
    """One per column; None where there is no figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledTable:
    """A table, ready to be written."""

    name: str
    title: str
    columns: tuple[FilledColumn, ...]
    rows: tuple[FilledRow, ...]
    """The run's own first, then those that others published, block by block."""
    digits: int
    intervals: bool
    confidence: float

    @property
    def own(self) -> tuple[FilledRow, ...]:
        """The run's rows."""
        return tuple(row for row in self.rows if not row.source)

    @property
    def reported(self) -> tuple[tuple[str, tuple[FilledRow, ...]], ...]:
        """Published rows by their source."""
        rest = [row for row in self.rows if row.source]
        return tuple((source, tuple(rows)) for source, rows in groupby(rest, key=lambda row: row.source))

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """What stands over the columns, and over how many; nothing where no column has a group."""
        spans = tuple(
            (group, len(list(run))) for group, run in groupby(column.group for column in self.columns)
        )
        return spans if any(group for group, _ in spans) else ()

    def text(self, cell: FilledCell | None) -> str:
        """A figure as it is written; a dash where there is none."""
        return "-" if cell is None else f"{cell.value:.{self.digits}f}"

    def interval(self, cell: FilledCell | None) -> str:
        """Its interval, or nothing."""
        if cell is None or not self.intervals or cell.low is None or cell.high is None:
            return ""
        return f"[{cell.low:.{self.digits}f}, {cell.high:.{self.digits}f}]"


def fill_tables(material: Material) -> tuple[FilledTable, ...]:
    """Fill in every table that a run's config lays out.

    Args:
        material: The run; its config names the tables.
    """
    section = material.run_config.get("report")
    listed = section.get("tables") if isinstance(section, dict) else None
    found = []
    for entry in listed if isinstance(listed, list) else ():
        try:
            found.append(_fill(TableSpec.model_validate(entry), material))
        except ValidationError:  # written by another version
            continue
    return tuple(found)


def _fill(table: TableSpec, material: Material) -> FilledTable:
    labels = list(material.models)
    shown = [(row.model, row.header or row.model) for row in table.rows if row.model in labels]
    shown = shown if table.rows else [(label, label) for label in labels]
    columns: list[FilledColumn] = []
    by_model: dict[str, list[FilledCell | None]] = {label: [] for label in labels}
    shares: list[bool | None] = []
    for i, column in enumerate(table.columns):
        before = table.columns[:i]
        if column.mean is not None:
            picked = _averaged(column, before)
            # A mean of scores and perplexities would be nothing.
            alike = len({shares[at] for at in picked}) == 1
            for row in by_model.values():
                row.append(_mean([row[at] for at in picked]) if alike else None)
            shares.append(None)
            names = ", ".join(before[at].title for at in picked)
            columns.append(_column(column, metric=f"mean of {names}", cells=(), origin=Origin()))
            continue
        metric, scores, percent = _scores(column, material)
        shares.append(percent)
        factor = 100.0 if percent and table.scale == "points" else 1.0
        filled = [None if score is None else _cell(score, factor) for score in scores]
        for label, cell in zip(labels, filled, strict=True):
            by_model[label].append(cell)
        origin = material.figures.origin(str(column.task))
        columns.append(_column(column, metric=metric, cells=filled, origin=origin))
    own = [FilledRow(name=name, source="", cells=tuple(by_model[label])) for label, name in shown]
    return FilledTable(
        name=table.name,
        title=table.title or table.name,
        columns=tuple(columns),
        rows=(*own, *_reported(table)),
        digits=table.digits if table.digits is not None else (1 if table.scale == "points" else 3),
        intervals=table.intervals,
        confidence=material.figures.confidence,
    )


def _reported(table: TableSpec) -> list[FilledRow]:
    """Figures as they were published: none is worked out from others."""
    return [
        FilledRow(
            name=row.name,
            source=block.source,
            cells=tuple(
                FilledCell(value=row.values[column.title]) if column.title in row.values else None
                for column in table.columns
            ),
        )
        for block in table.reported
        for row in block.rows
    ]


def _scores(column: ColumnSpec, material: Material) -> tuple[str, Sequence[ShownScore | None], bool]:
    """The metric's name, each model's score, and whether it is a share of 1."""
    figures, task = material.figures, str(column.task)
    nothing = ("", [None] * len(material.models), True)
    wanted = [
        (metric, filter_name)
        for metric, filter_name in figures.metrics(task)
        if column.metric in (None, metric, f"{metric},{filter_name}")
    ]
    if not wanted:
        return nothing
    row = figures.row(task, *wanted[0])
    if column.length is None:
        return row.metric, row.scores, row.percent
    [at] = figures.by_length(task, *wanted[0], [column.length])
    return row.metric, at.scores, row.percent


def _cell(score: ShownScore, factor: float) -> FilledCell:
    low, high = (None if end is None else end * factor for end in (score.low, score.high))
    return FilledCell(value=score.value * factor, low=low, high=high, n=score.n)


def _column(
    column: ColumnSpec, *, metric: str, cells: Sequence[FilledCell | None], origin: Origin
) -> FilledColumn:
    counts = sorted({cell.n for cell in cells if cell is not None and cell.n is not None})
    n = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return FilledColumn(title=column.title, group=column.group or "", metric=metric, n=n, origin=origin)


def _averaged(column: ColumnSpec, before: Sequence[ColumnSpec]) -> list[int]:
    """The columns that a mean is of."""
    if column.mean == "all":
        return [at for at, other in enumerate(before) if other.mean is None]
    return [at for at, other in enumerate(before) if other.title in (column.mean or ())]


def _mean(cells: Sequence[FilledCell | None]) -> FilledCell | None:
    """The mean; none where a figure is missing, since the mean of the others is that of another suite."""
    values = [cell.value for cell in cells if cell is not None]
    return FilledCell(value=sum(values) / len(values)) if values and len(values) == len(cells) else None
