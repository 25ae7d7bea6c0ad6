"""Grids of a needle task laid out once: the page and the paper figures both read these."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from nsa_reports import _colours
from nsa_reports import _format as fmt
from nsa_reports.view import Cell, HeatmapGroup


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One heatmap: rows are depths (first = top), columns are lengths; None where no cell is known."""

    title: str
    """Short enough for a heading."""
    full_title: str
    is_difference: bool
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    matrix: tuple[tuple[Cell | None, ...], ...]
    limit: float
    """Half-width of the colour scale of a difference; 1 for scores."""

    @property
    def row_labels(self) -> list[str]:
        """The depths, as they are read: `50 %`."""
        return [f"{fmt.depth(depth)} %" for depth in self.depths]

    @property
    def column_labels(self) -> list[str]:
        """The lengths, as they are read: `64k`."""
        return [fmt.tokens(length) for length in self.lengths]

    def colour(self, value: float) -> str:
        """Where a value stands on the colour map, as a colour."""
        share = (value / self.limit + 1) / 2 if self.is_difference else value
        return _colours.colour_at(self.colours, share)

    def ink(self, value: float) -> str:
        """The colour of the text in a cell of that value."""
        return _colours.ink_on(self.colour(value))

    def cell_style(self, cell: Cell) -> str:
        """Ground and text of a cell that has a value, as CSS."""
        assert cell.value is not None, "blank cells have no colour"
        return f"background:{self.colour(cell.value)};color:{self.ink(cell.value)}"

    @property
    def has_blanks(self) -> bool:
        """Whether a cell of it is unknown."""
        return any(self.cell_text(cell) == "" for row in self.matrix for cell in row)

    @property
    def colours(self) -> tuple[str, ...]:
        """The stops of this panel's colour map."""
        return _colours.DIFFERENCE if self.is_difference else _colours.SCORE

    def cell_text(self, cell: Cell | None) -> str:
        """What is printed inside a cell: whole percent, blank when missing."""
        value = None if cell is None else fmt.finite(cell.value)
        if value is None:
            return ""
        text = f"{100 * value:+.0f}" if self.is_difference else f"{100 * value:.0f}"
        return ("0" if float(text) == 0 else text).replace("-", fmt.MINUS)

    def cell_label(self, cell: Cell | None) -> str:
        """Score or difference in full with its interval and count, for hovers and screen readers."""
        value = None if cell is None else fmt.finite(cell.value)
        if cell is None or value is None:
            return "no result"
        shown = fmt.difference(value) if self.is_difference else fmt.score(value)
        ends = fmt.interval(cell.low, cell.high, signed=self.is_difference)
        number = "" if cell.n is None else f"n = {cell.n:,}"
        return ", ".join(part for part in (f"{shown} {ends}".strip(), number) if part)


def _matrix(
    cells: Sequence[Cell], lengths: Sequence[int], depths: Sequence[float]
) -> tuple[tuple[Cell | None, ...], ...]:
    known = {(cell.length, cell.depth): cell for cell in cells}
    return tuple(tuple(known.get((length, depth)) for length in lengths) for depth in depths)


def difference_limit(groups: Sequence[HeatmapGroup]) -> float:
    """One half-width for all difference maps of these groups, so that their colours can be compared.

    The largest difference rounded up to 10 points, and at least 20: smaller ones are mostly noise at the
    usual handful of samples per cell, and should not be drawn in full colour.
    """
    values = [
        abs(cell.value)
        for group in groups
        for grid in group.differences
        for cell in grid.cells
        if cell.value is not None and math.isfinite(cell.value)
    ]
    return max(0.2, math.ceil(round(10 * max(values, default=0.0), 6)) / 10)


def panels_of(group: HeatmapGroup, limit: float) -> tuple[Panel, ...]:
    """Panels of one task: the models' in the order given, then the differences."""
    pairs = [name for grid in group.differences for name in (grid.candidate, grid.baseline)]
    short = fmt.short_names([*(grid.model for grid in group.maps), *pairs])
    scores = [
        Panel(
            title=short[grid.model],
            full_title=grid.model,
            is_difference=False,
            lengths=group.lengths,
            depths=group.depths,
            matrix=_matrix(grid.cells, group.lengths, group.depths),
            limit=1.0,
        )
        for grid in group.maps
    ]
    differences = [
        Panel(
            title=f"{short[grid.candidate]} {fmt.MINUS} {short[grid.baseline]}",
            full_title=f"{grid.candidate} {fmt.MINUS} {grid.baseline}",
            is_difference=True,
            lengths=group.lengths,
            depths=group.depths,
            matrix=_matrix(grid.cells, group.lengths, group.depths),
            limit=limit,
        )
        for grid in group.differences
    ]
    return (*scores, *differences)
